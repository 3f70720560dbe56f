"""Configuration is values: the process environment is read at the edges, and no module keeps state or caches.

So two control tables or two workspaces in one process stay apart. Every exception is listed with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pm_dagster

_PACKAGE = Path(pm_dagster.__file__).parent

#: Who may look at the environment of the process, and why.
_EDGES = {
    "cli/app.py": "the edge of the command line",
    "cluster/entry.py": "the edge of the cluster's program",
    "databricks/sign_in.py": "only the names that the SDK would read by itself, so that it reads none of them",
    "orchestration/resources.py": "the edge of Dagster",
    "sandbox/place.py": "the sandbox hands it to the programs that it starts",
    "sandbox/postgres.py": "PATH for the server's programs",
    "sandbox/workspace/__main__.py": "the edge of the local workspace",
    "sandbox/workspace/execution/process.py": "PATH for the programs of tasks",
}
#: What a process has once, and why.
_STATE = {
    ("config/masking.py", "_registered"): "secrets are masked wherever they turn up; none is read back",
    ("config/masking.py", "_forms"): "depends on its argument alone",
    ("config/entra/__init__.py", "default_identity"): "azure-identity reads it from the process",
    ("config/entra/__init__.py", "managed_identity"): "the identity of the machine",
    ("config/credentials/key_vault.py", "_client"): "one connection for each vault, no secret",
}
_READERS = {"environ", "environb", "getenv", "getenvb"}
_CACHES = {"cache", "lru_cache"}
_CHANGES = {
    *("append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"),
    *("appendleft", "popleft"),
}


def _environment_readers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _READERS and ast.unparse(node.value) == "os":
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (alias.name for alias in node.names if alias.name in _READERS)


def _state(tree: ast.Module) -> Iterator[str]:
    """Names of a module that its functions change, and functions that keep their results."""
    names = {
        name.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if any(_last_name(each) in _CACHES for each in node.decorator_list):
                yield node.name
            own = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
            yield from (_changed(node) & names) - own


def _last_name(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2]


def _changed(function: ast.AST) -> set[str]:
    """Names whose value the function changes: by a method, or by an assignment to or removal of a part."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
            found |= _name(node.func.value)
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            found |= _name(node.value)
    return found


def _name(node: ast.expr) -> set[str]:
    return {node.id} if isinstance(node, ast.Name) else set()


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(_PACKAGE.rglob("*.py")):
        yield file.relative_to(_PACKAGE).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def test_the_environment_is_read_at_the_edges_only() -> None:
    assert {file for file, tree in _modules() if list(_environment_readers(tree))} == set(_EDGES)


def test_no_module_keeps_state() -> None:
    assert {(file, name) for file, tree in _modules() for name in _state(tree)} == set(_STATE)


def test_what_these_tests_look_for_is_seen() -> None:
    assert list(_environment_readers(ast.parse("import os\ndef f(): return os.environ['A'], os.getenv('A')"))) != []
    assert list(_environment_readers(ast.parse("from os import environ"))) == ["environ"]
    bad = """
import functools
_seen: dict[str, int] = {}
_found = []
_count = 0
_mine = []
def f(_mine):
    global _count
    _seen["a"] = 1
    _found.append(1)
    kept = []
    kept.append(1)
@functools.lru_cache(maxsize=None)
def g(): ...
"""
    assert sorted(_state(ast.parse(bad))) == ["_count", "_found", "_seen", "g"]
