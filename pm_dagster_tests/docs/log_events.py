"""The log events of the code, read from its source: name, level and fields of each logging call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pm_dagster.dispatch import worker
from pm_dagster.dispatch.model import Outcome
from pm_dagster_tests.docs import ROOT

PRODUCT = ROOT / "pm_dagster"
_LEVELS = ("debug", "info", "warning", "error", "critical")
#: The one event whose name and level are chosen when it is logged, as the source has it.
_OF_AN_OUTCOME = "f'row {outcome.outcome.value}'"
_LOGGER = "_log"
_FIELDS = "fields"
_RETURNED = "dict[str, dict[str, object]]"


@dataclass
class LogEvent:
    """One event: the levels that it is logged at, its fields, and the modules that log it."""

    levels: set[str] = field(default_factory=set)
    fields: list[str] = field(default_factory=list)
    modules: set[str] = field(default_factory=set)


def log_events(product: Path = PRODUCT) -> dict[str, LogEvent]:
    """The events by name, sorted. The sandbox logs none; the launcher speaks in sentences to whoever gave it a log."""
    found: dict[str, LogEvent] = {}
    for path in sorted(product.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and _is_logging(call.func)):
                continue
            for name, levels in _names(call):
                event = found.setdefault(name, LogEvent())
                event.levels |= levels
                event.modules.add(path.relative_to(product).as_posix())
                event.fields += [each for each in _fields(call, tree) if each not in event.fields]
    return dict(sorted(found.items()))


def _is_logging(called: ast.expr) -> bool:
    return (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Name)
        and called.value.id == _LOGGER
        and called.attr in (*_LEVELS, "log", "exception")
    )


def _names(call: ast.Call) -> Iterator[tuple[str, set[str]]]:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr != "log":
        (message, *values) = call.args
        name = message.value if isinstance(message, ast.Constant) else None
        assert isinstance(name, str), f"an event's name is fixed, not {ast.unparse(message)}"
        # With values in it, it is a sentence for a person.
        if not values:
            yield name, {call.func.attr}
        return
    assert ast.unparse(call.args[1]) == _OF_AN_OUTCOME, ast.unparse(call)
    # No row is decided to be left: it is what the report says of a row that was not sent.
    for outcome in set(Outcome) - {Outcome.LEFT}:
        yield f"row {outcome.value}", {"info" if outcome in worker._UNUSUAL else "debug"}


def _fields(call: ast.Call, tree: ast.Module) -> list[str]:
    given = [each.value for each in call.keywords if each.arg == "extra"]
    return _keys(given[0], tree) if given else []


def _keys(value: ast.expr, tree: ast.Module) -> list[str]:
    """The names that an expression passes to ``fields``: itself, by a helper of its module, or by a local name."""
    if isinstance(value, ast.Name):
        return [key for node in _assigned(value.id, tree) for key in _keys(node, tree)]
    assert isinstance(value, ast.Call), ast.unparse(value)
    assert isinstance(value.func, ast.Name), ast.unparse(value)
    own = [each.arg or f"**{ast.unparse(each.value)}" for each in value.keywords]
    if value.func.id == _FIELDS:
        return [name for name in own if name != "**more"]
    (helper,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == value.func.id]
    returned = [node.value for node in ast.walk(helper) if isinstance(node, ast.Return) and node.value]
    return [*(key for each in returned for key in _keys(each, tree)), *own]


def _assigned(name: str, tree: ast.Module) -> list[ast.expr]:
    """What a local name is assigned: calls of ``fields`` or of a helper that returns the same."""
    helpers = {_FIELDS} | {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == _RETURNED
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id in helpers
    ]
