"""Objects stay with their pixels where several images become one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from msefpn import plugins
from msefpn.data.coco import CocoData
from msefpn.data.loader import DetectionDataset, train_loader
from msefpn.data.locate import find_split
from msefpn.data.mixing import Example, blended, composed, window_of
from msefpn.data.reader import read_coco
from msefpn.data.transforms import PROPOSAL, train_transform
from msefpn.errors import UserError

MIXED = ("mosaic", "mixup")
SIZE = (96, 64)


def _scene(label: int, height: int = 80, width: int = 120, objects: int = 3) -> Example:
    """A black image with white rectangles of a class and their masks, and a proposal beside them."""
    rng = np.random.default_rng(label)
    image, masks, corners = torch.zeros(3, height, width, dtype=torch.uint8), [], []
    for place in range(objects):
        x, y = place * (width // 3) + int(rng.integers(1, width // 12)), int(rng.integers(1, height // 2))
        box = [x, y, x + int(rng.integers(width // 8, width // 4)), y + int(rng.integers(4, height // 2))]
        mask = torch.zeros(height, width, dtype=torch.uint8)
        mask[box[1] : box[3], box[0] : box[2]] = 1
        image[:, mask > 0] = 255
        masks.append(mask)
        corners.append(box)
    masks.append(torch.ones(height, width, dtype=torch.uint8))
    corners.append([0, 0, width, height])
    boxes = torch.tensor(corners, dtype=torch.float32)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([label] * objects + [PROPOSAL]),
        "masks": tv_tensors.Mask(torch.stack(masks)),
    }
    return tv_tensors.Image(image), target


def _extent(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("augment", MIXED)
def test_boxes_masks_and_labels_follow_their_objects(augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2, "RandomPhotometricDistort", lambda p: v2.Identity())
    transform: Any = train_transform(augment, SIZE)
    seen: set[int] = set()
    for seed in range(30):
        torch.manual_seed(seed)
        others = [_scene(label, *sides) for label, sides in ((1, (120, 80)), (2, (90, 90)), (3, (60, 200)))]
        image, target = transform(*_scene(0), others[: transform.other_images])
        assert max(image.shape[-2:]) <= SIZE[0]
        assert min(image.shape[-2:]) <= SIZE[1]
        assert target["masks"].shape == (len(target["boxes"]), *image.shape[-2:])
        assert target["boxes"].canvas_size == image.shape[-2:]
        bright, real = image.float().amax(0), target["labels"] != PROPOSAL
        for box, label, mask in zip(
            *(target[key][real] for key in ("boxes", "labels", "masks")), strict=True
        ):
            assert (box - _extent(mask)).abs().max() <= 2  # masks are resized to whole pixels once or twice
            if (box[2:] - box[:2]).min() > 4:  # of a thinner one most pixels are mixed with those around it
                assert bright[mask > 0].median() > 100  # white, or its mean with black
            seen.add(int(label))
    assert seen == set(range(transform.other_images + 1))


@pytest.mark.parametrize("augment", MIXED)
def test_images_without_objects_mix(augment: str) -> None:
    transform: Any = train_transform(augment, SIZE)
    for seed in range(6):
        torch.manual_seed(seed)
        others = [_scene(1, objects=0)] * transform.other_images
        _, target = transform(*_scene(0, objects=0), others)
        assert set(target["labels"].tolist()) <= {PROPOSAL}
        assert target["boxes"].shape == (len(target["labels"]), 4)


@pytest.mark.parametrize("seed", range(5))
def test_a_window_keeps_what_is_centred_in_it(seed: int) -> None:
    torch.manual_seed(seed)
    image, target = _scene(seed)
    part, kept = window_of(image, target, (50, 200))
    assert part.shape == (3, 50, 120)
    top = next(y for y in range(31) if torch.equal(part, image[:, y : y + 50]))
    middle = (target["boxes"][:, 1] + target["boxes"][:, 3]) / 2
    expected = (middle > top) & (middle < top + 50)
    assert kept["labels"].tolist() == target["labels"][expected].tolist()
    moved = target["boxes"][expected].as_subclass(torch.Tensor) - torch.tensor([0, top, 0, top])
    clipped = moved.clamp(min=0).minimum(torch.tensor([120, 50, 120, 50]))
    assert torch.equal(kept["boxes"].as_subclass(torch.Tensor), clipped)
    assert torch.equal(kept["masks"], target["masks"][expected][:, top : top + 50])


def test_composed_leaves_nothing_but_grey_between() -> None:
    image, target = _scene(0, 20, 30)
    canvas, joined = composed([(image, target, (0, 0)), (image, target, (20, 35))], (40, 65))
    assert torch.equal(canvas[:, :20, :30], image)
    assert torch.equal(canvas[:, 20:, 35:], image)
    assert canvas[:, :20, 30:].eq(114).all()
    first, second = joined["boxes"].as_subclass(torch.Tensor).split(len(target["labels"]))
    assert torch.equal(second - first, torch.tensor([35.0, 20, 35, 20]).expand_as(first))
    assert torch.equal(joined["masks"][4:, 20:, 35:], joined["masks"][:4, :20, :30])


def test_blended_is_the_mean_where_both_are() -> None:
    first, second = _scene(0, 40, 60), _scene(1, 80, 40)
    image, target = blended(first, second)
    assert torch.equal(image[:, :, 20:], first[0][:, :, 20:])
    assert set(image[:, :, :20].unique().tolist()) >= {0, 128}
    assert target["labels"].tolist() == [*first[1]["labels"].tolist(), *second[1]["labels"].tolist()]
    assert torch.equal(target["boxes"][4:].as_subclass(torch.Tensor), second[1]["boxes"] / 2)
    assert target["masks"][4:, :, 20:].sum() == 0
    same = blended(first, first)[0]
    assert torch.equal(same, first[0])


@pytest.fixture(scope="module")
def data(tiny_set: Path) -> CocoData:
    return read_coco(*find_split(tiny_set, "train"))[0]


@pytest.mark.parametrize("augment", MIXED)
def test_the_same_others_whoever_loads_and_in_whatever_order(data: CocoData, augment: str) -> None:
    options: dict[str, Any] = {"size": (64, 64), "augment": augment, "batch": 2, "seed": 5, "epoch": 1}
    alone, helped = (list(train_loader(data, **options, workers=workers)) for workers in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.boxes, other.targets.boxes)
    dataset = DetectionDataset(data, train_transform(augment, (64, 64)), seed=5)
    keys = [(epoch, index) for epoch in (1, 2) for index in range(4)]
    there = [dataset[key].image for key in keys]
    back = [dataset[key].image for key in reversed(keys)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(there, back, strict=True))


@pytest.mark.usefixtures("registry")
def test_a_users_augmentation_is_given_others_of_those_trained_on(
    data: CocoData, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    given: list[int] = []

    class Pasted:
        other_images = 2

        def __call__(self, image: Any, target: dict[str, Any], others: Any) -> Any:
            given.append(len(others))
            return (image, target) if len(given) % 2 else others[1]

    plugins.register("augmentation", "pasted")(Pasted)
    example = DetectionDataset.example

    def reading(self: DetectionDataset, at: int) -> Example:
        read.append(at)
        return example(self, at)

    monkeypatch.setattr(DetectionDataset, "example", reading)
    transform = train_transform("pasted", (64, 64))
    dataset = DetectionDataset(data, transform, seed=0, others=np.array([3, 4]))
    for epoch in range(8):
        dataset[epoch, 0]
    assert given == [2] * 8
    others = [at for at in read if at]
    assert set(others) == {3, 4}
    assert len(others) == 4  # read where they are taken alone


@pytest.mark.usefixtures("registry")
def test_a_wrong_number_of_others_is_named() -> None:
    def odd(image: Any, target: Any, others: Any) -> Any:
        return image, target

    odd.other_images = "two"  # type: ignore[attr-defined]
    plugins.register("augmentation", "odd")(odd)
    with pytest.raises(UserError, match="augmentation 'odd' has other_images 'two': give a number"):
        train_transform("odd", SIZE)
