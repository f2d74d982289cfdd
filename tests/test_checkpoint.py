"""What a file of weights says of itself: read by this version, and told apart from a later one's."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import msefpn
from msefpn.checkpoint import KEY, VERSION, read_info, upgrade_config, write_info
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import build, load, save


def file_of(folder: Path, info: Any) -> Path:
    save_file({"x": np.zeros(1)}, folder / "w.safetensors", metadata={KEY: json.dumps(info)})
    return folder / "w.safetensors"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    config = Config(neck="fpn", init="/home/someone/weights.pth")
    info = read_info(file_of(tmp_path, write_info(config, ["a", "b"], [3, 4])))
    assert (info.classes, info.category_ids) == (("a", "b"), (3, 4))
    assert info.config.neck == "fpn"
    assert info.config.init == "weights.pth"


def test_a_source_tree_without_metadata_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert write_info(Config(), ["a"], [1])["made_with"] == {"msefpn": msefpn.__version__}


OLD = {
    "drops": [3, 5],
    "clip": 35.0,
    "detector_options": {
        "rpn": {"candidates": [400, 200]},
        "roi": {"candidates": 500, "detections": 50, "balanced_loss": True, "beta": 1.0},
    },
    "neck_options": {"clip": 1, "detections": 2},
}
NEW = {
    "milestones": [3, 5],
    "grad_clip": 35.0,
    "detector_options": {
        "rpn": {"pre_nms_top_k": [400, 200]},
        "roi": {"pre_nms_top_k": 500, "max_per_image": 50, "beta": 1.0, "box_loss": "balanced_l1"},
    },
    "neck_options": {"clip": 1, "detections": 2},
}


def test_old_names_of_a_configuration_are_replaced() -> None:
    assert upgrade_config(OLD) == NEW
    assert upgrade_config(NEW) == NEW
    plain = {"detector_options": {"roi": {"balanced_loss": False}}}
    assert upgrade_config(plain) == {"detector_options": {"roi": {}}}
    assert upgrade_config({"detector_options": 3}) == {"detector_options": 3}


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    info = write_info(Config(), ["a"], [1])
    kept = {key: info["config"][key] for key in info["config"].keys() - NEW.keys() - {"plugins", "logger"}}
    old = info | {"version": 1, "config": kept | OLD}
    read = read_info(file_of(tmp_path, old))
    assert (read.config.milestones, read.config.grad_clip) == ((3, 5), 35.0)
    assert read.config.detector_options == NEW["detector_options"]
    del old["version"], old["made_with"]  # the earliest did not state them
    assert read_info(file_of(tmp_path, old)) == read
    with pytest.raises(UserError, match="a setting 'clip' that is unknown here"):
        read_info(file_of(tmp_path, old | {"version": VERSION}))


FCOS = {"scales": False, "weighted": False, "inclusive": False, "preselect": "product", "root": True}
"""What FCOS's head did before its settings were mmdetection's."""


def test_fcos_of_an_earlier_run_stays_what_it_was(tmp_path: Path) -> None:
    """A configuration without `antialias` is of before: its weights have no scales."""
    config = Config("fcos", detector_options={"head": {"depth": 2, "root": False}})
    info = write_info(config, ["a"], [1])
    assert read_info(file_of(tmp_path, info)).config.detector_options == config.detector_options
    old = {key: value for key, value in info["config"].items() if key != "antialias"}
    for version in (1, 2):
        read = read_info(file_of(tmp_path, info | {"config": old, "version": version})).config
        assert read.detector_options == {"head": FCOS | {"depth": 2, "root": False}}
        assert read.antialias
    assert upgrade_config(old | {"detector_options": {}})["detector_options"] == {"head": FCOS}
    other = old | {"detector": "retinanet"}
    assert upgrade_config(other)["detector_options"] == config.detector_options


def test_weights_of_an_earlier_fcos_detect_as_they_did(tmp_path: Path) -> None:
    config = Config(
        "fcos", backbone="test_resnet", neck="fpn", neck_options={"out_channels": 16}, init="none"
    )
    then = build(replace(config, detector_options={"head": FCOS}), ["a", "b"]).eval()
    assert "head.scales" in build(config, ["a", "b"]).state_dict()
    save(then, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="numpy") as opened:
        info = json.loads(opened.metadata()[KEY])
    assert "head.scales" not in then.state_dict()
    del info["config"]["antialias"]
    info["config"]["detector_options"] = {}
    save_file(load_file(tmp_path / "w.safetensors"), tmp_path / "w.safetensors", {KEY: json.dumps(info)})
    given = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]])
    with torch.no_grad():
        found, expected = load(tmp_path / "w.safetensors")(*given), then(*given)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes)


def test_a_plugin_that_is_named_is_kept_and_not_imported(tmp_path: Path) -> None:
    (tmp_path / "laterals.py").write_text("raise SystemExit('imported')")
    config = Config(neck="laterals", plugins={"neck laterals": str(tmp_path / "laterals.py")})
    read = read_info(file_of(tmp_path, write_info(config, ["a"], [1])))
    assert read.config == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"version": VERSION + 1, "made_with": {"msefpn": "9.1"}},
            r"by a newer version of msefpn \(9\.1, this is .*: .* update",
        ),
        (
            {"config": vars(Config()) | {"warp": 9}},
            "by another version .*a setting 'warp' that is unknown here",
        ),
        (
            {"classes": None},
            "description of its detector has None as .classes., not a list of texts: take another",
        ),
        ({"config": 3}, "is damaged"),
        ({"made_with": []}, "is damaged"),
    ],
)
def test_a_later_or_damaged_file_is_told_in_a_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, write_info(Config(), ["a"], [1]) | change)
    with pytest.raises(UserError, match=says) as caught:
        read_info(file)
    assert str(file) in str(caught.value)
