"""What the workspace remembers: jobs, runs, their attempts and task runs, as plain data that turns into JSON and back.

Transitions are in ``lifecycle.py``, wire shapes in ``views.py``. Times are epoch seconds; 0 means not yet.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Json = dict[str, Any]

#: The one workspace and the one person who is signed in to it.
WORKSPACE_ID = "1234567890123456"
USER_ID = "4711000000000001"
USER_NAME = "sandbox@example.com"

ACTIVE = frozenset({"BLOCKED", "PENDING", "QUEUED", "RUNNING", "TERMINATING", "WAITING_FOR_RETRY"})
OUTCOMES = ("succeed", "fail", "timeout", "internal_error", "succeed_with_failures", "cancel")


@dataclass
class Job:
    """A Databricks job and the script that its runs follow, unless they execute.

    ``outcomes`` names the end of the first attempt, of the first repair, and so on; the last one repeats.
    ``seconds`` None holds a run in RUNNING until somebody finishes it. Not ``scripted``: the API defined its tasks.
    """

    job_id: int
    settings: Json
    created: float
    outcomes: list[str] = field(default_factory=lambda: ["succeed"])
    seconds: float | None = 1.0
    pending_seconds: float = 0.0
    queue_default: bool = True
    scripted: bool = True

    @property
    def name(self) -> str:
        """The job's name, which need not be unique."""
        return str(self.settings.get("name", "Untitled"))

    @property
    def max_concurrent_runs(self) -> int:
        """How many runs may be active at once."""
        return int(self.settings.get("max_concurrent_runs", 1))

    @property
    def queue_enabled(self) -> bool:
        """Whether a run beyond the limit waits; a run-now may override it."""
        queue = self.settings.get("queue") or {}
        return bool(queue.get("enabled", self.queue_default))

    @property
    def tasks(self) -> list[Json]:
        """The task settings; a job without any has one that is called main."""
        return list(self.settings.get("tasks") or [{"task_key": "main"}])

    @property
    def executes(self) -> bool:
        """Whether its tasks really execute; where no task says what to execute, the script goes on to decide."""
        return not self.scripted and any(kind_of(task) for task in self.tasks)


@dataclass
class Phase:
    """Where something is in its life: shared by task runs and attempts."""

    life: str = "PENDING"
    result: str | None = None
    message: str = ""
    start: float = 0.0
    end: float = 0.0

    @property
    def active(self) -> bool:
        """True until the end is reached."""
        return self.life in ACTIVE


@dataclass
class TaskRun(Phase):
    """One execution of one task, with a run id of its own."""

    run_id: int = 0
    task_key: str = ""
    attempt_number: int = 0
    settings: Json = field(default_factory=dict)
    error: str = ""
    error_trace: str = ""

    @property
    def depends_on(self) -> list[str]:
        """Keys of the tasks that have to succeed first."""
        return [str(each["task_key"]) for each in self.settings.get("depends_on") or []]


@dataclass
class Attempt(Phase):
    """The original execution of a run (no ``repair_id``) or one repair. ``due`` is when it changes by itself.

    ``settings`` are those of the job as they were at its start when the tasks execute, None when a script decides;
    ``python_params`` replace the parameters of every Python task.
    """

    repair_id: int | None = None
    tasks: list[TaskRun] = field(default_factory=list)
    outcome: str = "succeed"
    seconds: float | None = 1.0
    pending_seconds: float = 0.0
    due: float | None = None
    settings: Json | None = None
    python_params: list[str] | None = None

    @property
    def executes(self) -> bool:
        """Whether its tasks execute rather than follow a script."""
        return self.settings is not None


@dataclass
class Run:
    """A run and all that happened to it; its state is the state of its last attempt."""

    run_id: int
    job_id: int
    name: str
    created: float
    parameters: dict[str, str] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def last(self) -> Attempt:
        """The original execution or the latest repair."""
        return self.attempts[-1]

    @property
    def latest_repair_id(self) -> int | None:
        """What the next repair has to name; None before the first."""
        return self.last.repair_id

    def latest_tasks(self) -> dict[str, TaskRun]:
        """The newest task run of each key."""
        return {task.task_key: task for attempt in self.attempts for task in attempt.tasks}


def kind_of(task: Json) -> str | None:
    """What a task's settings say is to be executed, such as ``spark_python_task``."""
    return next((name for name in task if name.endswith("_task")), None)


def to_record(item: Job | Run) -> Json:
    """The item as JSON data."""
    return asdict(item)


def job_from(record: Json) -> Job:
    """A job from its JSON data."""
    return Job(**record)


def run_from(record: Json) -> Run:
    """A run from its JSON data."""
    attempts = [
        Attempt(**{**each, "tasks": [TaskRun(**task) for task in each["tasks"]]}) for each in record["attempts"]
    ]
    return Run(**{**record, "attempts": attempts})
