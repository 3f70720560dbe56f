"""The statements that name the owner's relations: the view and the control table.

Names come from the settings and are quoted by the driver; values are always parameters. The statements of the ledger
alone are in ``ledger_sql``.
"""

from __future__ import annotations

from psycopg2 import sql

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.layout import Column, Layout
from pm_dagster.ledger.ledger_sql import ALIVE, CLAIMABLE
from pm_dagster.ledger.schema import LEDGER_SCHEMA, quoted

_ENTRY_COLUMNS = """e.entry_id, e.run_id, e.generation, e.branch, e.state, e.job_id, e.previous_run_id, e.parameters,
    e.idempotency_token, e.fresh_run, e.sent_repair_id, e.attempts, e.ambiguous, e.intent_at"""

#: Rows that others have taken are left out, so that their closing, which skips locked rows, does not find them locked.
_LOCK_WAITING = """
WITH {alive}
SELECT v.{run_id} AS run_id FROM {table} v
WHERE v.{run_id} = ANY(%(run_ids)s) AND v.{status} = %(waiting)s AND {not_taken}
ORDER BY v.{run_id} FOR NO KEY UPDATE OF v SKIP LOCKED"""
_LOCK_ROWS = """
SELECT t.{run_id} AS run_id, t.{status}::text AS status, coalesce(t.{status} = %(waiting)s, false) AS waits,
       {run} AS run
FROM {table} t WHERE t.{run_id} = ANY(%(run_ids)s)
ORDER BY t.{run_id} FOR NO KEY UPDATE SKIP LOCKED"""
_WAITING_STILL = """
SELECT t.{run_id} AS run_id FROM {table} t WHERE t.{run_id} = ANY(%(run_ids)s) AND t.{status} = %(waiting)s"""
_ENTRIES = """
SELECT {entry}, EXISTS (
    SELECT 1 FROM {table} t WHERE t.{run_id} = e.run_id AND t.{status} = %(waiting)s) AS waiting, ARRAY(
    SELECT o.accepted_run_id FROM {ledger}.entry o
    WHERE o.control_table = e.control_table AND o.run_id = e.run_id AND o.generation < e.generation
      AND o.accepted_run_id IS NOT NULL) AS earlier_run_ids, (
    SELECT o.reason FROM {ledger}.entry o
    WHERE o.control_table = e.control_table AND o.run_id = e.run_id AND o.generation = e.generation - 1
      AND o.superseded) AS note
FROM {ledger}.entry e
WHERE e.entry_id = ANY(%(entry_ids)s) AND (e.dispatcher_id = %(me)s) IS TRUE ORDER BY e.entry_id"""
#: Commits intents with their events; gives the entries that may be sent.
_INTEND = """
WITH intent AS (
    SELECT * FROM jsonb_to_recordset(%(intents)s::jsonb) AS i(
        entry_id bigint, fresh_run boolean, latest_repair_id bigint, ambiguous boolean, detail text, place bigint)),
granted AS (
    UPDATE {ledger}.entry e
    SET state = 'SENDING', fresh_run = e.fresh_run OR i.fresh_run, sent_repair_id = i.latest_repair_id,
        intent_at = coalesce(e.intent_at, now()), updated_at = now()
    FROM intent i
    WHERE e.entry_id = i.entry_id AND e.entry_id = ANY(%(intended)s) AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE
      AND {may}
    RETURNING e.entry_id),
told AS (
    INSERT INTO {ledger}.event (entry_id, dispatcher_id, kind, detail)
    SELECT i.entry_id, %(me)s, 'intent', i.detail FROM intent i JOIN granted USING (entry_id) ORDER BY i.place)
SELECT entry_id FROM granted"""
#: The row waits and is as it was claimed: nothing else has to be looked at.
_UNTOUCHED = "e.state IN ('CLAIMED', 'SENDING') AND e.row_version = {version}"
_MAY_BE_SENT = """(e.state = 'SENDING' AND i.ambiguous OR e.state IN ('CLAIMED', 'SENDING') AND EXISTS (
        SELECT 1 FROM {table} t WHERE t.{run_id} = e.run_id AND t.{status} = %(waiting)s))
    AND NOT e.entry_id = ANY(%(corrected)s) AND (i.ambiguous OR NOT {touched})"""
#: The version of a row that waits. Without a key a table can hold several rows of one id.
_VERSION = """(SELECT string_agg({xmin}, ',' ORDER BY {xmin}) FROM {table} t
    WHERE t.{run_id} = e.run_id AND t.{status} = %(waiting)s)"""
#: Whether the waiting row of entry ``e`` was written since the claim.
_TOUCHED = "coalesce(e.row_version <> {version}, false)"
_VERSIONS = """
SELECT t.{run_id} AS run_id, string_agg({xmin}, ',' ORDER BY {xmin}) AS version
FROM {table} t WHERE t.{run_id} = ANY(%(run_ids)s) AND t.{status} = %(waiting)s GROUP BY t.{run_id}"""
#: Entries whose row may have been corrected: it was written since, or has no versions by which to tell.
_SUSPECTS = """
SELECT e.entry_id, e.row_version IS NOT NULL AS written, e.version FROM (
    SELECT e.entry_id, e.run_id, e.row_version, {version} AS version FROM {ledger}.entry e
    WHERE e.entry_id = ANY(%(entry_ids)s) AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE OFFSET 0) e
WHERE e.row_version <> e.version OR e.row_version IS NULL
    AND EXISTS (SELECT 1 FROM {table} t WHERE t.{run_id} = e.run_id AND t.{status} = %(waiting)s)"""
_WITHDRAW = """
UPDATE {ledger}.entry e SET state = 'WITHDRAWN', open = false, closed_at = now(), updated_at = now(),
    outcome = 'withdrawn', reason = 'the row left WAITING before anything was sent'
WHERE e.entry_id = ANY(%(entry_ids)s) AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE
  AND e.state IN ('CLAIMED', 'SENDING')
  AND NOT EXISTS (SELECT 1 FROM {table} t WHERE t.{run_id} = e.run_id AND t.{status} = %(waiting)s)
RETURNING e.entry_id"""
_CLOSED = """
SELECT e.entry_id, e.run_id, e.state, e.outcome, e.accepted_run_id, e.accepted_repair_id, e.page_url,
       coalesce(e.reason, '') AS reason, (SELECT t.{status}::text FROM {table} t WHERE t.{run_id} = e.run_id
                               ORDER BY t.{status} = %(waiting)s DESC LIMIT 1) AS control_status, e.superseded
FROM {ledger}.entry e
WHERE e.entry_id = ANY(%(entry_ids)s) AND (e.state IN ('SCHEDULED', 'QUARANTINED') OR e.superseded)
ORDER BY e.entry_id"""
#: Whether the control table itself says that row ``v`` of the view waits: by this comparison every write is guarded.
_WAITS = "EXISTS (SELECT 1 FROM {table} w WHERE w.{run_id} = v.{run_id} AND w.{status} = %(waiting)s)"
_LOCKED_FOR_US, _AS_THEY_ARE = sql.SQL("FOR NO KEY UPDATE OF t SKIP LOCKED"), sql.SQL("")
#: A numeric may be too long, broken or NaN.
_WHOLE = """coalesce(
    v.{run_id} BETWEEN -9223372036854775808 AND 9223372036854775807 AND v.{run_id} = trunc(v.{run_id}), false)"""
#: No entry of row ``v`` stands against taking it: no dispatch works on it, or is to come back to it. The planner makes
#: a join of a plain NOT EXISTS, and a nested loop of that while it believes that hardly any entry is open.
_NOT_TAKEN = """(EXISTS (
    SELECT 1 FROM {ledger}.entry e
    WHERE e.control_table = %(control_table)s AND e.run_id = v.{run_id} AND e.open AND NOT {claimable})) IS NOT TRUE"""
#: What ``untakeable`` decides by. The row that waits is shown, if there are several of one id.
_FACTS = """
SELECT v.{run_id} AS run_id, {has_place} AS has_place, coalesce(t.found, false) AS in_table, t.said::text AS status,
       coalesce(t.said = %(waiting)s, false) AS waits, {view_says} AS view_status, {said} AS view_waits, EXISTS (
           SELECT 1 FROM {ledger}.entry e
           WHERE e.control_table = %(control_table)s AND e.run_id = v.{run_id}) AS known
FROM {view} v LEFT JOIN LATERAL (
    SELECT true AS found, f.{status} AS said FROM {table} f WHERE f.{run_id} = v.{run_id}
    ORDER BY f.{status} = %(waiting)s DESC NULLS LAST LIMIT 1) t ON true"""
#: Rows that may be locked by us. A key-share lock is in nobody's way but a deletion's, and still asks row security
#: whether we may change the row: https://www.postgresql.org/docs/current/sql-createpolicy.html
_CHANGEABLE = """
SELECT t.{run_id} AS run_id FROM {table} t WHERE t.{run_id} = ANY(%(run_ids)s) AND t.{status} = %(waiting)s
{lock} SKIP LOCKED"""
_CONTROL_ROW = """
SELECT t.*, coalesce(t.{status} = %(waiting)s, false) FROM {table} t WHERE t.{run_id} = %(run_id)s
ORDER BY t.{status} = %(waiting)s DESC NULLS LAST LIMIT 1"""
_LOCKED_ANSWERS = """
WITH due AS (
    SELECT e.run_id FROM {ledger}.entry e
    WHERE e.open AND {left_behind} AND e.state <> 'SENDING' LIMIT %(limit)s),
free AS (
    SELECT t.{run_id} AS run_id FROM {table} t WHERE t.{run_id} IN (SELECT run_id FROM due)
    FOR NO KEY UPDATE SKIP LOCKED)
SELECT count(*) AS locked FROM due
WHERE EXISTS (SELECT 1 FROM {table} t WHERE t.{run_id} = due.run_id) AND due.run_id NOT IN (SELECT run_id FROM free)"""
#: Whether row security is active for us on the control table, and whether we may lock its rows at all.
_MAY = """
SELECT row_security_active(c.oid) AS row_security, has_any_column_privilege(c.oid, 'UPDATE')
       AND c.relkind IN ('r', 'p', 'v') AND current_setting('transaction_read_only') = 'off' AS lockable
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s"""
_LEFT_BEHIND = """e.control_table = %(control_table)s AND (e.state IN ('SENDING', 'ACCEPTED')
    OR e.state = 'QUARANTINED' AND EXISTS (SELECT 1 FROM {table} t WHERE t.{run_id} = e.run_id))"""

#: So many rows that have no place in the ledger are told in a pass, beside those that it takes.
MOST_WITHOUT_PLACE = 20

#: The types whose values the driver gives back unchanged, or as text where Python cannot hold them (``connection``).
#: Python's times end before Postgres' do, its JSON forgets how a number was written, a range is no range any more.
_HELD_AS_IT_IS = frozenset({
    "smallint", "integer", "bigint", "numeric", "real", "double precision", "boolean", "text", "character varying",
    "character", "name", "timestamp without time zone", "timestamp with time zone", "date",
})  # fmt: skip


_WITHOUT_ZONE = ("timestamp without time zone", "date")


class ControlTableStatements:
    """The statements that name the owner's relations, built once per connection."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        self._layout = layout
        self._names = {
            "ledger": quoted(LEDGER_SCHEMA),
            "view": quoted(settings.schema, settings.wait_view),
            "table": quoted(settings.schema, settings.run_table),
            "run_id": quoted(settings.column_run_id),
            "status": _compared(settings.column_status, layout.table.get(settings.column_status)),
            "view_status": _compared(settings.column_status, layout.view.get(settings.column_status)),
            "alive": sql.SQL(ALIVE),
            "entry": sql.SQL(_ENTRY_COLUMNS),
        }
        self.lock_waiting = self._build(_LOCK_WAITING, not_taken=self._not_taken())
        self.lock_rows = self._build(
            _LOCK_ROWS,
            run=self._run_named(),
        )
        self.waiting_still = self._build(_WAITING_STILL)
        self.existing = self._build("SELECT t.{run_id} AS run_id FROM {table} t WHERE t.{run_id} = ANY(%(run_ids)s)")
        self.entries = self._build(_ENTRIES)
        self.rescue = self._take(_LEFT_BEHIND)
        self.resume = self._take("e.entry_id = ANY(%(entry_ids)s)")
        # Other kinds of relations than tables have no versions of their rows.
        self._names["xmin"] = sql.SQL("t.xmin::text" if layout.has_row_versions else "NULL::text")
        version = self._build(_VERSION)
        self.versions = self._build(_VERSIONS)
        self.suspects = self._build(_SUSPECTS, version=version)
        self.intend = self._build(
            _INTEND, may=self._build(_MAY_BE_SENT, touched=self._build(_TOUCHED, version=version))
        )
        self.intend_untouched = self._build(_INTEND, may=self._build(_UNTOUCHED, version=version))
        self.withdraw = self._build(_WITHDRAW)
        self.waiting = self._waiting()
        self.waiting_ids = self._waiting(whole=False)
        self.next, self.next_ids = self._next(), self._next(whole=False)
        self.current = self._build("{rows} WHERE v.{run_id} = ANY(%(run_ids)s)", rows=self._rows())
        self.current_ids = self._build("{rows} WHERE v.{run_id} = ANY(%(run_ids)s)", rows=self._rows(whole=False))
        self.backlog = self._backlog()
        self.has_work = self._has_work()
        self.lockable = self._candidates(_LOCKED_FOR_US)
        self.changeable_some = self._candidates(sql.SQL("FOR KEY SHARE OF t SKIP LOCKED"))
        self.candidates = self._candidates(_AS_THEY_ARE)
        self.changeable = self._build(_CHANGEABLE, lock=sql.SQL("FOR KEY SHARE"))
        self.unlocked = self._build(_CHANGEABLE, lock=sql.SQL("FOR NO KEY UPDATE"))
        self.locked_answers = self._build(_LOCKED_ANSWERS, left_behind=self._build(_LEFT_BEHIND))
        self.may = sql.SQL(_MAY)
        self.untakeable = self._untakeable()
        self.facts = self._build(
            "{facts} WHERE v.{run_id} = ANY(%(run_ids)s) AND ({shown} OR {waits})",
            facts=self._facts(),
            shown=self._shown(),
            waits=self._build(_WAITS),
        )
        self.control_row = self._build(_CONTROL_ROW)
        self.write_rows = self._write_rows(whole=True)
        self.write_bare = self._write_rows(whole=False)
        self.closed = self._build(_CLOSED)

    def _build(self, text: str, **more: sql.Composable) -> sql.Composed:
        return sql.SQL(text).format(**{**self._names, **more})

    def _take(self, which: str) -> sql.Composed:
        """Makes entries ours that are nobody's: those of dispatchers that do not live any more."""
        return self._build(
            """
            WITH {alive}, picked AS (
                SELECT e.entry_id FROM {ledger}.entry e
                WHERE e.open AND {which}
                  AND (e.dispatcher_id = %(me)s OR e.dispatcher_id IS NULL
                       OR e.dispatcher_id NOT IN (SELECT dispatcher_id FROM alive))
                  AND coalesce(e.not_before <= now(), true)
                ORDER BY e.entry_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
            UPDATE {ledger}.entry e SET dispatcher_id = %(me)s, updated_at = now() FROM picked, {ledger}.entry before
            WHERE e.entry_id = picked.entry_id AND before.entry_id = e.entry_id
            RETURNING e.entry_id, before.dispatcher_id AS owner""",
            which=self._build(which),
        )

    def _run_named(self) -> sql.Composable:
        """The Databricks run that the control table names, as text."""
        column = self._settings.column_job_run_id
        known = self._layout.writable(column)
        return sql.SQL("t.{}::text").format(quoted(column)) if known else sql.SQL("NULL::text")

    def _has_place(self) -> sql.Composed:
        """Whether the ledger can hold the run id of row ``v``: it must be there, and a 64-bit integer."""
        numeric = self._layout.view[self._settings.column_run_id].base == "numeric"
        return self._build(_WHOLE if numeric else "v.{run_id} IS NOT NULL")

    def _said(self) -> sql.Composed:
        """Whether the view says that row ``v`` waits; one without the status shows no other rows."""
        return self._build("coalesce(v.{view_status} = %(waiting)s, false)" if self._layout.view_has_status else "true")

    def _shown(self) -> sql.Composed:
        """Whether a person would say that the view shows row ``v`` as waiting."""
        if not self._layout.view_has_status:
            return self._build("true")
        return self._build(
            "({said} OR upper(btrim(v.{view_status}::text, {blanks})) = upper(btrim(%(waiting)s, {blanks})))",
            said=self._said(),
            blanks=sql.Literal(" \t\r\n\xa0"),
        )

    def _free(self) -> sql.Composed:
        """Rows ``v`` of the view that a dispatch may take: view and table say so, and nobody has them.

        This is the one condition for what waits; only the row's lock is left to be had. ``t`` is joined by ``_joined``.
        """
        return self._build(
            "{said} AND {has_place} AND {waits} AND {not_taken}",
            said=self._build("v.{view_status} = %(waiting)s") if self._layout.view_has_status else sql.SQL("true"),
            has_place=self._has_place(),
            waits=self._build("t.{run_id} IS NOT NULL") if self._layout.one_row_per_id else self._build(_WAITS),
            not_taken=self._not_taken(),
        )

    def _joined(self) -> sql.Composed:
        """The join of the table's row ``t`` to row ``v`` of the view, for ``_free``.

        Where a key keeps the table to one row an id, only its rows that wait are joined: few, and found by the owner's
        index on the status. Without a key all rows of the id count, those that do not wait beside the one that does.
        """
        waits = self._build("AND t.{status} = %(waiting)s") if self._layout.one_row_per_id else sql.SQL("")
        return self._build("JOIN {table} t ON t.{run_id} = v.{run_id} {waits}", waits=waits)

    def _not_taken(self) -> sql.Composed:
        return self._build(_NOT_TAKEN, claimable=sql.SQL(CLAIMABLE))

    def _order(self) -> sql.Composed:
        column = self._settings.column_order
        if not column:
            return self._build("NULL::timestamptz")
        return sql.SQL("{}.{}").format(sql.SQL("v" if self._layout.order_in_view else "t"), quoted(column))

    def _order_value(self) -> sql.Composed:
        column = self._settings.column_order
        found = (self._layout.view if self._layout.order_in_view else self._layout.table).get(column)
        if found is None:
            return self._order()
        return self._moment() if found.base in _WITHOUT_ZONE else _value(self._order(), found)

    def _moment(self) -> sql.Composed:
        """The time of arrival, of a type without a zone, as the moment that it stands for.

        In PM_TIME_ZONE, else in the session's zone, in which Postgres itself takes such a time for a moment. What
        Python could not hold becomes infinite, as the sum with a zone could leave what Postgres can hold.
        """
        zone = self._settings.time_zone
        moment = "{order}::timestamp AT TIME ZONE {zone}" if zone else "{order}::timestamptz"
        return self._build(
            "CASE WHEN {order} < '0001-01-03' THEN '-infinity' WHEN {order} > '9999-12-29' THEN 'infinity' ELSE "
            + moment
            + " END",
            order=self._order(),
            zone=sql.Literal(zone),
        )

    def _rows(self, *, whole: bool = True, beside: sql.Composable | None = None) -> sql.Composed:
        """The view's rows as ``raw_row`` reads them, to be followed by a condition; if not ``whole``, less values.

        ``beside`` joins the table's row ``t``; all rows of the view are kept without it.
        """
        columns = [self._settings.column_job_id, self._settings.column_job_run_id]
        columns += [column for _, column in self._settings.job_parameters]
        # Named by us: the same column of the view may stand for several of ours.
        names = ["job_id", "job_run_id", *parameter_names(self._settings)]
        values = [
            sql.SQL("{} AS {}").format(
                _value(self._build("v.{c}", c=quoted(column)), self._layout.view[column]), sql.Identifier(name)
            )
            for name, column in zip(names, columns, strict=True)
        ]
        order = sql.SQL("{} AS arrived").format(self._order_value())
        return self._build(
            """
            SELECT v.{run_id} AS run_id, t.{run_id} IS NOT NULL AS in_table, {columns}
            FROM {view} v {beside}""",
            columns=sql.SQL(", ").join([order, *(values if whole else [])]),
            beside=beside or self._build("LEFT JOIN {table} t ON t.{run_id} = v.{run_id}"),
        )

    def _oldest(self, rows: sql.Composable, more: sql.Composable) -> sql.Composed:
        """The oldest of the free rows, in the order in which they are dispatched; ``more`` may narrow them."""
        return self._build(
            """
            {rows}
            WHERE {free} {more}
            ORDER BY EXISTS (
                SELECT 1 FROM {ledger}.entry e WHERE e.control_table = %(control_table)s
                    AND e.run_id = v.{run_id} AND e.open AND e.state = 'DEFERRED'),
                {order} NULLS LAST, v.{run_id} LIMIT %(limit)s""",
            rows=rows,
            more=more,
            order=self._order(),
            free=self._free(),
        )

    def _waiting(self, *, whole: bool = True) -> sql.Composed:
        """The oldest rows, and beside them a few whose run id the ledger cannot hold: they are told, not taken."""
        return self._build(
            """
            WITH {alive}, oldest AS ({oldest})
            SELECT * FROM oldest
            UNION ALL (
                {rows} WHERE {said} AND NOT {has_place} AND %(limit)s > 0 LIMIT {most})""",
            oldest=self._oldest(self._rows(whole=whole, beside=self._joined()), sql.SQL("")),
            rows=self._rows(whole=whole),
            said=self._said(),
            has_place=self._has_place(),
            most=sql.Literal(MOST_WITHOUT_PLACE),
        )

    def _next(self, *, whole: bool = True) -> sql.Composed:
        """The oldest rows that were not seen yet. None is locked: two that read on would hide rows from each other."""
        return self._build(
            "WITH {alive} {oldest}",
            oldest=self._oldest(
                self._rows(whole=whole, beside=self._joined()),
                self._build(
                    "AND NOT EXISTS (SELECT 1 FROM unnest(%(seen)s::bigint[]) AS s(run_id) WHERE s.run_id = v.{run_id})"
                ),
            ),
        )

    def _candidates(self, lock: sql.SQL) -> sql.Composed:
        """Ids of free rows, in no order; with a lock only of those that can be locked so."""
        return self._build(
            "WITH {alive} SELECT t.{run_id} AS run_id FROM {view} v {joined}"
            " WHERE t.{status} = %(waiting)s AND {free} LIMIT %(limit)s {lock}",
            joined=self._joined(),
            free=self._free(),
            lock=lock,
        )

    def _facts(self) -> sql.Composed:
        has_status = self._layout.view_has_status
        return self._build(
            _FACTS,
            has_place=self._has_place(),
            said=self._said(),
            view_says=self._build("v.{view_status}::text") if has_status else sql.SQL("NULL::text"),
        )

    def _not_takeable(self) -> sql.Composed:
        """Rows ``v`` that the view shows as waiting, that no dispatch works on, and that none can take."""
        return self._build(
            "{shown} AND NOT ({said} AND {has_place} AND {waits}) AND {not_taken}",
            shown=self._shown(),
            said=self._said(),
            has_place=self._has_place(),
            waits=self._build(_WAITS),
            not_taken=self._not_taken(),
        )

    def _untakeable(self) -> sql.Composed:
        return self._build(
            "WITH {alive} {facts} WHERE {condition} ORDER BY v.{run_id} NULLS FIRST LIMIT %(limit)s",
            facts=self._facts(),
            condition=self._not_takeable(),
        )

    def _backlog(self) -> sql.Composed:
        age = self._build(
            "extract(epoch FROM now() - min({order}) FILTER (WHERE isfinite({order})))", order=self._order_value()
        )
        return self._build(
            """
            WITH {alive}, free AS (
                SELECT count(*) AS rows, {age} AS oldest
                FROM {view} v {joined}
                WHERE {free}),
            stuck AS (SELECT count(*) AS rows FROM {view} v WHERE {not_takeable}),
            held AS (
                SELECT count(*) FILTER (WHERE e.state = 'DEFERRED' AND e.not_before > now()) AS backing_off,
                       count(*) FILTER (WHERE e.state = 'QUARANTINED') AS quarantined,
                       count(*) FILTER (WHERE e.dispatcher_id IN (SELECT dispatcher_id FROM alive)) AS in_hand,
                       count(*) FILTER (WHERE {left_behind}
                           AND coalesce(e.not_before <= now(), true)
                           AND e.dispatcher_id NOT IN (SELECT dispatcher_id FROM alive)) AS left_behind
                FROM {ledger}.entry e WHERE e.open AND e.control_table = %(control_table)s)
            SELECT free.rows AS free, free.oldest, held.backing_off, held.quarantined, held.in_hand, held.left_behind,
                   stuck.rows AS untakeable
            FROM free, held, stuck""",
            not_takeable=self._not_takeable(),
            age=age if self._layout.order_is_time else sql.SQL("NULL::double precision"),
            joined=self._joined(),
            free=self._free(),
            left_behind=self._build(_LEFT_BEHIND),
        )

    def _has_work(self) -> sql.Composed:
        return self._build(
            """
            WITH {alive}
            SELECT EXISTS (SELECT 1 FROM {view} v {joined} WHERE {free} LIMIT 1) OR EXISTS (
                SELECT 1 FROM {ledger}.entry e WHERE e.open AND {left_behind} AND coalesce(e.not_before <= now(), true)
                AND (%(ours)s AND e.dispatcher_id = %(me)s
                     OR e.dispatcher_id NOT IN (SELECT dispatcher_id FROM alive)))""",
            joined=self._joined(),
            free=self._free(),
            left_behind=self._build(_LEFT_BEHIND),
        )

    def _write_rows(self, *, whole: bool) -> sql.Composed:
        """Writes status and run, if ``whole`` also link and message."""
        settings, layout = self._settings, self._layout
        sets = [sql.SQL("{} = c.status").format(quoted(settings.column_status))]
        if layout.writable(settings.column_job_run_id):
            sets.append(sql.SQL("{0} = coalesce(c.run, t.{0})").format(quoted(settings.column_job_run_id)))
        link = layout.writable(settings.column_page_url)
        if link and whole:
            # Half a link is worse than none.
            fits = sql.SQL("CASE WHEN length(c.url) <= {} THEN c.url END").format(sql.Literal(link.limit or 10_000))
            page_url = quoted(settings.column_page_url)
            sets.append(sql.SQL("{0} = coalesce({1}, t.{0})").format(page_url, fits))
        for name in settings.columns_message if whole else ():
            column = layout.writable(name)
            if column:
                message = sql.SQL("left(c.message, {})").format(sql.Literal(column.limit or 10_000))
                if column.required:
                    message = sql.SQL("coalesce({}, '')").format(message)
                sets.append(sql.SQL("{} = {}").format(quoted(name), message))
        return self._build(
            """
            UPDATE {table} t SET {sets}
            FROM jsonb_to_recordset(%(rows)s::jsonb) AS c(
                run_id bigint, status {status_type}, run {run_type}, url text, message text)
            WHERE t.{run_id} = c.run_id AND t.{status} = %(waiting)s""",
            sets=sql.SQL(", ").join(sets),
            status_type=_type(layout.writable(settings.column_status), "text"),
            run_type=_type(layout.writable(settings.column_job_run_id), "bigint"),
        )


def parameter_names(settings: Settings) -> list[str]:
    """What the columns of the job parameters are called in the rows that wait."""
    return [f"parameter_{number}" for number, _ in enumerate(settings.job_parameters)]


def _compared(name: str, column: Column | None) -> sql.Composable:
    """The status column as it is compared: Postgres finds no operator for a domain over an enumeration."""
    if column is None or not column.labels or column.type == column.base:
        return quoted(name)
    return sql.SQL("{}::{}").format(quoted(name), _type(column, "text"))


def _value(expression: sql.Composable, column: Column) -> sql.Composed:
    """The value as the driver can hold it: one of a type for which Python has another range or form comes as text."""
    return sql.SQL("{}" if column.base in _HELD_AS_IT_IS else "{}::text").format(expression)


def _type(column: Column | None, default: str) -> sql.SQL:
    """The type to hand a value over as, so that it fits the owner's column: an enumeration takes no text.

    Its words are the catalog's own, quoted by the server. Not a domain, which may demand that there is a value.
    """
    if column is None:
        return sql.SQL(default)
    # Without their length, which the catalog does not give here, these would cut the value.
    characters = column.base.startswith("character") or column.base == "name"
    return sql.SQL("text" if characters else column.base.replace("%", "%%"))
