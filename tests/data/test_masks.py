"""Masks: read in each of COCO's forms, refused where broken, moved with their boxes, padded in a batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as reference

from msefpn.data.coco import CocoData, scan_coco
from msefpn.data.loader import eval_loader, train_loader
from msefpn.data.locate import find_split
from msefpn.data.masks import Masks, decode_masks, encode_mask, encode_segmentation, run_lengths
from msefpn.data.reader import read_coco
from msefpn.errors import UserError

SIZE = 40, 60
POLYGONS = [[1.0, 1, 20, 1, 20, 30, 1, 30], [5.5, 5, 50, 5, 30, 39]]


def random_mask(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.random(SIZE) < rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    mask = random_mask(seed)
    counts = encode_mask(mask)
    assert counts == reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert (decode_masks([counts], SIZE)[0] == mask).all()
    assert run_lengths(counts, SIZE) == {"size": [40, 60], "counts": counts.decode()}


def test_each_form_of_a_segmentation() -> None:
    expected = reference.merge(reference.frPyObjects(POLYGONS, *SIZE))["counts"]
    assert encode_segmentation(POLYGONS, SIZE) == expected
    assert encode_segmentation({"size": [40, 60], "counts": expected.decode()}, SIZE) == expected
    flat = decode_masks([expected], SIZE)[0].ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    assert (
        encode_segmentation({"size": [40, 60], "counts": [0, *lengths] if flat[0] else lengths}, SIZE)
        == expected
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2, 3, 4]], "three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three corners"),
        ([[1, 2, 3, 4, 5, "6"]], "not a number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not a number"),
        (["abc"], "three corners"),
        ("abc", "neither"),
        ({"size": [40, 60]}, "neither"),
        ({"size": [60, 40], "counts": [2400]}, r"\[60, 40\], the image has \[40, 60\]"),
        ({"size": [40, 60], "counts": [2399]}, "do not add up"),
        ({"size": [40, 60], "counts": [2401, -1]}, "do not add up"),
        ({"size": [40, 60], "counts": "abc"}, "broken"),
        ({"size": [40, 60], "counts": "P99"}, "broken"),
        ({"size": [40, 60], "counts": 5}, "neither a list nor a text"),
        ({"size": [40, 60], "counts": None}, "neither a list nor a text"),
        ([[1, 2, 3, 4, 5, 9e5]], "far outside the image"),
    ],
    ids=str,
)
def test_broken_segmentations(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        encode_segmentation(value, SIZE)


def test_masks_are_taken_by_row() -> None:
    counts = [encode_mask(random_mask(seed)) for seed in range(4)]
    masks = Masks.pack(counts)
    assert len(masks) == 4
    assert masks.take(np.array([3, 0])).counts(range(2)) == [counts[3], counts[0]]
    assert decode_masks([], SIZE).shape == (0, *SIZE)


@pytest.fixture(scope="module")
def data(tiny_set: Path) -> CocoData:
    return read_coco(*find_split(tiny_set, "train"), masks=True)[0]


def test_masks_of_the_data_are_those_of_the_json(data: CocoData, tiny_set: Path) -> None:
    notes = json.loads((tiny_set / "train.json").read_text())["annotations"]
    for index, id in enumerate(data.ids):
        mine = [note for note in notes if note["image_id"] == id]
        masks = data.masks_of(index)
        assert masks.shape == (len(mine), *data.sizes[index])
        for mask, note in zip(masks, mine, strict=True):
            size = note["segmentation"]["size"]
            assert (mask == reference.decode(reference.frPyObjects(note["segmentation"], *size))).all()
            assert mask.sum() == note["area"]
    assert (data.subset([2, 0]).masks_of(1) == data.masks_of(0)).all()


def test_masks_must_be_there(tiny_set: Path) -> None:
    file, folder = find_split(tiny_set, "train")
    content = json.loads(file.read_text())
    content["annotations"][0].pop("segmentation")
    content["annotations"][1]["segmentation"] = [[1, 2, 3]]
    spoilt = tiny_set / "spoilt.json"
    spoilt.write_text(json.dumps(content))
    assert not scan_coco(spoilt, folder)[1].stops
    with pytest.raises(UserError, match=r"no mask: 0\d+\.jpg \(annotation 1\) has no segmentation: draw it"):
        read_coco(spoilt, folder, masks=True)
    counts = scan_coco(spoilt, folder, masks=True)[1].counts
    assert (counts["no mask"], counts["broken mask"]) == (1, 1)


def test_sizes_that_are_written_as_decimals() -> None:
    whole = encode_mask(np.ones(SIZE, bool))
    assert encode_segmentation({"size": [40.0, 60.0], "counts": [0, 2400]}, SIZE) == whole


def test_masks_of_images_that_are_dropped_stop_nothing(tiny_set: Path, tmp_path: Path) -> None:
    file, folder = find_split(tiny_set, "train")
    content = json.loads(file.read_text())
    broken = content["annotations"][0]["image_id"]
    for item in content["images"]:
        if item["id"] == broken:
            item |= {"file_name": "broken.jpg", "width": 0}
    (tmp_path / "train").mkdir()
    for image in folder.iterdir():
        (tmp_path / "train" / image.name).symlink_to(image)
    (tmp_path / "train" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "train.json").write_text(json.dumps(content))
    data, report = read_coco(tmp_path / "train.json", tmp_path / "train", masks=True)
    assert report.counts["unreadable image"] == 1
    assert data.left_out == {broken}
    assert len(data.boxes) == len(data.masks or []) > 0


@pytest.mark.parametrize("augment", ["none", "paper", "multiscale", "strong"])
def test_masks_stay_with_their_boxes(data: CocoData, augment: str) -> None:
    """The mask's own box, after flips, resizing and crops, is the box, but for rounding and what is cut."""
    found = 0
    for epoch in range(3):
        loader = train_loader(data, size=(160, 160), augment=augment, batch=3, workers=0, seed=0, epoch=epoch)
        for batch in loader:
            masks, boxes, valid = batch.targets.masks, batch.targets.boxes, batch.targets.valid
            assert masks is not None
            assert masks.shape == (*valid.shape, *batch.images.shape[2:])
            assert not masks[~valid].any()
            for image, place in valid.nonzero().tolist():
                rows, columns = masks[image, place].nonzero(as_tuple=True)
                if not len(rows):
                    continue  # cut to less than a pixel of it
                own = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                difference = (torch.tensor(own) - boxes[image, place]).abs()
                if augment == "strong":  # a crop can leave a box larger than what is left of its object
                    inside = torch.tensor(own) - boxes[image, place]
                    assert (inside[:2] >= -1.5).all()
                    assert (inside[2:] <= 1.5).all()
                else:
                    assert difference.max() <= 2
                found += 1
    assert found > 50


def test_evaluation_decodes_no_masks(data: CocoData) -> None:
    batch = next(iter(eval_loader(data, size=(160, 160), batch=2, workers=0)))
    assert batch.targets.masks is None
