"""Pictures come back as they were drawn."""

import numpy as np
import pytest

from cluster.media import image


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 33, 47, 3), dtype=np.uint8)


def test_a_picture_comes_back_bit_for_bit_and_its_bytes_are_always_the_same(picture):
    data = image.encode(picture)
    assert data.startswith(b"\x89PNG")
    assert image.encode(picture.copy()) == data
    assert np.array_equal(image.decode(data), picture)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda frames: frames.astype(float), "a picture is float64"),
        (lambda frames: frames.repeat(2, axis=0), r"shape \(2, 33, 47, 3\)"),
        (lambda frames: frames[0], r"shape \(33, 47, 3\)"),
        (lambda frames: frames[..., :1], r"shape \(1, 33, 47, 1\)"),
        (lambda frames: None, "a picture is NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(picture, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        image.encode(change(picture))


@pytest.mark.parametrize("cut", [slice(0), slice(-20), slice(40), slice(4, None)])
def test_a_damaged_file_is_refused_in_a_sentence(picture, cut):
    with pytest.raises(ValueError, match="cannot be decoded as a PNG"):
        image.decode(image.encode(picture)[cut])
