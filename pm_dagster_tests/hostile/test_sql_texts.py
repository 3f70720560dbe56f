"""No SQL is made of values: a proof over the source, not over examples.

Every text that reaches ``execute`` is a constant of a module, made of such constants, or put together by
``psycopg2.sql``, whose ``SQL`` again takes only constants.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pm_dagster

_ROOT = Path(pm_dagster.__file__).parent
_SOURCES = sorted(path for path in _ROOT.rglob("*.py") if "sandbox" not in path.parts)
_EXECUTES = frozenset({"execute", "executemany", "mogrify", "SQL", "copy_expert"})
#: Where texts are made that begin like statements, each with its reason.
_MADE = {
    "ledger/grants.py",  # printed for the owner, never run; names are quoted by the driver; a missing right, for people
    "ledger/index_advice.py",  # printed for the owner, never run; names and the word for waiting quoted by the driver
    "ledger/migrations/versions/0002_writes.py",  # the ledger's schema, a constant, is put in
}
_STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|SET|CREATE|ALTER|DROP|LOCK|COPY|DO|CALL)\s")
#: Where a constant is made of other texts than constants: each with its reason.
_ARGUED = {
    # Alembic runs the file beside it, with the ledger's schema put in.
    ("ledger/migrations/versions/0001_ledger.py", "execute"),
    # A type in the catalog's own words, which format_type quotes.
    ("ledger/control_table_sql.py", "SQL('text' if characters else column.base.replace('%', '%%'))"),
}


def _constants(tree: ast.Module) -> set[str]:
    """Names that a module sets once, at its top level, to a text of constants; and what it imports in capitals."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names if (alias.asname or alias.name).isupper()}
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_constant(node.value, found):
            found.add(node.targets[0].id)
    return found


def _is_constant(node: ast.expr, names: set[str]) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (str, int))
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute):
        # A constant of an imported module, or a statement that was put together by psycopg2.sql.
        return node.attr.isupper() or "statements" in ast.unparse(node.value)
    if isinstance(node, ast.JoinedStr):
        return all(isinstance(part, ast.Constant) or _is_constant(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _is_constant(node.value, names)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and all(_is_constant(side, names) for side in (node.left, node.right))
    if isinstance(node, ast.IfExp):
        return _is_constant(node.body, names) and _is_constant(node.orelse, names)
    return False


def _made(tree: ast.Module, constants: set[str]) -> list[str]:
    """Texts that begin like a statement and have something in them that is no constant, wherever they go."""
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, (ast.JoinedStr, ast.BinOp, ast.Call))
        and _STATEMENT.match(_beginning(node))
        and not _is_constant(node, constants)
    ]


def _beginning(node: ast.expr) -> str:
    """The constant with which a text begins that is put together here, by whatever of Python's means."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return _beginning(node.values[0])
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        return _beginning(node.left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _beginning(node.func.value)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _suspects(path: Path) -> list[str]:
    """Calls that take a text as SQL which is neither a constant nor a name of something typed as put together."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = _constants(tree)
    where = str(path.relative_to(_ROOT))
    found = [f"{where}:{made}" for made in _made(tree, constants) if where not in _MADE]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        called, text = node.func.attr, node.args[0]
        if called not in _EXECUTES or _is_constant(text, constants) or _is_composed(text, called):
            continue
        shown = f"{called}({ast.unparse(text)})"
        if (where, called) not in _ARGUED and (where, shown) not in _ARGUED:
            found.append(f"{where}:{node.lineno}: {shown}")
    return found


def _is_composed(text: ast.expr, called: str) -> bool:
    """A name or call is never a text in the making: mypy demands ``sql.Composable`` or a checked ``str`` there."""
    if called == "SQL":
        return isinstance(text, ast.Name) and text.id in {"text", "which", "default"}
    return isinstance(text, (ast.Name, ast.Call)) and not (
        isinstance(text, ast.Call)
        and isinstance(text.func, ast.Attribute)
        and isinstance(text.func.value, ast.Constant)
    )


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_no_sql_is_made_of_values(path: Path) -> None:
    assert _suspects(path) == []


@pytest.mark.parametrize(
    "code",
    [
        "cursor.execute(f'SELECT {x}')",
        "cursor.execute('SELECT ' + x)",
        "cursor.execute('SELECT %s' % x)",
        "cursor.execute('SELECT {}'.format(x))",
        "sql.SQL(f'SELECT {name}')",
        "sql.SQL('a' + b)",
        "def f(x):\n    query = f'SELECT {x}'\n    cursor.execute(query)",
        "Y = f'{x}'\ndef f():\n    sql.SQL(Y + z)",
    ],
)
def test_the_proof_would_see_it(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pm_dagster_tests.hostile.test_sql_texts._ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(code)
    assert _suspects(tmp_path / "bad.py")
