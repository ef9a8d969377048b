"""Frames to an H.264 mp4 and back, in memory.

Knows pixels; knows nothing of models, stores or manifests. The same frames give the same bytes with
the same libraries: one encoder thread, no dates in the file, no arithmetic that varies.
"""

from __future__ import annotations

import io
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

_BT709 = 1  # the code H.264 gives the BT.709 matrix, primaries and transfer
_OPTIONS = {
    "crf": "18",  # hardly told from the source by eye
    "preset": "medium",
    # Without it two runs differ even in one thread: seen at 64x64, where the AVX2 code of the
    # macroblock tree gave up to five different files for the same frames.
    "x264-params": "cpu-independent=1",
}
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def encode(frames: NDArray[np.uint8], fps: float) -> bytes:
    """Encode RGB frames as an mp4: libx264, crf 18, yuv420p, BT.709, playable while it loads.

    frames: uint8, shape (F, H, W, 3) with F >= 1 and H, W even and >= 16. Odd sizes are refused
        rather than padded, because yuv420p halves both and a padded video would no longer have the
        size its manifest row states.
    fps: frames a second, finite and from 1 to 1000.

    Raises ValueError, in a sentence, for anything else.
    """
    _check(frames, fps)
    _, height, width, _ = frames.shape
    # Moving the index to the front makes ffmpeg reopen its output, so that must be a file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1001), options=_OPTIONS
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.thread_count = 1  # the cut into threads changes the bits
            # Said in the file, since players guess the matrix of a silent one by its height.
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
            # One for all frames: each would otherwise set up its conversion again.
            reformatter = VideoReformatter()
            for frame in frames:
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                yuv = reformatter.reformat(
                    rgb,
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=_SCALING,
                    threads=1,  # more are started and ended for every video
                )
                container.mux(stream.encode(yuv))
            container.mux(stream.encode(None))
        return path.read_bytes()


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return all frames of a video `encode` made: uint8, shape (F, H, W, 3), RGB.

    Raises ValueError, in a sentence, if `data` is no video or breaks off before its last frame.
    Bits that flipped inside a frame mostly go unseen: for those there is the manifest's sha256.
    """
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.video:
                raise ValueError("the file has no video stream: give an mp4 with one")
            stream = container.streams.video[0]
            frames = [
                frame.to_ndarray(
                    format="rgb24", src_colorspace=Colorspace.ITU709, interpolation=_SCALING
                )
                for frame in container.decode(stream)
            ]
            promised = stream.frames
    except av.FFmpegError as error:
        raise ValueError(
            f"{len(data)} bytes cannot be decoded as a video ({error.strerror}): "
            "the file is damaged or not an mp4, fetch or render it again"
        ) from error
    if not frames or len(frames) != promised:
        raise ValueError(
            f"the video holds {len(frames)} of its {promised} frames: the file is damaged, "
            "fetch or render it again"
        )
    return np.stack(frames)


def preview(data: bytes, count: int, side: int) -> NDArray[np.uint8]:
    """Return some frames of a video, small: uint8, shape (F, H, W, 3), RGB.

    count: how many at most, evenly spread, the first among them; side: of the longer edge, in
        pixels, at most. No more than one frame of full size is in memory.

    Raises ValueError, in a sentence, if `data` is no video.
    """
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            scale = min(1.0, side / max(stream.width, stream.height))
            size = [max(1, round(edge * scale)) for edge in (stream.width, stream.height)]
            count = min(count, max(1, stream.frames))
            wanted = {number * stream.frames // count for number in range(count)}
            frames = [
                frame.to_ndarray(
                    format="rgb24",
                    width=size[0],
                    height=size[1],
                    src_colorspace=Colorspace.ITU709,
                    interpolation=_SCALING,
                )
                for number, frame in enumerate(container.decode(stream))
                if number in wanted
            ]
            return np.stack(frames)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{len(data)} bytes cannot be decoded as a video: {error}") from error


def check_drawn(what: str, values: NDArray[np.floating], shape: tuple[int, ...]) -> None:
    """Refuse what a model returned where it is no picture of anything.

    what: 'latents' or 'frames', for the message.
    values: floats, as the pipeline returned them, before they are cut to 0..255.
    shape: what they should have.

    Raises ValueError for another shape, for NaN and Inf, and for one value everywhere.
    """
    if values.shape != shape:
        raise ValueError(f"the model's {what} have shape {values.shape} instead of {shape}")
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(
            f"the model's {what} are NaN or infinite in {1 - finite.mean():.2%} of their values"
        )
    if values.min() == values.max():
        raise ValueError(f"the model's {what} are {values.min():g} everywhere")


def _check(frames: NDArray[np.uint8], fps: float) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        found = getattr(frames, "dtype", type(frames).__name__)
        raise ValueError(f"frames are {found}, not a numpy array of uint8: convert them to 0..255")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames have shape {frames.shape}: give (frames, height, width, 3)")
    count, height, width, _ = frames.shape
    if count < 1:
        raise ValueError("there are 0 frames: a video needs one at least")
    if height % 2 or width % 2 or min(height, width) < 16:
        raise ValueError(
            f"frames are {height}x{width}: H.264 in yuv420p needs an even height and width of 16 "
            "or more, crop or pad them"
        )
    if not (math.isfinite(fps) and 1 <= fps <= 1000):
        raise ValueError(f"fps is {fps}: give a number of frames a second from 1 to 1000")
