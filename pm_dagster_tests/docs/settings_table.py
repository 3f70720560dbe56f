"""Writes the README's table of settings from the code; run it as a module after a setting changed."""

from __future__ import annotations

from pathlib import Path

from pm_dagster.config.settings import SETTINGS

README = Path(__file__).parents[2] / "README.md"
_BEGIN, _END = "<!-- settings -->", "<!-- /settings -->"


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        parts = ["=".join(part) if isinstance(part, tuple) else str(part) for part in default]
        return f"`{','.join(parts)}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default}`" if default != "" else ""


def settings_table() -> str:
    """The table in Markdown, one row per setting."""
    rows = [f"| `{variable}` | {_shown(default)} | {text} |" for variable, default, text in SETTINGS]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def with_table(readme: str) -> str:
    """The README with its table brought up to date."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{settings_table()}\n{_END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
