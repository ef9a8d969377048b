"""Pictures that rows bring: untrusted bytes, checked before any of them is believed.

A picture is refused by its size before it is decoded, so that a file of a few kilobytes cannot
unpack to all of a machine's memory, and only formats whose decoders run no other program are read.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, field, replace

from PIL import Image, ImageOps, UnidentifiedImageError

from meancache.errors import InputError
from meancache.json_values import shown

# Pillow tells of files that are odd, but can be read.
warnings.filterwarnings("ignore", module="PIL")

# By Pillow's names of formats. TIFF is left out: its decoder knows too many other formats.
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
# What Pillow calls a JPEG with a second, smaller picture behind the first, as phones write them.
SEVERAL_JPEGS = "MPO"
MOST_BYTES = 64 * 2**20
MOST_PIXELS = 2**26
LEAST_SIDE = 8


class PictureError(InputError):
    """Bytes are no picture that can be used; the message says why, without naming the picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a row brings.

    Attributes:
        uri: as the row has it; None for bytes without a name.
        sha256: of its file; None where there is none.
        ending: of its file's name, by its format; '' where it cannot be used.
        width: pixels, as it is shown.
        height: likewise.
        error: why it cannot be used; None where it can.
        address: where its file is to be read; None where it was read already.
        data: its file, where it was read to be drawn from.
    """

    uri: str | None
    sha256: str | None = None
    ending: str = ""
    width: int = 0
    height: int = 0
    error: str | None = None
    address: str | None = field(default=None, repr=False, compare=False)
    data: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> str | None:
        """Where a job keeps it, under its root: made of hex digits alone; None without a file."""
        if self.error is not None or self.sha256 is None:
            return None
        return f"images/{self.sha256[:2]}/{self.sha256}.{self.ending}"

    @property
    def identity(self) -> str:
        """What tells it apart from other pictures: its bytes, or, without any, its name."""
        return self.sha256 or f"missing {self.uri}"


def examined(uri: str | None, data: bytes) -> Picture:
    """A picture with what its bytes say: its size, or why it cannot be used."""
    found = Picture(uri, hashlib.sha256(data).hexdigest())
    try:
        picture, ending = _decoded(data)
    except PictureError as error:
        return replace(found, error=f"image {named(found)} {error}")
    return replace(found, ending=ending, width=picture.width, height=picture.height)


def named(picture: Picture) -> str:
    """A picture as messages call it."""
    return f"of {(picture.sha256 or '')[:16]}" if picture.uri is None else shown(picture.uri)


def opened(picture: Picture, shape: tuple[int, int] | None = None) -> Image.Image:
    """A picture as people see it: RGB, turned as its camera was held, over white where it is
    transparent; of an animation its first frame.

    Args:
        picture: with its file.
        shape: (width, height) of what is drawn from it: the largest part around the middle that
            has this shape is taken, in its own pixels; None for all of it.

    Raises:
        PictureError: see `examined`.
    """
    if picture.data is None:
        raise PictureError("was not read")
    whole, _ = _decoded(picture.data)
    if shape is None:
        return whole
    width, height = shape
    across = min(whole.width, max(1, round(whole.height * width / height)))
    down = min(whole.height, max(1, round(whole.width * height / width)))
    left, top = (whole.width - across) // 2, (whole.height - down) // 2
    return whole.crop((left, top, left + across, top + down))


def _decoded(data: bytes) -> tuple[Image.Image, str]:
    """The picture, and the ending of its file. Raises PictureError."""
    if not data:
        raise PictureError("is empty")
    if len(data) > MOST_BYTES:
        raise PictureError(f"has {len(data)} bytes, of which {MOST_BYTES} are the most")
    try:
        picture = Image.open(io.BytesIO(data), formats=list(ENDINGS))
        _check_size(picture.width, picture.height)
        ending = ENDINGS["JPEG" if picture.format == SEVERAL_JPEGS else str(picture.format)]
        picture.load()
        return _plain(ImageOps.exif_transpose(picture)), ending
    except UnidentifiedImageError:
        raise PictureError(f"is not an image of the formats {', '.join(ENDINGS)}") from None
    except Image.DecompressionBombError:
        raise PictureError(f"has more than {MOST_PIXELS} pixels") from None
    except PictureError:
        raise
    except Exception as error:  # a damaged file raises nearly anything from a decoder's depths
        raise PictureError(f"is damaged ({shown(str(error))})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise PictureError(f"has {width}x{height} pixels, of which {MOST_PIXELS} are the most")
    if min(width, height) < LEAST_SIDE:
        raise PictureError(f"has {width}x{height} pixels, and needs {LEAST_SIDE} along each side")


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":  # 16 bits of grey
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
