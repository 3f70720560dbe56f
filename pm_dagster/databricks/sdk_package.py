"""The package ``databricks.sdk`` without the services that nobody asks for.

Its ``__init__`` defines ``WorkspaceClient`` and imports every service of Databricks for it: 0.45 CPU-seconds and 45 MB
in each process. We use ``databricks.sdk.core`` and ``databricks.sdk.service.jobs``, which need no more than each other.
``defer`` puts off the package's own code until somebody asks for something that this code defines; whoever imports
``WorkspaceClient`` gets it as ever.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

_NAME = "databricks.sdk"


def defer() -> None:
    """Put the package in its place without executing it; does nothing where it is imported already, or is absent."""
    if _NAME in sys.modules:
        return
    try:
        spec = find_spec(_NAME)
    except ModuleNotFoundError:
        return
    if spec is None or spec.loader is None:
        return
    package = module_from_spec(spec)
    package.__class__ = _Deferred
    package.__dict__["_lock"] = RLock()
    sys.modules[_NAME] = package
    # As the import system does with every submodule.
    sys.modules[_NAME.rpartition(".")[0]].sdk = package  # type: ignore[attr-defined]


class _Deferred(ModuleType):
    """A package whose code is executed when something is asked for that is none of its submodules."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 whatever the package defines
        """Called for what is not there yet."""
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        if find_spec(f"{_NAME}.{name}"):
            return import_module(f"{_NAME}.{name}")
        with self.__dict__["_lock"]:
            if "_executing" not in self.__dict__ and name not in self.__dict__:
                self.__dict__["_executing"] = True
                try:
                    self.__spec__.loader.exec_module(self)
                    # Nothing is put off any more.
                    self.__class__ = ModuleType  # type: ignore[assignment]
                finally:
                    del self.__dict__["_executing"]
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}") from None
