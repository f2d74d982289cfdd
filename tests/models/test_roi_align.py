"""RoIAlign on several levels: each of its three forms against torchvision's operator."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from msefpn.models.roi_align import RoIAlign

STRIDES = [4, 8, 16, 32]


def pyramid(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 6, 256 // s, -(-300 // s), dtype=dtype, requires_grad=True) for s in STRIDES]


def regions() -> Tensor:
    """Regions of every level, one sticking out, one larger than the image, one without area."""
    torch.manual_seed(1)
    corner = torch.rand(2, 40, 2, dtype=torch.float64) * 200
    side = torch.exp(torch.rand(2, 40, 2, dtype=torch.float64) * 5 + 1.5)
    boxes = torch.cat([corner, corner + side], dim=-1)
    boxes[0, :3] = torch.tensor([[-20.0, -8, 40, 30], [-90, -100, 400, 400], [50, 60, 50, 60]])
    return boxes


def reference(maps: list[Tensor], boxes: Tensor, ratio: int, aligned: bool) -> Tensor:
    rows = []
    for image in range(len(boxes)):
        for box in boxes[image]:
            side = float(((box[2] - box[0]) * (box[3] - box[1])).clamp(min=0).sqrt())
            level = sum(side >= edge for edge in (112, 224, 448))
            roi = torch.cat([box.new_tensor([image]), box])[None]
            rows.append(roi_align(maps[level], roi, 7, 1 / STRIDES[level], ratio, aligned))
    return torch.cat(rows)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("form", ["_bags", "_align", "_masked"])
def test_forms_equal_torchvision(
    form: str, ratio: int, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = RoIAlign(STRIDES, sampling_ratio=ratio, aligned=aligned)
    if form == "_masked":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if form == "_align":
        monkeypatch.setattr(
            pool, "_bags", lambda x, rois, here, stride: (pool._align(x, rois[here], stride), here)
        )
    ours, theirs = pyramid(), pyramid()
    found, expected = pool(ours, regions()), reference(theirs, regions(), ratio, aligned)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-9, rtol=1e-9)


def test_channels_last_and_float32() -> None:
    maps = [x.detach().float().contiguous(memory_format=torch.channels_last) for x in pyramid()]
    found = RoIAlign(STRIDES)(maps, regions().float())
    expected = reference([x.double() for x in maps], regions(), 0, True)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_boxes_that_are_not_finite_pool_something() -> None:
    boxes = torch.tensor([[[float("nan")] * 4, [float("inf")] * 4, [0.0, 0, 50, 60]]])
    assert RoIAlign([4])([torch.ones(1, 2, 32, 32)], boxes).shape == (3, 2, 7, 7)


@torch.no_grad()
def test_compiled_without_gradients_is_one_graph_and_equal() -> None:
    pool = RoIAlign(STRIDES)
    maps, boxes = [x.half() for x in pyramid()], regions().float()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    found = compiled(maps, boxes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool(maps, boxes))
