"""What Dagster's processes may import: a process of every deployment pays for it, and most of them send nothing."""

from __future__ import annotations

import os
import subprocess
import sys

from pm_dagster_tests.orchestration.deployment import Deployment

#: Seconds and tens of megabytes each. A run that calls the workspace needs some of them, nothing else any.
_HEAVY = ("aiohttp", "azure", "dagster_databricks", "databricks", "google", "pyspark", "requests")
_SHOW = f"print('HEAVY', [name for name in {_HEAVY} if name in sys.modules])"
_TICK = f"""
import sys
import dagster as dg
from pm_dagster.definitions import defs
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTableResource
sensor = defs.get_repository_def().get_sensor_def(names.SENSOR)
with dg.instance_for_test() as instance:
    resources = {{"control_table": ControlTableResource()}}
    with dg.build_sensor_context(instance=instance, definitions=defs, resources=resources) as context:
        tick = sensor.evaluate_tick(context)
print(len(tick.run_requests or []), tick.skip_message)
{_SHOW}
"""
_RUN = """
import sys
import dagster as dg
from pm_dagster.definitions import defs
from pm_dagster.orchestration import names
with dg.instance_for_test() as instance:
    done = defs.resolve_job_def(names.JOB).execute_in_process(instance=instance)
print(done.success)
print("HEAVY", [name for name in ("aiohttp", "azure", "dagster_pyspark", "pyspark") if name in sys.modules])
"""
_COLLECTED = """
import gc
import pm_dagster.definitions
print(gc.isenabled(), gc.get_freeze_count() > 50 * len(gc.get_objects()))
"""


def _lines(code: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_code_location_imports_nothing_of_the_workspace() -> None:
    load = "from pm_dagster.definitions import defs; defs.get_repository_def().load_all_definitions()"
    assert _lines(f"import sys; {load}; {_SHOW}", {"PATH": os.environ["PATH"]}) == ["HEAVY []"]


def test_a_tick_of_the_sensor_imports_nothing_of_the_workspace(deployment: Deployment) -> None:
    deployment.add()
    assert _lines(_TICK, deployment.environment)[-2:] == ["1 None", "HEAVY []"]


def test_a_run_imports_what_it_needs_of_the_workspace(deployment: Deployment) -> None:
    run_id = deployment.add()
    assert _lines(_RUN, deployment.environment)[-2:] == ["True", "HEAVY []"]
    assert deployment.status(run_id)[0] == "SCHEDULED"


def test_what_was_imported_is_no_work_for_the_garbage_collector() -> None:
    assert _lines(_COLLECTED, {"PATH": os.environ["PATH"]}) == ["True True"]
