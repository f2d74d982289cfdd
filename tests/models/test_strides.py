"""The level of a detection: the one whose map its score depends on."""

import pytest
import torch

from msefpn.config import Config
from msefpn.models import Detector, OneStage, TwoStage, build
from msefpn.models.roi import RoIHead
from msefpn.structures import Detections, Proposals

SIZES = torch.tensor([[128, 160]])


def make(name: str, **options: object) -> Detector:
    torch.manual_seed(0)
    config = Config(
        backbone="mobilenetv2_100",
        detector=name,
        neck="fpn",
        neck_options={"out_channels": 16},
        detector_options=options,
        init="none",
    )
    return build(config, ["a", "b", "c"]).eval()


def found_on(detector: Detector, pyramid: list[torch.Tensor]) -> Detections:
    if isinstance(detector, OneStage):
        for layer in detector.get_submodule("head").modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.normal_(layer.weight, std=0.2)  # so that scores differ
        detections: Detections = detector.head(pyramid, SIZES, (128, 160))
        return detections
    assert isinstance(detector, TwoStage)
    corners = torch.tensor([[0.0, 0, 30, 30], [10, 10, 90, 70], [5, 5, 155, 120], [100, 60, 130, 100]])[None]
    proposals = Proposals(corners, torch.ones(1, 4, dtype=torch.bool))
    regional: Detections = detector.roi(pyramid[: detector.roi.levels], proposals, SIZES)
    return regional


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos", "ssd", "yolov3"])
def test_score_depends_on_the_level_told(name: str) -> None:
    detector = make(name)
    strides = detector.neck.out_strides
    pyramid = [torch.randn(1, 16, 128 // s, 160 // s, requires_grad=True) for s in strides]
    found = found_on(detector, pyramid)
    assert found.strides is not None
    assert not found.strides[~found.valid].any()
    told = set()
    places = (found.valid & (found.scores < 0.99))[0].nonzero().flatten()  # others have no slope
    for place in places[:: 1 + len(places) // 20]:
        slopes = torch.autograd.grad(found.scores[0, place], pyramid, retain_graph=True, allow_unused=True)
        levels = [s for s, slope in zip(strides, slopes, strict=True) if slope is not None and slope.any()]
        assert levels == [found.strides[0, place]]
        told.update(levels)
    assert len(told) > 1


def test_cascade_tells_the_last_stage_and_soft_selection_no_level() -> None:
    pyramid = [torch.randn(1, 16, 128 // s, 160 // s) for s in (4, 8, 16, 32)]
    found = found_on(make("cascade_rcnn"), pyramid)
    assert found.strides is not None
    assert set(found.strides[found.valid].tolist()) == {4, 8}
    soft = make("faster_rcnn", roi={"pooling": "soft"})
    assert isinstance(soft, TwoStage)
    assert isinstance(soft.roi, RoIHead)
    assert found_on(soft, pyramid).strides is None
