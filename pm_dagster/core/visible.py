"""Text from outside, as it may be shown on a terminal and in a log.

Put here: what is escaped. Keep out: secrets (``workspace.scrub``), and where it is shown.
"""

from __future__ import annotations


def visible(text: str) -> str:
    """``text`` on one line, with escapes for what does not print: control characters, marks that turn the direction.

    So a text can neither begin a line of its own nor move the cursor nor change what stands beside it.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
