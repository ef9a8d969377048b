"""The captions and their split."""

from collections import Counter

import pytest

from meancache.tiny.captions import (
    ALL,
    BACKGROUNDS,
    CALIBRATION,
    COLOURS,
    DIRECTIONS,
    HELD_OUT,
    SHAPES,
    TRAIN,
    Caption,
    main,
)


def test_every_combination_of_facts_is_a_caption_once() -> None:
    assert len(ALL) == len(set(ALL)) == 144


def test_the_splits_are_disjoint_and_complete() -> None:
    assert set(TRAIN) | set(HELD_OUT) == set(ALL)
    assert not set(TRAIN) & set(HELD_OUT)
    assert set(CALIBRATION) <= set(TRAIN)
    assert len(CALIBRATION) >= 24
    assert len(HELD_OUT) >= 24


@pytest.mark.parametrize("split", [HELD_OUT, CALIBRATION, TRAIN])
def test_each_split_holds_every_word_of_a_fact_equally_often(split: tuple[Caption, ...]) -> None:
    for fact, words in (
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("direction", DIRECTIONS),
        ("background", BACKGROUNDS),
    ):
        counts = Counter(getattr(caption, fact) for caption in split)
        assert counts == {word: len(split) // len(words) for word in words}


def test_the_first_eight_held_out_captions_show_every_shape_direction_and_background() -> None:
    first = HELD_OUT[:8]
    assert {caption.shape for caption in first} == set(SHAPES)
    assert {caption.direction for caption in first} == set(DIRECTIONS)
    assert {caption.background for caption in first} == set(BACKGROUNDS)


@pytest.mark.parametrize("caption", ALL, ids=lambda caption: caption.text)
def test_parsing_a_captions_text_gives_the_caption(caption: Caption) -> None:
    assert Caption.parse(caption.text) == caption


def test_a_caption_reads_as_a_sentence() -> None:
    caption = Caption("circle", "red", "left", "dark")
    assert caption.text == "a red circle moving left on a dark background"


def test_another_sentence_is_refused_with_the_expected_one() -> None:
    with pytest.raises(
        ValueError, match=r"not a caption.*'a cat'.*a COLOUR SHAPE moving DIRECTION"
    ):
        Caption.parse("a cat")


def test_an_unknown_word_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown colour 'pink'.*red, green"):
        Caption.parse("a pink circle moving left on a dark background")


@pytest.mark.parametrize(
    ("name", "captions"), [("held-out", HELD_OUT), ("calibration", CALIBRATION)]
)
def test_a_set_is_printed_as_a_prompts_file(name, captions, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["captions", name])
    main()
    printed = capsys.readouterr().out.splitlines()
    assert [Caption.parse(line) for line in printed] == list(captions)
