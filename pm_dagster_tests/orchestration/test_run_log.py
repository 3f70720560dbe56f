"""What our modules log stands in the log of the Dagster run, once, from every thread, and without secrets."""

import logging
import threading
from pathlib import Path

import dagster as dg
import pytest

from pm_dagster.config.masking import register_secret
from pm_dagster.logs import fields
from pm_dagster.orchestration.execution import events_go_to
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
