"""``make bench`` with ``--profile``: the thread that decides and the statements of Postgres are told by name."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from pm_dagster_tests.bench import profiling
from pm_dagster_tests.bench.__main__ import main


def test_a_dispatch_in_the_bench_and_one_in_a_process_are_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--profile", "--quick", "mixed-16", "cold"])
    shown = capsys.readouterr().out
    mixed, cold = re.split(r"(?m)^cold$", shown)
    assert mixed.startswith("mixed-16\n")
    for told in (mixed, cold):
        # The bare script is no part of the product, and compiling is not what is asked for.
        assert re.search(r"CPU of the deciding thread: \d+\.\d\d s in 1 dispatches", told)
        assert re.search(r"(?m)^ +\d+\.\d %  pm_dagster/\w+/\w+\.py$|^ +\d+\.\d %  built in: builtins$", told)
        assert re.search(r"Postgres: \d+ ms in \d+ statements", told)
        assert re.search(r"(?m)^ +\d+\.\d +\d+\.\d % +\d+  INSERT INTO process_manager\.event ", told)
    # No statement of the bench's own: rows are put there before the database is logged.
    assert "INSERT INTO mm_run_plc" not in shown


def test_only_the_cpu_time_of_the_thread_counts(tmp_path: Path) -> None:
    def work() -> int:
        time.sleep(0.3)
        return sum(range(1000))

    assert profiling.profiled(work, tmp_path) == 499500
    told = profiling.report(tmp_path, "")
    found = re.search(r"CPU of the deciding thread: (\d+\.\d\d) s in 1 dispatches", told)
    assert found is not None
    assert float(found[1]) < 0.1
    assert "Postgres: 0 ms in 0 statements" in told


def test_statements_that_differ_by_their_values_are_one() -> None:
    log = (
        "2026-01-01 10:00:00.000 UTC [7] LOG:  duration: 1.500 ms  statement: SET LOCAL a = '5s'; SET LOCAL b = off;"
        " UPDATE t\n"
        "\tSET x = 'it''s', y = 7\n"
        "2026-01-01 10:00:00.000 UTC [7] LOG:  checkpoint starting: time\n"
        "2026-01-01 10:00:00.001 UTC [7] LOG:  duration: 2.500 ms  statement: SET LOCAL a = '9s'; SET LOCAL b = off;"
        " UPDATE t\n"
        "\tSET x = '', y = 12.5\n"
        "2026-01-01 10:00:00.002 UTC [7] LOG:  duration: 0.100 ms  statement: COMMIT\n"
    )
    told = profiling.report(Path("/nowhere"), log).splitlines()
    assert told[0] == "no thread of ours was profiled"
    assert "Postgres: 4 ms in 3 statements" in told
    assert [" ".join(line.split()) for line in told[-2:]] == [
        "4.0 97.6 % 2 SET LOCAL ...; UPDATE t SET x = ?, y = ?",
        "0.1 2.4 % 1 COMMIT",
    ]
    values = "INSERT INTO t VALUES (1, 'a'), (2, NULL), (3, E'\\\\n')"
    assert profiling.normal(values) == "INSERT INTO t VALUES (?, ?), ..."
    arrays = "UPDATE t SET x = v.x FROM unnest(ARRAY[1, 2]::bigint[], ARRAY['a', NULL]::text[]) v (id, x)"
    assert profiling.normal(arrays).startswith("UPDATE t SET x = v.x FROM unnest(ARRAY[...]::bigint[], ARRAY[...]")


def test_only_commands_of_the_product_are_profiled(tmp_path: Path) -> None:
    ours = ["-m", "dagster", "job", "execute", "-m", "pm_dagster.definitions"]
    begin = ["-m", "pm_dagster_tests.bench.profiling", str(tmp_path)]
    assert profiling.command(tmp_path, ours) == [*begin, *ours[1:]]
    for other in (["-c", "import pm_dagster.cli"], ["-m", "dagster", "-m", "pm_dagster_tests.bench.empty_job"]):
        assert profiling.command(tmp_path, other) == other
