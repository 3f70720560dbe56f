"""``pm sandbox``: a Postgres server, a local workspace and Dagster on this machine, loopback only."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import PORT, json_option
from pm_dagster.cli.output import Column, console, duration, print_json, table
from pm_dagster.errors import ProcessManagerError
from pm_dagster.orchestration.names import SENSOR

if TYPE_CHECKING:
    from pm_dagster.sandbox.demo import Told
    from pm_dagster.sandbox.place import Open, Place
    from pm_dagster.sandbox.processes import Children

_COLUMNS: tuple[Column[Told], ...] = (
    Column("run id", lambda row: row.run_id, right=True),
    Column("waiting job", lambda row: row.case),
    Column("status now", lambda row: row.after),
    Column("reason", lambda row: row.reason, folds=True),
)
_START_SECONDS = 60.0
_TRICKLE_SECONDS = 6.0

_DEFAULT_FOLDER = Path(".sandbox")
#: What would lead a client elsewhere than to the sandbox, or make it doubt which credentials are meant.
_MISLEADING = ("PM_", "PG", "ARM_", "DATABRICKS_")
_HARMLESS = ("DATABRICKS_CLI_", "DATABRICKS_BUNDLE_")

_dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=_DEFAULT_FOLDER,
    show_default=True,
    metavar="FOLDER",
    help="Where the sandbox keeps its data.",
)


@click.group("sandbox")
def command() -> None:
    """Try everything on this machine: a Postgres server, a local workspace and Dagster, loopback only."""


@command.command("demo")
@_dir_option
@json_option
def demo(folder: Path, *, as_json: bool) -> None:
    """Seed waiting jobs of every kind, run the Dagster job once, and show what became of each."""
    from pm_dagster.sandbox import demo as play  # noqa: PLC0415
    from pm_dagster.sandbox.place import Place  # noqa: PLC0415

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    _end_on_signal()
    place = Place(folder)
    say("Starting a Postgres server and a local workspace ...")
    with place.opened() as sandbox:
        seeded = play.seed_all(sandbox)
        say(f"{len(seeded)} jobs wait in the control table. Running the Dagster job process_manager ...")
        seconds = play.run_dagster_job(sandbox, place.logs / "demo.log")
        told = play.tell(sandbox, seeded)
    if as_json:
        print_json({"seconds": round(seconds, 3), "rows": [asdict(row) for row in told]})
    else:
        _print_demo(told, seconds, folder)


def _print_demo(told: list[Told], seconds: float, folder: Path) -> None:
    out = console()
    out.print()
    out.print(table(_COLUMNS, told))
    counts = Counter(row.after for row in told)
    parts = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    out.print()
    out.print(f"{len(told)} rows in {duration(seconds)}, with the start of Dagster: {parts}.")
    out.print(f"To see the run in the Dagster UI: pm sandbox up{_dir_words(folder)}", soft_wrap=True)


@command.command("up")
@_dir_option
@click.option(
    "--port", type=PORT, default=3000, show_default=True, help="Port of the Dagster UI; a free one if it is taken."
)
@click.option("--quiet-rows", is_flag=True, help="Do not add waiting jobs.")
def up(folder: Path, port: int, *, quiet_rows: bool) -> None:
    """Start the sandbox with the Dagster UI and daemon, and add waiting jobs until Ctrl-C."""
    from pm_dagster.sandbox.place import Place  # noqa: PLC0415
    from pm_dagster.sandbox.processes import Children, answers, free_port  # noqa: PLC0415

    _end_on_signal()
    place = Place(folder)
    try:
        # The path of a socket may have 107 bytes at most, and only we may connect to it.
        with (
            TemporaryDirectory(prefix="pm-sandbox-") as sockets,
            place.opened() as sandbox,
            Children(sandbox.environment, place.logs) as children,
        ):
            web = free_port(port)
            _start_dagster(place, children, web, Path(sockets) / "code")
            _wait_for(children, "webserver", lambda: answers(web))
            _announce(place, sandbox, web)
            _keep_going(sandbox, children, trickle=not quiet_rows)
    except KeyboardInterrupt:
        click.echo("\nAll servers are stopped. The data is kept; pm sandbox reset removes it.")


def _end_on_signal() -> None:
    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # SIGINT as well: a shell that starts us in the background has it ignored. SIGHUP: the terminal was closed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def _start_dagster(place: Place, children: Children, port: int, socket: Path) -> None:
    """One code server, and whoever needs the code location asks it."""
    workspace = ["-w", str(place.write_dagster_workspace(socket))]
    web = ["-h", "127.0.0.1", "-p", str(port)]
    python = [sys.executable, "-m"]
    module = ["-m", "pm_dagster.definitions"]
    children.start("code-server", [*python, "dagster", "api", "grpc", "--socket", str(socket), *module])
    _wait_for(children, "code-server", socket.exists)
    # A deployment turns the sensor on by hand; whoever starts a sandbox wants to see it work. It comes first and alone:
    # it makes the tables of a new instance, which two processes at once may leave half made.
    children.run("sensor", [*python, "dagster", "sensor", "start", SENSOR, *workspace])
    children.start("webserver", [*python, "pm_dagster.sandbox.webserver", *web, *workspace])
    children.start("daemon", [*python, "dagster._daemon", "run", *workspace])


def _wait_for(children: Children, name: str, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_up():
        ended = children.ended()
        if ended is not None:
            raise ProcessManagerError(f"Dagster's {ended} ended; see {children.log_of(ended)}")
        if time.monotonic() > deadline:
            raise ProcessManagerError(f"Dagster's {name} did not start; see {children.log_of(name)}")
        time.sleep(0.2)


def _announce(place: Place, sandbox: Open, port: int) -> None:
    for name, value in (
        ("Dagster UI", f"http://127.0.0.1:{port}"),
        ("Workspace", sandbox.workspace.host),
        ("Database", sandbox.settings.postgres_url),
        ("Logs", str(place.logs)),
    ):
        click.echo(f"{name:<12}{value}")
    click.echo(f'To use it from another terminal: eval "$(pm sandbox env{_dir_words(place.folder)})"')
    click.echo("Ctrl-C stops everything.")


def _dir_words(folder: Path) -> str:
    default = folder.resolve() == _DEFAULT_FOLDER.resolve()
    return "" if default else f" --dir {shlex.quote(str(folder))}"


def _keep_going(sandbox: Open, children: Children, *, trickle: bool) -> None:
    import random  # noqa: PLC0415
    from contextlib import closing  # noqa: PLC0415

    from pm_dagster.ledger.connection import connect  # noqa: PLC0415
    from pm_dagster.sandbox import seed  # noqa: PLC0415

    with closing(connect(sandbox.settings)) as connection:
        seed.define_jobs(sandbox.workspace.state)
        arrivals = seed.trickle(connection, sandbox.workspace.state, random.Random())  # noqa: S311
        while (name := children.ended()) is None:
            if trickle:
                next(arrivals)
            threading.Event().wait(_TRICKLE_SECONDS)
    raise ProcessManagerError(f"Dagster's {name} ended; see {children.log_of(name)}")


@command.command("env")
@_dir_option
@json_option
def env(folder: Path, *, as_json: bool) -> None:
    """Print the variables of the running sandbox, for: eval "$(pm sandbox env)"."""
    from pm_dagster.sandbox.place import found  # noqa: PLC0415

    variables = found(folder)
    if as_json:
        print_json(variables)
        return
    for name in sorted(filter(str.isidentifier, connections.invocation().environment)):
        if name.startswith(_MISLEADING) and not name.startswith(_HARMLESS) and name not in variables:
            click.echo(f"unset {name}")
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@command.command("reset")
@_dir_option
def reset(folder: Path) -> None:
    """Stop the sandbox's servers and remove its data."""
    from pm_dagster.sandbox.place import Place  # noqa: PLC0415

    done = Place(folder).reset()
    click.echo(f"The sandbox in {folder} is stopped and removed." if done else f"There is no sandbox in {folder}.")
