"""What can go wrong, sorted by who retries.

::

    ProcessManagerError
    |-- Unavailable                 the same call may work in seconds (a retry of the call, then the op's RetryPolicy)
    |   |-- ControlPlaneUnavailable     Postgres: connection, time-out, shutdown, serialization
    |   |-- WorkspaceUnavailable        Databricks: connection, time-out, 5xx, an answer that is not JSON
    |   |   `-- ForeignAnswer                 what answered was not the Jobs API: a wrong address, a gateway
    |   `-- Throttled                   429; carries how long the workspace asks us to wait
    `-- NeverAgain                  a retry cannot help; a person must look
        |-- ConfigurationError          a setting, or what it points at, is wrong
        |-- AuthenticationFailed        the workspace does not accept our credentials; stops the dispatch
        |   `-- NotAdmitted                   ... or the network that we call from
        |-- AllStartsRefused            the workspace refuses every row's call; stops the dispatch, blames no row
        |-- Defect                      our code, or a library that it does not fit; stops the dispatch
        `-- Refused                     a definite no from the Jobs API to one call

A waiting job that is merely not ready (*NotYet*: backing off, run still active, deadline reached) is an outcome, not an
error: it stays in the control table, and the next dispatch takes it again.
"""

from __future__ import annotations

from enum import StrEnum

_FORBIDDEN = 403


class Kind(StrEnum):
    """What an answer is about."""

    #: The workspace does not accept our token; nobody's call can succeed.
    CREDENTIALS = "credentials"
    #: The workspace does not accept the network that we call from.
    NETWORK = "network"
    #: Too many calls; later.
    THROTTLED = "throttled"
    #: A quota of the account is used up; it passes by itself, and nothing was started.
    QUOTA = "quota"
    #: It passes by itself, and whether the call took effect is not known.
    MOMENT = "moment"
    #: Not the Jobs API's answer: a wrong address, or something on the way.
    FOREIGN = "foreign"
    #: The run or secret that was asked for does not exist.
    GONE = "gone"
    #: We may not do this, or may not for the moment.
    FORBIDDEN = "forbidden"
    #: A no of the Jobs API that names this job, this run or these parameters.
    NAMED = "named"
    #: A no of the Jobs API that names none of them.
    UNNAMED = "unnamed"
    #: A no with an error code that is not known.
    UNKNOWN = "unknown"


class ProcessManagerError(Exception):
    """An error that Process Manager raises on purpose; its text is written for a person on call.

    Every instance can be pickled, whatever its constructor takes: Dagster stores what an op gives to the next one.
    """

    def __reduce__(self) -> tuple[object, ...]:
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(kind: type[ProcessManagerError], args: tuple[object, ...], state: dict[str, object]) -> object:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class Unavailable(ProcessManagerError):
    """An outside system did not answer; the same call may work in seconds."""


class ControlPlaneUnavailable(Unavailable):
    """Postgres cannot be reached, or dropped the connection."""


class WorkspaceUnavailable(Unavailable):
    """The workspace did not give a usable answer.

    ``maybe_applied`` is true when the request may have taken effect although its answer was lost; it is false only
    when the request certainly never reached the workspace. ``status`` is the HTTP status, if there was one.
    """

    def __init__(self, message: str, *, maybe_applied: bool = True, status: int | None = None) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied
        self.status = status


class ForeignAnswer(WorkspaceUnavailable):
    """Not the Jobs API's answer, so it says nothing about a row: a wrong address, or something on the way."""


class Throttled(Unavailable):
    """The workspace answered 429; ``retry_after`` is the pause in seconds that it asked for, or None."""

    status = 429

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NeverAgain(ProcessManagerError):
    """Trying the same again cannot help."""


class ConfigurationError(NeverAgain):
    """A setting is wrong, or names something that does not exist; the message names it and what was found."""


class AuthenticationFailed(NeverAgain):
    """The workspace does not accept our credentials. Not the rows' fault: the dispatch stops at once."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Defect(NeverAgain):
    """Our own code failed, or does not fit the version of a library that is installed; the message names both.

    Nothing outside is to blame, no row either: the dispatch stops at once. ``maybe_applied`` is true when a request was
    on its way by then, so that it may have taken effect.
    """

    def __init__(self, message: str, *, maybe_applied: bool) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class NotAdmitted(AuthenticationFailed):
    """The workspace does not accept the network that we call from: an IP access list, a private link."""


class AllStartsRefused(NeverAgain):
    """The workspace refused so many calls in a row that it cannot be the rows' fault; none of them is blamed."""


class Refused(NeverAgain):
    """The Jobs API said no to one call, definitely: nothing was started by it.

    Args:
        message: The answer for people, without secrets. No rule reads it.
        status: The HTTP status.
        error_code: The API's own code, if it gave one.
        gone: Whether the job or run named in the call does not exist.
        kind: About whom the answer is; taken from the status by default.
        job_absent: Whether the answer says that a job does not exist, which is so for every row of the job.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        error_code: str | None = None,
        gone: bool = False,
        kind: Kind | None = None,
        job_absent: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.gone = gone
        self.job_absent = job_absent
        by_status = Kind.FORBIDDEN if status == _FORBIDDEN else Kind.NAMED
        self.kind = kind or (Kind.GONE if gone else by_status)
