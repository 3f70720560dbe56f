"""``pm doctor``: checks all that a dispatch needs, and says what to do when a check is red."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import json_option
from pm_dagster.cli.output import console, print_json, text
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.errors import (
    AllStartsRefused,
    AuthenticationFailed,
    Defect,
    ForeignAnswer,
    Kind,
    NotAdmitted,
    ProcessManagerError,
    Refused,
)
from pm_dagster.text import counted

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812

    from pm_dagster.config.credentials import Resolved
    from pm_dagster.databricks.runs import SdkRuns

_JOBS_NAMED = 5
#: The checks without which the relations to have rights on are not known.
_SHOWS_THE_NAMES = ("view and table", "ledger")
#: What doctor tries to close, and undoes: with this many rows, in each of three statuses.
_ROWS_TRIED, _STATUSES, _SECONDS_BESIDE = 20, 3, 15.0
#: So many jobs of which none is there are those of another workspace.
_SUSPICIOUS_JOBS = 3
#: What to do about an error, whatever was asked; the first that fits.
_REMEDIES: tuple[tuple[type[ProcessManagerError], str], ...] = (
    (Defect, "install another version of the library that it names, and report this"),
    (
        NotAdmitted,
        "the network: have this machine's address allowed (IP access list, private link), or run inside that network",
    ),
    (
        AuthenticationFailed,
        "the credentials: check that DATABRICKS_* or ARM_* are of this workspace and tenant, and have not expired",
    ),
    (
        ForeignAnswer,
        "the address, or something on the way: check DATABRICKS_HOST (the workspace's, not an account's) and proxies",
    ),
    (
        AllStartsRefused,
        "the workspace: check that DATABRICKS_HOST is the workspace of these rows, and that our user may see its jobs",
    ),
)
_ROWS_LOOKED_AT = 1000
_REASONS_TOLD = 5
_STORE = "PM_SECRETS"
_CREDENTIAL_REMEDY = "correct the reference, create the secret, or let this identity read it"
#: Any of these says where the database is, or the workspace.
_DATABASE_PLACES = ("PM_POSTGRES_URL", "PM_POSTGRES_HOST", "PGHOST", "PGSERVICE")
_WORKSPACE_PLACES = ("DATABRICKS_HOST", "DATABRICKS_CONFIG_PROFILE")


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it is green, what was found, and what to do when it is red or warns."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


@click.command("doctor")
@json_option
def command(*, as_json: bool) -> None:
    """Check all that a dispatch needs, from the credentials to the job of each row that waits. It changes nothing.

    Each check is green or RED; a RED one says what to do. Exit code 1 when a check is RED.
    """
    from pm_dagster.config.credentials import looked_up  # noqa: PLC0415

    found = looked_up(connections.invocation().environment)
    settings = settings_from(found.environment)
    missing = _Missing(found)
    database = _not_tried("database", missing.database) or _database(settings)
    rows_readable = all(finding.ok for finding in database)
    findings = _credentials(found, settings) + database
    findings += _not_tried("workspace", missing.workspace) or _workspace(
        found.environment, settings, rows_readable=rows_readable
    )
    # A server's refusal can repeat what it was sent.
    findings = [replace(finding, found=scrubbed(finding.found)) for finding in findings]
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "checks": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if not ok:
        raise click.exceptions.Exit(1)


def _print(findings: list[Finding]) -> None:
    out = console()
    for finding in findings:
        mark = text("green ", "green") if finding.ok else text("RED   ", "bold red")
        out.print(mark + text(f"{finding.check}: ", "bold") + text(finding.found))
        if finding.remedy:
            out.print(text(f"      -> {finding.remedy}"))
    red = sum(not finding.ok for finding in findings)
    out.print()
    out.print(
        f"{red} of {len(findings)} checks {'is' if red == 1 else 'are'} red."
        if red
        else f"All {len(findings)} checks are green."
    )


def _check(name: str, remedy: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, found=look())
    except ProcessManagerError as error:
        better = next((advice for kind, advice in _REMEDIES if isinstance(error, kind)), remedy)
        return Finding(name, ok=False, found=str(error), remedy=better)


def _not_tried(check: str, missing: list[str]) -> list[Finding]:
    if not missing:
        return []
    return [
        Finding(
            check, ok=False, found=f"not tried: {', '.join(missing)} is not known", remedy="see the credential above"
        )
    ]


def _database(settings: Settings) -> list[Finding]:
    try:
        with connections.reader(settings) as connection:
            return _in_database(connection, settings)
    except ProcessManagerError as error:
        remedy = "check PM_POSTGRES_URL (or PM_POSTGRES_*, PGHOST, PGUSER, ...), the password and the network"
        return [Finding("database", ok=False, found=str(error), remedy=remedy)]


def _in_database(connection: Connection, settings: Settings) -> list[Finding]:
    from pm_dagster.ledger import layout, schema, server  # noqa: PLC0415
    from pm_dagster.ledger import location as whereabouts  # noqa: PLC0415
    from pm_dagster.ledger.connection import begin_again, translated  # noqa: PLC0415

    def relations() -> str:
        layout.read_layout(connection, settings)
        where = f"{settings.schema}.{settings.wait_view} and {settings.control_table}"
        return f"{where} have the columns that are needed"

    def ledger() -> str:
        schema.check_ledger(connection)
        return f"version {schema.ledger_version(connection)}"

    def home() -> str:
        with translated():
            question = whereabouts.question(connection)
        if question:
            raise ProcessManagerError(question)
        return f"it is where it was made: {whereabouts.place(connection).words}"

    def writes() -> str:
        server.demand_writable(connection)
        return "the database accepts writes"

    findings = [
        Finding("database", ok=True, found=server.server(connection)),
        _check("writes", "nothing is dispatched until the database accepts writes", writes),
        _check(
            "view and table",
            "set PM_SCHEMA, PM_WAIT_VIEW, PM_RUN_TABLE or PM_COLUMN_* to the names in your database",
            relations,
        ),
    ]
    begin_again(connection)
    findings.append(_check("ledger", "run `pm init`", ledger))
    if findings[-1].ok:
        remedy = "run `pm init --moved` if the original is no longer used, `pm init --copy` if it is"
        findings.append(_check("place of the ledger", remedy, home))
    begin_again(connection)
    # Whatever else is red, a missing right may be why.
    if all(finding.ok for finding in findings if finding.check in _SHOWS_THE_NAMES):
        findings += [_privileges(connection, settings), _index(connection, settings)]
    if all(finding.ok for finding in findings):
        findings.append(_check("rows that wait", "correct each row as it says", _takeable(settings)))
    if all(finding.ok for finding in findings):
        findings.append(
            _check("closing", "have the owner of the table allow these writes to our user", lambda: _closing(settings))
        )
    findings.append(_parameters(settings))
    mode = server.liveness(connection, settings)
    return [*findings, Finding("liveness", ok=True, found=mode)]


def _index(connection: Connection, settings: Settings) -> Finding:
    """Whether the rows that wait are found without reading the others; an owner may do without, so it is never red."""
    from pm_dagster.ledger import index_advice  # noqa: PLC0415

    statement = index_advice.proposed_index(connection, settings)
    if statement is None:
        return Finding("index", ok=True, found=f"none is missing on {settings.control_table}")
    found = (
        f"WARNING: no index on {settings.control_table} finds the rows that wait, so each look at them reads the whole"
        " table"
    )
    return Finding("index", ok=True, found=found, remedy=f"have the owner of the table run: {statement}")


def _closing(settings: Settings) -> str:
    """Try what a dispatch writes at its end, and undo it."""
    from pm_dagster.ledger import closing  # noqa: PLC0415
    from pm_dagster.ledger.connection import transaction  # noqa: PLC0415

    with connections.control_plane(settings) as control:
        found = [row.run_id for row in control.waiting(_ROWS_TRIED)]
    run_ids = [run_id for run_id in found if isinstance(run_id, int)]
    longest = _STATUSES * (settings.row_seconds + _SECONDS_BESIDE)
    with transaction(settings, read_only=False, longest=longest) as connection:
        ok, words = closing.rehearse_all(connection, settings, run_ids if settings.rehearse else [])
    if not ok:
        raise ProcessManagerError(words)
    return words


def _takeable(settings: Settings) -> Callable[[], str]:
    """Whether a dispatch can take every row that the view shows."""

    def look() -> str:
        with connections.control_plane(settings) as control:
            backlog = control.backlog()
            stuck = control.untakeable(_ROWS_LOOKED_AT) if backlog.untakeable else []
        bad = [row for row in stuck if not row.settled]
        if bad:
            raise ProcessManagerError(_cannot_be_taken(bad, backlog.untakeable - (len(stuck) - len(bad))))
        more = f"; {backlog.locked} locked by another session" if backlog.locked else ""
        more += f"; {backlog.untakeable} dispatched before, which the view still shows" if stuck else ""
        return f"{counted(backlog.ready, 'row')} can be dispatched now{more}"

    return look


def _cannot_be_taken(bad: Sequence[Untakeable], count: int) -> str:
    by_reason = {row.reason: row for row in reversed(bad)}
    told = [
        f"{_named([row for row in bad if row.reason == reason])}: {reason} -> {one.remedy}"
        for reason, one in list(by_reason.items())[:_REASONS_TOLD]
    ]
    return f"no dispatch can take {counted(count, 'row')} that the view shows. {'. '.join(told)}"


def _named(rows: Sequence[Untakeable]) -> str:
    ids = [str(row.run_id) for row in rows if row.run_id is not None][:_JOBS_NAMED]
    more = len(rows) - len(ids)
    return f"{len(rows)} without run id" if not ids else f"run id {', '.join(ids)}{f' and {more} more' if more else ''}"


def _parameters(settings: Settings) -> Finding:
    """By the job parameters a run is found again whose answer was lost."""
    if any(column == settings.column_run_id for _, column in settings.job_parameters):
        return Finding("job parameters", ok=True, found=f"they tell rows apart by {settings.column_run_id}")
    found = (
        f"WARNING: none of PM_JOB_PARAMETERS is {settings.column_run_id}, so two rows may have the same parameters."
        " When the answer to a call is lost, its run cannot be told from the run of another row"
    )
    return Finding("job parameters", ok=True, found=found)


def _privileges(connection: Connection, settings: Settings) -> Finding:
    from pm_dagster.ledger import grants  # noqa: PLC0415

    missing = grants.missing_privileges(connection, settings)
    if not missing:
        open_schemas = ", ".join(grants.open_schemas(connection))
        more = (
            f"; every database user may create objects in schema {open_schemas}: `pm grants` prints what to revoke"
            if open_schemas
            else ""
        )
        return Finding(
            "privileges", ok=True, found=f"our user may read the view, update the status and write the ledger{more}"
        )
    found = f"missing: {', '.join(missing)}"
    return Finding(
        "privileges",
        ok=False,
        found=found,
        remedy="have the owner run what `pm grants --role NAME` prints for our user",
    )


def _workspace(environment: Mapping[str, str], settings: Settings, *, rows_readable: bool) -> list[Finding]:
    remedy = "check DATABRICKS_HOST, the credentials (DATABRICKS_* or ARM_*) and the network"
    from pm_dagster.databricks.sdk_check import sdk_version  # noqa: PLC0415

    runs: list[SdkRuns] = []

    def token() -> str:
        workspace = connections.workspace(environment, settings)
        runs.append(connections.runs_of(workspace, settings))
        who, way = runs[0].check(), workspace.auth_type
        return f"signed in to {workspace.host} as {who} by {way}, with databricks-sdk {sdk_version()}"

    finding = _check("workspace", remedy, token)
    if not finding.ok or not rows_readable:
        return [finding]
    return [finding, _jobs(runs[0], settings)]


def _jobs(runs: SdkRuns, settings: Settings) -> Finding:
    remedy = "correct the rows' job ids, or give our user the right to manage runs of these jobs"

    def look() -> str:
        with connections.control_plane(settings) as control:
            jobs, refused = sort_rows(control.waiting(settings.dispatch_limit))
        ids = sorted({job.job_id for job in jobs})
        with ThreadPoolExecutor(settings.concurrency) as pool:
            exist = pool.map(lambda job_id: _exists(runs, job_id), ids)
            missing = [str(job_id) for job_id, known in zip(ids, exist, strict=True) if not known]
        if len(missing) == len(ids) >= _SUSPICIOUS_JOBS:
            raise AllStartsRefused(
                f"none of the {len(ids)} jobs exists here, or our user may not see them: {missing[0]}, ..."
            )
        if missing:
            more = f" and {len(missing) - _JOBS_NAMED} more" if len(missing) > _JOBS_NAMED else ""
            named = ", ".join(missing[:_JOBS_NAMED])
            raise ProcessManagerError(
                f"{counted(len(missing), 'job')} of {len(ids)} are unknown, or our user may not see them: {named}{more}"
            )
        unusable = f"; {counted(len(refused), 'row')} cannot be read as a job (`pm plan` shows why)" if refused else ""
        if not ids:
            return f"no row waits{unusable}"
        return f"{counted(len(jobs), 'waiting row')} and {counted(len(ids), 'job')}; every job exists{unusable}"

    return _check("jobs of the waiting rows", remedy, look)


def _exists(runs: SdkRuns, job_id: int) -> bool:
    """Whether the job is there and shown to us. Raises what the workspace says if it says anything else."""
    try:
        runs.job_name(job_id)
    except Refused as error:
        if error.gone or error.kind is Kind.FORBIDDEN:
            return False
        raise
    return True


# ---- credentials: where each came from, never its value


class _Missing:
    """The credentials without which database or workspace need not be tried."""

    def __init__(self, found: Resolved) -> None:
        from pm_dagster.config.credentials import DATABASE, WORKSPACE  # noqa: PLC0415

        self._found = found
        self._failed = [failure.variable for failure in found.failures]
        self.database = self._of(DATABASE, _DATABASE_PLACES)
        self.workspace = self._of(WORKSPACE, _WORKSPACE_PLACES)

    def _of(self, variables: Iterable[str], places: Iterable[str]) -> list[str]:
        failed = [name for name in self._failed if name in variables]
        somewhere = any(self._found.environment.get(name) for name in places)
        return failed + ([_STORE] if _STORE in self._failed and not somewhere else [])


def _credentials(found: Resolved, settings: Settings) -> list[Finding]:
    """One finding for each credential that is set or was found, and for each that could not be had."""
    findings = [
        Finding(f"credential {failure.variable}", ok=False, found=str(failure.error), remedy=_CREDENTIAL_REMEDY)
        for failure in found.failures
    ]
    failed = {failure.variable for failure in found.failures}
    findings += [
        Finding(f"credential {origin.variable}", ok=True, found=f"from {origin.source}")
        for origin in found.origins
        if origin.variable not in failed
    ]
    if settings.postgres_auth == "entra":
        findings.append(Finding("credential of the database user", ok=True, found="a token from Entra ID"))
    return findings
