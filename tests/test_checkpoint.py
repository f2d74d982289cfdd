"""What a file of weights says of itself: read by this version, and told apart from a later one's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from msefpn.checkpoint import KEY, VERSION, read_info, upgrade_config, write_info
from msefpn.config import Config
from msefpn.errors import UserError


def file_of(folder: Path, info: Any) -> Path:
    save_file({"x": np.zeros(1)}, folder / "w.safetensors", metadata={KEY: json.dumps(info)})
    return folder / "w.safetensors"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    config = Config(neck="fpn", init="/home/someone/weights.pth")
    info = read_info(file_of(tmp_path, write_info(config, ["a", "b"], [3, 4])))
    assert (info.classes, info.category_ids) == (("a", "b"), (3, 4))
    assert info.config.neck == "fpn"
    assert info.config.init == "weights.pth"


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
        ({"classes": None}, "the description of its detector is incomplete: take another copy"),
        ({"config": 3}, "is damaged"),
        ({"made_with": []}, "is damaged"),
    ],
)
def test_a_later_or_damaged_file_is_told_in_a_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, write_info(Config(), ["a"], [1]) | change)
    with pytest.raises(UserError, match=says) as caught:
        read_info(file)
    assert str(file) in str(caught.value)
