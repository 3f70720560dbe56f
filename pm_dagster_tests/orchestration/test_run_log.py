"""What our modules log stands in the log of the Dagster run, once, from every thread, and without secrets."""

import logging
import threading
from pathlib import Path

import dagster as dg
import pytest

from pm_dagster.config.masking import register_secret
from pm_dagster.logs import fields
from pm_dagster.orchestration.execution import EventsByOp, events_go_to
from pm_dagster_tests.orchestration.conftest import CodeLocation

_SECRET = "a-made-up-secret-of-the-run-log"
_MANAGED = "python_logs:\n  managed_python_loggers: [pm_dagster]\n"


def _log(number: int) -> None:
    logging.getLogger("pm_dagster.made_up").warning("tried", extra=fields(number=number, error=f"token {_SECRET}"))


@dg.op
def from_threads(context: dg.OpExecutionContext) -> None:
    with events_go_to(context.log, context.instance):
        threads = [threading.Thread(target=_log, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logging.getLogger("pm_dagster.made_up").debug("a row's step")


@dg.job(executor_def=dg.in_process_executor)
def logs() -> None:
    from_threads()


def _messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.user_message for entry in instance.all_logs(run_id) if not entry.is_dagster_event]


def test_events_of_all_threads_are_in_the_run_log_without_secrets(code_location: CodeLocation) -> None:
    register_secret(_SECRET)
    logger = logging.getLogger("pm_dagster")
    before = (list(logger.handlers), logger.level)
    result = logs.execute_in_process(instance=code_location.instance)
    messages = _messages(code_location.instance, result.run_id)
    assert sorted(messages) == [f'tried number={number} error="token ***"' for number in range(4)]
    assert (list(logger.handlers), logger.level) == before
    whole = "".join(map(str, code_location.instance.all_logs(result.run_id)))
    assert _SECRET not in whole


def test_an_instance_that_captures_our_logger_itself_gets_each_event_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster.yaml").write_text(_MANAGED)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        result = logs.execute_in_process(instance=instance)
        messages = _messages(instance, result.run_id)
    assert len(messages) == 4, messages


def test_a_dispatch_tells_of_a_refused_row_in_its_run_log(code_location: CodeLocation) -> None:
    code_location.database.add(1, job_id=99)
    result = code_location.dispatch()
    assert result.success
    told = _messages(code_location.instance, result.run_id)
    assert any(message.startswith("row quarantined run_id=1 ") for message in told), told


@dg.op
def earlier(context: dg.OpExecutionContext, events: dg.ResourceParam[EventsByOp]) -> None:
    log = logging.getLogger("pm_dagster.made_up")
    with events.of(context):
        for number in range(1005):
            log.info("of a row", extra=fields(entry=2, number=number))
        log.info("of a row", extra=fields(entry=1, error=f"token {_SECRET}"))
        log.info("of nobody", extra=fields(number=7))


@dg.op(ins={"start": dg.In(dg.Nothing)})
def later(context: dg.OpExecutionContext, events: dg.ResourceParam[EventsByOp]) -> None:
    with events.of(context):
        logging.getLogger("pm_dagster.made_up").info("of a row", extra=fields(entry=1, number=8))


def test_an_event_is_kept_for_the_op_that_it_is_about_and_not_without_end(code_location: CodeLocation) -> None:
    register_secret(_SECRET)
    events = EventsByOp({1: "earlier", 2: "later"}.get)

    @dg.job(
        executor_def=dg.in_process_executor,
        resource_defs={"events": dg.ResourceDefinition.hardcoded_resource(events)},
    )
    def two() -> None:
        later(start=earlier())

    result = two.execute_in_process(instance=code_location.instance)
    events.end(None)
    logs = [entry for entry in code_location.instance.all_logs(result.run_id) if not entry.is_dagster_event]
    told = {op: [entry.user_message for entry in logs if entry.step_key == op] for op in ("earlier", "later")}
    assert told["earlier"] == ['of a row entry=1 error="token ***"', "of nobody number=7"]
    assert len(told["later"]) == 1000 + 1 + 1
    assert told["later"][0].startswith("of a row entry=2 number=0 at=20")
    assert told["later"][-2:] == [
        "further events from before this op began: 5; `pm explain` has each row",
        # The op of this row is over.
        "of a row entry=1 number=8",
    ]
