"""The recipes of the paper's rows, held against a table that was typed from the paper."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from msefpn.config import load_recipe, published, recipe_names
from msefpn.data import synthetic
from msefpn.models import Detector, build
from msefpn.necks import NECKS, Stack
from msefpn.training import recorder as record
from msefpn.training import train as engine
from msefpn.training.plan import plan_training
from msefpn.training.schedule import lr_factor


class Row(NamedTuple):
    """What the paper says of a row."""

    detector: str
    depth: int
    cardinality: int
    """Groups of the 3x3 convolutions."""
    neck: str
    neck_options: dict[str, Any]
    schedule: str
    AP: float | None
    gain: float | None
    detector_options: dict[str, Any] = {}  # noqa: RUF012  never changed
    source: str = "MSE-FPN paper, COCO test-dev"


def faster(
    depth: int, cardinality: int, neck: str, schedule: str, ap: float | None, gain: float | None
) -> Row:
    return Row("faster_rcnn", depth, cardinality, neck, {}, schedule, ap, gain)


def ablation(gain: float | None, **options: Any) -> Row:
    row = Row("faster_rcnn", 50, 1, "mse_fpn", options, "1x", None, gain)
    return row._replace(source="MSE-FPN paper, COCO val2017")


def reading(**options: Any) -> Row:
    return Row("faster_rcnn", 50, 1, "mse_fpn", options, "1x", 39.4, 2.1)


ZOO, NONE = "mmdetection 2.x, COCO val2017", "no published figure"
LIBRA = {
    "rpn": {"negative_ratio": 5.0},
    "roi": {"balanced_samples": True, "box_loss": "balanced_l1", "beta": 1.0},
}
AUG = {"roi": {"consistent": 0.25, "pooling": "soft"}}
PAPER = {
    "retinanet_r50_fpn_1x": Row("retinanet", 50, 1, "fpn", {}, "1x", 36.3, 0.0),
    "retinanet_r50_mse_fpn_1x": Row("retinanet", 50, 1, "mse_fpn", {}, "1x", 37.7, 1.4),
    "faster_rcnn_r50_fpn_1x": faster(50, 1, "fpn", "1x", 37.3, 0.0),
    "faster_rcnn_r50_fpn_2x": faster(50, 1, "fpn", "2x", 38.4, None)._replace(source=ZOO),
    "faster_rcnn_r50_mse_fpn_1x": faster(50, 1, "mse_fpn", "1x", 39.4, 2.1),
    "faster_rcnn_r50_mse_fpn_2x": faster(50, 1, "mse_fpn", "2x", None, None)._replace(source=NONE),
    "faster_rcnn_r101_fpn_1x": faster(101, 1, "fpn", "1x", 39.4, None)._replace(source=ZOO),
    "faster_rcnn_r101_fpn_2x": faster(101, 1, "fpn", "2x", 39.8, None)._replace(source=ZOO),
    "faster_rcnn_r101_mse_fpn_1x": faster(101, 1, "mse_fpn", "1x", 41.2, None),
    "faster_rcnn_r101_mse_fpn_2x": faster(101, 1, "mse_fpn", "2x", 41.6, None),
    "faster_rcnn_x101_32x4d_fpn_1x": faster(101, 32, "fpn", "1x", 40.5, 0.0),
    "faster_rcnn_x101_32x4d_fpn_2x": faster(101, 32, "fpn", "2x", 41.2, None)._replace(source=ZOO),
    "faster_rcnn_x101_32x4d_mse_fpn_1x": faster(101, 32, "mse_fpn", "1x", 42.2, 1.7),
    "faster_rcnn_x101_32x4d_mse_fpn_2x": faster(101, 32, "mse_fpn", "2x", None, None)._replace(source=NONE),
    "faster_rcnn_x101_64x4d_fpn_1x": faster(101, 64, "fpn", "1x", 41.8, 0.0),
    "faster_rcnn_x101_64x4d_fpn_2x": faster(101, 64, "fpn", "2x", 41.6, None)._replace(source=ZOO),
    "faster_rcnn_x101_64x4d_mse_fpn_1x": faster(101, 64, "mse_fpn", "1x", 43.4, 1.6),
    "faster_rcnn_x101_64x4d_mse_fpn_2x": faster(101, 64, "mse_fpn", "2x", None, None)._replace(source=NONE),
    "libra_rcnn_r101_1x": faster(101, 1, "fpn+bfp", "1x", 40.2, None)._replace(detector_options=LIBRA),
    "libra_rcnn_r101_2x": faster(101, 1, "fpn+bfp", "2x", 41.0, None)._replace(detector_options=LIBRA),
    "faster_rcnn_r101_aug_fpn_1x": faster(101, 1, "aug_fpn", "1x", 40.6, None)._replace(detector_options=AUG),
    "faster_rcnn_r101_aug_fpn_2x": faster(101, 1, "aug_fpn", "2x", 41.5, None)._replace(detector_options=AUG),
    "ablation_sem_spatial": ablation(0.7, sem="spatial", sim="add", gate="none"),
    "ablation_sem_channel": ablation(0.8, sem="channel", sim="add", gate="none"),
    "ablation_sem": ablation(1.2, sim="add", gate="none"),
    "ablation_sim": ablation(1.3, sem="conv", gate="none"),
    "ablation_sim_wide": ablation(None, sem="conv", sim="wide", gate="none"),
    "ablation_sem_sim": ablation(1.9, gate="none"),
    "ablation_gcg": ablation(1.2, sem="none"),
    "ablation_cag": ablation(0.7, sem="none", gate="cag"),
    "ablation_coordinate": ablation(0.9, sem="none", gate="coordinate"),
    "ablation_sem_four_scales": ablation(None, sem_strides=[4, 8, 16, 32]),
    "ablation_sem_two_scales": ablation(None, sem_strides=[16, 32]),
    "reading_split": reading(preset="split"),
    "reading_cascade": reading(combine="cascade"),
    "reading_residual": reading(combine="residual"),
    "reading_norm_after": reading(score_norm="after"),
    "reading_gate_lateral": reading(gate_at="lateral"),
    "reading_gate_above": reading(gate_at="above"),
    "reading_gate_after": reading(gate_at="after"),
    "reading_gate_linear": reading(gate_init="linear"),
    "reading_sigmoid_first": reading(attention="sigmoid"),
    "reading_mix": reading(attention="mix"),
    "reading_bilinear": reading(upsample="bilinear"),
}
OTHER = {"finetune", "light", "mmdetection_1x", "quickstart", "quickstart_masks", "small_data"}
OTHER |= {"small_data_retinanet"}
LAST_STEPS = {"1x": (12, (8, 11)), "2x": (24, (16, 22))}


def test_every_row_of_the_paper_has_its_recipe() -> None:
    assert set(recipe_names()) == set(PAPER) | OTHER


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two + one images in the folders and files of COCO itself."""
    folder = tmp_path_factory.mktemp("coco")
    synthetic.draw_builtin_set(folder / "drawn", train=2, val=1, seed=0, size=96)
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "drawn" / split).rename(folder / f"{split}2017")
        (folder / "drawn" / f"{split}.json").rename(folder / "annotations" / f"instances_{split}2017.json")
    return folder


def depth_of(detector: Detector) -> int:
    """Weighted layers of a bottleneck ResNet: three in each block, the stem and the classifier."""
    return 2 + 3 * len([name for name, _ in detector.backbone.named_modules() if name.endswith("conv3")])


@pytest.mark.parametrize("name", PAPER)
def test_recipe(name: str) -> None:
    row, config, claim = PAPER[name], load_recipe(name), published(name)
    epochs, drops = LAST_STEPS[row.schedule]
    assert (config.detector, config.neck, config.neck_options) == (row.detector, row.neck, row.neck_options)
    assert (config.epochs, config.milestones, config.schedule, config.warmup) == (epochs, drops, "step", 500)
    assert (config.optimizer, config.weight_decay, config.grad_clip) == ("sgd", 1e-4, 0)
    assert config.scaled_lr == (0.01 if row.detector == "retinanet" else 0.02)
    assert [lr_factor(config, step, 1000) for step in (0, 500)] == [pytest.approx(0.001), 1]
    assert lr_factor(config, 1000 * drops[1], 1000) == pytest.approx(0.01)
    assert (config.batch, config.size, config.augment) == (16, "1333x800", "paper")
    assert claim is not None
    assert (claim.gpus, claim.batch, claim.AP, claim.gain) == (8, 16, row.AP, row.gain)
    assert claim.source == row.source
    assert config.detector_options == row.detector_options


@pytest.mark.parametrize("name", [name for name in PAPER if name.endswith("_2x")])
def test_two_schedules_differ_in_the_schedule_alone(name: str) -> None:
    longer, shorter = (vars(load_recipe(recipe)) for recipe in (name, name.replace("_2x", "_1x")))
    assert {key for key in longer if longer[key] != shorter[key]} == {"epochs", "milestones"}


@pytest.mark.parametrize("name", [name for name in PAPER if not name.endswith("_2x")])
def test_recipe_builds(name: str) -> None:
    row = PAPER[name]
    with torch.device("meta"):
        detector = build(load_recipe(name), ["thing"])
    assert depth_of(detector) == row.depth
    groups = {module.groups for path, module in detector.backbone.named_modules() if path.endswith("conv2")}
    assert groups == {row.cardinality}
    assert type(detector.neck) is (Stack if "+" in row.neck else NECKS[row.neck])


def rows_to_train() -> list[str]:
    """Recipes of one schedule; of those that differ in the backbone alone, one."""
    kept = ("detector", "neck", "neck_options", "schedule", "detector_options")
    rows = {repr([getattr(PAPER[name], key) for key in kept]): name for name in PAPER}
    return [name.replace("_2x", "_1x") for name in rows.values()]


@pytest.mark.parametrize("name", sorted(set(rows_to_train())))
def test_recipe_trains(name: str, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a step of a narrow detector at small size on a small backbone, whose frozen layers may stay random
    trained: list[Detector] = []
    monkeypatch.setattr(engine, "check_initial_weights", lambda detector, _: trained.append(detector))
    monkeypatch.setattr(record.Recorder, "epoch", lambda *_: None)
    options: dict[str, Any] = {
        "init": "none",
        "backbone": "test_resnet",
        "neck_options": {"out_channels": 32},
        "size": "64",
        "batch": 1,
        "workers": 0,
        "device": "cpu",
    }
    if PAPER[name].detector == "faster_rcnn":
        options["detector_options"] = {"roi": {"hidden": 32}}
    plan = plan_training(coco, {}, recipe=name, out=tmp_path / "run", resume=False, steps=1, options=options)
    engine.train(plan)
    (detector,) = trained
    assert [p.shape for p in detector.parameters() if not p.isfinite().all()] == []
