"""`anchors` of a configuration: given, chosen on the boxes, a scale, a file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msefpn.checkpoint import read_info
from msefpn.cli import main
from msefpn.config import Config, load_recipe
from msefpn.errors import UserError
from msefpn.models import load
from msefpn.runs.folder import BEST, CONFIG, read_run
from msefpn.training.anchors import as_asked, settle_anchors
from tests import TINY


def settled(anchors: str, asked: dict[str, Any] | None = None, **options: Any) -> Config:
    """Settle anchors that the user gave with an option, and `asked` beside it."""
    given = {"anchors": anchors, **(asked or {})}
    return settle_anchors(Config(anchors=anchors, **options), given)


def test_a_scale_becomes_the_detectors_option_and_replaces_the_recipes() -> None:
    rpn = {"anchor_scale": 8.0, "samples": 64}
    config = settled("2.5", detector_options={"rpn": rpn, "roi": {"hidden": 8}})
    assert config.anchors == "given"
    assert config.detector_options == {"rpn": {"anchor_scale": 2.5, "samples": 64}, "roi": {"hidden": 8}}
    assert settled("4", detector="retinanet").detector_options == {"head": {"anchor_scale": 4.0}}
    assert settled("auto", detector_options={"rpn": rpn}).detector_options == {"rpn": {"samples": 64}}


def test_a_file_becomes_the_detectors_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("anchor_scale: 2.0\nratios: [0.3, 1.0, 3.0]\n")
    expected = {"anchor_scale": 2.0, "ratios": [0.3, 1.0, 3.0]}
    assert settled(str(file), detector="cascade_rcnn").detector_options == {"rpn": expected}
    file.write_text("smallest: 0.05\n")
    assert settled(str(file), detector="ssd").detector_options == {"head": {"smallest": 0.05}}


def test_a_recipes_auto_gives_way() -> None:
    assert load_recipe("small_data").anchors == load_recipe("small_data_retinanet").anchors == "auto"
    assert load_recipe("faster_rcnn_r50_mse_fpn_1x").anchors == load_recipe("light").anchors == "given"
    assert settle_anchors(load_recipe("small_data", detector="fcos"), {"detector": "fcos"}).anchors == "given"
    own = {"detector_options": {"rpn": {"anchor_scale": 4.0}}}
    config = settle_anchors(load_recipe("small_data", **own), own)
    assert config.anchors == "auto"
    assert config.detector_options["rpn"]["anchor_scale"] == 4.0


BAD = [
    (
        "huge",
        {},
        "anchors 'huge' is not understood: give auto, given, a scale in strides such as 4",
    ),
    ("0", {}, "anchors is 0.0: give a number from 0.25 to 64"),
    ("nan", {}, "anchors is nan: give a number from 0.25 to 64"),
    ("500", {}, "anchors is 500.0: give a number from 0.25 to 64"),
    ("gone.yaml", {}, "anchors 'gone.yaml' is not understood: .* a YAML file that exists"),
    ("auto", {"detector": "fcos"}, "anchors auto: fcos has no anchors; leave anchors out"),
    ("4", {"detector": "fast_rcnn"}, "anchors 4: fast_rcnn has no anchors; leave anchors out"),
    (
        "4",
        {"detector": "yolov3"},
        "anchors 4: yolov3's anchors are not of one scale: give auto",
    ),
    ("auto", {"detector": "mine"}, "where the plug-in mine keeps its anchors is not known"),
]


@pytest.mark.parametrize(("anchors", "options", "message"), BAD)
def test_bad_anchors_are_one_line(anchors: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settled(anchors, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not UTF-8 text: write lines like 'anchor_scale: ...' into it"),
        (b"just words", "does not hold anchors"),
        (b"scale: 4", "unknown key in '.*mine.yaml' for faster_rcnn 'scale'"),
        (b"anchor_scale: wide", "anchor_scale is 'wide': give a number"),
    ],
)
def test_a_file_that_is_not_anchors(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        settled(str(tmp_path / "mine.yaml"))


def test_two_answers_are_refused(tmp_path: Path) -> None:
    own: dict[str, Any] = {"detector_options": {"rpn": {"anchor_scale": 4.0}}}
    with pytest.raises(UserError, match=r"anchors 2 and detector_options.rpn.anchor_scale are both given"):
        settled("2", own, **own)
    with pytest.raises(UserError, match=r"anchors 2 contradicts detector_options.rpn.anchor_scale 4"):
        settle_anchors(replace(Config(anchors="2"), **own), {})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw pictures of 96 px with squares of 6 to 9 px, in COCO's format."""
    folder, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(3)
    for split, count in (("train", 4), ("val", 2)):
        (folder / split).mkdir()
        images, notes = list[dict[str, Any]](), list[dict[str, Any]]()
        for at in range(count):
            pixels = rng.integers(90, 130, (96, 96, 3), dtype=np.uint8)
            images.append({"id": at, "file_name": f"{at}.png", "width": 96, "height": 96})
            for x, y, side in zip(*(rng.integers(8, 80, (2, 4))), rng.integers(6, 10, 4), strict=True):
                pixels[y : y + side, x : x + side] = (220, 40, 40)
                box = [int(x), int(y), int(side), int(side)]
                note = {"id": len(notes), "image_id": at, "category_id": 1, "bbox": box, "iscrowd": 0}
                notes.append(note | {"area": int(side) ** 2})
            Image.fromarray(pixels).save(folder / split / f"{at}.png")
        content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "dot"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_check_says_how_many_no_anchor_meets_and_what_to_change(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(small), "--size", "96"]) == 0
    printed = capsys.readouterr().out
    assert "16 of 16 objects get no positive anchor (100.0 %): 16 overlap none enough" in printed
    assert "--anchors auto (anchor_scale " in printed
    assert "sizes fit" not in printed
    assert main(["check", str(small), "--recipe", "small_data", "--size", "96"]) == 0
    assert "anchors of faster_rcnn, chosen on these boxes (anchor_scale " in capsys.readouterr().out
    assert main(["check", str(small), "--size", "96", "--detector", "fcos"]) == 0
    assert "points of fcos, images resized and not augmented" in capsys.readouterr().out
    assert main(["check", str(small), "--detector", "fcos", "--anchors", "auto"]) == 2
    assert "error: anchors auto: fcos has no anchors" in capsys.readouterr().err
    assert main(["check", str(small), "--detector", "focs"]) == 2
    assert "unknown detector 'focs': did you mean 'fcos'?" in capsys.readouterr().err


def test_chosen_anchors_are_kept_in_the_run(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", "--data", str(small), "--recipe", str(TINY), "--epochs", "1", "--workers", "0"]
    assert main([*common, "--out", str(tmp_path / "own"), "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "warning: 100.0 % of the training objects get no positive anchor at size 96" in printed
    assert printed.index("warning: 100.0 %") < printed.index("epoch 1/1")
    run = tmp_path / "auto"
    assert main([*common, "--anchors", "auto", "--out", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "anchors: chosen on the boxes, anchor_scale " in printed
    assert "warning" not in printed
    config, _ = read_run(run)
    rpn = config.detector_options["rpn"]
    assert config.anchors == "given"
    assert rpn["anchor_scale"] < 4
    assert len(rpn["ratios"]) == 3
    assert read_info(run / BEST).config.detector_options["rpn"] == rpn
    detector: Any = load(run / BEST)
    assert detector.rpn.anchors.cell_0[1, 2] * 2 == pytest.approx(4 * rpn["anchor_scale"], rel=0.2)
    assert main(["train", "--resume", "--out", str(run), "--epochs", "2"]) == 0
    assert "chosen on the boxes" not in capsys.readouterr().out
    assert read_run(run)[0].detector_options["rpn"] == rpn
    wanted = load_recipe(str(TINY), anchors="auto", epochs=2)
    asked = as_asked(read_run(run)[0], wanted)
    assert (asked.anchors, asked.detector_options) == ("auto", wanted.detector_options)
    other = replace(wanted, detector_options={"rpn": {"samples": 8}})
    assert as_asked(read_run(run)[0], other).detector_options["rpn"] == rpn
    again = load_recipe(str(run / CONFIG))
    assert again.detector_options["rpn"] == rpn
