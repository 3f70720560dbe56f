"""``databricks.sdk`` is executed when something of it is asked for, once, and is then as it would have been."""

from __future__ import annotations

import subprocess
import sys

_SERVICES = "len([name for name in sys.modules if name.startswith('databricks.sdk.service.')])"


def _printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_our_adapters_need_few_of_its_services() -> None:
    code = f"import sys, pm_dagster.databricks.runs, pm_dagster.databricks.sign_in; print({_SERVICES})"
    few = int(_printed(code)[0])
    everything = int(_printed(f"import sys, databricks.sdk; print({_SERVICES})")[0])
    assert 0 < few < everything / 3


def test_it_has_in_the_end_what_it_has_without_us() -> None:
    show = "print(sorted(name for name in vars(databricks.sdk) if not name.startswith('_')), type(databricks.sdk))"
    plain = _printed(f"import databricks.sdk; {show}")
    ours = _printed(
        "import pm_dagster.databricks.runs, pm_dagster.databricks.deployed_jobs, databricks.sdk\n"
        "from databricks.sdk import AccountClient, WorkspaceClient\n"
        f"assert WorkspaceClient is databricks.sdk.WorkspaceClient\n{show}"
    )
    assert ours == plain


def test_a_submodule_is_there_without_an_import_of_its_own() -> None:
    code = "import sys, pm_dagster.databricks, databricks.sdk as sdk; print(sdk.oauth.__name__, sdk.service.__name__)"
    assert _printed(code) == ["databricks.sdk.oauth databricks.sdk.service"]


def test_what_it_does_not_have_is_an_attribute_error_before_and_after() -> None:
    code = (
        "import pm_dagster.databricks, databricks.sdk as sdk\n"
        "print([hasattr(sdk, name) for name in ('__nothing__', 'nothing', 'nothing', 'WorkspaceClient')])"
    )
    assert _printed(code) == ["[False, False, False, True]"]


def test_threads_that_ask_at_once_get_the_same_class() -> None:
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import pm_dagster.databricks
together = Barrier(8)
def ask(_):
    together.wait()
    from databricks.sdk import WorkspaceClient
    return WorkspaceClient
with ThreadPoolExecutor(8) as pool:
    print(len(set(pool.map(ask, range(8)))))
"""
    assert _printed(code) == ["1"]


def test_one_that_is_imported_already_is_left_alone() -> None:
    code = (
        "import sys, databricks.sdk as before, pm_dagster.databricks\n"
        "print(sys.modules['databricks.sdk'] is before, type(before))"
    )
    assert _printed(code) == ["True <class 'module'>"]


def test_without_the_sdk_the_import_of_it_says_so() -> None:
    code = (
        "import sys; sys.modules['databricks'] = None\n"
        "try: import pm_dagster.databricks.runs\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    assert _printed(code) == ["databricks"] or _printed(code) == ["databricks.sdk"]
