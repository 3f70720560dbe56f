"""Everything that can be configured, with its default and its meaning.

``settings_from`` makes a value of a mapping of variables; nothing here reads ``os.environ``. The entries pass in what
``config.credentials`` made of their environment, and from then on the value is passed on, so one process can hold the
settings of several control tables. The workspace's ``DATABRICKS_*`` and ``ARM_*`` are read by ``databricks.sign_in``.
The table of settings in the docs is generated from ``SETTINGS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from pm_dagster.config.setting_values import (
    between,
    demand_bare,
    exact,
    names,
    one_of,
    pairs,
    quoted,
    rate,
    switch,
    time_zone,
    trimmed,
)
from pm_dagster.errors import ConfigurationError

#: The most rows that one dispatch takes; a sheet of its report holds as many.
MOST_ROWS = 1_000_000
_HOUR, _DAY, _WEEK = 3_600, 86_400, 604_800


def _setting(variable: str, default: Any, help_: str, read: Callable[[str], Any] = str, *, shown: bool = True) -> Any:  # noqa: ANN401
    return field(default=default, repr=shown, metadata={"variable": variable, "help": help_, "read": read})


@dataclass(frozen=True)
class Settings:
    """The settings of one deployment. Defaults are FlexFlow's names and the published API limits less ten percent."""

    postgres_url: str = _setting(
        "PM_POSTGRES_URL",
        "",
        "Database, as a libpq URL, a key=value string or a jdbc:postgresql URL; empty: libpq's own PG* variables",
        shown=False,  # it may hold a password
    )
    postgres_host: str = _setting(
        "PM_POSTGRES_HOST", "", "Host of the database; this and the next five override the URL's"
    )
    postgres_port: str = _setting("PM_POSTGRES_PORT", "", "Port of the database")
    postgres_database: str = _setting("PM_POSTGRES_DATABASE", "", "Name of the database")
    postgres_user: str = _setting("PM_POSTGRES_USER", "", "User of the database")
    postgres_password: str = _setting("PM_POSTGRES_PASSWORD", "", "Password of that user", shown=False)
    postgres_sslmode: str = _setting(
        "PM_POSTGRES_SSLMODE",
        "",
        "libpq's sslmode; empty: `require` for Azure Database for PostgreSQL, else libpq's own",
    )
    postgres_auth: str = _setting(
        "PM_POSTGRES_AUTH",
        "password",
        "How the database knows us: password, or entra (an Entra ID token, fetched for every connection)",
        one_of("password", "entra"),
    )
    #: libpq's own variables as they were given, for what neither URL nor parts say. A reference to a secret stands in
    #: the process environment, where libpq would take it for the secret itself.
    postgres_defaults: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    schema: str = _setting("PM_SCHEMA", "public", "Schema of the view and the control table", exact)
    wait_view: str = _setting("PM_WAIT_VIEW", "mm_run_wait_vw", "View that lists the waiting jobs", exact)
    run_table: str = _setting("PM_RUN_TABLE", "mm_run_plc", "Control table, one row per piece of work", exact)
    column_run_id: str = _setting(
        "PM_COLUMN_RUN_ID", "run_id", "Column with the control plane's id (view and table)", exact
    )
    column_job_id: str = _setting(
        "PM_COLUMN_JOB_ID", "wkf_job_id", "Column of the view with the Databricks job id", exact
    )
    column_job_run_id: str = _setting(
        "PM_COLUMN_JOB_RUN_ID",
        "wkf_job_run_id",
        "Column with the Databricks run id; written where the table has it",
        exact,
    )
    column_status: str = _setting("PM_COLUMN_STATUS", "run_sttus_name", "Column of the table with the status", exact)
    column_order: str = _setting(
        "PM_COLUMN_ORDER",
        "rgstr_file_time",
        "Column (view or table) by which the oldest go first; empty: by run id",
        exact,
    )
    column_page_url: str = _setting(
        "PM_COLUMN_PAGE_URL", "run_page_url", "Column for the run page link; written where the table has it", exact
    )
    columns_message: tuple[str, ...] = _setting(
        "PM_COLUMNS_MESSAGE", ("state_msg", "msg"), "Columns for the reason; written where the table has them", names
    )
    status_waiting: str = _setting("PM_STATUS_WAITING", "WAITING", "Status of a row that waits", exact)
    status_scheduled: str = _setting(
        "PM_STATUS_SCHEDULED", "SCHEDULED", "Status written when a run or repair exists", exact
    )
    status_failed: str = _setting("PM_STATUS_FAILED", "FAILED", "Status written when a row is refused for good", exact)
    status_succeeded: str = _setting(
        "PM_STATUS_SUCCEEDED",
        "SUCCESS",
        "Status written when the previous run succeeded, so nothing is to repair",
        exact,
    )
    job_parameters: tuple[tuple[str, str], ...] = _setting(
        "PM_JOB_PARAMETERS",
        (("RUN_ID", "run_id"), ("CNTRT_ID", "cntrt_id"), ("FILE_NAME", "file_name")),
        "Job parameters to send, each from a column of the view",
        pairs,
    )
    concurrency: int = _setting("PM_CONCURRENCY", 16, "API calls in flight at once", between(1, 1000, int))
    rate_run_now: float = _setting(
        "PM_RATE_RUN_NOW", 18.0, "run-now calls per second, of all dispatchers together; 0: no pacing", rate
    )
    rate_repair: float = _setting(
        "PM_RATE_REPAIR", 4.5, "repair calls per second, of all dispatchers together; 0: no pacing", rate
    )
    rate_get_run: float = _setting(
        "PM_RATE_GET_RUN", 90.0, "runs/get calls per second, of all dispatchers together; 0: no pacing", rate
    )
    dispatch_limit: int = _setting(
        "PM_DISPATCH_LIMIT", 1000, "Rows that one dispatch takes, oldest first", between(1, MOST_ROWS, int)
    )
    deadline_seconds: float = _setting(
        "PM_DEADLINE_SECONDS", 780.0, "A dispatch stops sending after this many seconds", between(1, _WEEK, float)
    )
    linger_seconds: float = _setting(
        "PM_LINGER_SECONDS",
        0.0,
        "A dispatch looks for further rows for so long after its last one; 0: it ends",
        between(0, _DAY, float),
    )
    row_seconds: float = _setting(
        "PM_ROW_SECONDS",
        60.0,
        "Time that the control table may take to write one row, its owner's triggers included",
        between(1, _HOUR, float),
    )
    rehearse: bool = _setting(
        "PM_REHEARSE",
        True,
        "Try the closing of each row, undone at once, before anything is started; off where triggers reach outside",
        switch,
    )
    http_timeout_seconds: float = _setting(
        "PM_HTTP_TIMEOUT_SECONDS", 60.0, "Time that one API call may take", between(0.1, _HOUR, float)
    )
    allow_http: bool = _setting(
        "PM_ALLOW_HTTP", False, "Talk to a workspace on another machine without TLS, the token readable", switch
    )
    call_tries: int = _setting(
        "PM_CALL_TRIES", 4, "Tries of one call before its row is left for later", between(1, 20, int)
    )
    call_backoff_seconds: float = _setting(
        "PM_CALL_BACKOFF_SECONDS",
        1.0,
        "Pause before the second try of a call; doubles each time",
        between(0, _HOUR, float),
    )
    max_attempts: int = _setting(
        "PM_MAX_ATTEMPTS", 5, "Definite refusals that may pass, before a row is quarantined", between(1, 20, int)
    )
    settle_seconds: float = _setting(
        "PM_SETTLE_SECONDS",
        30.0,
        "How long a refused repair is left alone before its history is read again",
        between(0, _DAY, float),
    )
    missing_run: str = _setting(
        "PM_MISSING_RUN",
        "fresh-run",
        "What to do for a repair whose run is gone or never ran: fresh-run or fail",
        one_of("fresh-run", "fail"),
    )
    view_timeout_seconds: float = _setting(
        "PM_VIEW_TIMEOUT_SECONDS", 60.0, "Time that one reading of the view may take", between(1, _HOUR, float)
    )
    time_zone: str = _setting(
        "PM_TIME_ZONE",
        "",
        "Time zone of arrival times without one, such as Europe/Berlin; empty: that of the database session",
        time_zone,
    )
    queue: bool = _setting("PM_QUEUE", True, "Send queue.enabled=true, so that a busy job queues its run", switch)
    liveness: str = _setting(
        "PM_LIVENESS",
        "auto",
        "How a dead dispatcher is noticed: lock (session lock), lease (behind a pooler), auto",
        one_of("auto", "lock", "lease"),
    )
    lease_seconds: float = _setting(
        "PM_LEASE_SECONDS", 30.0, "Length of the heartbeat lease behind a pooler", between(2, _DAY, float)
    )
    log_level: str = _setting(
        "PM_LOG_LEVEL",
        "",
        "Least level of the log's lines: debug, info, warning or error; empty: warning in `pm`, info on the cluster",
        one_of("debug", "info", "warning", "error"),
    )
    log_format: str = _setting(
        "PM_LOG_FORMAT", "text", "Form of the log's lines: text for people, or json", one_of("text", "json")
    )

    @property
    def control_table(self) -> str:
        """The name under which the ledger knows the control table; no two tables share one."""
        return ".".join(map(_part, (self.schema, self.run_table)))


def _part(name: str) -> str:
    """A part of a name with dots, quoted as in SQL where it holds one itself."""
    return '"{}"'.format(name.replace('"', '""')) if "." in name or '"' in name else name


_FIELDS = tuple(item for item in fields(Settings) if item.metadata)

#: Every setting as (variable, default, help), in the order of the table in docs/reference/settings.md.
SETTINGS: tuple[tuple[str, object, str], ...] = tuple(
    (item.metadata["variable"], item.default, item.metadata["help"]) for item in _FIELDS
)

#: The part of a connection that each of libpq's variables gives:
#: https://www.postgresql.org/docs/current/libpq-envars.html
LIBPQ_VARIABLES: Mapping[str, str] = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGOPTIONS": "options",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
}


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings from ``PM_*`` and libpq's variables; one that is unset or empty leaves its default.

    Raises ConfigurationError naming the variable, its value and what was expected. Values that may hold a password
    are never in the message.
    """
    given = tuple((name, environment[name]) for name in LIBPQ_VARIABLES if environment.get(name))
    values: dict[str, Any] = {"postgres_defaults": given}
    values |= {item.name: _read(item, environment) for item in _FIELDS}
    settings = Settings(**values)
    _demand_other_statuses(settings)
    return settings


def read_setting(environment: Mapping[str, str], name: str) -> Any:  # noqa: ANN401 each setting has a type of its own
    """One setting by its field's name, for what is needed before the others can be read, such as the log's level.

    Raises ConfigurationError as ``settings_from``.
    """
    return next(_read(item, environment) for item in _FIELDS if item.name == name)


def _read(item: Field[Any], environment: Mapping[str, str]) -> Any:  # noqa: ANN401
    variable, read = item.metadata["variable"], item.metadata["read"]
    text = environment.get(variable, "")
    if text == "":
        return item.default
    if not item.repr:
        # A secret is given as it is found, which ``as_meant`` has looked at where it was written by hand.
        return read(_demand_text(variable, text))
    text = text if read is exact else as_meant(variable, text)
    try:
        return read(_demand_text(variable, text))
    except ValueError as error:
        message = f"{variable}={text!r} cannot be used: {error}"
        raise ConfigurationError(message) from None


def as_meant(variable: str, text: str, *, by_hand: bool = True) -> str:
    """What a person meant who wrote this into a file of variables, by hand or with another tool.

    Blanks, line ends and a byte order mark at the ends are left out where nobody could mean them. Raises
    ConfigurationError, which names the variable, for marks that may be meant and most often are not. Of passwords,
    which may hold anything, only line ends are left out; one that really looks like that can be given in a file, from
    where (not ``by_hand``) it is taken as it is.
    """
    shown = variable not in _NEVER_SHOWN and not variable.endswith(_SECRET_ENDINGS)
    _demand_text(variable, text)
    if variable.endswith(_PASSWORD_ENDINGS) and not by_hand:
        return text
    if variable.endswith(_PASSWORD_ENDINGS):
        meant = text.strip("\r\n\ufeff")
        if meant != trimmed(meant) or quoted(meant) or not meant:
            message = (
                f"{variable} has quotation marks around it, or blanks at an end (its value is not shown): write it"
                " without them; if they belong to it, give it in a file, file:///PATH"
            )
            raise ConfigurationError(message)
        return meant
    meant = trimmed(text)
    try:
        # A string of key='value' pairs may end with a mark, and none begins with one.
        demand_bare(meant if variable != "PM_POSTGRES_URL" or not meant.endswith("'") else f"{meant[:-1]}.")
    except ValueError as error:
        value = f"={text!r} cannot be used:" if shown else " (its value is not shown) cannot be used:"
        raise ConfigurationError(f"{variable}{value} {error}") from None
    return meant


#: Ends of the names of variables whose value may be shown to nobody; those of the first kind can hold any text.
_PASSWORD_ENDINGS = ("PASSWORD", "CLIENT_SECRET")
_SECRET_ENDINGS = (*_PASSWORD_ENDINGS, "TOKEN", "SECRET", "CREDENTIALS")
_NEVER_SHOWN = frozenset(item.metadata["variable"] for item in _FIELDS if not item.repr)


def _demand_text(variable: str, value: str) -> str:
    """Bytes of the environment that are no UTF-8 arrive as half surrogate pairs."""
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigurationError(f"{variable} is not text in UTF-8 (its value is not shown)")
    return value


def _demand_other_statuses(settings: Settings) -> None:
    """A row that is done must not look as if it waited: it would be sent for ever."""
    for variable, status in (
        ("PM_STATUS_SCHEDULED", settings.status_scheduled),
        ("PM_STATUS_FAILED", settings.status_failed),
        ("PM_STATUS_SUCCEEDED", settings.status_succeeded),
    ):
        if status == settings.status_waiting:
            raise ConfigurationError(f"{variable} and PM_STATUS_WAITING are both {status!r}; they must differ")
