"""Tells people about rows that need them."""

import dagster as dg
import pandas as pd

from pm_dagster.dispatch.model import Outcome
from pm_dagster.orchestration import names
from pm_dagster.orchestration.metadata import cell

_SHOWN = 100


@dg.asset_check(
    asset=names.DISPATCHED_JOBS,
    name=names.CHECK,
    description=(
        "Warns when the dispatch refused rows for good. Each is marked with its reason and stays so until somebody "
        "corrects it and runs `pm redrive`."
    ),
)
def no_quarantined_rows(dispatched_jobs: pd.DataFrame) -> dg.AssetCheckResult:
    """Warn of each row that was refused for good."""
    quarantined = dispatched_jobs[dispatched_jobs["outcome"] == Outcome.QUARANTINED.value]
    return dg.AssetCheckResult(
        passed=quarantined.empty,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Rows refused for good: {len(quarantined)}.",
        metadata={"quarantined": len(quarantined), "rows": dg.MetadataValue.md(_table(quarantined))},
    )


def _table(rows: pd.DataFrame) -> str:
    lines = ["| row | branch | reason |", "| --: | --- | --- |"]
    for run_id, branch, reason in rows[["run_id", "branch", "reason"]].astype(object).head(_SHOWN).to_numpy():
        lines.append(f"| {'unreadable' if run_id is pd.NA else run_id} | {branch} | {cell(str(reason))} |")
    return "\n".join(lines) if len(rows) else "None."
