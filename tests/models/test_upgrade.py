"""An FPN detector upgraded to MSE-FPN detects the same, and learns from there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import msefpn
from msefpn.checkpoint import read_info
from msefpn.cli import main
from msefpn.config import load_recipe
from msefpn.errors import UserError
from msefpn.models import build, init_weights, load, save, weights
from msefpn.necks import MSEFPN
from tests import TINY


def fpn(folder: Path, **options: Any) -> Path:
    """Weights of an FPN detector that has left its start."""
    torch.manual_seed(0)
    given = {"backbone": "test_resnet", "neck": "fpn", "neck_options": {"out_channels": 32}} | options
    config = load_recipe(str(TINY), **given)
    if config.detector != "faster_rcnn":
        narrow = {"roi": {"hidden": 32}} if config.detector.endswith("rcnn") else {}
        config = replace(config, detector_options=narrow)
    detector = build(config, ["circle", "square"], category_ids=[3, 7])
    with torch.no_grad():
        for parameter in detector.neck.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir(exist_ok=True)
    save(detector, folder / "best.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fpn(tmp_path_factory.mktemp("upgrade") / "run")


def same_detections(old: Path, new: Path, image: Path) -> None:
    """Boxes within 0.01 px, scores within 1e-4."""
    results = [msefpn.load(path, device="cpu").predict(image, score=0.0) for path in (old, new)]
    before, after = (result.predictions for result in results)
    assert len(before.boxes) > 5
    np.testing.assert_allclose(before.boxes, after.boxes, atol=0.01)
    np.testing.assert_allclose(before.scores, after.scores, atol=1e-4)
    np.testing.assert_array_equal(before.labels, after.labels)


@pytest.mark.parametrize("preset", ["shared", "lean", "split"])
def test_command(
    preset: str, run: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "upgraded.safetensors"
    words = ["upgrade", str(run), "--neck", "mse_fpn", "--set", f"neck_options.preset={preset}"]
    assert main([*words, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "fpn to mse_fpn" in told
    assert f"train on with --init {out} --neck mse_fpn --set neck_options.start=identity" in told
    same_detections(run, out, tiny_set / "val" / "000001.jpg")
    info = read_info(out)
    assert (info.classes, info.category_ids) == (("circle", "square"), (3, 7))
    assert info.config.neck_options == {"out_channels": 32, "start": "identity", "preset": preset}
    assert type(load(out).neck) is MSEFPN
    assert main([*words, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "mask_rcnn", "cascade_rcnn", "ssd", "yolov3"])
def test_detectors(detector: str, tiny_set: Path, tmp_path: Path) -> None:
    old = fpn(tmp_path / "run", detector=detector)
    done = msefpn.upgrade(old, set=["neck_options.preset=lean"])
    assert done.file == old / "upgraded.safetensors"
    assert done.difference <= 1e-5
    assert done.parameters[1] > done.parameters[0]
    first, second = load(old), load(done.file)
    state = second.state_dict()
    for name, tensor in first.state_dict().items():
        if not name.startswith("neck."):
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--neck", "pafpn"], "neck 'pafpn' cannot start as an FPN: known: mse_fpn, res_mse_fpn"),
        (["--neck", "mse_fpn+bfp"], "neck 'mse_fpn+bfp' cannot start as an FPN"),
        (["--neck", "mse_fpm"], "unknown neck 'mse_fpm': did you mean 'mse_fpn'"),
        (["--set", "neck_options.gate=cbam"], "start 'identity' is not possible with gate 'cbam'"),
        (["--set", "neck_options.start=paper"], "start is 'paper'"),
        (["--set", "neck_options.out_channels=64"], "out_channels is 64, the FPN's is 32"),
        (["--set", "neck_options.width=big"], "neck_options of mse_fpn: "),
        (["--set", "lr=1"], "upgrade changes the neck alone: leave out --set lr"),
        (["--out", "model.pth"], "is not a .safetensors file"),
    ],
)
def test_what_is_refused(
    words: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in words else ["--out", str(tmp_path / "out.safetensors")]
    assert main(["upgrade", str(run), *words, *out]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_necks_and_files_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fpn(tmp_path / "other", neck="pafpn")
    with pytest.raises(
        UserError, match="the neck of this faster_rcnn is 'pafpn': only 'fpn' can be upgraded"
    ):
        msefpn.upgrade(other)
    (tmp_path / "detector.onnx").write_bytes(b"graph")
    with pytest.raises(UserError, match=r"is not a \.safetensors file: give the run folder"):
        msefpn.upgrade(tmp_path / "detector.onnx")
    with pytest.raises(UserError, match="no weights at"):
        msefpn.upgrade(tmp_path / "nothing")


def test_the_start_goes_with_the_weights(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of both starts have the same names and shapes, and mean another."""
    file = msefpn.upgrade(run, out=tmp_path / "upgraded.safetensors").file
    papers = build(load_recipe(str(TINY), backbone="test_resnet"), ["circle", "square"])
    monkeypatch.setattr(weights, "find_weights", lambda source: file)  # the hub's
    for source in (str(file), "hf://me/cells"):
        with pytest.raises(UserError, match=r"start 'identity': add --set neck_options\.start=identity"):
            init_weights(papers, source)
    options = {"out_channels": 32, "start": "identity"}
    own = build(load_recipe(str(TINY), backbone="test_resnet", neck_options=options), ["circle", "square"])
    assert init_weights(own, str(file)).missing == ()
