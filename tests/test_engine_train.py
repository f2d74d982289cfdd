"""Parts of the training: learning rate, averages, run folder, and what stops it."""

import csv
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import msefpn
from msefpn.config import Config, load_recipe
from msefpn.data.coco import find_split, read_coco
from msefpn.engine import record
from msefpn.engine.detect import Found, as_results, merged
from msefpn.engine.ema import Ema
from msefpn.engine.lit import lr_factor
from msefpn.engine.run import check_out, free_folder, new_folder, replacing
from msefpn.engine.train import check_random_weights
from msefpn.engine.truth import category_ids_for, truth_of
from msefpn.errors import UserError
from msefpn.models import TwoStage
from msefpn.models.backbone import Backbone

TINY = Path(__file__).with_name("tiny.yaml")


def test_step_schedule_is_mmdetections() -> None:
    config = Config(epochs=12, drops=(8, 11), warmup=500)
    at = {step: lr_factor(config, step, 1000) for step in (0, 250, 500, 7999, 8000, 11000)}
    expected = {0: 0.001, 250: 1 - 0.5 * 0.999, 500: 1, 7999: 1, 8000: 0.1, 11000: 0.01}
    assert at == pytest.approx(expected)


def test_cosine_schedule_ends_at_zero() -> None:
    config = Config(epochs=4, schedule="cosine", warmup=0)
    at = [lr_factor(config, step, 10) for step in (0, 20, 40)]
    assert at == pytest.approx([1, 0.5, 0])


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


def test_random_weights_need_batch_normalisation_trained_only_where_there_is_some() -> None:
    check_random_weights(Backbone("convnext_atto", frozen_stages=-1))
    with pytest.raises(UserError, match=r"set backbone_options: \{frozen_stages: -1\}"):
        check_random_weights(Backbone("convnext_atto"))


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


def test_accumulation_and_a_stop_after_some_steps(tiny_set: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "accumulate.yaml"
    recipe.write_text(f"parent: {TINY}\nbatch: 4\naccumulate: 2\n")
    out = msefpn.train(tiny_set, recipe=recipe, workers=0, precision="bf16", steps=5, out=tmp_path / "run")
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    # 12 images in two groups make 7 passes of 2, hence 4 steps an epoch.
    assert [row["step"] for row in rows] == ["4", "5"]
    assert load_recipe(str(out / "config.yaml")) == load_recipe(str(recipe), workers=0, precision="bf16")
    state = torch.load(out / "resume.ckpt", weights_only=True)
    assert state["epoch"] == 1, "an epoch that was cut short is not one to go on from"
    assert list(out.glob("tensorboard/events*"))


def test_a_full_disk_while_training_is_one_line(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record, "save", full)
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
    one = Found(
        np.array([9]), np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([0])
    )
    other = Found(np.array([3]), one.boxes, one.scores, np.array([6]), cut=2)
    both = merged([one, other])
    assert both.cut == 2
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
