"""The Azure CLI as far as anybody asks it for tokens: a program `az` on PATH.

Its state lies in AZURE_CONFIG_DIR, as the real one's does: https://learn.microsoft.com/en-us/cli/azure/account.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

_PROGRAM = """#!{python}
import argparse, datetime, json, os, pathlib, sys, time

state = pathlib.Path(os.environ["AZURE_CONFIG_DIR"]) / "tokens.json"
if not state.exists():
    sys.exit("ERROR: Please run 'az login' to setup account.")
parser = argparse.ArgumentParser()
parser.add_argument("words", nargs="*")
for option in ("--resource", "--output", "--tenant", "--subscription"):
    parser.add_argument(option)
given = parser.parse_args()
if given.words == ["account", "show"]:
    print(json.dumps({{"user": {{"name": "somebody@example.com", "type": "user"}}}}))
elif given.words == ["account", "get-access-token"]:
    expires = time.time() + 3600
    print(json.dumps({{
        "accessToken": json.loads(state.read_text())[given.resource],
        "expiresOn": datetime.datetime.fromtimestamp(expires).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "expires_on": int(expires),
        "tokenType": "Bearer",
    }}))
else:
    sys.exit(f"ERROR: {{given.words}} is misspelled or not recognized by the system.")
"""


def install(folder: Path) -> dict[str, str]:
    """Put the program into ``folder``; gives the variables by which it finds its state. Nobody is logged in yet."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "az"
    program.write_text(_PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return {"AZURE_CONFIG_DIR": str(folder)}


def log_in(folder: Path, tokens: Mapping[str, str]) -> None:
    """Log somebody in who gets these tokens, by resource."""
    (folder / "tokens.json").write_text(json.dumps(tokens))
