"""The built-in set: the same bytes for a seed, exact boxes and masks, all sizes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msefpn.data import synthetic
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from msefpn.errors import UserError


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _mask(annotation: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Decode COCO's uncompressed run lengths."""
    height, width = annotation["segmentation"]["size"]
    counts = annotation["segmentation"]["counts"]
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(width, height).T.astype(bool)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthetic.draw_builtin_set(tmp_path / name, train=3, val=2, seed=seed, size=96)
    first = _bytes(tmp_path / "a")
    assert len(first) == 7
    assert first == _bytes(tmp_path / "b")
    other = _bytes(tmp_path / "c")
    assert all(first[name] != other[name] for name in first)


def test_images_do_not_depend_on_their_number(tmp_path: Path) -> None:
    synthetic.draw_builtin_set(tmp_path / "few", train=2, val=1, seed=0, size=96)
    synthetic.draw_builtin_set(tmp_path / "more", train=4, val=2, seed=0, size=96)
    few, more = _bytes(tmp_path / "few"), _bytes(tmp_path / "more")
    assert all(more[name] == content for name, content in few.items() if name.endswith(".jpg"))


def test_boxes_and_areas_are_those_of_the_masks(tiny_set: Path) -> None:
    content = json.loads((tiny_set / "train.json").read_text())
    sizes = {item["id"]: [item["height"], item["width"]] for item in content["images"]}
    covered: dict[int, np.ndarray[Any, Any]] = {}
    assert len(content["annotations"]) > 20
    for item in content["annotations"]:
        mask = _mask(item)
        assert list(mask.shape) == sizes[item["image_id"]]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top, width, height = item["bbox"]
        assert (left, top) == (columns[0], rows[0])
        assert (left + width, top + height) == (columns[-1] + 1, rows[-1] + 1)
        assert item["area"] == mask.sum()
        before = covered.get(item["image_id"], np.zeros_like(mask))
        assert not (before & mask).any()
        covered[item["image_id"]] = before | mask


def test_masks_show_in_the_pixels(tiny_set: Path) -> None:
    data, _ = read_coco(*find_split(tiny_set, "train"), decode=True)
    content = json.loads((tiny_set / "train.json").read_text())
    contrasts = []
    for item in content["annotations"]:
        mask = _mask(item)
        pixels = Image.open(data.folder / f"{item['image_id']:06d}.jpg")
        values = np.asarray(pixels, dtype=np.float32)
        left, top, width, height = item["bbox"]
        around = np.zeros_like(mask)
        around[max(0, top - 3) : top + height + 3, max(0, left - 3) : left + width + 3] = True
        contrasts.append(np.abs(values[mask].mean(0) - values[around & ~mask].mean(0)).sum())
    assert np.median(contrasts) > 120


def test_sizes_classes_overlaps_and_empty_images(tmp_path: Path) -> None:
    synthetic.draw_builtin_set(tmp_path / "set", train=80, val=1, seed=0)
    data, report = read_coco(*find_split(tmp_path / "set", "train"))
    assert set(report.counts) == {"image without objects"}
    assert len(data.classes) >= 6
    assert (np.bincount(data.labels, minlength=len(data.classes)) > 10).all()
    extent = data.boxes[:, 2:] - data.boxes[:, :2]
    small, large = extent.prod(1) < 32**2, extent.prod(1) >= 96**2
    assert small.mean() > 0.2
    assert large.mean() > 0.1
    assert (~small & ~large).mean() > 0.2
    assert extent.max(1).min() >= 4
    assert 200 < extent.max() <= 257
    assert {bool(height > width) for height, width in data.sizes} == {True, False}
    overlapping = 0
    for index in range(len(data)):
        boxes = data.boxes_of(index)[0]
        meet = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
        overlapping += int((meet > 0).all(2).sum() > len(boxes))
    assert overlapping > 10


def test_drawn_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(UserError, match="already exists"):
        synthetic.draw_builtin_set(tmp_path / "used", train=1, val=1, seed=0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        synthetic.draw_builtin_set(tmp_path / "new", train=1, val=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
