"""A Dagster job of two assets that do nothing: what Dagster itself takes, whatever it runs."""

import dagster as dg


@dg.asset
def first() -> int:
    """Nothing."""
    return 1


@dg.asset
def second(first: int) -> int:
    """Nothing, after the other."""
    return first


defs = dg.Definitions(
    assets=[first, second],
    jobs=[dg.define_asset_job("empty", executor_def=dg.in_process_executor)],
    executor=dg.in_process_executor,
)
