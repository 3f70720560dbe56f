"""Texts for people: control characters escaped, counts, full stops. Secrets are ``config.masking``'s."""

from __future__ import annotations


def escape_controls(text: str) -> str:
    """``text`` on one line, with escapes for what does not print: control characters, marks that turn the direction.

    So a text from outside cannot begin a line of its own, move the cursor or change what stands beside it.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def counted(number: int, noun: str) -> str:
    """Such as "1 row" and "2 rows"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sentence(text: str) -> str:
    """``text`` with one full stop at its end; one that ends otherwise, as a question does, keeps its own."""
    text = text.strip()
    bare = text.rstrip("\"')]}\u201d\u2019\u00bb")
    return text if bare.endswith(_ENDS) else f"{text}."


def clause(text: str) -> str:
    """``text`` without the full stop at its end, to stand within a sentence of ours."""
    text = text.strip()
    return text if text.endswith(("..", "\u2026")) else text.removesuffix(".").rstrip()


def error_text(error: BaseException) -> str:
    """The text of an error on one line, or its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
