"""Frames as pictures of a page: borders between frames, and differences that can be seen."""

import base64
import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs._shared.pictures import BORDER, MOST_DIFFERENCE, film_strip, heat_map

GREY = np.full((3, 8, 6, 3), 128, np.uint8)


def test_a_film_strip_shows_each_frame_with_a_border_that_is_not_the_films():
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), np.uint8)
    _, data = film_strip(frames).split(",")
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert strip.shape == (8, 3 * 6 + 2 * BORDER, 4)
    for number, frame in enumerate(frames):
        left = number * (6 + BORDER)
        assert (strip[:, left : left + 6, :3] == frame).all()
        assert (strip[:, left : left + 6, 3] == 255).all()
    assert (strip[:, 6 : 6 + BORDER, 3] == 0).all()  # the page shows through


def test_identical_frames_are_black():
    assert heat_map(GREY, GREY).max() < 8
    assert heat_map(GREY, GREY).shape == GREY.shape


@given(st.integers(0, 126), st.integers(1, 127))
def test_further_is_brighter_either_way(near, more):
    far = min(near + more, 127)
    light = [
        heat_map((GREY.astype(int) + sign * error).astype(np.uint8), GREY).astype(int).sum()
        for sign in (1, -1)
        for error in (near, far)
    ]
    assert light[0] <= light[1]
    assert light[2] <= light[3]
    assert light[0] == light[2]
    if near < 255 * MOST_DIFFERENCE - 2 and far > near + 1:
        assert light[0] < light[1]
