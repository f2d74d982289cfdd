"""Necks, backbones, detectors, heads and losses of plug-ins: built, checked, saved and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from msefpn import plugins
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import Detector, OneStage, build, init_weights, load, save
from msefpn.models.backbone import Backbone
from msefpn.models.detectors import MakeNeck
from msefpn.models.detectors.base import start_at
from msefpn.models.retina import RetinaHead
from msefpn.necks import FPN
from msefpn.plugins import Plugin
from msefpn.testing import check_backbone, check_detector, check_head, check_neck

IMAGES = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SIZES = torch.tensor([[96, 120]])
Add = Callable[[str, str, Any], None]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Register an object as one of `mine.py`, for one test."""

    def enter(kind: str, name: str, made: Any) -> None:
        plugins.known(kind)
        monkeypatch.setitem(plugins._TABLES[kind], name, Plugin(made, "mine.py"))

    return enter


def make(**options: Any) -> Detector:
    torch.manual_seed(0)
    values: dict[str, Any] = {"backbone": "test_resnet", "neck": "fpn", "neck_options": {"out_channels": 16}}
    return build(Config(**values | options), ["cat", "dog"])


class Laterals(nn.Module):
    """A neck of its own: nothing of ours in it."""

    def __init__(self, in_channels: list[int], in_strides: list[int], out_channels: int = 256) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.out_channels, self.out_strides = out_channels, list(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [conv(x) for conv, x in zip(self.convs, features, strict=True)]


class TooFew(Laterals):
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return super().forward(features)[:-1]


class TooCoarse(Laterals):
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [x[:, :, ::2, ::2] for x in super().forward(features)]


class TooWide(Laterals):
    def __init__(self, in_channels: list[int], in_strides: list[int], out_channels: int = 256) -> None:
        super().__init__(in_channels, in_strides, out_channels)
        self.out_channels += 1


class Nameless(Laterals):
    def __init__(self, in_channels: list[int], in_strides: list[int], out_channels: int = 256) -> None:
        super().__init__(in_channels, in_strides, out_channels)
        del self.out_strides


class Raising(Laterals):
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        raise KeyError("p2")


@pytest.mark.parametrize(
    ("detector", "strides"),
    [
        ("faster_rcnn", [4, 8, 16, 32, 64]),
        ("retinanet", [8, 16, 32, 64, 128]),
        ("yolov3", [8, 16, 32]),
    ],
)
def test_a_neck_without_levels_gets_those_that_the_head_asks_for(
    detector: str, strides: list[int], add: Add, tmp_path: Path
) -> None:
    add("neck", "laterals", Laterals)
    model = make(neck="laterals", detector=detector).eval()
    assert model.neck.out_strides == strides
    assert model.config.plugins == {"neck laterals": "mine.py"}
    save(model, tmp_path / "best.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(IMAGES, SIZES).boxes, model(IMAGES, SIZES).boxes)


def test_a_neck_that_derives_from_ours_stays_itself(add: Add) -> None:
    class Own(FPN):
        pass

    add("neck", "own", Own)
    assert type(make(neck="own").neck) is Own


def test_a_neck_on_top_of_another(add: Add) -> None:
    class Top(Laterals):
        on_top = True

    add("neck", "top", Top)
    model = make(neck="fpn+top")
    assert model.neck.out_strides == [4, 8, 16, 32, 64]
    assert len(model.pyramid(IMAGES, SIZES)) == 5


@pytest.mark.parametrize(
    ("neck", "message"),
    [
        (
            TooFew,
            r"neck 'bad' \(mine.py\) gives 3 maps, but its out_strides name 4: 4, 8, 16, 32; return",
        ),
        (TooCoarse, r"neck 'bad' \(mine.py\) gives a map of shape .* by its out_strides it must be"),
        (TooWide, r"neck 'bad' \(mine.py\) gives a map of shape .* by its out_channels it must be"),
        (Nameless, r"neck 'bad' \(mine.py\) lacks the attribute out_strides"),
        (Raising, r"neck 'bad' \(mine.py\) fails on a small image \(KeyError: 'p2'\)"),
        (lambda channels, strides, out_channels: 5, r"neck 'bad' \(mine.py\) gives a int: return a torch.nn"),
    ],
)
def test_a_neck_that_breaks_the_contract(neck: Any, message: str, add: Add) -> None:
    add("neck", "bad", neck)
    with pytest.raises(UserError, match=message) as caught:
        make(neck="bad")
    assert "\n" not in str(caught.value)


def resnet18(*, layers: int = 4) -> nn.Module:
    body = torchvision.models.resnet18()
    made: Any = create_feature_extractor(body, {f"layer{i}": f"c{i}" for i in range(1, layers + 1)})
    made.channels, made.strides = [64, 128, 256, 512], [4, 8, 16, 32]
    return made  # type: ignore[no-any-return]


class Outputs:
    """As transformers' backbones give them."""

    def __init__(self, feature_maps: tuple[Tensor, ...]) -> None:
        self.feature_maps = feature_maps


class TwoLevels(nn.Module):
    """A backbone whose finest map is of stride 8."""

    channels, strides = (8, 16), (8, 16)
    stages = ("stem", "down")
    mean, std = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)

    def __init__(self, *, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 1) for i in range(depth)))
        self.stride = nn.MaxPool2d(8)
        self.down = nn.Sequential(nn.Conv2d(8, 16, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, images: Tensor) -> Outputs:
        c3 = self.stride(self.stem(images))
        return Outputs((c3, self.down(c3)))


def test_a_backbone_of_torchvision(add: Add, tmp_path: Path) -> None:
    add("backbone", "theirs", resnet18)
    model = make(backbone="theirs", detector="retinanet").eval()
    assert model.backbone.frozen == []
    assert not any(norm.training for norm in model.train().backbone.norms())
    save(model, tmp_path / "best.safetensors")
    assert load(tmp_path).backbone.channels == [64, 128, 256, 512]
    report = init_weights(model, "imagenet")
    assert "from backbone 'theirs' itself" in str(report)
    with pytest.raises(UserError, match="the backbone does not name its stages"):
        make(backbone="theirs", backbone_options={"frozen_stages": 1})


def test_a_backbone_with_stages_of_its_own(add: Add) -> None:
    add("backbone", "two", TwoLevels)
    model = make(backbone="two", backbone_options={"depth": 2}, detector="retinanet")
    assert model.backbone.frozen == [
        *(f"stem.{i}.{x}" for i in (0, 1) for x in ("weight", "bias")),
        "down.0.weight",
        "down.1.weight",
        "down.1.bias",
    ]
    assert make(backbone="two", backbone_options={"frozen_stages": 0}).backbone.frozen[-1] == "stem.0.bias"
    assert model.neck.out_strides == [8, 16, 32, 64]
    torch.testing.assert_close(model.scale.flatten(), torch.full((3,), 1 / 255))
    with pytest.raises(UserError, match="unknown key in backbone_options 'dept': did you mean 'depth'"):
        make(backbone="two", backbone_options={"dept": 2})


class WrongStrides(TwoLevels):
    strides = (4, 8)


class NoStrides(TwoLevels):
    strides = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            lambda: resnet18(layers=3),
            r"backbone 'bad' \(mine.py\) gives 3 maps, but its strides name 4: 4, 8, 16, 32",
        ),
        (
            WrongStrides,
            r"backbone 'bad' \(mine.py\) gives a map of shape .* at stride 4 .* by its strides it must be",
        ),
        (NoStrides, r"backbone 'bad' \(mine.py\) lacks the attribute strides"),
        (lambda: 3, r"backbone 'bad' \(mine.py\) gives a int: return a torch.nn.Module"),
    ],
)
def test_a_backbone_that_breaks_the_contract(factory: Any, message: str, add: Add) -> None:
    add("backbone", "bad", factory)
    with pytest.raises(UserError, match=message):
        make(backbone="bad")


def test_a_backbone_with_a_name_of_timm(add: Add) -> None:
    add("backbone", "resnet18", resnet18)
    with pytest.raises(UserError, match=r"backbone 'resnet18' of mine\.py has the name of one of timm's"):
        make(backbone="resnet18")


def test_an_unknown_backbone_may_be_a_plug_in_misspelt(add: Add) -> None:
    add("backbone", "zigzagnet", resnet18)
    with pytest.raises(UserError, match="did you mean zigzagnet"):
        make(backbone="zigzagnat")


def mine(backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, depth: int = 1) -> Detector:
    neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="none")
    return OneStage(backbone, neck, RetinaHead(neck.out_channels, neck.out_strides, num_classes, depth=depth))


def test_a_detector(add: Add, tmp_path: Path) -> None:
    add("detector", "mine", mine)
    model = make(detector="mine", detector_options={"depth": 2})
    assert (model.learns_masks, model.takes_proposals) == (False, False)
    save(model, tmp_path / "best.safetensors")
    assert load(tmp_path).config.plugins == {"detector mine": "mine.py"}
    with pytest.raises(UserError, match="unknown key in detector_options 'dept': did you mean 'depth'"):
        make(detector="mine", detector_options={"dept": 2})


def test_a_detector_that_is_none(add: Add) -> None:
    add("detector", "bad", lambda backbone, make_neck, num_classes: nn.Identity())
    with pytest.raises(UserError, match=r"detector 'bad' \(mine.py\) gives a Identity: return a Detector"):
        make(detector="bad")


def log_cosh(prediction: Tensor, target: Tensor, *, beta: float) -> Tensor:
    return beta * ((prediction - target) / beta).cosh().log()


class Learned(nn.Module):
    """A loss with a parameter, of whole boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        distance = (prediction - target).abs().sum(dim=-1)
        return distance * (-self.log_scale).exp() + self.log_scale


def test_losses(add: Add) -> None:
    add("loss", "log_cosh", log_cosh)
    add("loss", "learned", Learned)
    options = {
        "rpn": {"box_loss": "log_cosh", "beta": 0.5},
        "roi": {"box_loss": "learned", "class_loss": "focal"},
    }
    model: Any = make(detector_options=options)
    assert model.rpn.box_loss.keywords == {"beta": 0.5}
    assert "roi.box_loss.log_scale" in dict(model.named_parameters())
    assert model.config.plugins == {"loss log_cosh": "mine.py", "loss learned": "mine.py"}


@pytest.mark.parametrize(
    ("part", "loss", "message"),
    [
        (
            "box_loss",
            lambda prediction, target: (prediction - target).mean(),
            r"box_loss 'bad' gives \(\) for deltas",
        ),
        (
            "class_loss",
            lambda logits, labels: logits,
            r"class_loss 'bad' gives \(2, 3, 4\) for .* give \(2, 3\)",
        ),
        ("class_loss", lambda logits, labels: 1 / 0, r"class_loss 'bad' fails on logits .*ZeroDivisionError"),
    ],
)
def test_a_loss_that_breaks_the_contract(part: str, loss: Any, message: str, add: Add) -> None:
    add("loss", "bad", loss)
    with pytest.raises(UserError, match=f"roi: {message}"):
        make(detector_options={"roi": {part: "bad"}})


def test_weights_of_a_plug_in_that_is_missing(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("neck", "laterals", Laterals)
    save(make(neck="laterals"), tmp_path / "best.safetensors")
    monkeypatch.delitem(plugins._TABLES["neck"], "laterals")
    with pytest.raises(UserError, match=r"best.safetensors needs the neck 'laterals' .* --plugin mine.py"):
        load(tmp_path)


def test_the_checks_pass_what_is_right() -> None:
    check_neck(Laterals)
    check_backbone(TwoLevels, depth=2)
    check_head(RetinaHead, depth=1, pre_nms_top_k=100)
    check_detector(mine, export=False)


class Dead(RetinaHead):
    def losses(self, *args: Any) -> dict[str, Tensor]:
        losses = super().losses(*args)
        return {"retina_class": losses["retina_class"]}


@pytest.mark.parametrize(
    ("neck", "message"),
    [
        (TooFew, "3 maps for a batch of 2 x 64 x 96 pixels, but out_strides is"),
        (TooCoarse, "the map of stride 4 must be"),
    ],
)
def test_the_checks_tell_a_wrong_neck(neck: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_neck(neck)


def test_the_checks_tell_a_wrong_head() -> None:
    with pytest.raises(AssertionError, match=r"parameter head\.box_tower.* gets no gradient"):
        check_head(Dead, depth=1)
