"""Goes through the tasks of runs, a thread for each run that executes.

The order of tasks, time limits, stopping, and what a program's end means for its task. A run's thread reports each
change to the state, which makes it under its own lock. ``scheduler.py`` decides which run may start.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Protocol

from pm_dagster.sandbox.workspace import lifecycle
from pm_dagster.sandbox.workspace.execution.outputs import Output, Outputs
from pm_dagster.sandbox.workspace.execution.preparation import CannotStart, Preparation, Program
from pm_dagster.sandbox.workspace.execution.process import Ended, Process
from pm_dagster.sandbox.workspace.lifecycle import TaskEnd
from pm_dagster.sandbox.workspace.model import Attempt, Run, TaskRun
from pm_dagster.sandbox.workspace.switches import Switches

_LOG = logging.getLogger(__name__)


class Report(Protocol):
    """How a thread tells the state of a change."""

    def __call__(self, run: Run, attempt: Attempt, change: Callable[[float], None]) -> bool:
        """Make the change at the present time; False when nobody keeps that attempt any more."""
        ...


class Executor:
    """The executions under way. While it is closed, as at first, none begins."""

    def __init__(self, preparation: Preparation, outputs: Outputs, switches: Switches) -> None:
        self.outputs = outputs
        self._preparation, self._switches = preparation, switches
        self._lock = threading.Lock()
        self._open = False
        self._under_way: dict[int, _Execution] = {}

    def launch(self, run: Run, report: Report) -> None:
        """Begin to execute the run's last attempt."""
        with self._lock:
            if self._open:
                execution = _Execution(run, report, self._preparation, self.outputs, self._switches)
                self._under_way[run.run_id] = execution
                execution.start(lambda: self._forget(execution))

    def stop(self, run_id: int, why: str) -> None:
        """Ask a run to end, as "cancel" or "lost"; it ends some time later."""
        with self._lock:
            execution = self._under_way.get(run_id)
        if execution is not None:
            execution.stop(why)

    def drop(self, run: Run) -> None:
        """End a run that nobody keeps any more, and forget what it wrote."""
        self.stop(run.run_id, "lost")
        self.outputs.forget(task.run_id for attempt in run.attempts for task in attempt.tasks)

    def open(self) -> None:
        """Let runs begin."""
        with self._lock:
            self._open = True

    def close(self) -> None:
        """Let no run begin, and end those under way; returns when all their processes are gone."""
        with self._lock:
            self._open = False
        self.end_all()

    def end_all(self, *, at_once: bool = False) -> None:
        """End every run under way and wait for that; what becomes of it in the state is the caller's."""
        with self._lock:
            doomed, self._under_way = self._under_way, {}
        for execution in doomed.values():
            execution.stop("lost", at_once=at_once)
        for execution in doomed.values():
            execution.join()

    def _forget(self, execution: _Execution) -> None:
        with self._lock:
            # A repair of the same run may have begun meanwhile.
            if self._under_way.get(execution.run_id) is execution:
                del self._under_way[execution.run_id]


class _Execution:
    """One attempt of one run."""

    def __init__(
        self, run: Run, report: Report, preparation: Preparation, outputs: Outputs, switches: Switches
    ) -> None:
        self.run_id = run.run_id
        self._run, self._attempt = run, run.last
        self._report = partial(report, run, run.last)
        self._preparation, self._outputs, self._switches = preparation, outputs, switches
        self._deadline = _deadline((run.last.settings or {}).get("timeout_seconds"))
        self._lock = threading.Lock()
        self._stopped: str | None = None
        self._process: Process | None = None

    def start(self, afterwards: Callable[[], None]) -> None:
        """Go through the tasks in a thread."""
        name = f"run-{self.run_id}"
        self._thread = threading.Thread(target=self._go, args=[afterwards], name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """End the task that runs now and let no other begin; the first reason counts."""
        with self._lock:
            self._stopped = self._stopped or why
            if self._process is not None:
                self._process.end(why, at_once=at_once)

    def _go(self, afterwards: Callable[[], None]) -> None:
        try:
            self._go_through_tasks()
        except Exception:  # noqa: BLE001  # whatever it is, the run must not hang
            _LOG.exception("the sandbox failed at run %s", self.run_id)
            self._stopped = "broken"
        finally:
            # The runs of a workspace that stops are left as they are; it sees to them when it starts again.
            if self._stopped != "lost":
                self._report(partial(lifecycle.conclude, self._attempt, self._stopped))
            afterwards()

    def _go_through_tasks(self) -> None:
        there = self._report(partial(lifecycle.begin_executing, self._attempt))
        for task in self._attempt.tasks:
            if not there or self._stopped:
                return
            end = lifecycle.obstacle(self._attempt, task) or self._execute(task)
            there = self._report(partial(lifecycle.end_task, task, end))

    def _execute(self, task: TaskRun) -> TaskEnd:
        self._report(partial(lifecycle.begin_task, task))
        try:
            program = self._preparation.program(self._run, task)
            with closing(self._outputs.writer(task.run_id)) as output:
                return self._follow(self._started(program, output), task)
        except CannotStart as reason:
            return lifecycle.not_started(str(reason))

    def _started(self, program: Program, output: Output) -> Process | None:
        with self._lock:
            if self._stopped is None:
                try:
                    self._process = Process(program, output, self._switches.kill_seconds)
                except (OSError, ValueError) as error:
                    raise CannotStart(f"The program could not be started: {error}.") from None
            return self._process

    def _follow(self, process: Process | None, task: TaskRun) -> TaskEnd:
        if process is None:
            return lifecycle.STOPPED[self._stopped or "broken"]
        limits = [limit for limit in (self._deadline, _deadline(task.settings.get("timeout_seconds"))) if limit]
        ended = process.wait(min(limits, default=None))
        with self._lock:
            self._process = None
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._stopped = self._stopped or "timeout"
        return _task_end(ended)


def _deadline(seconds: int | None) -> float | None:
    return time.monotonic() + seconds if seconds is not None and seconds > 0 else None


def _task_end(ended: Ended) -> TaskEnd:
    if ended.stopped is not None:
        return lifecycle.STOPPED[ended.stopped]
    if ended.result is not None:
        texts = [_sendable(str(ended.result.get(name, ""))) for name in ("error", "error_trace")]
        return lifecycle.failed(*texts) if ended.result else lifecycle.SUCCEEDED
    if ended.returncode is None:
        return lifecycle.STOPPED["broken"]
    return lifecycle.failed(f"The Python process exited with exit code {_exit_code(ended.returncode)}.", "")


def _sendable(text: str) -> str:
    """An error's text may hold half a surrogate pair, which no answer can."""
    return text.encode("utf-8", "replace").decode()


def _exit_code(returncode: int) -> str:
    if returncode >= 0:
        return str(returncode)
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = "a signal"
    return f"{128 - returncode} ({name})"
