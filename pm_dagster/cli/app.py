"""The group of commands: the first screen of help, and how an error leaves a command.

Put here: what all commands share. Keep out: the commands, which are loaded when called, and what the process gets from
outside: its streams and signals (``process.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import TextIO

import click

from pm_dagster import logs
from pm_dagster.cli.connections import Invocation, invocation
from pm_dagster.cli.process import logs_as_before, made_ready, say_why
from pm_dagster.config.settings import settings_from

#: Name -> one line of help; each lives in the module of its name. In the order in which one meets them.
_COMMANDS = {
    "init": "Create or upgrade the ledger beside the control table",
    "doctor": "Check credentials, database, view, privileges, ledger, workspace and jobs",
    "plan": "Show what a dispatch would do with each row, and why; writes nothing",
    "dispatch": "Do one pass over the waiting jobs",
    "status": "Show the backlog, the ledger by state and the last dispatchers",
    "explain": "Tell the whole story of one row",
    "redrive": "Put refused rows back to WAITING",
    "grants": "Print the rights that a database role needs, as SQL",
    "sandbox": "Run everything on this machine, without Databricks",
}

_HELP = """Empty the view of waiting jobs: a row without a Databricks run gets a new run, a row with one gets a repair
of it, and either becomes SCHEDULED. Nothing is run twice, and a bad row never stops the others.

The five commands, in the order of use:

\b
  pm init              once per database
  pm doctor            is everything reachable and allowed?
  pm plan              what would happen now
  pm dispatch          do it, once (Dagster does the same by itself)
  pm explain RUN_ID    why is this row where it is?

The environment variables that matter (docs/reference/settings.md has all of them):

\b
  PM_POSTGRES_URL      database, as a libpq or JDBC URL; empty: libpq's own PG* variables
  PM_SCHEMA            schema of the view and the control table (public)
  PM_WAIT_VIEW         the view of waiting jobs (mm_run_wait_vw)
  PM_RUN_TABLE         the control table (mm_run_plc)
  DATABRICKS_HOST      workspace; with DATABRICKS_TOKEN, DATABRICKS_CLIENT_ID and _SECRET,
                       ARM_* for an Azure service principal, ARM_USE_MSI=true, or `az login`

Instead of its value, a credential may say where it is: file:///PATH, keyvault://VAULT/NAME or
databricks-secret://SCOPE/KEY. PM_SECRETS=keyvault://VAULT or databricks-secret://SCOPE names a whole
store; what is not set is looked up there by the usual names (refDBpwd, databricks-instance, ...).
`pm doctor` says where each one came from.

Exit codes: 0 done; refused rows are in the numbers. 1 could not be done, or `doctor` found something. 2 wrong usage.
130 (as the shell says it) ended by Ctrl-C. PM_DEBUG=1 or `pm --debug ...` shows where an error came from.

`pm -v COMMAND` logs on standard error what is unusual, `pm -vv COMMAND` also each step of each row. PM_LOG_LEVEL
sets the level instead; PM_LOG_FORMAT=json writes one JSON object a line.
"""

_LOG_LEVELS = ("warning", "info", "debug")
_LOG_SETTINGS = ("PM_LOG_LEVEL", "PM_LOG_FORMAT")


class _Commands(click.Group):
    """Loads a command's module only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
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
            say_why(error, in_full=bool(ctx.params["debug"]))
            ctx.exit(1)


@click.group(
    cls=_Commands,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="process-manager", prog_name="pm")
@click.option("-v", "--verbose", count=True, help="Log what is unusual on standard error; -vv: also each row's steps.")
@click.option("--debug", is_flag=True, help="Show where an error came from, without secrets.")
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
    with made_ready():
        sys.exit(_run(sys.argv[1:], Invocation(os.environ, owns_process=True)))
