"""Image files: one opener, one error with the file's name; depth, palette, CMYK and EXIF."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reports import BY_HAND, report

from benchmarks.datasets.image_files import decoded
from benchmarks.errors import DataError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG of 8-bit grey with the size and the compressed data that are given."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        decoded(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@report(
    "pytorch 20524 with vision 2218",
    "grey images of 16 bits",
    "scaled to 8 bits; Pillow alone turns them white in silence",
)
def test_sixteen_bits(tmp_path, kind):
    path = tmp_path / "x.png"
    Image.fromarray(RAMP).save(path, kind)
    found = np.asarray(decoded(path))
    assert np.array_equal(found, np.repeat((RAMP >> 8)[..., None], 3, axis=2))
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@report(BY_HAND, "TIFF files of 32 bits, whose range nobody states", "refused with the file's name")
def test_thirty_two_bits(tmp_path, dtype):
    path = tmp_path / "x.tif"
    Image.fromarray(RAMP.astype(dtype)).save(path)
    assert "values of 32 bits; 8 or 16 are expected" in refused(path)


@pytest.mark.parametrize("damage", ["cut", "chunk", "stream", "no image"])
@report(
    "kraken 299 with Tiny_model_4_CD 7",
    "PNG and JPEG files that are cut short, have a broken chunk or are none",
    "refused with the file's name; whatever the decoder raises",
)
def test_broken_files(tmp_path, damage):
    picture = Image.fromarray((np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64))
    whole = encoded(picture, "PNG")
    content = {
        "cut": encoded(picture, "JPEG")[:-200],
        "chunk": whole.replace(b"IDAT", b"ID\x00T"),
        "stream": png(64, 64, b"no zlib stream"),
        "no image": b"x" * 100,
    }[damage]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert "truncated or no image that can be read" in refused(path)


@report("kraken 299 with Tiny_model_4_CD 7", "a TIFF file named .png", "read by its content")
def test_another_format_than_the_name(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "TIFF"))
    assert decoded(path).getpixel((0, 0)) == (1, 2, 3)


@report(
    BY_HAND, "a decompression bomb: 400 megapixels in a few bytes", "refused with the file's name"
)
def test_a_bomb(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png(20_000, 20_000, zlib.compress(b"")))
    assert "decompression bomb" in refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>403</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git-LFS pointer"),
    ],
)
@report(BY_HAND, "an empty image file, a web page, a Git-LFS pointer", "named as what it is")
def test_files_that_are_something_else(tmp_path, content, said):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert said in refused(path)


@report(BY_HAND, "a listed image that is missing when its batch is read", "refused with its name")
def test_a_missing_file(tmp_path):
    assert "No such file" in refused(tmp_path / "x.jpg")


@report(
    BY_HAND,
    "palette, CMYK, grey and transparent images, one with an EXIF orientation",
    "RGB as torchvision's folders read it: colours kept, nothing turned",
)
def test_other_modes(tmp_path):
    colours = Image.new("RGB", (4, 2), (200, 30, 30))
    colours.putpixel((0, 0), (0, 0, 255))
    for name, image in (
        ("p.png", colours.convert("P", palette=Image.Palette.ADAPTIVE)),
        ("cmyk.tif", colours.convert("CMYK")),
        ("rgba.png", colours.convert("RGBA")),
        ("grey.png", colours.convert("L")),
    ):
        image.save(tmp_path / name)
        found, expected = decoded(tmp_path / name), image.convert("RGB")
        assert (found.mode, found.tobytes()) == ("RGB", expected.tobytes())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees when shown
    colours.save(tmp_path / "turned.png", exif=exif)
    assert decoded(tmp_path / "turned.png").tobytes() == colours.tobytes()
