"""Every kind of picture becomes the pixels that a person sees."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxaccel.data.data_sets import open_source
from jaxaccel.data.images import decode_image, read_header
from jaxaccel.errors import UserError


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


SIXTEEN = np.array([[0, 256, 4096], [32768, 65279, 65535]], np.uint16)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_high_byte(form):
    image = Image.fromarray(SIXTEEN)
    decoded = decode_image(encoded(image, form), 1)
    assert decoded[..., 0].tolist() == [[0, 1, 16], [128, 254, 255]]
    assert np.array_equal(decode_image(encoded(image, form), 3), decoded.repeat(3, -1))


def test_floats_are_shares_of_white():
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    assert decode_image(encoded(Image.fromarray(values), "TIFF"), 1)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    "values",
    [np.array([[0, 200]], np.float32), np.array([[np.nan, 0]], np.float32), np.array([[0, 70000]], np.int32)],
)
def test_what_has_no_white_is_refused(values):
    with pytest.raises(ValueError, match=r"its pixels are (floats from|32-bit integers)"):
        decode_image(encoded(Image.fromarray(values), "TIFF"), 1)


@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("P", "PNG"), ("RGBA", "GIF")]
)
def test_transparent_pixels_show_white(mode, form):
    pixels = np.array([[[0, 0, 0, 255], [0, 0, 0, 0], [200, 200, 200, 255]]], np.uint8).repeat(2, 0)
    image = Image.fromarray(pixels).convert(mode) if mode != "P" else Image.fromarray(pixels).quantize(4)
    options = {"lossless": True} if form == "WEBP" else {}
    for channels in (1, 3):
        decoded = decode_image(encoded(image, form, **options), channels)
        assert decoded[0, :, 0].tolist() == [0, 255, 200]
    if mode == "RGBA" and form != "GIF":
        half = Image.new("RGBA", (1, 1), (100, 0, 0, 128))
        assert decode_image(encoded(half, form, **options), 3).tolist() == [[[177, 127, 127]]]
        assert np.array_equal(decode_image(encoded(image, form, **options), 4), pixels) or form == "WEBP"


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk(form):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.allclose(decode_image(encoded(image, form), 3), [0, 255, 255], atol=3)
    assert np.allclose(decode_image(encoded(Image.new("CMYK", (8, 8)), form), 1), 255, atol=3)


def test_one_bit_and_the_first_frame():
    bits = Image.fromarray(np.eye(3, dtype=bool))
    assert np.array_equal(decode_image(encoded(bits, "PNG"), 1)[..., 0], 255 * np.eye(3, dtype=np.uint8))
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(
            frames[0],
            form,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if form == "WEBP" else {}),
        )
        assert decode_image(content, 3)[0, 0].tolist() == [255, 0, 0], form


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_of_a_folder_are_upright(form, orientation, tmp_path):
    """The stored pixels are turned such that `orientation` undoes it: dark is above, white on the left of it."""
    upright = np.full((16, 32), 128, np.uint8)
    upright[:8, 16:] = 0
    upright[:8, :16] = 255
    undo = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose,
            6: lambda x: np.rot90(x), 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a" / f"1.{form.lower()}"
    path.parent.mkdir()
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(path, form, exif=exif)
    assert read_header(path)[:2] == (32, 16)
    source = open_source(str(tmp_path), "train")
    assert source.features["image"].shape[:2] == (16, 32)
    assert np.allclose(source[0]["image"][..., 0], upright, atol=16)


def test_what_is_no_picture_is_not_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(UserError, match=r"cannot read the image .*a/1.png"):
        open_source(str(tmp_path), "train")


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    path = tmp_path / "a" / "1.ppm"
    path.parent.mkdir()
    path.write_bytes(b"P6 30000 30000 255\n" + bytes(100))
    with pytest.raises(UserError, match=r"cannot read the image .*a/1.ppm .*900000000 pixels") as error:
        open_source(str(tmp_path), "train")
    assert "\n" not in str(error.value)
