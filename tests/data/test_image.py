import numpy as np
import pytest
from PIL import Image

from sam_edge.data.image import read_image
from sam_edge.errors import DataError

ORIENTATION_TAG = 0x0112
# What a viewer must do to the stored pixels, by the EXIF standard.
TO_UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", TO_UPRIGHT)
def test_pictures_come_upright_by_their_exif_tag(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), TO_UPRIGHT[orientation](picture))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_colour_mode_of_png_becomes_what_pillow_shows(tmp_path, picture, mode):
    image = Image.fromarray(picture).convert(mode)
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L"])
def test_every_colour_mode_of_jpeg_keeps_its_colour(tmp_path, mode):
    orange = Image.new("RGB", (32, 32), (230, 130, 30)).convert(mode)
    orange.save(tmp_path / "a.jpg", quality=95)
    difference = read_image(tmp_path / "a.jpg").astype(int) - np.asarray(orange.convert("RGB")).astype(int)
    assert np.abs(difference).max() <= 6


def test_transparent_pixels_become_white_and_half_transparent_ones_pale(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (200, 0, 0, 0)
    rgba[1] = (200, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[0] == 255).all()
    assert np.abs(read[1].astype(int) - (227, 127, 127)).max() <= 1


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.shape == (1, 4, 3)
    assert read[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_pictures_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated_files_are_refused_by_name(tmp_path, picture, suffix):
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="broken"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0garbage"])
def test_files_that_are_no_image_are_refused_by_name(tmp_path, content):
    (tmp_path / "no.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"no\.jpg"):
        read_image(tmp_path / "no.jpg")


def test_a_program_of_postscript_is_not_run_as_a_picture(tmp_path):
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(outside) (w) file\nshowpage\n"
    (tmp_path / "photo.jpg").write_bytes(text)
    with pytest.raises(DataError, match=r"photo\.jpg: PostScript is a program"):
        read_image(tmp_path / "photo.jpg")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x01")
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("brightest", "white"), [(200, 255), (1000, 1023), (4000, 4095), (16000, 16383), (40000, 65535)]
)
def test_a_sixteen_bit_file_is_as_bright_as_its_sensor_saw_it(tmp_path, brightest, white):
    values = np.array([[0, brightest // 2, brightest]], np.uint16)
    Image.fromarray(values).save(tmp_path / "scan.png")
    grey = read_image(tmp_path / "scan.png")[0, :, 0]
    np.testing.assert_allclose(grey, values[0] * (255 / white), atol=0.51)


def test_a_picture_that_memory_does_not_hold_is_called_that(tmp_path, picture, monkeypatch):
    def too_large(_):
        raise MemoryError

    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr("sam_edge.data.image._to_rgb", too_large)
    with pytest.raises(DataError, match=r"a\.png: does not fit into memory; scale it down"):
        read_image(tmp_path / "a.png")
