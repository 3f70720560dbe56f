"""The program ``pm``: its help, its options, its log, and how an error leaves it.

A command is the module of its name beside this one, loaded when it is called.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from typing import TextIO

import click

from pm_dagster import logs
from pm_dagster.cli.connections import Invocation, invocation
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import settings_from
from pm_dagster.errors import ProcessManagerError, Unavailable, WorkspaceUnavailable
from pm_dagster.text import clause, escape_controls

#: Name -> one line of help; each lives in the module of its name. In the order in which one needs them.
_COMMANDS = {
    "init": "Create or upgrade the ledger beside the control table",
    "doctor": "Check credentials, database, view, privileges, ledger, workspace and jobs",
    "plan": "Show what a dispatch would do with each row, and why",
    "dispatch": "Do one pass over the waiting jobs",
    "status": "Show what waits, the ledger, the last dispatchers and the refused rows",
    "explain": "Show why a row is where it is, and every step that led there",
    "redrive": "Set refused rows back to WAITING",
    "grants": "Print the rights that a database role needs, as SQL",
    "sandbox": "Try everything on this machine, without Databricks",
}

_HELP = """Dispatch the waiting jobs of a Postgres control table to Databricks. A row without a Databricks run gets a
new run, a row with one gets a repair of it, and both become SCHEDULED. Nothing runs twice, and a bad row never stops
the others.

In the order of use:

\b
  pm init              once per database: create the ledger
  pm doctor            is everything reachable and allowed?
  pm plan              what would happen now?
  pm dispatch          do it, once (Dagster does the same by itself)
  pm explain RUN_ID    why is this row where it is?

The most important settings are environment variables; docs/reference/settings.md has all of them:

\b
  PM_POSTGRES_URL      the database, as a libpq or JDBC URL; empty: the PG* variables of libpq
  PM_SCHEMA            the schema of view and control table (public)
  PM_WAIT_VIEW         the view of waiting jobs (mm_run_wait_vw)
  PM_RUN_TABLE         the control table (mm_run_plc)
  DATABRICKS_HOST      the workspace, with one way to sign in: DATABRICKS_TOKEN;
                       DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET; ARM_CLIENT_ID,
                       ARM_CLIENT_SECRET and ARM_TENANT_ID; ARM_USE_MSI=true; or `az login`

A credential can be a reference in place of the value: file:///PATH, keyvault://VAULT/NAME or
databricks-secret://SCOPE/KEY. PM_SECRETS=keyvault://VAULT or databricks-secret://SCOPE names a store in which
credentials that are not set are looked up by their usual names. `pm doctor` shows where each one came from.

Exit codes (docs/reference/exit-codes.md):

\b
  0      It ran. Refused rows are in the numbers.
  1      It could not run, or `pm doctor` found something.
  2      Wrong usage.
  130    Ctrl-C ended it, as the shell says it.

`pm -v COMMAND` logs what is unusual on standard error, `pm -vv COMMAND` also each step of each row. PM_LOG_LEVEL sets
the level instead, and PM_LOG_FORMAT=json writes one JSON object a line. `pm --debug COMMAND` or PM_DEBUG=1 shows where
an error came from.
"""

_LOG_LEVELS = ("warning", "info", "debug")
_LOG_SETTINGS = ("PM_LOG_LEVEL", "PM_LOG_FORMAT")


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), _COMMANDS, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" The commands are {', '.join(_COMMANDS)}."


class _Commands(click.Group):
    """Loads a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            raise click.UsageError(f"No such command {cmd_name!r}.{_did_you_mean(cmd_name)}", ctx)
        command: click.Command = import_module(f"pm_dagster.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("All commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own business
        except Exception as error:  # noqa: BLE001 nobody should have to read a traceback who did not ask for it
            _say_why(error, in_full=bool(ctx.params["debug"]))
            ctx.exit(1)


@click.group(
    cls=_Commands,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(
    package_name="process-manager", prog_name="pm", message="%(prog)s %(version)s", help="Show the version."
)
@click.option(
    "-v", "--verbose", count=True, help="Log what is unusual on standard error; -vv also logs each step of each row."
)
@click.option("--debug", is_flag=True, help="Show where an error came from, with secrets masked.")
@click.pass_context
def _group(context: click.Context, *, verbose: int, debug: bool) -> None:
    environment = invocation().environment
    context.params["debug"] = debug or _switch("PM_DEBUG", environment)
    _log(verbose, environment)


def _switch(variable: str, environment: Mapping[str, str]) -> bool:
    try:
        return bool(click.BOOL.convert(environment.get(variable) or "0", None, None))
    except click.BadParameter as error:
        raise click.BadParameter(error.message, param_hint=variable) from None


def _log(verbose: int, environment: Mapping[str, str]) -> None:
    """Send the log to standard error. What is typed goes before PM_LOG_LEVEL."""
    settings = settings_from({name: environment.get(name, "") for name in _LOG_SETTINGS})
    typed = _LOG_LEVELS[min(verbose, len(_LOG_LEVELS) - 1)]
    level = typed if verbose else settings.log_level or typed
    logs.configure(level, as_json=settings.log_format == "json", stream=sys.stderr)


def run(arguments: Sequence[str], environment: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Do what `pm ARGUMENTS` does, inside a process that is somebody else's.

    Signals, ``os.environ`` and ``sys.argv`` are left alone. Standard output and error are redirected and the
    ``pm_dagster`` loggers configured while it lasts, so only one call at a time is possible in a process.

    Args:
        arguments: What stands after `pm`.
        environment: The variables that are read in place of those of the process.
        stdout: Takes the command's output.
        stderr: Takes errors, progress and the log.

    Returns:
        The exit code: 0 done, 1 could not be done, 2 wrong usage.
    """
    with redirect_stdout(stdout), redirect_stderr(stderr), logs_as_before():
        return _run(arguments, Invocation(environment))


def _run(arguments: Sequence[str], invoked: Invocation) -> int:
    try:
        # Every way out of click's own main function, which leads through SystemExit.
        _group.main(list(arguments), prog_name="pm", obj=invoked)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def main() -> None:
    """The entry point of ``pm``: ``run`` in a process of its own."""
    with _process_made_ready():
        sys.exit(_run(sys.argv[1:], Invocation(os.environ, owns_process=True)))


# ---- the process: streams, signals, last words


@contextmanager
def _process_made_ready() -> Iterator[None]:
    """A process whose output takes any text, and which Ctrl-C ends at once, as it does any program.

    Python would only note the signal and go on while a library waits, for instance for a database that does not answer;
    who has something to finish takes the signal itself (``stop_signals``).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed before we began; libraries take it for granted.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        _flush()


@contextmanager
def logs_as_before() -> Iterator[None]:
    """Give a process that is not ours its logging back at the end."""
    logger = logging.getLogger(logs.ROOT)
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def _flush() -> None:
    """The interpreter would do it, and complain in its own words if nobody takes the output any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_why(error: Exception, *, in_full: bool) -> None:
    """Say in one line on standard error why a command could not be done; ``in_full`` where the error came from, too."""
    if in_full:
        lines = "".join(traceback.format_exception(error)).splitlines()
        _say("\n".join(map(escape_controls, scrubbed("\n".join(lines)).splitlines())))
    words = " ".join(scrubbed(str(error)).split())
    if isinstance(error, ProcessManagerError):
        _say(f"pm: {escape_controls(_with_advice(error, words))}")
        return
    more = "" if in_full else "; PM_DEBUG=1 shows where it came from"
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    _say(f"pm: {_kind(error)}: {escape_controls(what)}{more}")


def _kind(error: Exception) -> str:
    return "the operating system refused something" if isinstance(error, OSError) else "an error in pm itself"


def _with_advice(error: ProcessManagerError, words: str) -> str:
    """Errors that a person can only wait for do not say so themselves."""
    if isinstance(error, WorkspaceUnavailable) and words.startswith("HTTP "):
        words = f"the workspace answers {words}"
    return f"{clause(words)}; try again, `pm doctor` shows what is down" if isinstance(error, Unavailable) else words


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 it is the program's output
