"""Damaged files of a run folder are told in one line that names the file and the key."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from msefpn.config import load_recipe
from msefpn.data.locate import find_split
from msefpn.errors import UserError
from msefpn.metrics.coco import NUMBERS
from msefpn.runs.folder import CONFIG, DATA, METRICS, DataFiles, read_run, write_run
from msefpn.runs.metrics import read_metrics
from tests import TINY, copy_to

ENTRY: dict[str, Any] = dict.fromkeys(NUMBERS, 0.5) | {"epoch": 1, "step": 3, "per_class": {"a": -1.0}}


@pytest.fixture
def run(tiny_set: Path, tmp_path: Path) -> Path:
    files = DataFiles(*find_split(tiny_set, "train"), *find_split(tiny_set, "val"))
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", load_recipe(str(TINY)), files)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"AP": float("nan")}, r"\(best\) has nan as 'AP', not a number from -1 to 1"),
        ({"AP": [1]}, r"\(best\) has \[1\] as 'AP'"),
        ({"AP75": 10**400}, r"\(best\) has 1000.* as 'AP75'"),
        ({"epoch": 1.5}, r"\(best\) has 1.5 as 'epoch', not a whole number"),
        ({"per_class": {"a": "x"}}, r"\(best\) \(per_class\) has 'x' as 'a'"),
        ({"per_class": []}, r"\(best\) has \[\] as 'per_class'"),
        ({"mask": {}}, r"\(best\) \(mask\) has no 'AP'"),
    ],
)
def test_metrics(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = tmp_path / METRICS
    file.write_text(json.dumps({"best": ENTRY, "last": ENTRY}))
    assert read_metrics(file).last["epoch"] == 1
    file.write_text(json.dumps({"best": ENTRY | change, "last": ENTRY}))
    with pytest.raises(UserError, match=rf"metrics\.json' {says}.*: restore it"):
        read_metrics(file)


@pytest.mark.parametrize("name", [CONFIG, DATA])
@pytest.mark.parametrize(
    "text",
    ["", "[1]", "hello", "1: 2", "a: &a [*a]", "{" * 500, 'a: "\\xZZ"', "lr: 2020-99-99", "train_json: 3"],
)
def test_configuration_and_data(name: str, text: str, run: Path) -> None:
    read_run(run)
    (run / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_run(run)
    assert name in str(caught.value)
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match=name):
        read_run(run)


def test_links_of_a_run(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    """What a run reads again is judged again, unless the run was told to follow links."""
    config, files = read_run(run)
    files.check_links()
    copy_to(tiny_set / "val", tmp_path / "val")
    (tmp_path / "val/x.jpg").symlink_to("/etc/hostname")
    files = replace(files, val_images=tmp_path / "val")
    with pytest.raises(UserError, match="is a link that leads out of"):
        files.check_links()
    write_run(run, config, replace(files, follow_links=True))
    again = read_run(run)[1]
    assert again.follow_links
    again.check_links()
