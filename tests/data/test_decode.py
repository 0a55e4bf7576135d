import io
import warnings

import numpy as np
import pytest
from PIL import Image

from mumoe.data import decode
from mumoe.data.decode import ImageError, read_image
from mumoe.errors import JobError


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode="RGB", size=(24, 16)):
    depth = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], depth)[: 3 if depth > 1 else 2]
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


def same(image, pixels):
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        grey = np.asarray(read_image(encoded(Image.fromarray(values), kind)))
        assert grey[0, :, 0].tolist() == [0, 1, 128, 255]
        assert (grey == grey[..., :1]).all()


def test_sixteen_bit_big_endian_and_portable_grey_maps():
    tiff = encoded(Image.fromarray(np.array([[0, 65535, 32768]], ">u2")), "TIFF")
    assert np.asarray(read_image(tiff))[0, :, 0].tolist() == [0, 255, 128]
    pgm = b"P5 3 1 65535\n" + np.array([0, 65535, 32768], ">u2").tobytes()
    assert np.asarray(read_image(pgm))[0, :, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 3.0]], np.float32), [0, 64, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-(2**30), 0, 2**30]], np.int32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, 1.0]], np.float32), [0, 128, 255]),
    ],
)
def test_deeper_grey(values, expected):
    assert np.asarray(read_image(encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == expected


def test_cmyk():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        red, green, blue = np.asarray(read_image(encoded(image, kind)))[4, 4].tolist()
        assert red < 10
        assert green > 245
        assert blue > 245


def test_a_transparent_palette_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    for transparency in (0, bytes([0, 255])):
        data = encoded(image, "PNG", transparency=transparency)
        same(read_image(data), [[[255, 255, 255], [200, 100, 50]]])
    same(read_image(encoded(image, "PNG")), [[[10, 20, 30], [200, 100, 50]]])


def test_alpha_is_laid_on_white():
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([(10, 20, 30, 0), (0, 0, 0, 128)])
    same(read_image(encoded(rgba, "PNG")), [[[255, 255, 255], [127, 127, 127]]])
    grey = Image.new("LA", (2, 1))
    grey.putdata([(7, 255), (7, 0)])
    same(read_image(encoded(grey, "PNG")), [[[7, 7, 7], [255, 255, 255]]])
    colour = Image.new("RGB", (2, 1))
    colour.putdata([(1, 2, 3), (4, 5, 6)])
    same(read_image(encoded(colour, "PNG", transparency=(1, 2, 3))), [[[255, 255, 255], [4, 5, 6]]])


def test_grey_and_black_and_white():
    same(read_image(encoded(Image.new("L", (1, 1), 77), "PNG")), [[[77, 77, 77]]])
    same(read_image(encoded(Image.new("1", (1, 1), 1), "PNG")), [[[255, 255, 255]]])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    same(read_image(data), np.asarray(first))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image, exif = noise(), Image.Exif()
    exif[0x0112] = orientation
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = image.transpose(turns[orientation]) if orientation in turns else image
    same(read_image(encoded(image, "PNG", exif=exif)), np.asarray(upright))


def test_broken_exif_does_not_lose_the_picture():
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data).size == (24, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.4, 0.9])
def test_a_truncated_file_is_an_error_and_not_half_a_picture(kind, part):
    data = encoded(noise(size=(90, 60)), kind)
    assert read_image(data).size == (90, 60)
    with pytest.raises(ImageError) as error:
        read_image(data[: int(len(data) * part)], name="folder/cat.x")
    text = str(error.value)
    assert text.startswith("read_image: expected an image in 'folder/cat.x', got: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "not an image that Pillow can read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that Pillow can read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, words):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"read_image: expected an image in {str(path)!r}, got: {words}. Replace or remove it."
    assert isinstance(error.value, JobError)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="got: a folder"):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    data = encoded(Image.new("1", (10_000, 9_000)), "PNG")
    assert len(data) < 200_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"more than {decode.MAX_PIXELS} pixels"):
        read_image(data)


def test_the_error_stays_one_line_through_a_worker():
    caught = "Caught ImageError in worker 0.\nOriginal Traceback (most recent call last):\n  somewhere\n"
    assert str(ImageError(f"{caught}mumoe.data.decode.ImageError: a: b: c")) == "a: b: c"
    assert str(ImageError("one: line")) == "one: line"
