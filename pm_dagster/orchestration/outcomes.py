"""Puts together what the ops of one dispatch brought. Keep out: how it is shown (``metadata``)."""

from collections.abc import Sequence
from dataclasses import replace

from pm_dagster.dispatch.ports import Closed
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Claimed
from pm_dagster.dispatch.worker import Sent
from pm_dagster.orchestration.resources import DispatchSession


def together(sent: Sequence[Sent]) -> Sent:
    """One result of several stretches of sending."""
    whole = Sent()
    for part in sent:
        whole.add(part)
    return whole


def final_report(session: DispatchSession, read: int, claimed: Claimed, sent: Sent, closed: Sequence[Closed]) -> Report:
    """The report of the dispatch; what a failed try of an op had decided counts as well."""
    sent.outcomes = session.decided | sent.outcomes
    told = {row.run_id for row in claimed.refused}
    further = [row for row in session.refused if row.run_id not in told]
    claimed = replace(claimed, refused=[*claimed.refused, *further])
    return session.dispatch.report(read, claimed, sent, closed)
