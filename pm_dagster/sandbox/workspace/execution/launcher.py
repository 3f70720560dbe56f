"""Executes one Python file as Databricks executes that of a ``spark_python_task``; run by path.

This happens inside the task's own process. Import nothing but the standard library here: nothing of ours may be
imported before the file imports it.

What a cluster is taken to do and a plain ``python file.py`` does not (nobody has asked one; each point is the stricter
way, so that a file which passes here has the better chance there):

* The text is compiled and executed in a ``__main__`` that has no ``__file__``.
* The file's folder is the working directory (Databricks Runtime 14 and later) and comes first in ``sys.path``.
* ``SystemExit`` is an exception like any other, ``sys.exit(0)`` too: the file runs under IPython, to which it is an
  error. Only a file that is executed to its end succeeds.
* What the file leaves running (threads that are not daemons) does not hold the task.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

_LONGEST_ERROR = 10_000
_LONGEST_TRACE = 100_000


def main() -> None:
    """Execute ``file`` with ``arguments`` and leave what went wrong, if anything, as JSON in ``result``."""
    result, file, *arguments = sys.argv[1:]
    # As on a terminal: what goes to both streams keeps its order.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIO, as at every start
    sys.argv[:] = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent))
    outcome = _execute(file)
    for stream in (sys.stdout, sys.stderr):
        # The file may have closed or replaced them.
        with contextlib.suppress(Exception):
            stream.flush()
    Path(result).write_text(json.dumps(outcome))
    os._exit(1 if outcome else 0)


def _execute(file: str) -> dict[str, str]:
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        code = compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
        exec(code, vars(module))  # noqa: S102  # executing the file is what this is for
    except BaseException as error:  # noqa: BLE001  # SystemExit and KeyboardInterrupt fail the task as well
        return _described(error)
    return {}


def _described(error: BaseException) -> dict[str, str]:
    # The first frame is ours.
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    trace = "".join(traceback.format_exception(error.with_traceback(frames)))
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # whatever an exception of the file's own does
        text = ""
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    with contextlib.suppress(Exception):
        # IPython shows no traceback of a SystemExit.
        sys.stderr.write(f"{line}\n" if isinstance(error, SystemExit) else trace)
    return {"error": line[:_LONGEST_ERROR], "error_trace": trace[-_LONGEST_TRACE:]}


if __name__ == "__main__":
    main()
