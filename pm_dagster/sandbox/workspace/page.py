"""The pages for people: what jobs there are, how their runs went, which repairs they had.

The pages only read, and every value is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse

from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.gate import Parts
from pm_dagster.sandbox.workspace.model import Job, Phase, Run, TaskRun

_SHOWN = 200
_SHORT = 40
_MOST_OUTPUTS = 20
_MOST_OUTPUT = 64 * 1024
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--ink2:#777}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p.sub{color:var(--ink2);margin:0 0 1rem}a{color:#2a6fdb;text-decoration:none}a:hover{text-decoration:underline}
table{border-collapse:collapse;width:100%}th{text-align:left;color:var(--ink2);font-weight:500}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}tbody tr:hover{background:var(--soft)}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
b.s{font-weight:600;border-radius:1rem;padding:.1rem .6rem;font-size:.85em;white-space:nowrap}
b.good{background:#1a7f3722;color:#1f8f43}b.bad{background:#c9302c22;color:#d14}b.busy{background:#2a6fdb22;color:#2a6fdb}
b.idle{background:#8883;color:var(--ink2)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}small{color:var(--ink2);font-weight:400}
pre{background:var(--soft);padding:.8rem 1rem;margin:0;border-radius:.4rem;font-size:.85rem;white-space:pre-wrap;
overflow-wrap:anywhere}
"""
# The service's run_page_url hides job and run in the fragment, which never reaches a server.
_SCRIPT = (
    "var m=/^#job\\/(\\d+)\\/run\\/(\\d+)$/.exec(location.hash);if(m)location.replace('/jobs/'+m[1]+'/runs/'+m[2]);"
)
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}'; frame-ancestors 'none'"


class Pages:
    """The pages over the parts of a workspace."""

    def __init__(self, parts: Parts) -> None:
        self._state = parts.state

    async def overview(self, _: Request) -> HTMLResponse:
        """All jobs and the latest runs."""
        with self._state.locked():
            jobs, runs = self._state.jobs(), self._state.runs()
            latest: dict[int, Run] = {}
            counts: dict[int, int] = {}
            for run in runs:
                latest.setdefault(run.job_id, run)
                counts[run.job_id] = counts.get(run.job_id, 0) + 1
            rows = [_job_row(job, latest.get(job.job_id), counts.get(job.job_id, 0)) for job in jobs[:_SHOWN]]
            active = sum(run.last.active for run in runs)
            body = _table(["Job", "Id", "At once", "Runs", "Latest"], rows, "No jobs yet.")
            body += f"<h2>Runs</h2>{_runs_table(runs)}"
        about = f"{len(jobs)} jobs, {len(runs)} runs, {active} of them active"
        return _page("Local workspace", about, f"<h2>Jobs</h2>{body}")

    async def job(self, request: Request) -> HTMLResponse:
        """One job and its runs."""
        job_id = request.path_params["job_id"]
        with self._state.locked():
            try:
                name = self._state.job(job_id).name
            except ApiError as refusal:
                return _page("Not here", refusal.message, "", 404)
            return _page(name, f"Job {job_id}", f"<h2>Runs</h2>{_runs_table(self._state.runs(job_id))}")

    async def run(self, request: Request) -> HTMLResponse:
        """One run: its parameters, its repairs, its task runs; a task run's id shows the run it belongs to."""
        run_id = request.path_params["run_id"]
        with self._state.locked():
            try:
                run = self._state.run_of_task(run_id) or self._state.run(run_id)
            except ApiError as refusal:
                return _page("Not here", refusal.message, "", 404)
            body = _run_body(run) + self._outputs(run)
            return _page(run.name, f"Run {run.run_id} of job {run.job_id}", body, changes=run.last.active)

    def _outputs(self, run: Run) -> str:
        """What the tasks wrote, those of the latest execution first; nothing where a script decided."""
        tasks = [task for each in reversed(run.attempts) if each.executes for task in each.tasks if task.start]
        written = [_output(task, self._state.output(task.run_id, _MOST_OUTPUT)) for task in tasks[:_MOST_OUTPUTS]]
        return "<h2>Output</h2>" + "".join(written) if written else ""


def _output(task: TaskRun, written: tuple[str, bool]) -> str:
    text, cut = written
    # The trace is part of the output, but a task that never began has none.
    shown = text or task.error
    more = f"<p class=sub>The last {_MOST_OUTPUT >> 10} kB.</p>" if cut else ""
    body = f"<pre>{escape(shown)}</pre>" if shown else "<p class=sub>It wrote nothing.</p>"
    return f"<h3>{escape(task.task_key)} {_badge(task)} <small>{task.run_id}</small></h3>{more}{body}"


def _run_body(run: Run) -> str:
    parameters = [[escape(name), escape(value)] for name, value in run.parameters.items()]
    attempts = [
        [
            "original" if each.repair_id is None else f"repair {each.repair_id}",
            _badge(each),
            _time(each.start),
            _span(each),
            escape(each.message),
        ]
        for each in run.attempts
    ]
    tasks = [
        [escape(task.task_key), f"{task.run_id}", _badge(task), _time(task.start), _span(task), escape(task.message)]
        for each in reversed(run.attempts)
        for task in each.tasks
    ]
    return (
        f"<p>{_badge(run.last)} {escape(run.last.message)}</p>"
        f"<h2>Executions</h2>{_table(['What', 'State', 'Began', 'Took', 'Message'], attempts[::-1], '')}"
        f"<h2>Task runs</h2>{_table(['Task', 'Id', 'State', 'Began', 'Took', 'Message'], tasks[:_SHOWN], '')}"
        f"<h2>Parameters</h2>{_table(['Name', 'Value'], parameters, 'None given.')}"
    )


def _job_row(job: Job, latest: Run | None, count: int) -> list[str]:
    link = f'<a href="/jobs/{job.job_id}">{escape(job.name)}</a>'
    return [link, f"{job.job_id}", f"{job.max_concurrent_runs}", f"{count}", _badge(latest.last) if latest else ""]


def _runs_table(runs: list[Run]) -> str:
    rows = [
        [
            f'<a href="/jobs/{run.job_id}/runs/{run.run_id}">{run.run_id}</a>',
            escape(run.name),
            _badge(run.last),
            _time(run.created),
            _span(run.last),
            f"{len(run.attempts) - 1 or ''}",
        ]
        for run in runs[:_SHOWN]
    ]
    more = f"<p class=sub>The latest {_SHOWN} of {len(runs)}.</p>" if len(runs) > _SHOWN else ""
    return _table(["Run", "Job", "State", "Began", "Took", "Repairs"], rows, "No runs yet.") + more


def _badge(phase: Phase) -> str:
    text = phase.result or phase.life
    tone = "busy" if phase.active else {"SUCCESS": "good", "CANCELED": "idle"}.get(text, "bad")
    tone = "idle" if phase.life in ("SKIPPED", "QUEUED", "BLOCKED") else tone
    return f'<b class="s {tone}">{escape(text.replace("_", " ").lower())}</b>'


def _time(seconds: float) -> str:
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(phase: Phase) -> str:
    return f"{phase.end - phase.start:.1f} s" if phase.end and phase.start else ""


def _table(heads: list[str], rows: list[list[str]], empty: str) -> str:
    if not rows:
        return f"<p class=sub>{escape(empty)}</p>"
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    # Messages may break; ids, times and badges may not.
    short = "<" in text or len(text) < _SHORT
    return f"<td class=n>{text}</td>" if short else f"<td>{text}</td>"


def _page(title: str, about: str, body: str, status: int = 200, *, changes: bool = True) -> HTMLResponse:
    refresh = '<meta http-equiv="refresh" content="5">' if changes else ""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{refresh}<style>{_STYLE}</style><script>{_SCRIPT}</script></head>"
        f'<body><p class="sub"><a href="/">Local workspace</a> (sandbox)</p><h1>{escape(title)}</h1>'
        f'<p class="sub">{escape(about)}</p>{body}</body></html>'
    )
    return HTMLResponse(text, status, {"content-security-policy": _POLICY, "cache-control": "no-store"})
