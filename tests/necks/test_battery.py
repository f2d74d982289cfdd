"""One battery over every neck: whatever stands in NECKS keeps the contract."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from msefpn.necks import GATES, NECKS, Neck, Stack

CHANNELS = [16, 24, 40, 64]
STRIDES = [4, 8, 16, 32]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in NECKS} | {
    "pafpn-retina": ("pafpn", {"start_level": 1, "extra_levels": "conv_c5"}),
    "bifpn-retina": ("bifpn", {"start_level": 1, "extra_levels": "conv_c5", "weighted": False}),
    "ce_fpn-retina": ("ce_fpn", {"start_level": 1, "extra_levels": "conv_c5"}),
    "ac_fpn-deformable": ("ac_fpn", {"deformable": True, "attention": False}),
    "fpn+bfp": ("fpn+bfp", {"extra_levels": "pool"}),
    "mse_fpn-split": ("mse_fpn", {"preset": "split"}),
    "mse_fpn-lean": ("mse_fpn", {"preset": "lean"}),
    "mse_fpn-retina": ("mse_fpn", {"start_level": 1, "extra_levels": "conv_c5"}),
    "mse_fpn-pool": ("mse_fpn", {"extra_levels": "pool"}),
    "fpn-torchvision": ("fpn", {"start_level": 1, "extra_levels": "conv_p5_relu"}),
    "mse_fpn-wide": ("mse_fpn", {"sim": "wide"}),
    "mse_fpn-sem-only": ("mse_fpn", {"sim": "add", "gate": "none"}),
    **{f"gate-{gate}": ("mse_fpn", {"sem": "none", "gate": gate}) for gate in GATES if gate != "gcg"},
}


def make(variant: str, **options: Any) -> Neck:
    torch.manual_seed(0)
    names, own = VARIANTS[variant]
    name, *on_top = names.split("+")
    members = [NECKS[name](inputs_of(name), STRIDES, 32, **own | options)]
    for name in on_top:
        members.append(NECKS[name]([32] * len(members[-1].out_strides), members[-1].out_strides, 32))
    return Stack(members) if on_top else members[0]


def inputs_of(name: str) -> list[int]:
    return [32] * len(STRIDES) if NECKS[name].on_top else CHANNELS


def maps(neck: Neck, height: int, width: int, batch: int = 2) -> list[Tensor]:
    """Maps as strided convolutions give them, sides rounded up."""
    torch.manual_seed(1)
    sides = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(batch, c, *side) for c, side in zip(neck.in_channels, sides, strict=True)]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("height", "width", "batch"), [(64, 96, 2), (33, 97, 2), (100, 75, 2), (1, 1, 1)])
def test_shapes(variant: str, height: int, width: int, batch: int) -> None:
    neck = make(variant).eval()
    pyramid = neck(maps(neck, height, width, batch))
    assert len(pyramid) == len(neck.out_strides)
    for x, stride in zip(pyramid, neck.out_strides, strict=True):
        assert x.shape == (batch, neck.out_channels, -(-height // stride), -(-width // stride))


def test_inputs_stay_as_they_were(variant: str) -> None:
    neck = make(variant).eval()
    features = maps(neck, 64, 96)
    before = [x.clone() for x in features]
    neck(features)
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


def test_every_parameter_gets_a_gradient(variant: str) -> None:
    neck = make(variant)
    for parameter in neck.parameters():
        if not parameter.any():  # what starts at zero, like BFP's last convolution, hides what lies before
            nn.init.normal_(parameter, std=0.1)
    sum(x.square().sum() for x in neck(maps(neck, 64, 96))).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith(SHIFT_INVARIANT), name


SHIFT_INVARIANT = ("refine.phi.bias",)
"""A softmax does not see what shifts all its scores alike."""


def test_bf16(variant: str) -> None:
    neck = make(variant).eval()
    features = maps(neck, 256, 320)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = neck(features)
    for x, full in zip(half, neck(features), strict=True):
        assert x.isfinite().all()
        assert (x.float() - full).norm() < 0.05 * full.norm()


def test_compile_fullgraph(variant: str) -> None:
    torch._dynamo.reset()
    neck = make(variant).eval()
    features = maps(neck, 33, 97)
    compiled = torch.compile(neck, fullgraph=True, backend="eager")
    for x, y in zip(compiled(features), neck(features), strict=True):
        torch.testing.assert_close(x, y)


def test_export_dynamic_size(variant: str) -> None:
    neck = make(variant).eval()
    batch, height, width = (
        torch.export.Dim(name, min=low, max=64) for name, low in (("b", 1), ("h", 5), ("w", 5))
    )
    shapes = [{0: batch, 2: height * (32 // s), 3: width * (32 // s)} for s in STRIDES]
    program = torch.export.export(neck, (maps(neck, 192, 256),), dynamic_shapes=(shapes,)).module()
    for size in ((160, 288, 1), (224, 160, 3)):
        features = maps(neck, *size)
        for x, y in zip(program(features), neck(features), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_state_dict_round_trip(variant: str) -> None:
    neck, second = make(variant).eval(), make(variant).eval()
    for tensor in second.state_dict().values():
        tensor.fill_(7)
    second.load_state_dict(neck.state_dict())
    features = maps(neck, 64, 96)
    for x, y in zip(neck(features), second(features), strict=True):
        assert torch.equal(x, y)


class Body(nn.Module):
    """A backbone and a neck in the form that torchvision's detectors take."""

    def __init__(self, neck: Neck) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(3, c, s, stride=s) for c, s in zip(neck.in_channels, STRIDES, strict=True)
        )
        self.neck = neck
        self.out_channels = neck.out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(i): x for i, x in enumerate(self.neck([stage(x) for stage in self.stages]))}


def test_inside_torchvision(variant: str) -> None:
    neck = make(variant)
    levels = len(neck.out_strides)
    model = FasterRCNN(
        Body(neck),
        num_classes=3,
        min_size=128,
        max_size=160,
        rpn_anchor_generator=AnchorGenerator(((32,),) * levels, ((0.5, 1.0, 2.0),) * levels),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(levels)], 7, 2),
    )
    target = {"boxes": torch.tensor([[10.0, 10, 60, 80]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 128, 160)], [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize("name", NECKS)
def test_bad_arguments_are_refused(name: str) -> None:
    channels = inputs_of(name)
    with pytest.raises(ValueError, match="pair up"):
        NECKS[name](channels[:2], STRIDES, 32)
    with pytest.raises(ValueError, match="double"):
        NECKS[name](channels, [4, 8, 16, 16], 32)
    if not NECKS[name].on_top:
        with pytest.raises(ValueError, match="extra_levels 'p9'"):
            NECKS[name](channels, STRIDES, extra_levels="p9")
        with pytest.raises(ValueError, match="start_level"):
            NECKS[name](channels, STRIDES, start_level=4)
