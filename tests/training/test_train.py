"""Parts of the training: learning rate, averages, run folder, and what stops it."""

import contextlib
import csv
import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import msefpn
from msefpn.config import Config, load_recipe
from msefpn.data.coco import category_ids_for, truth_of
from msefpn.data.loader import train_loader
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.inference.detect import Predictions, as_results, merge_predictions
from msefpn.inference.device import pick_precision
from msefpn.metrics.coco import NUMBERS
from msefpn.models import TwoStage, build, check_initial_weights, init_weights, load, save
from msefpn.runs.folder import DataFiles, check_out, free_folder, new_folder, write_run
from msefpn.training import lightning as lit
from msefpn.training import recorder as record
from msefpn.training.data import read_data
from msefpn.training.ema import Ema
from msefpn.training.plan import plan_training
from msefpn.training.recorder import Recorder
from msefpn.training.schedule import lr_factor, warmup_steps
from msefpn.writing import replacing
from tests import TINY
from tests.data.sets import BOXES_ALONE


def test_step_schedule_is_mmdetections() -> None:
    config = Config(epochs=12, milestones=(8, 11), warmup=500)
    at = {step: lr_factor(config, step, 1000) for step in (0, 250, 500, 7999, 8000, 11000)}
    expected = {0: 0.001, 250: 1 - 0.5 * 0.999, 500: 1, 7999: 1, 8000: 0.1, 11000: 0.01}
    assert at == pytest.approx(expected)


def test_cosine_schedule_ends_at_zero() -> None:
    config = Config(epochs=4, schedule="cosine", warmup=0)
    at = [lr_factor(config, step, 10) for step in (0, 20, 40)]
    assert at == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    ("warmup", "steps"), [(0, 0), (0.05, 10), (0.5, 100), (1, 1), (100, 100), (500, 500)]
)
def test_warm_up_is_steps_or_a_share_of_the_run(warmup: float, steps: int) -> None:
    config = Config(epochs=4, schedule="cosine", warmup=warmup)
    assert warmup_steps(config, 50) == steps
    rising = [lr_factor(config, step, 50) for step in range(200)]
    assert rising.index(max(rising)) <= max(steps - 1, 0) + 1
    without = Config(epochs=4, schedule="cosine", warmup=0)
    assert lr_factor(config, 0, 50) == pytest.approx(0.001 if steps else 1)
    assert lr_factor(config, steps, 50) == lr_factor(without, steps, 50)


def test_small_recipes_warm_up_for_a_share_and_the_papers_for_500_steps() -> None:
    for name in ("small_data", "small_data_retinanet", "light", "quickstart"):
        assert warmup_steps(load_recipe(name, epochs=4), 50) <= 20, name
    assert warmup_steps(load_recipe("faster_rcnn_r50_mse_fpn_1x"), 10) == 500


def test_average_of_weights() -> None:
    module = nn.BatchNorm1d(1)
    ema = Ema(module, decay=0.5)
    expected = 1.0
    for step, value in enumerate((3.0, 5.0, 7.0), 1):
        with torch.no_grad():
            module.weight.fill_(value)
        module.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.weights["weight"].item() == pytest.approx(expected)
    assert ema.weights["num_batches_tracked"] == 3
    with ema.swapped():
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 7


ALL = r"\{frozen_stages: -1, train_norm: true\}"


@pytest.mark.parametrize(
    ("backbone", "options", "lost", "says"),
    [
        ("convnext_atto", {"frozen_stages": -1}, "", None),
        ("convnext_atto", {}, "", r"set backbone_options: \{frozen_stages: -1\}"),
        ("test_resnet", {}, "layer4", f"fixed tensors of test_resnet random, .*running_mean: .*{ALL}"),
        ("test_resnet", {"train_norm": True}, "layer4", None),
        ("test_resnet", {"train_norm": True}, "conv1", f"conv1.*: .*{ALL}"),
        ("test_resnet", {"frozen_stages": -1}, "layer4.0.conv", None),
        ("test_resnet", {"frozen_stages": -1}, "running_var", f"running_var: .*{ALL}"),
    ],
)
def test_what_stays_fixed_has_to_be_in_the_initial_weights(
    backbone: str, options: dict[str, Any], lost: str, says: str | None, tmp_path: Path
) -> None:
    file = str(tmp_path / "weights.safetensors")
    config = Config(backbone=backbone, backbone_options=options, init=file)
    detector = build(config, ["thing"])
    state = detector.state_dict()
    missing = tuple(name for name in state if name.startswith("backbone") and lost in name)
    save_file({name: value.contiguous() for name, value in state.items() if name not in missing}, file)
    report = init_weights(detector, file)
    assert report.missing
    with contextlib.nullcontext() if says is None else pytest.raises(UserError, match=f"{file} .*{says}"):
        check_initial_weights(detector, report)


@pytest.mark.parametrize(
    ("name", "device", "able", "expected"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("auto", "cpu", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_precision_is_bf16_where_it_is_not_emulated(
    name: str, device: str, able: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: able or including_emulation
    )
    assert pick_precision(name, torch.device(device)) == expected


def test_a_full_gpu_is_one_line(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TwoStage, "losses", full)
    with pytest.raises(UserError, match="memory for batch 2 at size 96x96: lower --batch or --size"):
        msefpn.train(tiny_set, recipe=TINY, workers=0, out=tmp_path / "run")


def test_a_resumed_run_knows_its_data_by_another_spelling(tiny_set: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_set)
    files = DataFiles(*find_split(tiny_set, "train"), *find_split(tiny_set, "val"))
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", load_recipe(str(TINY)), files)
    for data in (tmp_path / "link", tiny_set / ".." / tiny_set.name):
        plan = plan_training(data, {}, recipe=None, out=tmp_path / "run", resume=True, steps=None, options={})
        assert read_data(plan, BOXES_ALONE)[0] == files


def test_weights_name_the_initial_ones_without_their_folder(tmp_path: Path) -> None:
    for init, kept in (("/home/me/first.pth", "first.pth"), ("imagenet", "imagenet")):
        detector = build(dataclasses.replace(load_recipe(str(TINY)), init=init), ["thing"])
        save(detector, tmp_path / "w.safetensors")
        assert load(tmp_path / "w.safetensors").config.init == kept
        assert detector.config.init == init


def test_an_epoch_that_was_cut_replaces_no_best_one(tmp_path: Path) -> None:
    detector = build(load_recipe(str(TINY)), ["thing"])
    recorder = Recorder(tmp_path)
    for epoch, whole in enumerate((False, True, False), 1):
        numbers = dict.fromkeys(NUMBERS, epoch / 10)
        weights = {"weight": torch.tensor(float(epoch))}
        if epoch == 2:  # a resumed run knows nothing of a first epoch that was cut
            recorder = Recorder(tmp_path)
        state: dict[str, Any] = {"step": epoch, "within": None if whole else {}}
        recorder.epoch(epoch, epoch, numbers, [], detector, weights, state)
    assert recorder.best is not None
    assert recorder.best["epoch"] == json.loads((tmp_path / "metrics.json").read_text())["best"]["epoch"] == 2
    assert load_file(tmp_path / "best.safetensors")["weight"] == 2
    assert load_file(tmp_path / "last.safetensors")["weight"] == 3


def test_a_loss_that_is_not_finite_stops_with_the_images(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = TwoStage.losses

    def losses(self: TwoStage, images: Tensor, *rest: Any) -> dict[str, Tensor]:
        seen.append(len(images))
        found = original(self, images, *rest)
        return found | {"roi_box": found["roi_box"] * (float("nan") if len(seen) == 3 else 1)}

    monkeypatch.setattr(TwoStage, "losses", losses)
    with pytest.raises(UserError, match=r"roi_box not finite at step 3 with the images of id \[\d+, \d+\]"):
        msefpn.train(tiny_set, recipe=TINY, workers=0, out=tmp_path / "run")
    assert len(seen) == 3


def test_accumulation_and_a_stop_after_some_steps(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "accumulate.yaml"
    recipe.write_text(f"parent: {TINY}\nbatch: 4\naccumulate: 2\n")
    out = msefpn.train(tiny_set, recipe=recipe, workers=0, precision="bf16", steps=5, out=tmp_path / "run")
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    # 12 images in two groups make 7 passes of 2, hence 4 steps an epoch.
    assert [row["step"] for row in rows] == ["4", "5"]
    assert load_recipe(str(out / "config.yaml")) == load_recipe(str(recipe), workers=0, precision="bf16")
    state = torch.load(out / "resume.ckpt", weights_only=True)
    assert state["epoch"] == 1, "an epoch that was cut short is not one to go on from"
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["step", *["epoch", "evaluation"] * 2]
    assert events[0]["values"].keys() >= {"loss", "lr", "rpn_object"}
    assert json.loads((out / "metrics.json").read_text())["last"]["num_dropped"] >= 0
    assert "on 1 x cpu, bf16" in capsys.readouterr().out


def test_compiled_losses_are_the_same(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    compiled: list[Any] = []
    captures = pytestconfig.getoption("--whole-grid")

    def compile(function: Any) -> Any:
        compiled.append(function)
        return torch._dynamo.optimize("eager")(function) if captures else function

    monkeypatch.setattr(torch, "compile", compile)
    options: dict[str, Any] = {"recipe": TINY, "detector": "retinanet", "workers": 0, "steps": 1}
    runs = [
        msefpn.train(tiny_set, compile=given, out=tmp_path / f"{given}", **options) for given in (False, True)
    ]
    assert [function.__name__ for function in compiled] == ["losses"]
    first, second = (json.loads((run / "log.jsonl").read_text().splitlines()[0])["values"] for run in runs)
    assert first == pytest.approx(second, rel=1e-4)


def test_images_without_boxes_are_left_out_where_the_recipe_says_so(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loader(*args: Any, keep_empty: bool, **options: Any) -> Any:
        seen.append(keep_empty)
        return train_loader(*args, keep_empty=keep_empty, **options)

    seen: list[bool] = []
    monkeypatch.setattr(lit, "train_loader", loader)
    recipe = tmp_path / "boxes.yaml"
    recipe.write_text(f"parent: {TINY}\nkeep_empty: false\n")
    msefpn.train(tiny_set, recipe=recipe, workers=0, steps=1, out=tmp_path / "run")
    assert seen == [False]


def test_a_full_disk_while_training_is_one_line(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "write_weights", full)
    with pytest.raises(UserError, match=r"best.safetensors' cannot be written: .*No space left.*--resume"):
        msefpn.train(tiny_set, recipe=TINY, workers=0, steps=1, out=tmp_path / "run")


def test_replacing_leaves_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    def write(text: str, *, fail: bool) -> None:
        with replacing(path) as part:
            part.write_text(text)
            if fail:
                raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UserError, match="cannot be written"):
        write("half", fail=True)
    assert path.read_text() == "old"
    write("new", fail=False)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_new_folder_goes_away_with_an_error(tmp_path: Path) -> None:
    def fill(out: Path) -> None:
        with new_folder(out):
            (out / "sub").mkdir()
            (out / "sub" / "file").write_text("half")
            raise UserError("no")

    with pytest.raises(UserError):
        fill(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(UserError):
        fill(tmp_path / "kept")
    assert content_names(tmp_path) == ["kept"]


def content_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_free_folder_and_room(tmp_path: Path) -> None:
    (tmp_path / "train-1").mkdir()
    assert free_folder(tmp_path / "train") == tmp_path / "train-2"
    with pytest.raises(UserError, match="no space"):
        check_out(tmp_path / "new", room=1 << 60)


def test_results_have_the_datas_category_ids(tiny_set: Path) -> None:
    data, _ = read_coco(*find_split(tiny_set, "val"))
    reversed_classes = data.classes[::-1]
    ids = category_ids_for(reversed_classes, data, "the run")
    assert ids == list(data.category_ids[::-1])
    with pytest.raises(UserError, match=r"line only in the run; circle only in .*val\.json"):
        category_ids_for([*data.classes[1:], "line"], data, "the run")
    one = Predictions(
        np.array([9]), np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([0])
    )
    other = Predictions(np.array([3]), one.boxes, one.scores, np.array([6]), num_dropped=2)
    both = merge_predictions([one, other])
    assert both.num_dropped == 2
    assert as_results(both, ids) == [
        {"image_id": 3, "category_id": ids[6], "bbox": [1, 2, 3, 6], "score": 0.5},
        {"image_id": 9, "category_id": ids[0], "bbox": [1, 2, 3, 6], "score": 0.5},
    ]


def test_truth_is_the_file(tiny_set: Path) -> None:
    file, folder = find_split(tiny_set, "val")
    truth, content = truth_of(read_coco(file, folder)[0]), json.loads(file.read_text())
    assert truth["categories"] == content["categories"]
    ours, theirs = (
        sorted((item["image_id"], item["category_id"], *item["bbox"], item["area"]) for item in annotations)
        for annotations in (truth["annotations"], content["annotations"])
    )
    assert ours == theirs
