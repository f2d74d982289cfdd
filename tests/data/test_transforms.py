"""Boxes stay with what they surround, through every preset."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from msefpn.data.transforms import ObjectCrop, eval_transform, fitted_size, train_transform
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
    with pytest.raises(UserError, match="unknown augment 'stong': did you mean 'strong'"):
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
