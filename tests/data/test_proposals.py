"""Given proposals: read, refused where they do not fit, moved with their image, padded in a batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msefpn.data.coco import CocoData
from msefpn.data.loader import eval_loader, train_loader
from msefpn.data.locate import find_split
from msefpn.data.proposals import MAX_PROPOSALS, proposals_of_files, with_proposals
from msefpn.data.reader import read_coco
from msefpn.errors import UserError


@pytest.fixture(scope="module")
def data(tiny_set: Path) -> CocoData:
    return read_coco(*find_split(tiny_set, "train"))[0]


def results(data: CocoData) -> list[dict[str, Any]]:
    """A proposal on each object, worst first, and one of the whole image."""
    found = []
    for index, id in enumerate(data.ids.tolist()):
        height, width = data.sizes[index].tolist()
        corners = [[0, 0, width, height], *data.boxes_of(index)[0].tolist()]
        for rank, (left, top, right, bottom) in enumerate(corners):
            box = [left, top, right - left, bottom - top]
            found.append({"image_id": id, "bbox": box, "score": rank / 100, "category_id": 1})
    return found


def write(folder: Path, content: Any) -> Path:
    (folder / "proposals.json").write_text(json.dumps(content))
    return folder / "proposals.json"


def test_proposals_are_read_best_first(data: CocoData, tmp_path: Path) -> None:
    given = with_proposals(data, write(tmp_path, results(data)[::-1])).proposals
    assert given is not None
    for index in range(len(data)):
        boxes = data.boxes_of(index)[0]
        assert np.allclose(given.of(index)[:-1], boxes[::-1], atol=1e-4)
        assert given.of(index)[-1].tolist() == [0, 0, *data.sizes[index][::-1]]
    part = with_proposals(data, tmp_path / "proposals.json").subset([4, 1]).proposals
    assert part is not None
    assert (part.of(1) == given.of(1)).all()


def test_most_of_an_image(data: CocoData, tmp_path: Path) -> None:
    id = int(data.ids[1])
    many = [{"image_id": id, "bbox": [0, 0, 5, 5], "score": i / 1e4} for i in range(MAX_PROPOSALS + 7)]
    given = with_proposals(data, write(tmp_path, many)).proposals
    assert given is not None
    assert np.diff(given.offsets).tolist() == [0, MAX_PROPOSALS] + [0] * (len(data) - 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"image_id": 777},
            "entry 0 is of image 777, which is not in .*train.json: give proposals for its images",
        ),
        ({"bbox": [150, 0, 90, 9]}, r"entry 0 reaches out of 0\d+.jpg, which is \d+ x \d+ px"),
        ({"bbox": [1, 2, 3]}, "entry 0 has bbox"),
        ({"bbox": [1, 2, -1, 3]}, "entry 0 has bbox"),
        ({"bbox": [1, 2, 10**400, 3]}, "entry 0 has bbox"),
        ({"bbox": ["1", 2, 3, 3]}, "entry 0 has bbox"),
        ({"bbox": 5}, "entry 0 has bbox 5"),
        ({"image_id": True}, "of image True"),
        ({"image_id": "1"}, "of image '1'"),
        ({"image_id": [1]}, r"of image \[1\]"),
        ({"bbox": [1, 2, float("nan"), 3]}, "entry 0 has bbox"),
        ({"score": "high"}, "entry 0 has bbox .* and score high"),
        ({"score": None}, "and score None"),
    ],
    ids=str,
)
def test_wrong_proposals(change: dict[str, Any], reason: str, data: CocoData, tmp_path: Path) -> None:
    entries = results(data)
    entries[0] |= change
    with pytest.raises(UserError, match=reason):
        with_proposals(data, write(tmp_path, entries))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "not a list"),
        ([], "not a list"),
        ([5], "entry 0 lacks 'bbox' or 'score'"),
        ([{}], "entry 0 lacks 'bbox' or 'score'"),
    ],
)
def test_wrong_files(content: Any, reason: str, data: CocoData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        with_proposals(data, write(tmp_path, content))
    with pytest.raises(UserError, match="give a json file"):
        with_proposals(data, tmp_path / "nothing.json")
    (tmp_path / "proposals.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        with_proposals(data, tmp_path / "proposals.json")


ENTRY = {"image_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
SIZES = ((20, 20), (20, 20))


def named(folder: Path, *names: str) -> Path:
    """A file with one proposal for each of these images, the first starting at 1, the second at 2, ..."""
    return write(
        folder, [ENTRY | {"file_name": name, "bbox": [i, 2, 3, 4]} for i, name in enumerate(names, 1)]
    )


def test_proposals_of_files(tmp_path: Path) -> None:
    file = named(tmp_path, "photos/a.jpg", "photos/b.jpg", "photos/c.jpg")
    (found,) = proposals_of_files(file, [Path("elsewhere/b.jpg")], SIZES[:1])
    assert found.tolist() == [[2, 2, 5, 6]]
    some, none = proposals_of_files(file, [Path("a.jpg"), Path("d.jpg")], SIZES)
    assert (some.tolist(), none.tolist()) == ([[1, 2, 4, 6]], [])
    with pytest.raises(UserError, match=r"no proposal for d\.jpg: give the proposals of predict --score 0"):
        proposals_of_files(file, [Path("d.jpg")], SIZES[:1])
    with pytest.raises(UserError, match=r"entry 2 reaches out of c\.jpg, which is 4 x 20 px"):
        proposals_of_files(file, [Path("c.jpg")], [(20, 4)])
    with pytest.raises(UserError, match="entry 0 has no 'file_name'"):
        proposals_of_files(write(tmp_path, [ENTRY]), [Path("a.jpg")], SIZES[:1])


def test_files_of_the_same_name(tmp_path: Path) -> None:
    file = named(tmp_path, "a/1.jpg", "b/1.jpg")
    first, second = proposals_of_files(file, [Path("a/1.jpg"), Path("b/1.jpg")], SIZES)
    assert (first.tolist(), second.tolist()) == ([[1, 2, 4, 6]], [[2, 2, 5, 6]])
    (alone,) = proposals_of_files(file, [Path("b/1.jpg")], SIZES[:1])
    assert alone.tolist() == [[2, 2, 5, 6]]
    for images in ([Path("c/1.jpg")], [Path("c/1.jpg"), Path("d/1.jpg")]):
        with pytest.raises(UserError, match=r"which of the 2 images 1\.jpg is meant"):
            proposals_of_files(file, images, SIZES[: len(images)])


def test_what_is_passed_over(data: CocoData, tmp_path: Path) -> None:
    """Regions rounded to nothing, and those of an image that was left out because it cannot be read."""
    entries = [ENTRY | {"image_id": 99}, ENTRY | {"image_id": 1, "bbox": [1, 2, 0.0, 3]}]
    given = with_proposals(replace(data, left_out=frozenset({99})), write(tmp_path, entries))
    assert given.proposals is not None
    assert len(given.proposals.boxes) == 0
    assert given.subset([]).proposals is not None


def test_proposals_choose_no_crop(data: CocoData, tmp_path: Path) -> None:
    """The augmentation of a training with proposals is that of one without."""
    given = with_proposals(data, write(tmp_path, results(data)))
    setting: Any = {"size": (96, 96), "augment": "strong", "batch": 2, "workers": 0, "seed": 0, "epoch": 0}
    for a, b in zip(train_loader(data, **setting), train_loader(given, **setting), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets.boxes, b.targets.boxes)


@pytest.mark.parametrize("augment", ["none", "paper", "multiscale", "strong"])
def test_proposals_move_with_their_image(data: CocoData, tmp_path: Path, augment: str) -> None:
    given = with_proposals(data, write(tmp_path, results(data)))
    for batch in train_loader(given, size=(160, 160), augment=augment, batch=3, workers=0, seed=0, epoch=0):
        assert batch.proposals is not None
        for i in range(len(batch.images)):
            boxes = batch.targets.boxes[i][batch.targets.valid[i]]
            regions = batch.proposals.boxes[i][batch.proposals.valid[i]]
            assert len(regions) == len(boxes) + 1
            assert (regions[:-1].flip(0) - boxes).abs().max() < 1e-3 if len(boxes) else True


def test_proposals_change_nothing_else(data: CocoData, tmp_path: Path) -> None:
    given = with_proposals(data, write(tmp_path, results(data)))
    for a, b in zip(*(eval_loader(d, size=(96, 96), batch=4, workers=0) for d in (data, given)), strict=True):
        assert a.proposals is None
        assert torch.equal(a.images, b.images)
        assert all(torch.equal(x, y) for x, y in zip(a.targets[:3], b.targets[:3], strict=True))
