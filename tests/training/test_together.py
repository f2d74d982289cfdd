"""What the processes of a training agree on before the first step, and the batch that fits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from msefpn.config import AUTO_BATCH, Config, from_dict, load_recipe, to_yaml
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.inference.device import check_devices
from msefpn.models import build
from msefpn.runs.peers import Peers
from msefpn.runs.world import World
from msefpn.training.alike import difference, fingerprint
from msefpn.training.fingerprint import DataMarks, settings_of
from msefpn.training.largest import Rehearsal, largest_that_fits, settle_batch
from msefpn.training.launch import check_world, start_others
from msefpn.training.plan import Plan
from tests import TINY


def mark(plan_changes: dict[str, Any], marks: DataMarks, state: Any = None) -> dict[str, Any]:
    config = from_dict(vars(load_recipe(str(TINY))) | plan_changes, "test")
    plan = Plan(config, None, {}, Path("run"), None, None)
    return fingerprint(plan, marks, state, torch.device("cpu"))


PICTURES = {"train": torch.tensor([1, 2]), "val": torch.tensor([3])}
MARKS = DataMarks(1, 2, PICTURES)
STATE = {"step": 3, "detector": {"w": torch.ones(2), "count": torch.tensor(5)}}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (mark({"workers": 7, "logger": ["csv"]}, DataMarks(1, 2, {}), STATE), ""),
        (mark({"lr": 0.5}, MARKS, STATE), "lr is 0.5 and 0.02: give the same options on all nodes"),
        (mark({}, DataMarks(1, 9, PICTURES), STATE), "the val annotations are not the same: give all nodes"),
        (mark({}, DataMarks(1, 2, PICTURES | {"val": torch.tensor([4])}), STATE), "the val pictures are not"),
        (mark({}, MARKS, STATE | {"step": 4}), "the run folder must lie on a file system that all nodes"),
        (mark({}, MARKS, STATE | {"detector": {"w": torch.zeros(2)}}), "state to resume is step 3, "),
        ({**mark({}, MARKS, STATE), "install the same versions on all nodes": {}}, "msefpn is None and 0."),
    ],
)
def test_a_difference_is_named(other: dict[str, Any], said: str) -> None:
    found = difference(mark({}, MARKS, STATE), other)
    assert found.startswith(said) if said and "folder" not in said else said in found
    assert bool(found) == bool(said)


@pytest.mark.parametrize(
    ("asked", "world", "said"),
    [
        ({"nodes": 2}, World(), "nodes 2: this process knows of no other machine"),
        (
            {"nodes": 2, "devices": 2},
            World(0, 2, launcher="torchrun"),
            "torchrun has started 2 processes, but",
        ),
        (
            {"devices": 2},
            World(1, 2, 0, launcher="Slurm"),
            "Slurm says that process 1 is number 0 of its node",
        ),
        ({"devices": 2}, World(1, 2, 1, launcher="Slurm"), ""),
    ],
)
def test_other_processes_than_asked_for(asked: dict[str, int], world: World, said: str) -> None:
    config = from_dict(asked, "test")
    if not said:
        check_world(config, world)
        return
    with pytest.raises(UserError, match=said):
        check_world(config, world)


def test_a_program_that_cannot_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["-c"])
    monkeypatch.setattr("__main__.__spec__", None)
    with pytest.raises(UserError, match="several devices need a program"):
        start_others(Config(devices=2), Peers(World(), 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"batch": 12, "nodes": 2, "devices": 4},
            "batch 12 cannot be shared by 2 nodes x 4 devices x 1 passes",
        ),
        ({"batch": "auto", "device": "cpu"}, "batch auto is found by the memory of a GPU: give a number"),
        ({"batch": 0}, "batch is 0, but must be at least 1, or auto"),
        ({"precision": "fp16", "device": "cpu"}, "precision fp16 is for GPUs"),
        ({"sync_bn": True, "device": "cpu"}, "sync_bn is for GPUs"),
    ],
)
def test_what_a_cpu_or_a_batch_cannot_do(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_devices(from_dict(options, "options"))


def test_the_largest_power_of_two_that_fits() -> None:
    tried = list[int]()

    def fits(images: int) -> bool:
        tried.append(images)
        return 1.5 + 3 * images < 40  # GB

    assert largest_that_fits(fits, 1000) == 8
    assert tried == [1, 2, 4, 8, 16]
    assert largest_that_fits(fits, 5) == 4
    assert largest_that_fits(lambda images: False, 5) == 0
    config = from_dict({"batch": "auto"}, "options")
    assert config.batch == AUTO_BATCH
    assert "batch: auto\n" in to_yaml(config)


class Card:
    """Stands for a GPU's properties."""

    total_memory = 8 * 2**30


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn", "fast_rcnn"])
def test_the_batch_is_found_and_told(detector: str, tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(trial: Rehearsal, images: int) -> bool:
        if images == 1 and detector != "mask_rcnn":  # whose head takes half a minute
            trial._train(images)
        batch = trial._batch(images)
        assert (batch.targets.masks is not None) == (detector == "mask_rcnn")
        assert (batch.proposals is not None) == (detector == "fast_rcnn")
        return images <= 2

    monkeypatch.setattr(Rehearsal, "fits", fits)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    changes = {"detector": detector, "detector_options": {}, "batch": "auto", "devices": 2, "accumulate": 2}
    config = from_dict(settings_of(load_recipe(str(TINY))) | changes, "test")
    data, _ = read_coco(*find_split(tiny_set, "train"))
    model = build(config, data.classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, line = settle_batch(config, model, data, torch.device("cpu"), "bf16", None)
    assert found.batch == 2 * 2 * 2
    assert found.scaled_lr == config.lr * 8 / 16
    assert line.startswith("batch: 8 images a step, 2 on each of 2 devices in 2 passes: the largest power of")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
