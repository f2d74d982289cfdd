"""Recipes: what they build on, and every mistake in one as one line."""

from pathlib import Path

import pytest

from msefpn.config import Config, load_recipe, load_row, published
from msefpn.errors import UserError


def test_options_of_a_recipe_and_its_parent_are_merged(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("parent: small_data\ndetector_options: {roi: {hidden: 64}}\n")
    options = load_recipe("small_data").detector_options
    assert load_recipe(str(child)).detector_options == options | {"roi": options["roi"] | {"hidden": 64}}


def test_another_detector_begins_without_options() -> None:
    assert load_recipe("small_data", detector="retinanet").detector_options == {}
    assert load_recipe("small_data", detector="faster_rcnn") == load_recipe("small_data")
    head = {"depth": 2, "norm": True}
    assert load_recipe("small_data_retinanet").detector_options == {"head": head}


def test_another_neck_begins_with_the_options_of_all_necks() -> None:
    assert load_recipe("small_data").neck_options == {"out_channels": 128, "norm": "gn"}
    assert load_recipe("small_data", neck="bifpn").neck_options == {"out_channels": 128}
    given = {"neck": "pafpn", "neck_options": {"upsample": "bilinear"}}
    assert load_recipe("small_data", **given).neck_options == {"out_channels": 128, "upsample": "bilinear"}
    assert load_recipe("small_data", neck="fpn") == load_recipe("small_data")


def test_recipes_of_the_paper_train_as_mmdetection() -> None:
    for name in ("faster_rcnn_r50_mse_fpn_1x", "retinanet_r50_mse_fpn_1x"):
        config = load_recipe(name)
        assert (config.keep_empty, config.precision) == (False, "fp32")


def test_a_row_is_its_own_lines_over_a_recipe() -> None:
    row = load_row("libra_rcnn_r101_2x", "small_data", lr=0.5)
    base = load_recipe("small_data")
    assert (row.backbone, row.neck, row.epochs, row.lr) == ("resnet101.tv_in1k", "fpn+bfp", 24, 0.5)
    assert (row.optimizer, row.size) == (base.optimizer, base.size)
    assert row.detector_options["roi"] == base.detector_options["roi"] | {
        "balanced_samples": True,
        "box_loss": "balanced_l1",
        "beta": 1.0,
    }
    assert load_row("libra_rcnn_r101_2x", None) == load_recipe("libra_rcnn_r101_2x")


@pytest.mark.parametrize("claim", ["5", "{AP: 3}", "{source: a, AP: b}", "{source: a, ap: 3}"])
def test_what_a_recipe_says_is_published(claim: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"published: {claim}\nepochs: 3")
    with pytest.raises(UserError, match="published must hold a source"):
        published(str(tmp_path / "r.yaml"))
    assert load_recipe(str(tmp_path / "r.yaml")).epochs == 3
    assert published("quickstart") is None


BROKEN = {
    "# \N{LATIN SMALL LETTER E WITH ACUTE}": "is not UTF-8 text",
    "1: 2": "each key a name",
    "detector_options: {rpn: {1: 2}}": "each key a name",
    "parent: 3": "parent is 3",
    "milestones: [null]": r"milestones is \[None\]",
    "milestones: [8.5]": r"milestones is \[8.5\]",
    "keep_empty: 1": "keep_empty is 1",
    "epochs: true": "epochs is True",
    f"lr: 1{'0' * 400}": r"lr is 10+\.\.\., but",
    "lr: .inf": "lr is inf",
    "lr: .nan": "lr is nan",
    "weight_decay: -1": "weight_decay is -1",
    "grad_clip: -1": "grad_clip is -1",
    "grad_clip: .inf": "grad_clip is inf",
    "warmup: -1": "warmup is -1",
    "warmup: 1.5": "warmup is 1.5: give whole steps, or a share of the run below 1",
    "seed: -1": "seed is -1",
    f"seed: {1 << 64}": f"seed is {1 << 64}",
    'size: "\\u00b320"': "size '\N{SUPERSCRIPT THREE}20' is not understood",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_mistake_in_a_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=BROKEN[text]):
        load_recipe(str(tmp_path / "r.yaml"))


def test_the_largest_seed() -> None:
    assert Config(seed=(1 << 64) - 1).seed == (1 << 64) - 1
