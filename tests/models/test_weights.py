"""Weights in files: saved and loaded, initial ones of others, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import Detector, build, init_weights, load, save
from msefpn.plugins import known
from msefpn.structures import Proposals

CROWD = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 90
INPUTS = (
    torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([[96, 120], [80, 128]]),
    Proposals(torch.cat([CROWD, CROWD + 25], dim=1).expand(2, -1, -1), torch.ones(2, 50).bool()),
)
"""Images, their sizes, and regions for a detector that is given some."""


def make(detector: str = "faster_rcnn", **options: Any) -> Detector:
    torch.manual_seed(0)
    values: dict[str, Any] = {"backbone": "test_resnet", "neck_options": {"out_channels": 32}}
    return build(Config(detector=detector, **values | options), ["cat", "dog", "eel"], [2, 5, 9])


@pytest.mark.parametrize("detector", known("detector"))
def test_save_and_load(detector: str, tmp_path: Path) -> None:
    model = make(detector).eval()
    save(model, tmp_path / "best.safetensors")
    again = load(tmp_path)
    assert (again.classes, again.category_ids) == (("cat", "dog", "eel"), (2, 5, 9))
    assert again.config == model.config
    with torch.no_grad():
        for a, b in zip(model(*INPUTS), again(*INPUTS), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    save(make(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="half-written"):
        load(file)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="not written by msefpn"):
        load(file)
    with pytest.raises(UserError, match="no weights"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.int64, torch.complex64, torch.float16])
def test_weights_of_another_kind_are_refused(kind: torch.dtype, tmp_path: Path) -> None:
    """Integer and complex tensors are refused; floating-point tensors of fewer bits are converted."""
    file = tmp_path / "best.safetensors"
    save(make("retinanet"), file)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    state = load_file(file)
    name = next(name for name, value in state.items() if value.dim() > 1)
    save_file({**state, name: state[name].to(kind)}, file, metadata=about)
    if kind.is_floating_point:
        assert load(file).state_dict()[name].dtype == torch.float32
        return
    with pytest.raises(
        UserError, match=rf"{name} is \(.*\) of {kind} in the file, \([\d, ]*\) in the detector"
    ):
        load(file)


def test_init_from_a_backbone(shared: Path) -> None:
    model = make(backbone="mobilenetv2_100")
    file = shared / "weights" / "mobilenetv2_100.safetensors"
    report = init_weights(model, str(file))
    state = load_file(file)
    assert torch.equal(model.backbone.body.conv_stem.weight, state["conv_stem.weight"])
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert any(name.startswith("classifier") for name in report.left_out)


def test_init_from_a_detector_of_other_classes(tmp_path: Path) -> None:
    other = build(Config(backbone="test_resnet", neck_options={"out_channels": 32}), ["a", "b"])
    save(other, tmp_path / "other.safetensors")
    report = init_weights(make(), str(tmp_path / "other.safetensors"))
    assert "neck.outputs.0.weight" in report.loaded
    assert [text.split()[0] for text in report.left_out] == [
        "roi.box.classes.bias",
        "roi.box.classes.weight",
        "roi.box.deltas.bias",
        "roi.box.deltas.weight",
    ]
    assert "roi.box.classes.weight" in str(report)


def test_init_that_fits_nothing(tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="nothing in"):
        init_weights(make(), str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match="do not exist"):
        init_weights(make(), str(tmp_path / "y.pth"))
