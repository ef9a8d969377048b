"""Pictures from outside: what is taken, how it is turned, what is refused before it unpacks."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cluster.media.picture import MOST_PIXELS, Picture, PictureError, examined, opened


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def noise(width: int = 24, height: int = 16, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels)[: 2 + (channels > 1)]
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    return Image.fromarray(pixels, mode) if channels > 1 else Image.fromarray(pixels)


def of(data: bytes) -> Picture:
    return replace(examined("a.png", data), data=data)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp"), ("GIF", "gif")],
)
def test_usual_formats_are_taken_and_kept_under_a_name_of_hex_digits(kind, ending):
    found = of(saved(noise(), kind))
    assert (found.error, found.width, found.height, found.ending) == (None, 24, 16, ending)
    assert found.key == f"images/{found.sha256[:2]}/{found.sha256}.{ending}"
    assert opened(found).size == (24, 16)


def test_a_jpeg_with_a_preview_behind_it_is_a_jpeg():
    data = saved(noise(), "MPO", save_all=True, append_images=[noise()])
    assert examined(None, data).ending == "jpg"


def test_a_picture_is_turned_as_its_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = of(saved(noise(), "JPEG", exif=exif))
    assert (found.width, found.height) == (16, 24) == opened(found).size


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    assert opened(of(saved(clear))).getpixel((3, 3)) == (255, 255, 255)


def test_colours_of_any_kind_are_those_that_people_see():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    half = np.full((16, 16, 2), (200, 0), np.uint8)
    half[:8, :, 1] = 255
    cases = [
        (saved(red.convert("CMYK"), "JPEG", quality=100), (255, 0, 0), (255, 0, 0)),
        (saved(palette), (255, 0, 0), (255, 0, 0)),
        (saved(palette, transparency=0), (255, 255, 255), (255, 255, 255)),
        (saved(red, transparency=(255, 0, 0)), (255, 255, 255), (255, 255, 255)),
        (saved(Image.fromarray(half, "LA")), (200, 200, 200), (255, 255, 255)),
        (saved(Image.new("1", (16, 16), 1)), (255, 255, 255), (255, 255, 255)),
        (saved(red, "GIF", save_all=True, append_images=[noise(16, 16)] * 3), (255, 0, 0), None),
        (saved(red, "WEBP", lossless=True, save_all=True, append_images=[noise(16, 16)]),
         (255, 0, 0), None),
        (saved(red, save_all=True, append_images=[noise(16, 16)]), (255, 0, 0), None),
    ]  # fmt: skip
    for data, above, below in cases:
        drawn = opened(of(data))
        assert np.abs(np.subtract(drawn.getpixel((3, 3)), above)).max() <= 2
        if below is not None:
            assert np.abs(np.subtract(drawn.getpixel((3, 12)), below)).max() <= 2


def test_colours_of_sixteen_bits_are_read():
    rows = b"".join(b"\0" + struct.pack(">HHH", 32896, 0, 65535) * 16 for _ in range(16))
    found = opened(of(png(16, 16, 16, 2, rows)))
    assert found.getpixel((3, 3)) == (128, 0, 255)


def test_a_spoilt_note_of_how_a_camera_was_held_spoils_no_picture():
    whole = saved(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert examined(None, whole).error is None


def test_grey_of_sixteen_bits_keeps_its_shades():
    grey = Image.fromarray(np.full((16, 16), 32896, np.uint16))
    assert opened(of(saved(grey))).getpixel((3, 3)) == (128, 128, 128)


def test_the_middle_of_the_outputs_shape_is_cut_out_in_its_own_pixels():
    wide = Image.new("RGB", (100, 20))
    wide.paste((255, 0, 0), (40, 0, 60, 20))
    found = opened(of(saved(wide)), (64, 64))
    assert found.size == (20, 20)
    assert np.all(np.asarray(found) == (255, 0, 0))
    assert opened(of(saved(noise(24, 16))), (48, 32)).size == (24, 16)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""
    return png(width, height, 8, 2, b"\0" * 99)


def png(width: int, height: int, bits: int, colours: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG put together by hand; `more` are chunks behind its header."""
    begin = b"\x89PNG\r\n\x1a\n"

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header), *(chunk(one[:4], one[4:]) for one in more)
    return begin + b"".join(parts) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'><rect width='9'/></svg>"
# A note of 64 MiB in some kilobytes.
TEXT_BOMB = b"zTXtnote\0\0" + zlib.compress(bytes(2**26), 9)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"no picture", "is not an image of the formats PNG, JPEG, WEBP, BMP, GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (SVG, "is not an image"),
        (b"GIF89a" + b"\xff" * 40, "is damaged|is not an image|are the most|more than"),
        (saved(noise(), "TIFF"), "is not an image"),
        (png(16, 16, 8, 2, bytes(16 * 49), TEXT_BOMB), "is damaged"),
        (saved(noise(256, 256), "JPEG")[:-2000], "is damaged"),
        (saved(noise())[:-40], "is damaged"),
        (saved(noise(), "JPEG")[:300], "is damaged|is not an image"),
        (bomb(60_000, 60_000), f"of which {MOST_PIXELS} are the most|more than {MOST_PIXELS}"),
        (bomb(9_000, 9_000), f"9000x9000 pixels, of which {MOST_PIXELS} are the most"),
        (saved(noise(24, 4)), "24x4 pixels, and needs 8 along each side"),
    ],
)
def test_what_is_no_picture_or_too_large_is_named_with_the_reason(data, sentence):
    found = examined("photos/a.png", data)
    assert found.key is None
    assert found.error.startswith("image 'photos/a.png' ")
    with pytest.raises(PictureError, match=sentence):
        opened(replace(found, data=data))


def test_any_bytes_are_refused_in_a_sentence_or_read():
    whole = bytearray(saved(noise()))
    random = np.random.default_rng(1)
    for _ in range(200):
        spoilt = bytearray(whole)
        for place in random.integers(8, len(whole), 3):
            spoilt[place] = random.integers(256)
        found = examined(None, bytes(spoilt))
        assert (found.error is None) == (found.width > 0)
