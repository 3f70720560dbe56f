"""The statements that touch the ledger alone, and the records that go in and come out of it.

Their text is fixed, values are always parameters. Rows travel as one JSON parameter (``jsonb_to_recordset``), so a
batch is one statement. The statements that name the owner's relations are in ``control_table_sql``.

A statement about certain entries has their ids as an array, and asks ``(dispatcher_id = me AND open) IS TRUE``, which
no index answers. Else the planner, whose statistics do not know a dispatcher that just claimed its rows, reads all of
its entries, or all open ones, in each round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg2 import extensions
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.dispatch.in_doubt import is_in_doubt, rescued
from pm_dagster.dispatch.model import Entry, EntryState, KnownRun, Outcome, TokenSubject
from pm_dagster.dispatch.ports import Change, Closed, Event
from pm_dagster.dispatch.waiting_job import Branch, RefusedRow, WaitingJob
from pm_dagster.ledger.connection import LOCAL_SETTINGS
from pm_dagster.ledger.schema import LEDGER_SCHEMA, LOCK_CLASS, RUN_LOCK_CLASS

#: Gives no row when the write of this number is committed. Waits for one whose connection broke while it was being so.
BEGIN_WRITE = f"""{LOCAL_SETTINGS};
UPDATE {LEDGER_SCHEMA}.dispatcher SET writes = %(number)s, seen_at = clock_timestamp()
WHERE dispatcher_id = %(me)s AND writes < %(number)s RETURNING writes"""

#: Whoever hangs while the row is theirs loses it soon; whoever waits for it too long goes on without.
LOCK_BUDGET = f"""
SET LOCAL lock_timeout = '500ms';
SET LOCAL idle_in_transaction_session_timeout = '5s';
WITH locked AS MATERIALIZED (
    SELECT record FROM {LEDGER_SCHEMA}.api_budget WHERE workspace = %(workspace)s FOR UPDATE
)
SELECT record, extract(epoch FROM clock_timestamp()) AS seconds FROM locked"""
FIRST_BUDGET = f"""
INSERT INTO {LEDGER_SCHEMA}.api_budget AS b (workspace) VALUES (%(workspace)s)
ON CONFLICT (workspace) DO UPDATE SET updated_at = clock_timestamp()
RETURNING b.record, extract(epoch FROM clock_timestamp()) AS seconds"""
WRITE_BUDGET = f"""
UPDATE {LEDGER_SCHEMA}.api_budget SET record = %(record)s, updated_at = clock_timestamp()
WHERE workspace = %(workspace)s"""

#: Whether dispatcher ``d`` lives: pg_locks shows every session's locks to everybody.
DISPATCHER_LIVES = f"""(d.ended_at IS NULL AND CASE d.liveness
        WHEN 'lease' THEN coalesce(d.lease_until > clock_timestamp(), false)
        ELSE EXISTS (
            SELECT 1 FROM pg_catalog.pg_locks l
            WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {LOCK_CLASS} AND l.objsubid = 2
              AND l.objid::bigint = d.dispatcher_id
              AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
        END)"""
ALIVE = f"alive AS (SELECT d.dispatcher_id FROM {LEDGER_SCHEMA}.dispatcher d WHERE {DISPATCHER_LIVES})"
#: Whether open entry ``e`` may be claimed: its pause is over, or nobody who lives holds it but us.
CLAIMABLE = """(e.state = 'DEFERRED' AND coalesce(e.not_before <= now(), true)
                   OR e.state = 'CLAIMED' AND (e.dispatcher_id = %(me)s
                       OR e.dispatcher_id NOT IN (SELECT dispatcher_id FROM alive)))"""

ENVIRONMENT = f"SELECT environment::text FROM {LEDGER_SCHEMA}.identity"
NEXT_DISPATCHER = f"SELECT nextval(pg_get_serial_sequence('{LEDGER_SCHEMA}.dispatcher', 'dispatcher_id'))"
LOCK_DISPATCHER = f"SELECT pg_try_advisory_lock({LOCK_CLASS}, %(me)s)"
END_FORMER_SESSION = f"""
SELECT pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {LOCK_CLASS} AND l.objsubid = 2
  AND l.objid::bigint = %(me)s AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"""
#: Lets the server notice within about 30 s that the machine of a dispatcher is gone, whose lock it would else keep for
#: two hours: https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-TCP-KEEPALIVES-IDLE
NOTICE_OUR_DEATH = """
SELECT set_config(s.name, v.value, false) FROM pg_catalog.pg_settings s
JOIN (VALUES ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '4'),
             ('tcp_user_timeout', '30000')) v(name, value) USING (name)"""
REGISTER = f"""
INSERT INTO {LEDGER_SCHEMA}.dispatcher (dispatcher_id, actor, liveness, hosts, lease_until, seen_at)
OVERRIDING SYSTEM VALUE
VALUES (%(me)s, %(actor)s, %(liveness)s, %(hosts)s, clock_timestamp() + %(lease)s * interval '1 second',
    clock_timestamp())
ON CONFLICT (dispatcher_id) DO UPDATE
SET ended_at = NULL, ended_as = NULL, hosts = excluded.hosts, lease_until = excluded.lease_until,
    seen_at = excluded.seen_at"""
MARK_DEAD = f"""
WITH {ALIVE}
UPDATE {LEDGER_SCHEMA}.dispatcher d SET ended_at = now(), ended_as = 'dead'
WHERE d.ended_at IS NULL AND d.dispatcher_id NOT IN (SELECT dispatcher_id FROM alive)"""
#: A dispatcher that was wrongly marked dead lives again. Else others could take whatever it claims from now on.
HEARTBEAT = f"""
UPDATE {LEDGER_SCHEMA}.dispatcher
SET lease_until = clock_timestamp() + %(lease)s * interval '1 second', ended_at = NULL, ended_as = NULL
WHERE dispatcher_id = %(me)s"""
#: Several dispatchers have the same name where each step of a run is a process, or a run was resumed. After a restart
#: of the server the silence counts from there: before, nobody could show that he lives.
SIGNS_OF_LIFE = f"""
SELECT d.actor, bool_or({DISPATCHER_LIVES}) AS alive, bool_or(d.ended_as IS NOT DISTINCT FROM 'done') AS left_properly,
       min(extract(epoch FROM clock_timestamp() - greatest(
           pg_postmaster_start_time(), d.started_at, d.seen_at, CASE WHEN d.ended_as = 'done' THEN d.ended_at END)))
           AS seconds_ago
FROM {LEDGER_SCHEMA}.dispatcher d WHERE d.actor = ANY(%(actors)s) GROUP BY d.actor"""
END = f"UPDATE {LEDGER_SCHEMA}.dispatcher SET ended_at = now(), ended_as = 'done' WHERE dispatcher_id = %(me)s"

#: Of each row that is asked for: the newest generation, and its entry if that may be taken up again.
GENERATIONS = f"""
WITH {ALIVE}
SELECT DISTINCT ON (e.run_id) e.run_id, e.generation, e.open, e.entry_id,
       e.open AND {CLAIMABLE} AS claimable
FROM {LEDGER_SCHEMA}.entry e
WHERE e.control_table = %(control_table)s AND e.run_id = ANY(%(run_ids)s)
ORDER BY e.run_id, e.generation DESC"""

_JOB = """jsonb_to_recordset(%(jobs)s::jsonb) AS j(
    entry_id bigint, run_id bigint, generation integer, branch text, state text, job_id bigint, previous_run_id bigint,
    parameters jsonb, idempotency_token text, waiting_since timestamptz, outcome text, reason text, rule text,
    row_version text)"""
INSERT_ENTRIES = f"""
INSERT INTO {LEDGER_SCHEMA}.entry (control_table, run_id, generation, branch, state, dispatcher_id, job_id,
    previous_run_id, parameters, idempotency_token, waiting_since, outcome, reason, rule, row_version)
SELECT %(control_table)s, j.run_id, j.generation, j.branch, j.state, %(me)s, j.job_id, j.previous_run_id,
    j.parameters, j.idempotency_token, j.waiting_since, j.outcome, j.reason, j.rule, j.row_version
FROM {_JOB} WHERE j.entry_id IS NULL
ORDER BY j.run_id
ON CONFLICT DO NOTHING
RETURNING entry_id"""
REFRESH_ENTRIES = f"""
UPDATE {LEDGER_SCHEMA}.entry e
SET state = j.state, dispatcher_id = %(me)s, branch = j.branch, job_id = j.job_id,
    previous_run_id = j.previous_run_id, parameters = j.parameters, idempotency_token = j.idempotency_token,
    fresh_run = false, sent_repair_id = NULL, outcome = j.outcome, reason = j.reason, rule = j.rule,
    row_version = j.row_version,
    updated_at = now()
FROM {_JOB}
WHERE e.entry_id = j.entry_id AND e.open AND e.state IN ('CLAIMED', 'DEFERRED')
RETURNING e.entry_id"""

INSERT_EVENTS = f"""
INSERT INTO {LEDGER_SCHEMA}.event (entry_id, dispatcher_id, kind, call, status, seconds, detail)
SELECT v.entry_id, %(me)s, v.kind, v.call, v.status, v.seconds, v.detail
FROM jsonb_to_recordset(%(events)s::jsonb) AS v(
    entry_id bigint, kind text, call text, status integer, seconds double precision, detail text, place bigint)
ORDER BY v.place"""

#: Of entries whose intent was committed: those that nobody rescued while our connection was lost.
STILL_SENDING = f"""
SELECT entry_id FROM {LEDGER_SCHEMA}.entry
WHERE entry_id = ANY(%(entry_ids)s) AND (dispatcher_id = %(me)s AND open) IS TRUE AND state = 'SENDING'"""

#: Of entries whose row was corrected: nothing came of the intent, so they may be taken anew.
NOT_SENT = f"""
UPDATE {LEDGER_SCHEMA}.entry SET state = 'CLAIMED', updated_at = now()
WHERE entry_id = ANY(%(entry_ids)s) AND (dispatcher_id = %(me)s AND open) IS TRUE
  AND state = 'SENDING' AND NOT ambiguous"""
#: The row was changed, but says the same.
SAME_AGAIN = f"""
UPDATE {LEDGER_SCHEMA}.entry e SET row_version = v.row_version
FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(entry_id bigint, row_version text)
WHERE e.entry_id = v.entry_id AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE"""
#: The row was corrected after the answer, and before the control table could say it.
SUPERSEDE = f"""
UPDATE {LEDGER_SCHEMA}.entry e
SET state = 'WITHDRAWN', superseded = true, open = false, closed_at = now(), updated_at = now(),
    reason = concat_ws('; ', e.reason, v.detail)
FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(entry_id bigint, detail text)
WHERE e.entry_id = v.entry_id AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE"""
#: What is known of runs, newest first: whose they are, and whose repair of them may be under way.
KNOWN_RUNS = f"""
SELECT r.databricks_run_id, e.entry_id, e.control_table, e.run_id, e.generation,
       e.accepted_repair_id AS repair_id, e.superseded, false AS unresolved, e.updated_at
FROM unnest(%(runs)s::bigint[]) AS r(databricks_run_id)
JOIN {LEDGER_SCHEMA}.entry e ON e.accepted_run_id = r.databricks_run_id
UNION ALL
SELECT r.databricks_run_id, e.entry_id, e.control_table, e.run_id, e.generation, NULL, false, true, e.updated_at
FROM unnest(%(runs)s::bigint[]) AS r(databricks_run_id)
JOIN {LEDGER_SCHEMA}.entry e ON e.previous_run_id = r.databricks_run_id
WHERE e.open AND e.state = 'SENDING' AND e.accepted_run_id IS NULL AND NOT e.fresh_run
ORDER BY updated_at DESC, entry_id DESC"""

#: Until the end of the transaction nobody else takes a run that was found; what is read afterwards is what others took
#: before. In the order of the keys themselves, so that two who want several never wait for each other.
LOCK_RUNS = f"""
SELECT pg_advisory_xact_lock({RUN_LOCK_CLASS}, k.key) FROM (
    SELECT DISTINCT mod(r.run, 2147483647)::integer AS key FROM unnest(%(runs)s::bigint[]) AS r(run) ORDER BY key) k"""
#: Of entries that found a run: those whose run is another row's.
OTHERS_RUNS = f"""
SELECT e.entry_id
FROM unnest(%(entry_ids)s::bigint[], %(runs)s::bigint[]) AS f(entry_id, run)
JOIN {LEDGER_SCHEMA}.entry e ON e.entry_id = f.entry_id
WHERE EXISTS (
    SELECT FROM {LEDGER_SCHEMA}.entry o
    WHERE o.accepted_run_id = f.run AND (o.control_table, o.run_id) <> (e.control_table, e.run_id))"""

RECORD = f"""
UPDATE {LEDGER_SCHEMA}.entry e
SET state = coalesce(c.state, e.state),
    open = coalesce(c.state, e.state) <> 'WITHDRAWN',
    closed_at = CASE WHEN c.state = 'WITHDRAWN' THEN now() END,
    outcome = coalesce(c.outcome, e.outcome),
    succeeded = e.succeeded OR c.succeeded,
    accepted_run_id = coalesce(c.accepted_run_id, e.accepted_run_id),
    accepted_repair_id = coalesce(c.accepted_repair_id, e.accepted_repair_id),
    page_url = coalesce(c.page_url, e.page_url),
    reason = coalesce(c.reason, e.reason),
    rule = coalesce(c.rule, e.rule),
    not_before = now() + c.defer_seconds * interval '1 second',
    attempts = e.attempts + c.attempts,
    ambiguous = e.ambiguous OR c.ambiguous,
    superseded = e.superseded OR c.superseded,
    updated_at = now()
FROM jsonb_to_recordset(%(changes)s::jsonb) AS c(
    entry_id bigint, state text, outcome text, succeeded boolean, accepted_run_id bigint, accepted_repair_id bigint,
    page_url text, reason text, rule text, defer_seconds double precision, attempts integer, ambiguous boolean,
    superseded boolean)
WHERE e.entry_id = c.entry_id AND e.entry_id = ANY(%(changed)s) AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE"""

#: ``is_news``: the control table cannot know the run yet, because it had another, and nobody tried to close before.
TO_CLOSE = f"""
SELECT entry_id, run_id, state, succeeded, accepted_run_id, page_url, reason,
       not_before IS NULL AND previous_run_id IS DISTINCT FROM accepted_run_id AS is_news
FROM {LEDGER_SCHEMA}.entry
WHERE entry_id = ANY(%(entry_ids)s) AND (dispatcher_id = %(me)s AND open) IS TRUE
  AND state IN ('ACCEPTED', 'QUARANTINED')"""
CLOSE_ENTRIES = f"""
UPDATE {LEDGER_SCHEMA}.entry
SET state = CASE state WHEN 'ACCEPTED' THEN 'SCHEDULED' ELSE state END, open = false, closed_at = now(),
    updated_at = now()
WHERE entry_id = ANY(%(entry_ids)s) AND (dispatcher_id = %(me)s AND open) IS TRUE
  AND state IN ('ACCEPTED', 'QUARANTINED')
RETURNING entry_id"""
#: Of entries that are to be closed and were not: why, told once.
LEFT_FOR_LATER = f"""
INSERT INTO {LEDGER_SCHEMA}.event (entry_id, dispatcher_id, kind, detail)
SELECT e.entry_id, %(me)s, 'not closed', %(why)s FROM {LEDGER_SCHEMA}.entry e
WHERE e.entry_id = ANY(%(entry_ids)s) AND (e.dispatcher_id = %(me)s AND e.open) IS TRUE
  AND e.state IN ('ACCEPTED', 'QUARANTINED')
  AND %(why)s IS DISTINCT FROM (
    SELECT v.detail FROM {LEDGER_SCHEMA}.event v WHERE v.entry_id = e.entry_id AND v.kind = 'not closed'
    ORDER BY v.event_id DESC LIMIT 1)"""
#: The owner's table did not take the row: the entry stays as it is, to be closed later. A reason is told once.
NOT_CLOSED = f"""
WITH failed AS (
    SELECT v.entry_id, v.detail FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(entry_id bigint, detail text)
), later AS (
    UPDATE {LEDGER_SCHEMA}.entry e SET not_before = now() + %(seconds)s * interval '1 second', updated_at = now()
    FROM failed WHERE e.entry_id = failed.entry_id AND (e.dispatcher_id = %(me)s) IS TRUE
)
INSERT INTO {LEDGER_SCHEMA}.event (entry_id, dispatcher_id, kind, detail)
SELECT f.entry_id, %(me)s, 'not closed', f.detail FROM failed f
WHERE f.detail IS DISTINCT FROM (
    SELECT v.detail FROM {LEDGER_SCHEMA}.event v WHERE v.entry_id = f.entry_id AND v.kind = 'not closed'
    ORDER BY v.event_id DESC LIMIT 1)"""


#: Why a row is refused of which nothing was ever sent.
BROKEN_ROW = "the row cannot be read as a job to run"


def claimed_record(job: WaitingJob, versions: Mapping[int, str]) -> dict[str, Any]:
    """What a claim writes for a waiting job; ``versions`` are those of the table's rows, read before the job was."""
    return {
        "run_id": job.run_id,
        "branch": job.branch.value,
        "state": EntryState.CLAIMED.value,
        "job_id": job.job_id,
        "previous_run_id": job.previous_run_id,
        "parameters": dict(job.parameters),
        "waiting_since": job.since and job.since.isoformat(),
        "row_version": versions.get(job.run_id),
    }


def asked_of(record: dict[str, Any]) -> TokenSubject:
    """What a claim's record asks for, as its token stands for it."""
    since = record["waiting_since"] and datetime.fromisoformat(record["waiting_since"])
    return TokenSubject(record["job_id"], record["parameters"], since)


def refused_record(row: RefusedRow, versions: Mapping[int, str]) -> dict[str, Any]:
    """What a refusal writes for a row that cannot be read."""
    return {
        "run_id": row.run_id,
        "branch": row.branch.value,
        "state": EntryState.QUARANTINED.value,
        "job_id": None,
        "previous_run_id": None,
        "parameters": {},
        "waiting_since": row.row.since and row.row.since.isoformat(),
        "outcome": Outcome.QUARANTINED.value,
        "reason": storable(row.reason),
        "rule": BROKEN_ROW,
        "row_version": None if row.run_id is None else versions.get(row.run_id),
    }


def entry_of(row: Any) -> Entry:  # noqa: ANN401 the driver's rows have the names of their statement
    """The entry of a row of the statement ``entries``, as whoever reads it takes it."""
    return rescued(
        Entry(
            entry_id=row.entry_id,
            run_id=row.run_id,
            generation=row.generation,
            branch=Branch(row.branch),
            state=EntryState(row.state),
            job_id=row.job_id or 0,
            previous_run_id=row.previous_run_id,
            parameters=row.parameters,
            idempotency_token=row.idempotency_token or "",
            fresh_run=row.fresh_run,
            sent_repair_id=row.sent_repair_id,
            attempts=row.attempts,
            ambiguous=row.ambiguous,
            intent_at=row.intent_at,
            waiting=row.waiting,
            earlier_run_ids=tuple(row.earlier_run_ids),
            note=row.note or "",
        )
    )


def known_run_of(row: Any) -> KnownRun:  # noqa: ANN401 as entry_of
    """What a row of ``KNOWN_RUNS`` says of a run."""
    return KnownRun(
        databricks_run_id=row.databricks_run_id,
        entry_id=row.entry_id,
        control_table=row.control_table,
        run_id=row.run_id,
        generation=row.generation,
        repair_id=row.repair_id,
        superseded=row.superseded,
        unresolved=row.unresolved,
    )


def event_record(entry_id: int, event: Event) -> dict[str, Any]:
    """What an event writes."""
    return {
        "entry_id": entry_id,
        "kind": event.kind,
        "call": event.call and event.call.value,
        "status": event.status,
        "seconds": event.seconds,
        "detail": storable(event.detail),
    }


def intent_record(entry: Entry) -> dict[str, Any]:
    """What the intent of an entry's call writes; one in doubt is about a call that may have been made already."""
    return {
        "entry_id": entry.entry_id,
        "fresh_run": entry.fresh_run,
        "latest_repair_id": entry.sent_repair_id,
        "ambiguous": is_in_doubt(entry),
        "detail": _announced(entry),
    }


def _announced(entry: Entry) -> str:
    """The detail of the event that announces a call."""
    if entry.starts_new_run:
        return f"run-now with token {entry.idempotency_token[:12]}..."
    return f"repair of run {entry.previous_run_id}, latest repair {entry.sent_repair_id or 'none'}"


def change_record(change: Change) -> dict[str, Any]:
    """What a change writes."""
    return {
        "entry_id": change.entry_id,
        "state": change.state and change.state.value,
        "outcome": change.outcome and change.outcome.value,
        "succeeded": change.succeeded,
        "accepted_run_id": change.accepted_run_id,
        "accepted_repair_id": change.accepted_repair_id,
        "page_url": change.page_url and storable(change.page_url),
        "reason": change.reason and storable(change.reason),
        "rule": change.rule,
        "defer_seconds": change.defer_seconds,
        "attempts": int(change.counts_as_attempt),
        "ambiguous": change.ambiguous,
        "superseded": change.superseded,
    }


def closed_of(row: Any) -> Closed:  # noqa: ANN401 as entry_of
    """The closed entry of a row of the statement ``closed``."""
    return Closed(
        entry_id=row.entry_id,
        run_id=row.run_id,
        state=EntryState(row.state),
        outcome=row.outcome and Outcome(row.outcome),
        accepted_run_id=row.accepted_run_id,
        accepted_repair_id=row.accepted_repair_id,
        page_url=row.page_url,
        reason=row.reason,
        control_status=row.control_status,
        superseded=row.superseded,
    )


#: The longest reason or detail that is kept.
TEXT_LIMIT = 2000
#: What such a database holds are bytes of any encoding: ours.
_NO_ENCODING = "SQL_ASCII"


def storable(text: str) -> str:
    """``text``, cut, without what no JSON of Postgres holds: NUL, and half a surrogate pair, which JSON may carry."""
    return text[:TEXT_LIMIT].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def as_json(cursor: Cursor, value: object) -> str:
    """The value as JSON for this cursor's database, with ? for characters that its encoding lacks."""
    name = cursor.connection.get_parameter_status("server_encoding")
    codec = "utf-8" if name in (None, _NO_ENCODING) else extensions.encodings.get(name, "utf-8")
    return json.dumps(value, ensure_ascii=False).encode(codec, "replace").decode(codec)
