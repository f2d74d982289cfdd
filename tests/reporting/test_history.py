"""What a report reads of a training's log: JSON lines, or csv where they are missing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.reporting.history import read_history

EVENTS: list[dict[str, Any]] = [
    {"event": "start", "run": "mine"},
    {"event": "step", "step": 10, "values": {"loss": 3.0, "lr": 0.1}},
    {"event": "step", "step": 20, "values": {"loss": 2.0, "lr": 0.2}},
    {"event": "epoch", "epoch": 1, "step": 24, "values": {"loss": 2.5, "images_per_second": 7}},
    {"event": "evaluation", "epoch": 1, "step": 24, "values": {"AP": 0.25}},
]
CSV = "epoch,step,lr,loss,AP\n1,24,0.2,2.5,0.25\n2,48,0.2,1.5,0.5\n"


def write(folder: Path, events: list[dict[str, Any]], end: str = "") -> Path:
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events) + end)
    return folder


def test_steps_and_epochs_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(CSV)
    history = read_history(write(tmp_path, EVENTS))
    assert history.steps["loss"].steps == (10, 20)
    assert history.steps["loss"].values == (3.0, 2.0)
    assert history.steps["lr"].values == (0.1, 0.2)
    assert history.epochs == [{"epoch": 1, "step": 24, "loss": 2.5, "images_per_second": 7, "AP": 0.25}]
    assert history.no_steps == ""


def test_steps_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    again = {"event": "step", "step": 20, "values": {"loss": 1.0, "lr": 0.2}}
    history = read_history(write(tmp_path, [*EVENTS, again, {**EVENTS[-1], "values": {"AP": 0.75}}]))
    assert history.steps["loss"].values == (3.0, 1.0)
    assert [row["AP"] for row in history.epochs] == [0.75]


def test_last_line_of_a_killed_run_is_ignored(tmp_path: Path) -> None:
    whole = read_history(write(tmp_path, EVENTS))
    for end in (
        '{"event": "step", "step": 30, "val',
        '{"event": "step", "step": 30, "values": {"loss": 1}}',
        "{",
    ):
        assert read_history(write(tmp_path, EVENTS, end)) == whole
    assert read_history(write(tmp_path, [], "{")).steps == {}


def test_epochs_come_from_csv_where_the_log_has_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(CSV)
    history = read_history(write(tmp_path, EVENTS[:3]))
    assert [row["AP"] for row in history.epochs] == [0.25, 0.5]
    assert history.steps["loss"].values == (3.0, 2.0)


def test_missing_steps_have_a_reason(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(CSV)
    history = read_history(tmp_path)
    assert [row["epoch"] for row in history.epochs] == [1, 2]
    assert history.steps == {}
    assert "--logger jsonl" in history.no_steps
    (tmp_path / "tensorboard").mkdir()
    assert read_history(tmp_path).no_steps.startswith("not available: they were logged for TensorBoard only")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not an event"),
        ('{"event": "step", "values": {"loss": 1}}', "line 2 is not an event"),
        ('{"event": "step", "step": 1, "values": 3}', "line 2 is not an event"),
    ],
)
def test_damage_is_told_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    first = json.dumps(EVENTS[1])
    (tmp_path / "log.jsonl").write_text(f"{first}\n{line}\n{first}\n")
    with pytest.raises(UserError, match=message) as caught:
        read_history(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_any_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("there is no")) as caught:
        read_history(tmp_path)
    assert "log.jsonl" in str(caught.value)
    assert "metrics.csv" in str(caught.value)
