"""Every detector on every neck: a step of training, and one graph from padded batch to detections.

The sample that a plain run tries has each detector once, whose graph is traced on an FPN: the battery of
necks traces each neck by itself, a third of a detector's graph. `pytest --whole-grid` tries all pairs.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from msefpn.config import Config
from msefpn.models import Detector, build
from msefpn.necks import NECKS
from msefpn.plugins import known
from msefpn.structures import Detections, Proposals, Targets

ROWS = tuple(f"fpn+{name}" if neck.on_top else name for name, neck in NECKS.items())
BACKBONES = ("resnet50", "mobilenetv2_100")
DETECTORS = tuple(known("detector"))
GRID = tuple(itertools.product(DETECTORS, ROWS, BACKBONES))
SMALL = "test_resnet"
OTHERS = {"fcos": "test_efficientnet"}
"""The backbones of a plain run that are not SMALL: with timm's norms that hold their activation."""
TRIED = [row for row in ROWS if row not in ("fpn", "afpn", "freq_fusion")]
"""A plain run traces the others alone, in the battery of necks."""
SAMPLE = tuple((name, row, OTHERS.get(name, SMALL)) for name, row in zip(DETECTORS, TRIED, strict=True))
UNSEEN = ((3, 192, 224, 190, 221), (1, 224, 160, 224, 131), (1, 160, 224, 160, 224))
"""Batch, padded height and width, image height and width; none of them is traced, two are odd."""
CLASSES = re.compile(r"(\w+\.(?:classes|objectness))(?:\.\d)?$")
SPREAD = {"box.classes": 0.02, "rpn.objectness": 0.3, "head.classes": 0.3}
"""Deviation of the random weights: wide enough to detect, too narrow for scores to saturate and tie.

SSD's layers read the pyramid itself: 0.02.
"""

TWO_LEVELS: dict[str, Any] = {"start_level": 2, "extra_levels": "none"}
"""Options of the neck in the graphs of a plain run: each level has operators of its own to trace, and the
battery traces necks of three."""

Given = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Proposals]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "member" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--whole-grid")
        metafunc.parametrize("member", GRID if whole else SAMPLE, ids="-".join)


def make(
    name: str,
    neck: str = "mse_fpn",
    backbone: str = SMALL,
    levels: dict[str, Any] | None = None,
    **more: dict[str, Any],
) -> Detector:
    """A detector with random weights and `more` options, its heads scaled so that it detects."""
    torch.manual_seed(0)
    has_rpn = name.endswith("rcnn") and name != "fast_rcnn"
    options: dict[str, Any] = {"rpn": {"proposals": (200, 200)}} if has_rpn else {}
    options |= {"mask": {"hidden": 32}} if name == "mask_rcnn" else {}
    options |= more
    config = Config(
        detector=name,
        backbone=backbone,
        neck=neck,
        neck_options={"out_channels": 64, **(levels or {})},
        detector_options=options,
    )
    detector = build(config, ["a", "b", "c"])
    settle(detector)
    for part, layer in detector.named_modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and (kind := CLASSES.search(part)):
            torch.nn.init.normal_(layer.weight, std=0.02 if name == "ssd" else SPREAD[kind[1]])
            torch.nn.init.constant_(layer.bias, -1.0)  # type: ignore[arg-type]  # it has one
        if part.endswith(".distances"):
            torch.nn.init.constant_(layer.bias, 2.0)
    return detector.eval()


@torch.no_grad()
def settle(detector: Detector) -> None:
    """Take a batch's statistics for the backbone's norms: else signals vanish in it, and all scores tie."""
    body = detector.backbone.body.train()
    for norm in detector.backbone.norms():
        norm.momentum = 1.0
    body(torch.randn(2, 3, 160, 192))


def batch(name: str, count: int, height: int, width: int, image_height: int, image_width: int) -> Given:
    """Images, sizes and, for a detector that has no RPN, regions."""
    torch.manual_seed(height * width + count)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    sizes = torch.tensor([[image_height, image_width]] * count)
    if name != "fast_rcnn":
        return images, sizes
    start = torch.rand(count, height, 2, dtype=torch.float64) * torch.tensor([image_width, image_height]) / 2
    boxes = torch.cat([start, start + 8 + torch.rand_like(start) * height / 3], dim=-1)
    return images, sizes, Proposals(boxes, torch.rand(count, height) > 0.2)


def dynamic(name: str) -> tuple[Any, ...]:
    """The dimensions of `batch` that may change."""
    count = torch.export.Dim("b", min=1, max=64)
    height, width = (32 * torch.export.Dim(side, min=5, max=64) for side in "hw")
    shapes = {0: count, 2: height, 3: width}, {0: count}
    regions = {0: count, 1: torch.export.Dim("r", min=2, max=4096)}
    return (*shapes, Proposals(regions, regions)) if name == "fast_rcnn" else shapes  # type: ignore[arg-type]


def assert_same(found: Detections, expected: Detections) -> None:
    """Equal but for places that hold nothing: eager mode gives fewer of them."""
    for i in range(len(expected.valid)):
        count = int(expected.valid[i].sum())
        assert count >= 5
        assert int(found.valid[i].sum()) == count
        torch.testing.assert_close(found.scores[i, :count], expected.scores[i, :count], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes[i, :count], expected.boxes[i, :count], atol=0.05, rtol=0)
        assert torch.equal(found.labels[i, :count], expected.labels[i, :count])
        assert found.strides is not None
        assert expected.strides is not None
        assert torch.equal(found.strides[i, :count], expected.strides[i, :count])
        if expected.masks is not None:
            assert found.masks is not None
            torch.testing.assert_close(found.masks[i, :count], expected.masks[i, :count], atol=1e-4, rtol=0)
    assert torch.equal(found.num_dropped, expected.num_dropped)


def test_step_and_graph(member: tuple[str, str, str], pytestconfig: pytest.Config) -> None:
    detector = make(*member)
    images, sizes, *regions = batch(member[0], 2, 96, 128, 90, 128)
    boxes = torch.tensor([[[10.0, 12, 50, 60], [70, 20, 120, 88]], [[30, 5, 90, 85], [0, 0, 0, 0]]])
    masks = torch.zeros(2, 2, 96, 128, dtype=torch.uint8)
    masks[0, 0, 20:50, 15:45] = masks[0, 1, 30:80, 75:110] = masks[1, 0, 10:80, 40:80] = 1
    labels, valid = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True, True], [True, False]])
    given = [Proposals(region.boxes.float(), region.valid) for region in regions]
    losses = detector.train().losses(images, sizes, Targets(boxes, labels, valid, masks), *given)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    if pytestconfig.getoption("--whole-grid"):
        assert_graph_is_eager(detector.eval(), member[0])
    elif member[0] != "faster_rcnn":  # Mask R-CNN's has it inside
        name, _, backbone = member
        levels = None if name == "yolov3" else TWO_LEVELS  # YOLOv3 has three anyway
        assert_graph_is_eager(make(name, "fpn", backbone, levels=levels), name)


@torch.no_grad()
def assert_graph_is_eager(detector: Detector, name: str) -> None:
    detector = detector.double()  # rounding must not decide what is suppressed
    program = torch.export.export(detector, batch(name, 2, 160, 192, 158, 192), dynamic_shapes=dynamic(name))
    run: Callable[..., Detections] = program.module()
    for size in UNSEEN:
        assert_same(run(*batch(name, *size)), detector(*batch(name, *size)))


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])  # export has traced the others
@torch.no_grad()
def test_compile_fullgraph(name: str) -> None:
    torch._dynamo.reset()
    detector = make(name, neck="fpn", levels=TWO_LEVELS).double()  # the battery compiles the necks
    graphs = CompileCounter()
    compiled = torch.compile(detector, fullgraph=True, dynamic=True, backend=graphs)
    compiled(*batch(name, 4, 160, 192, 158, 192))  # 2 would be taken for one with the columns of sizes
    for size in UNSEEN[:1]:
        assert_same(compiled(*batch(name, *size)), detector(*batch(name, *size)))
    assert graphs.frame_count == 1
