"""Boxes stay with what they surround, through every preset."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from msefpn import plugins
from msefpn.data.images import fitted_size
from msefpn.data.transforms import (
    FitResize,
    ObjectCrop,
    decoded_fit,
    eval_transform,
    train_transform,
)
from msefpn.errors import UserError

PRESETS = ("none", "paper", "multiscale", "strong")


def _scene(height: int = 120, width: int = 200) -> tuple[tv_tensors.Image, dict[str, torch.Tensor]]:
    """Return a black image with one white rectangle, and its box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 30:80, 40:110] = 255
    boxes = tv_tensors.BoundingBoxes([[40.0, 30.0, 110.0, 80.0]], format="XYXY", canvas_size=(height, width))
    return tv_tensors.Image(image), {"boxes": boxes, "labels": torch.tensor([3])}


@pytest.mark.parametrize("augment", PRESETS)
def test_box_follows_its_object(augment: str) -> None:
    transform = train_transform(augment, (160, 96))
    shown = 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*_scene())
        assert image.dtype == torch.uint8
        assert max(image.shape[-2:]) <= 160
        assert min(image.shape[-2:]) <= 96
        if not len(target["boxes"]):
            continue
        bright = image.float().mean(0) > 127
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        extent = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (target["boxes"][0] - extent).abs().max() <= 1.01
        assert target["labels"].tolist() == [3]
        shown += 1
    assert shown >= 30


@pytest.mark.parametrize("augment", PRESETS)
def test_image_without_boxes(augment: str) -> None:
    image, _ = _scene()
    empty = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(120, 200))
    for seed in range(5):
        torch.manual_seed(seed)
        _, target = train_transform(augment, (160, 96))(
            image, {"boxes": empty, "labels": torch.zeros(0, dtype=torch.int64)}
        )
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)


def test_presets_vary_what_they_should() -> None:
    def seen(augment: str) -> tuple[set[tuple[int, ...]], set[int]]:
        sizes: set[tuple[int, ...]] = set()
        lefts: set[int] = set()
        for seed in range(30):
            torch.manual_seed(seed)
            image, target = train_transform(augment, (100, 60))(*_scene())
            sizes.add(tuple(image.shape[-2:]))
            lefts |= {round(float(box[0])) for box in target["boxes"]}
        return sizes, lefts

    assert seen("none") == ({(60, 100)}, {20})
    assert seen("paper") == ({(60, 100)}, {20, 45})
    sizes, _ = seen("multiscale")
    assert min(sizes)[0] < 42
    assert max(sizes)[0] <= 60
    assert len(seen("strong")[0]) > 10


def test_evaluation_resizes_only() -> None:
    image, target = eval_transform((1333, 800))(*_scene(480, 640))
    assert image.shape == (3, 800, 1067)
    assert target["boxes"][0].tolist() == pytest.approx(
        [40 * 1067 / 640, 50, 110 * 1067 / 640, 80 * 800 / 480]
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 427), (1199, 800)),
        ((100, 1000), (133, 1333)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_sizes_of_mmcv(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*size, 1333, 800) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 2000), st.integers(32, 2000))
def test_fits(height: int, width: int, one: int, other: int) -> None:
    long, short = max(one, other), min(one, other)
    fitted = fitted_size(height, width, long, short)
    assert 1 <= max(fitted) <= long
    assert 1 <= min(fitted) <= short


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="unknown augmentation 'stong': did you mean 'strong'"):
        train_transform("stong", (100, 100))


@pytest.mark.parametrize("seed", range(6))
def test_crops_are_torchvisions_where_no_region_is_given(seed: int) -> None:
    image = tv_tensors.Image(torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8))
    corners = torch.tensor([[5.0, 5, 40, 60], [60, 20, 110, 85]])
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(90, 120))
    found = []
    for crop in (ObjectCrop(min_scale=0.5), v2.RandomIoUCrop(min_scale=0.5)):
        torch.manual_seed(seed)
        found.append(crop(image, {"boxes": boxes, "labels": torch.tensor([0, 1])}))
    (ours, our_target), (theirs, their_target) = found
    assert torch.equal(ours, theirs)
    assert torch.equal(our_target["boxes"], their_target["boxes"])


def _turned(image: torch.Tensor, target: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Turn an image by half, on plain tensors."""
    height, width = image.shape[-2:]
    boxes = torch.tensor([width, height, width, height]) - target["boxes"][:, [2, 3, 0, 1]]
    return image.flip(-1, -2), {**target, "boxes": boxes}


def _sized(size: tuple[int, int]) -> v2.Transform:
    return v2.Compose([v2.RandomHorizontalFlip(1.0), FitResize(*size)])


class _Mirror(v2.RandomHorizontalFlip):  # type: ignore[misc]  # torchvision has no types
    min_crop = 1.0

    def __init__(self) -> None:
        super().__init__(1.0)


GIVEN: dict[str, tuple[Any, list[float], tuple[int, int] | None]] = {
    "function": (_turned, [45, 20, 80, 45], None),
    "factory": (_sized, [45, 15, 80, 40], None),
    "class": (_Mirror, [45, 15, 80, 40], (150, 90)),
    "object": (v2.Compose([v2.RandomVerticalFlip(1.0)]), [20, 20, 55, 45], None),
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("passed", [False, True], ids=["registered", "passed"])
def test_augmentation_of_a_user(kind: str, passed: bool) -> None:
    given, box, fit = GIVEN[kind]
    if passed:
        name = plugins.name_of("augmentation", given)
    else:
        name = "mine"
        plugins.register("augmentation", name)(given)
    assert decoded_fit(name, (100, 60)) == fit
    transform = train_transform(name, (100, 60))
    for _ in range(2):
        image, target = transform(*_scene())
        assert (type(image), image.shape) == (tv_tensors.Image, (3, 60, 100))
        assert target["boxes"].tolist() == [pytest.approx(box)]
        assert target["labels"].tolist() == [3]


def _giving(**changes: Any) -> Any:
    def transform(image: Any, target: dict[str, Any]) -> Any:
        image = changes.get("image", lambda image: image)(image)
        return image, target | {key: value for key, value in changes.items() if key != "image"}

    return transform


def _raising(image: Any, target: Any) -> Any:
    raise ValueError("no\nidea")


BAD: dict[str, tuple[Any, str]] = {
    "float image": (
        _giving(image=lambda image: image / 255),
        r"returned a tensor \(3, 120, 200\) float32, not",
    ),
    "grey image": (_giving(image=lambda image: image[:1]), r"tensor \(1, 120, 200\) uint8, not an image"),
    "array": (_giving(image=lambda image: image.numpy()), "returned a ndarray, not an image"),
    "labels": (_giving(labels=torch.zeros(2, dtype=torch.int64)), "not int64 labels for 1 boxes"),
    "float labels": (_giving(labels=torch.zeros(1)), "not int64 labels"),
    "flat boxes": (_giving(boxes=torch.zeros(4)), r"not boxes \(G, 4\)"),
    "outside": (_giving(boxes=torch.tensor([[0.0, 0, 300, 9]])), "outside the image: end it with v2.Clamp"),
    "nan": (_giving(boxes=torch.full((1, 4), torch.nan)), "outside the image"),
    "no area": (_giving(boxes=torch.tensor([[5.0, 5, 5, 9]])), "without area: end it with v2.Sanitize"),
    "format": (
        _giving(boxes=tv_tensors.BoundingBoxes([[5.0, 5, 5, 9]], format="XYWH", canvas_size=(120, 200))),
        "not xyxy",
    ),
    "image alone": (lambda image, target: image, r"must return \(image, target\)"),
    "no labels": (lambda image, target: (image, {"boxes": target["boxes"]}), "a target without labels"),
    "raises": (_raising, r"raised ValueError \(test_transforms.py:\d+\): no idea"),
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("kind", BAD)
def test_wrong_result_of_a_users_augmentation(kind: str) -> None:
    given, says = BAD[kind]
    plugins.register("augmentation", "mine")(given)
    with pytest.raises(UserError, match=f"augmentation 'mine' .*{says}"):
        train_transform("mine", (100, 60))(*_scene())


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("given", "says"),
    [(v2.RandomResize, "cannot be built"), (lambda size: 5, "gives a int, not a transform")],
)
def test_augmentation_that_cannot_be_built(given: Any, says: str) -> None:
    plugins.register("augmentation", "mine")(given)
    with pytest.raises(UserError, match=says):
        train_transform("mine", (100, 60))(*_scene())


@pytest.mark.usefixtures("registry")
def test_masks_and_proposals_go_through_a_users_augmentation() -> None:
    image, target = _scene()
    corners = torch.cat([target["boxes"].as_subclass(torch.Tensor), torch.tensor([[0.0, 0, 20, 20]])])
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(120, 200))
    masks = tv_tensors.Mask((image[:1] > 0).to(torch.uint8).repeat(2, 1, 1))
    given = {"boxes": boxes, "labels": torch.tensor([3, -1]), "masks": masks}
    plugins.register("augmentation", "mine")(v2.Compose([v2.RandomHorizontalFlip(1.0)]))
    image, target = train_transform("mine", (100, 60))(image, given)
    assert target["masks"].shape == (2, 60, 100)
    assert torch.equal(target["masks"][0] > 0, image[0] > 127)
    assert target["labels"].tolist() == [3, -1]
    plugins.register("augmentation", "maskless")(_giving(masks=torch.zeros(1, 5, 5)))
    with pytest.raises(UserError, match=r"not masks \(2, 120, 200\)"):
        train_transform("maskless", (100, 60))(_scene()[0], given)
