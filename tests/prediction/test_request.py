"""What can be named to look at, and what its results are called."""

from pathlib import Path

import pytest

from msefpn.errors import UserError
from msefpn.prediction.request import (
    Source,
    Tiling,
    find_images,
    find_sources,
    plan_tiling,
    safe_name,
    unique_stems,
)


def test_find_sources(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.PNG", "deep/notes.txt", "deep/c.mp4", "videos/d.MOV", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b = Source("image", str(tmp_path / "a.jpg")), Source("image", str(tmp_path / "deep" / "b.PNG"))
    c = Source("video", str(tmp_path / "deep" / "c.mp4"))
    url = Source("url", "http://host/x.jpg?size=3")
    assert find_sources([tmp_path]) == [a, b], "videos under a folder are not meant"
    assert find_sources([a.name, str(tmp_path / "*.jpg"), str(tmp_path / "**" / "*.PNG")]) == [a, b]
    assert find_sources([c.name, url.name]) == [c, url]
    assert find_images([tmp_path, a.name]) == [Path(a.name), Path(b.name)]
    with pytest.raises(UserError, match=r"c\.mp4' is no image file"):
        find_images([tmp_path, c.name])
    assert find_sources(["camera:1", "0"]) == [Source("camera", "camera:1"), Source("camera", "camera:0")]
    wrong: list[tuple[str | Path, str]] = [
        (tmp_path / "*.gif", r"no image found at .*\.gif"),
        (tmp_path / "videos", r"its videos are to be named, as in .*d\.MOV"),
        (tmp_path / "empty", r"no image found at .*empty': it holds no file named \.bmp"),
        ("ftp://host/x.jpg", "begins with http"),
    ]
    for given, says in wrong:
        with pytest.raises(UserError, match=says):
            find_sources([given])
    with pytest.raises(UserError, match="nothing given"):
        find_sources([])


def test_stems_are_unique_and_safe() -> None:
    sources = [
        *(Source("image", name) for name in ("a.jpg", "b.PNG", "x/a.tif", "a-2.jpg", f"{'y' * 240}.jpg")),
        Source("url", "https://host/deep/%2e%2e%2Fcat%20photo.jpg?a=b"),
        Source("url", "https://host/"),
        Source("camera", "camera:0"),
    ]
    names = ["a", "b", "a-2", "a-2-2", "y" * 100, "cat_photo", "download", "camera-0"]
    assert unique_stems(sources) == names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<b>cat</b>", "b_cat_b"),
        ("../../etc/passwd", "etc_passwd"),
        ("猫 a.b", "猫_a.b"),
        ("...", ""),
        ("C:\\x\0y", "C_x_y"),
        ("ж" * 90, "ж" * 50),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_tiling() -> None:
    assert plan_tiling(tile=False, tile_size=None, overlap=0.2) is None
    assert plan_tiling(tile=True, tile_size=None, overlap=0.2) == Tiling(None, 0.2)
    assert plan_tiling(tile=True, tile_size="640x480", overlap=0) == Tiling((640, 480), 0)
    with pytest.raises(UserError, match="without --tile"):
        plan_tiling(tile=False, tile_size="640", overlap=0.2)
    with pytest.raises(UserError, match=r"overlap is 0\.9"):
        plan_tiling(tile=True, tile_size=None, overlap=0.9)
