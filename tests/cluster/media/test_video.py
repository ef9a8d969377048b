"""Claims about cluster.media.video."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.media.video import decode, encode, preview

Frames = NDArray[np.uint8]


def smooth(count: int = 17, height: int = 64, width: int = 96) -> Frames:
    """A drifting gradient: what a codec should keep almost whole."""
    t, y, x = np.ogrid[:count, :height, :width]
    red = 128 + 100 * np.sin(x / 20 + t / 5) + 0 * y
    green = 128 + 100 * np.cos(y / 15 + t / 7) + 0 * x
    blue = 128 + 80 * np.sin((x + y) / 30) + 0 * t
    return np.stack(np.broadcast_arrays(red, green, blue), axis=-1).astype(np.uint8)


def psnr(first: Frames, second: Frames) -> float:
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("count", [1, 2, 9, 129])
def test_every_frame_comes_back_in_its_shape(count: int) -> None:
    frames = smooth(count)
    back = decode(encode(frames, fps=24))
    assert back.shape == frames.shape
    assert back.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (18, 50), (50, 18), (240, 320)])
def test_any_even_size_survives(height: int, width: int) -> None:
    frames = smooth(5, height, width)
    assert decode(encode(frames, fps=24)).shape == frames.shape


def test_smooth_content_comes_back_above_38_db() -> None:
    frames = smooth()
    assert psnr(frames, decode(encode(frames, fps=24))) > 38


def test_frames_keep_their_order() -> None:
    levels = np.arange(20, 240, 10)
    frames = np.empty((len(levels), 32, 32, 3), np.uint8)
    frames[:] = levels[:, None, None, None]
    back = decode(encode(frames, fps=24)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(back, levels, atol=3)


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (30, 90, 200)]
)
def test_flat_colours_come_back_within_three_levels(colour: tuple[int, int, int]) -> None:
    frames = np.full((3, 32, 32, 3), colour, np.uint8)
    back = decode(encode(frames, fps=8)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(back, colour, atol=3)


# 64x64 is where libx264 with its default arithmetic gave other bytes from run to run.
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (48, 80)])
def test_the_same_frames_give_the_same_bytes(height: int, width: int) -> None:
    frames = smooth(17, height, width)
    assert len({encode(frames, fps=24) for _ in range(20)}) == 1


def test_another_process_gives_the_same_bytes() -> None:
    program = (
        "import sys, numpy as np; from cluster.media.video import encode;"
        "frames = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(17, 64, 96, 3);"
        "sys.stdout.buffer.write(encode(frames, fps=24))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        input=smooth().tobytes(),
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.stdout == encode(smooth(), fps=24)


def test_views_and_read_only_frames_encode_like_their_copies() -> None:
    frames = smooth(9)
    view = frames[:, ::-1, ::-1]
    assert encode(view, fps=24) == encode(view.copy(), fps=24)
    frames.flags.writeable = False
    assert encode(frames, fps=24) == encode(frames.copy(), fps=24)


@pytest.mark.parametrize("fps", [1, 8.0, 15, 23.976, 24, 29.97, 60, 1000])
def test_the_file_states_the_frame_rate(fps: float) -> None:
    with av.open(io.BytesIO(encode(smooth(9), fps))) as container:
        rate = container.streams.video[0].average_rate
    assert rate is not None
    assert float(rate) == pytest.approx(fps, rel=1e-6)


def test_the_file_is_h264_in_yuv420p_that_plays_while_it_loads() -> None:
    data = encode(smooth(), fps=24)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data), "r") as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited: both said
        assert "creation_time" not in container.metadata


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), "frames are float32"),
        ([[0]], "frames are list"),
        (np.zeros((32, 32, 3), np.uint8), r"shape \(32, 32, 3\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"shape \(2, 3, 32, 32\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "0 frames"),
        (np.zeros((2, 33, 32, 3), np.uint8), "33x32: .* even"),
        (np.zeros((2, 32, 33, 3), np.uint8), "32x33: .* even"),
        (np.zeros((2, 8, 32, 3), np.uint8), "8x32: .* 16 or more"),
    ],
)
def test_wrong_frames_are_refused_in_a_sentence(frames: Frames, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(frames, fps=24)


@pytest.mark.parametrize("fps", [0, -24, 0.5, 1001, float("nan"), float("inf")])
def test_wrong_frame_rates_are_refused_in_a_sentence(fps: float) -> None:
    with pytest.raises(ValueError, match=r"fps is .* from 1 to 1000"):
        encode(smooth(1), fps)


def test_a_file_that_breaks_off_anywhere_is_refused() -> None:
    data = encode(smooth(9), fps=24)
    with av.open(io.BytesIO(data), "r") as container:
        packets = [packet.pos for packet in container.demux() if packet.pos is not None]
    # Where a packet begins, ffmpeg takes the cut for the end and only the count of frames tells.
    for length in (0, 20, 500, len(data) // 2, len(data) - 1, *(p for p in packets if p > 0)):
        with pytest.raises(ValueError, match="fetch or render it again"):
            decode(data[:length])


def test_bytes_that_are_no_video_are_refused() -> None:
    with pytest.raises(ValueError, match="300 bytes cannot be decoded"):
        decode(b"abc" * 100)


def test_a_preview_is_some_frames_evenly_spread_and_small() -> None:
    frames = np.repeat(np.arange(0, 250, 10, np.uint8), 64 * 96 * 3).reshape(25, 64, 96, 3)
    shown = preview(encode(frames, fps=24), 5, 48)
    assert shown.shape == (5, 32, 48, 3)
    assert np.abs(shown.mean(axis=(1, 2, 3)) - [0, 50, 100, 150, 200]).max() < 4


def test_a_preview_of_a_short_and_small_video_is_all_of_it() -> None:
    frames = smooth(3)
    data = encode(frames, fps=24)
    assert np.array_equal(preview(data, 12, 256), decode(data))


def test_a_preview_of_no_video_is_refused() -> None:
    with pytest.raises(ValueError, match="300 bytes cannot be decoded"):
        preview(b"abc" * 100, 12, 256)
