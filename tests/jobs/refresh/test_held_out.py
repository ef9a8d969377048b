"""Prompts to judge by are never those that are calibrated on, and always the same."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.work.prompts import Prompt, PromptsError
from jobs.refresh.held_out import LEAST_HELD_OUT, check_apart, plain, split


def rows(texts) -> list[Prompt]:
    return [Prompt(line, text, f"id-{line}") for line, text in enumerate(texts, start=1)]


@given(st.lists(st.text(min_size=1, max_size=5), min_size=3, max_size=40))
def test_every_row_is_on_one_side_and_no_text_on_both(texts):
    given_rows = rows(texts)
    try:
        calibration, held_out = split(given_rows)
    except PromptsError:
        assert len({plain(text) for text in texts}) <= LEAST_HELD_OUT
        return
    assert sorted([*calibration, *held_out], key=lambda row: row.line) == given_rows
    sides = [{plain(row.prompt) for row in side} for side in (calibration, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) >= 1
    assert len(sides[1]) >= LEAST_HELD_OUT


def test_the_order_of_a_file_does_not_matter():
    texts = [f"prompt {number}" for number in range(30)]
    held_out = {row.prompt for row in split(rows(texts))[1]}
    assert len(held_out) == 10
    random.Random(1).shuffle(texts)
    assert {row.prompt for row in split(rows(texts))[1]} == held_out


def test_the_same_prompt_in_other_clothes_stays_on_its_side():
    texts = [form for number in range(9) for form in (f"Prompt {number}", f" prompt  {number} ")]
    _, held_out = split(rows(texts))
    assert len(held_out) == 6


def test_too_few_prompts_to_have_both_are_refused():
    with pytest.raises(PromptsError, match=r"2 different prompts are too few .* --held-out"):
        split(rows(["a", "b", "B "]))


def test_a_file_of_held_out_prompts_must_not_hold_what_is_calibrated_on():
    check_apart(rows(["a", "b"]), rows(["c"]))
    with pytest.raises(PromptsError, match="'A  b' is both in --prompts and in --held-out"):
        check_apart(rows(["a b"]), rows(["A  b"]))
