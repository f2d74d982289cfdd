"""Image files of all modes, depths and orientations become the right RGB pixels."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msefpn.data.images import ImageFault, read_header, read_image, read_reduced


def _corner_image() -> Image.Image:
    """Return 30 x 20 pixels, black, but for a red top left corner."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:8, :8] = (255, 0, 0)
    return Image.fromarray(pixels)


# EXIF 2.32, 4.6.4: which corner of the upright image the stored top left corner is.
CORNERS = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}


@pytest.mark.parametrize("orientation", CORNERS)
def test_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    _corner_image().save(tmp_path / "x.jpg", exif=exif, quality=95)
    pixels = read_image(tmp_path / "x.jpg")
    assert pixels.shape == ((30, 20, 3) if orientation >= 5 else (20, 30, 3))
    where = CORNERS[orientation]
    corner = pixels[2 if "t" in where else -3, 2 if "l" in where else -3]
    assert corner[0] > 200
    assert read_header(tmp_path / "x.jpg").size == pixels.shape[:2]


def test_stored_pixels_where_only_they_fit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _corner_image().save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "x.jpg", (20, 30)).shape == (20, 30, 3)
    assert read_image(tmp_path / "x.jpg", (30, 20)).shape == (30, 20, 3)
    assert read_image(tmp_path / "x.jpg", (99, 99)).shape == (30, 20, 3)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16", "RGB", "RGBA"])
def test_all_modes_become_rgb(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    grey = np.random.default_rng(0).integers(0, 256, (5, 6), np.uint8)
    shown = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    shown.convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (5, 6, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey[..., None]).max() <= {"1": 255, "CMYK": 60}.get(mode, 0)
    monkeypatch.setattr("msefpn.data.images._BAND", 12)  # as large pictures are, a few rows at a time
    assert np.array_equal(read_image(path), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_large_picture_takes_little_more_than_its_pixels(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msefpn.data.images._BAND", 50_000)
    Image.new(mode, (1000, 1000)).save(tmp_path / "x.png")
    read_image(tmp_path / "x.png")  # what is imported on the way does not count
    tracemalloc.start()
    pixels = read_image(tmp_path / "x.png")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.5 * pixels.nbytes


def test_cmyk_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "x.jpg")[8, 8].tolist()
    assert red > 230
    assert green < 25
    assert blue < 25


def test_unusable_files(tmp_path: Path) -> None:
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    (tmp_path / "empty.jpg").touch()
    for name in ("float.tif", "empty.jpg"):
        with pytest.raises(ImageFault):
            read_header(tmp_path / name)
        with pytest.raises(ImageFault):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (None, (101, 163)),
        ((51, 50), (101, 163)),
        ((50, 81), (51, 82)),
        ((26, 20), (51, 82)),
        ((25, 40), (26, 41)),
        ((1, 1), (13, 21)),
        ((300, 500), (101, 163)),
    ],
)
def test_reduced_is_still_enough(
    tmp_path: Path, mode: str, least: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    Image.new(mode, (163, 101)).save(tmp_path / "x.jpg")
    pixels, size = read_reduced(tmp_path / "x.jpg", None, least)
    assert pixels.shape == (*expected, 3)
    assert size == (101, 163)


@pytest.mark.parametrize("orientation", CORNERS)
def test_reduced_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = (60, 40) if orientation >= 5 else (40, 60)
    _corner_image().resize((60, 40)).save(tmp_path / "x.jpg", exif=exif, quality=95)
    pixels, size = read_reduced(tmp_path / "x.jpg", upright, (upright[0] // 2, upright[1] // 2))
    assert size == upright
    assert pixels.shape == (upright[0] // 2, upright[1] // 2, 3)
    where = CORNERS[orientation]
    assert pixels[2 if "t" in where else -3, 2 if "l" in where else -3, 0] > 200


def test_only_jpeg_is_reduced_and_damage_is_still_found(tmp_path: Path) -> None:
    _corner_image().save(tmp_path / "x.png")
    assert read_reduced(tmp_path / "x.png", None, (5, 5))[0].shape == (20, 30, 3)
    _corner_image().resize((600, 400)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageFault, match="truncated"):
        read_reduced(tmp_path / "x.jpg", None, (50, 50))
