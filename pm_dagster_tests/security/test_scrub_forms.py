"""What is masked: a secret in every form in which another program may have written it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm_dagster.config.masking import MASK, scrubbed
from pm_dagster_tests.security.scanner import Scanner, forms
from pm_dagster_tests.security.test_scanner import SECRET

TOKEN = "Qx7-~R_t.2/m+Vb9=Lw4Kz8Hd1Ns6"
_CUTS = [slice(0, 14), slice(0, 9), slice(-14, None), slice(-9, None), slice(0, len(TOKEN) - 1), slice(1, None)]


@pytest.mark.parametrize("secret", [SECRET, TOKEN])
@pytest.mark.parametrize("form", forms(SECRET))
def test_every_form_is_masked(secret: str, form: str) -> None:
    text = scrubbed(f"before|{forms(secret)[form].decode()}|after", [secret])
    assert Scanner({"it": secret}).found_in(text) == set()
    assert text == f"before|{MASK}|after"


@pytest.mark.parametrize("cut", _CUTS)
def test_what_is_left_of_a_cut_secret_is_masked(cut: slice) -> None:
    assert scrubbed(f"got <{TOKEN[cut]}> twice: {TOKEN[cut]}", [TOKEN]) == f"got <{MASK}> twice: {MASK}"


@pytest.mark.parametrize("word", ["process_manager_dispatcher", "process_manager"])
def test_a_short_secret_that_is_nearly_a_word_masks_no_other(word: str) -> None:
    assert scrubbed(f"role {word}", ["process_manager1"]) == f"role {word}"


@given(st.text(min_size=4, max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_no_text_with_a_secret_comes_through(secret: str, before: str, after: str) -> None:
    assert secret in MASK or secret not in scrubbed(before + secret + after, [secret]).replace(MASK, "\0")
