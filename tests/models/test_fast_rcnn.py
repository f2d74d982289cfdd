"""Fast R-CNN: the region head on regions that are given."""

import pytest
import torch

from msefpn.config import Config
from msefpn.models import TwoStage, build
from msefpn.structures import Proposals

IMAGES = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[96, 120], [80, 128]])


def make() -> TwoStage:
    """One that calls anything a detection."""
    torch.manual_seed(0)
    config = Config(
        detector="fast_rcnn",
        backbone="test_resnet",
        neck="fpn",
        neck_options={"out_channels": 32},
        detector_options={"roi": {"hidden": 32, "score": 0.0}},
    )
    detector = build(config, ["cat", "dog", "eel"]).eval()
    assert isinstance(detector, TwoStage)
    return detector


def test_it_must_be_given_regions() -> None:
    with pytest.raises(ValueError, match="pass proposals"):
        make()(IMAGES, SIZES)


def test_it_has_no_part_that_proposes() -> None:
    detector = make()
    assert detector.rpn is None
    assert not any(name.startswith("rpn") for name in detector.state_dict())


@torch.no_grad()
def test_regions_decide_what_is_found() -> None:
    """It looks where it is told to, and at nothing that is not valid."""
    box = torch.tensor([[40.0, 30, 80, 70], [5, 5, 30, 20]]).expand(2, -1, -1)
    found = make()(IMAGES, SIZES, Proposals(box, torch.tensor([[True, False], [False, False]])))
    assert found.valid.sum(dim=1).tolist() == [3, 0]  # one of each class
    assert (found.boxes[0, :3] - box[0, 0]).abs().max() < 5  # deltas begin near zero


@torch.no_grad()
def test_its_head_is_that_of_faster_rcnn() -> None:
    """On the regions that an RPN proposes it finds what Faster R-CNN with the same weights finds."""
    fast = make()
    config = Config(**vars(fast.config) | {"detector": "faster_rcnn"})
    faster = build(config, fast.classes).eval()
    assert isinstance(faster, TwoStage)
    assert faster.rpn is not None
    faster.load_state_dict(fast.state_dict(), strict=False)
    pyramid = faster.pyramid(IMAGES, SIZES)
    proposals = faster.rpn(pyramid, SIZES, (96, 128))
    for a, b in zip(faster(IMAGES, SIZES)[:4], fast(IMAGES, SIZES, proposals)[:4], strict=True):
        assert torch.equal(a, b)
