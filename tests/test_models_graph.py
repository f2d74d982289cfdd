"""From padded batch to detections as one graph: torch.export with dynamic sizes, torch.compile(fullgraph)."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from msefpn.config import Config
from msefpn.models import DETECTORS, Detector, build
from msefpn.structures import Detections

UNSEEN = ((3, 224, 352, 217, 349), (1, 288, 160, 288, 131), (1, 160, 288, 160, 288))
"""Batch, padded height and width, image height and width; none of them is traced, two are odd."""


CLASSES = re.compile(r"(\w+\.(?:classes|objectness))(?:\.\d)?$")
SPREAD = {"box.classes": 0.02, "rpn.objectness": 0.3, "head.classes": 0.3}
"""Deviation of the random weights: wide enough to detect, too narrow for scores to saturate and tie."""


def make(name: str) -> Detector:
    """A detector with random weights, its heads scaled so that it detects."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"rpn": {"proposals": (200, 200)}} if name.endswith("rcnn") else {}
    config = Config(
        detector=name,
        backbone="test_resnet",
        neck_options={"out_channels": 64},
        detector_options=options,
    )
    detector = build(config, ["a", "b", "c"]).eval().double()  # rounding must not decide what is suppressed
    for part, layer in detector.named_modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)) and (kind := CLASSES.search(part)):
            torch.nn.init.normal_(layer.weight, std=SPREAD[kind[1]])
            torch.nn.init.constant_(layer.bias, -1.0)  # type: ignore[arg-type]  # it has one
        if part.endswith(".distances"):
            torch.nn.init.constant_(layer.bias, 2.0)
    return detector


def batch(count: int, height: int, width: int, image_height: int, image_width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(height * width + count)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    return images, torch.tensor([[image_height, image_width]] * count)


def assert_same(found: Detections, expected: Detections) -> None:
    """Equal but for places that hold nothing: eager mode gives fewer of them."""
    for i in range(len(expected.valid)):
        count = int(expected.valid[i].sum())
        assert count >= 5
        assert int(found.valid[i].sum()) == count
        torch.testing.assert_close(found.scores[i, :count], expected.scores[i, :count], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes[i, :count], expected.boxes[i, :count], atol=0.05, rtol=0)
        assert torch.equal(found.labels[i, :count], expected.labels[i, :count])
    assert torch.equal(found.cut, expected.cut)


@pytest.mark.parametrize("name", DETECTORS)
@torch.no_grad()
def test_export(name: str) -> None:
    detector = make(name)
    count, height, width = (
        torch.export.Dim("b", min=1, max=64),
        32 * torch.export.Dim("h", min=3, max=64),
        32 * torch.export.Dim("w", min=3, max=64),
    )
    shapes = ({0: count, 2: height, 3: width}, {0: count})
    program = torch.export.export(detector, batch(2, 192, 256, 190, 256), dynamic_shapes=shapes).module()
    run: Callable[..., Detections] = program
    for size in UNSEEN:
        assert_same(run(*batch(*size)), detector(*batch(*size)))


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])  # export has traced the others
@torch.no_grad()
def test_compile_fullgraph(name: str) -> None:
    torch._dynamo.reset()
    detector, graphs = make(name), CompileCounter()
    compiled = torch.compile(detector, fullgraph=True, dynamic=True, backend=graphs)
    compiled(*batch(4, 192, 256, 190, 256))  # 2 would be taken for one with the columns of sizes
    for size in UNSEEN[:1]:
        assert_same(compiled(*batch(*size)), detector(*batch(*size)))
    assert graphs.frame_count == 1
