"""The dispatcher's part in the budget that all dispatchers of a workspace share: when it reads and writes the record.

What the record says and what follows from it is the rate limiter's. The record lies in the ledger, which the port
``ControlPlane.share_budget`` reaches. Without it a dispatch goes on by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from pm_dagster.config.masking import scrubbed
from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.ports import BudgetChange, ControlPlane
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster.errors import ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)


class SharedBudget:
    """For the dispatch's one deciding thread. Never raises an error of the database.

    Args:
        control: Where the record lies.
        limiter: What paces the calls.
        workspace: Gives the name of the workspace whose budget it is.
    """

    def __init__(self, control: ControlPlane, limiter: RateLimiter, workspace: Callable[[], str]) -> None:
        self._control = control
        self._limiter = limiter
        self._workspace = workspace
        self._others = 0
        self._failed = False

    @property
    def delay(self) -> float:
        """Seconds until the record may have to be looked at although no call waits for it."""
        return self._limiter.exchange_in

    def take_part(self, due: Mapping[Call, int]) -> None:
        """Share what is to be shared before the next calls, of which so many are due for each endpoint."""
        if self._limiter.wants_exchange(due):
            self._exchange(partial(self._limiter.exchange, due))
            if self._limiter.others != self._others:
                self._others = self._limiter.others
                _log.info("budget shared", extra=fields(others=self._others))
            for call in self._limiter.heard:
                about = fields(
                    call=call.value, pause=round(self._limiter.delay(call), 3), rate=self._limiter.rate(call)
                )
                _log.info("throttled elsewhere", extra=about)
            self._limiter.heard.clear()

    def leave(self) -> None:
        """Let the others have it all at once: nothing is left to be sent."""
        if self._limiter.takes_part:
            self._exchange(self._limiter.leave)

    def _exchange(self, change: BudgetChange) -> None:
        try:
            if not self._control.share_budget(self._workspace(), change):
                self._limiter.share_nothing()
        except ControlPlaneUnavailable as error:
            self._limiter.go_by_itself()
            self._log_once(error)
        except ProcessManagerError as error:
            # A right is missing: the next try finds the same.
            self._limiter.share_nothing()
            self._log_once(error)

    def _log_once(self, error: ProcessManagerError) -> None:
        if not self._failed:
            _log.warning("budget not shared", extra=fields(error=scrubbed(str(error))))
        self._failed = True
