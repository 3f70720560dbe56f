"""The documentation says what the code does."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).parents[2]
