"""What a file of weights says of itself: read by this version, and told apart from a later one's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from msefpn.checkpoint import KEY, VERSION, read_about, write_about
from msefpn.config import Config
from msefpn.errors import UserError


def file_of(folder: Path, about: Any) -> Path:
    save_file({"x": np.zeros(1)}, folder / "w.safetensors", metadata={KEY: json.dumps(about)})
    return folder / "w.safetensors"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    config = Config(neck="fpn", init="/home/someone/weights.pth")
    about = read_about(file_of(tmp_path, write_about(config, ["a", "b"], [3, 4])))
    assert (about.classes, about.category_ids) == (("a", "b"), (3, 4))
    assert about.config.neck == "fpn"
    assert about.config.init == "weights.pth"


def test_files_without_a_version_are_of_the_first(tmp_path: Path) -> None:
    about = write_about(Config(), ["a"], [1])
    del about["version"], about["made_with"]
    assert read_about(file_of(tmp_path, about)).classes == ("a",)


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
        ({"classes": None}, "what it says of its detector is cut: take another copy"),
        ({"config": 3}, "is damaged"),
        ({"made_with": []}, "is damaged"),
    ],
)
def test_a_later_or_damaged_file_is_told_in_a_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, write_about(Config(), ["a"], [1]) | change)
    with pytest.raises(UserError, match=says) as caught:
        read_about(file)
    assert str(file) in str(caught.value)
