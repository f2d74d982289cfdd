"""`msefpn explain`: the page, its numbers, and one clear line for what cannot be shown."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

import msefpn
from msefpn.config import load_recipe
from msefpn.data.images import read_image
from msefpn.errors import UserError
from msefpn.explaining.hooks import NeckRecord, watching
from msefpn.explaining.levels import level_moments
from msefpn.explaining.panels import Observation
from msefpn.inference.predictor import Predictor
from msefpn.metrics.similarity import cka, moments
from msefpn.models import build, load, save
from msefpn.models.detectors import OneStage
from msefpn.models.retina import RetinaHead
from tests import TINY

RECIPE = str(TINY)
CLASSES = ["<b>red</b>", "blue"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the weights of an untrained detector."""
    folder = tmp_path_factory.mktemp("explain")

    def make(
        neck: str,
        detector: str = "faster_rcnn",
        classes: list[str] = CLASSES,
        roi: dict[str, Any] | None = None,
    ) -> Path:
        path = folder / f"{detector}_{neck}{'' if roi is None else '_roi'}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            options: dict[str, Any] = {} if detector == "faster_rcnn" else {"detector_options": {}}
            config = load_recipe(RECIPE, neck=neck, detector=detector, **options)
            if roi is not None:
                config.detector_options["roi"].update(roi)
            built = build(config, classes)
            if isinstance(built, OneStage) and isinstance(built.head, RetinaHead):
                torch.nn.init.zeros_(built.head.classes.bias)  # type: ignore[arg-type]  # scores over 0.05
            save(built, path)
        return path

    return make


def test_two_runs_over_images(
    run: Callable[..., Path], tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "<i>one.jpg"
    photo.write_bytes((tiny_set / "val" / "000001.jpg").read_bytes())
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"no image")
    out = tmp_path / "page.html"
    fpn, mse = run("fpn"), run("mse_fpn", classes=["one"])
    linked = tmp_path / "linked"
    linked.mkdir()
    for image in (tiny_set / "train").iterdir():
        (linked / image.name).symlink_to(image)
    images = [tiny_set / "val", linked, torn]
    given: dict[str, Any] = {"against": mse, "images": images, "score": 0.0, "device": "cpu", "out": out}
    with pytest.raises(UserError, match="give --follow-links"):
        msefpn.explain(fpn, photo, **given)
    result = msefpn.explain(fpn, photo, **given, follow_links=True)

    assert json.loads(out.with_suffix(".json").read_text()) == result
    assert [about["neck"] for about in result["runs"]] == ["fpn", "mse_fpn"]
    assert result["runs"][0]["detections"][0]["class"] in CLASSES
    assert result["runs"][0]["detections"][0]["level"] in {"2", "3", "4", "5"}
    rows = result["similarity"]["runs"]
    assert result["similarity"]["images"] == 17
    assert [row["levels"] for row in rows] == ["2–3", "3–4", "4–5", "mean"] * 2
    for row in rows:
        assert list(row["stages"]) == ["C", "F", "T", "P"]
        assert row["change"]["value"] == pytest.approx(
            row["stages"]["P"]["value"] - row["stages"]["C"]["value"], abs=2e-5
        )
    for row in (row for row in rows if row["levels"] == "mean"):
        p = row["stages"]["P"]
        assert p["low"] < p["value"] < p["high"]
        assert p["value"] == pytest.approx(
            np.mean([r["stages"]["P"]["value"] for r in rows if r["run"] == row["run"] and r != row]),
            abs=2e-5,
        )
    means = [row["stages"]["P"]["value"] for row in rows if row["levels"] == "mean"]
    assert result["similarity"]["difference"]["stages"]["P"]["value"] == pytest.approx(
        means[1] - means[0], abs=2e-5
    )

    page = out.read_text()
    assert re.findall(r"<h2>(\w+)", page) == ["Detections", "The", "C", "SEM", "SIM", "F", "GCG", "T", "P"]
    assert "<b>red" not in page
    assert "<i>one" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    printed = capsys.readouterr().out
    assert "torn.jpg" in printed
    assert "page.json" in printed


@pytest.mark.parametrize(("neck", "detector"), [("fpn+bfp", "fast_rcnn"), ("bifpn", "retinanet")])
def test_other_necks_and_detectors_alone(
    neck: str, detector: str, run: Callable[..., Path], tiny_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    image = tiny_set / "val" / "000002.jpg"
    result = msefpn.explain(run(neck, detector), image, device="cpu", out=out, score=0.99)
    (about,) = result["runs"]
    assert (about["detections"] is None) == (detector == "fast_rcnn")
    assert "difference" not in result["similarity"]
    assert result["similarity"]["runs"][-1]["stages"]["P"]["low"] is None
    pairs = [row["levels"] for row in result["similarity"]["runs"]]
    assert pairs == (["3–4", "4–5", "mean"] if detector == "retinanet" else ["2–3", "3–4", "4–5", "mean"])


@pytest.mark.parametrize(
    ("detector", "roi", "levels"),
    [
        ("faster_rcnn", None, {"2", "3", "4", "5"}),
        ("retinanet", None, {"3", "4", "5", "6", "7"}),
        ("faster_rcnn", {"pooling": "soft"}, {None}),
    ],
)
def test_level_of_a_box_is_the_one_that_the_detector_tells(
    detector: str,
    roi: dict[str, Any] | None,
    levels: set[str | None],
    run: Callable[..., Path],
    tiny_set: Path,
    tmp_path: Path,
) -> None:
    weights, image = run("fpn", detector, roi=roi), tiny_set / "val" / "000001.jpg"
    out = tmp_path / "page.html"
    result = msefpn.explain(weights, image, device="cpu", out=out, score=0.0)
    found = result["runs"][0]["detections"]
    (expected,) = Predictor.open(weights, device="cpu")([read_image(image)])
    assert len(found) == len(expected.boxes) > 0
    if roi is not None:
        assert expected.strides is None
        assert {item["level"] for item in found} == levels
        return
    assert expected.strides is not None
    order = np.argsort(-expected.scores.round(4), kind="stable")
    strides = np.log2(expected.strides[order]).astype(int)
    assert [item["level"] for item in found] == [str(level) for level in strides]
    assert {item["level"] for item in found} <= levels
    assert f" from P{found[0]['level']}" in out.read_text()


def test_padding_is_left_out_and_levels_are_averaged_to_one_grid() -> None:
    torch.manual_seed(0)
    fine, coarse = torch.randn(3, 16, 24), torch.randn(5, 8, 12)
    fine[:, 10:], coarse[:, 5:] = 1e6, -1e6  # rows of padding: the picture has 78 of 128
    fine[:, :, 21:], coarse[:, :, 10:] = 1e6, -1e6  # and 161 of 192 columns
    stages = {"C": {8: fine, 16: coarse}, "P": {8: fine, 16: coarse, 32: coarse[:, ::2, ::2]}}
    observed = Observation(NeckRecord(stages), None, (78, 161), (128, 192))
    found = level_moments(observed)
    assert set(found) == {("C", 8), ("P", 8)}  # no level of the backbone beyond stride 16
    x = avg_pool2d(fine[None], 2)[0, :, :5, :10].flatten(1).T.numpy()
    y = coarse[:, :5, :10].flatten(1).T.numpy()
    assert cka(found["P", 8]) == pytest.approx(float(cka(moments(x, y))), abs=1e-6)


def test_nothing_is_written_over(
    run: Callable[..., Path], tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tiny_set / "val" / "000003.jpg"
    Path("explain-1.json").write_text("mine")
    msefpn.explain(run("fpn"), image, device="cpu")
    assert Path("explain-2.html").is_file()
    assert Path("explain-1.json").read_text() == "mine"
    assert not Path("explain-1.html").exists()
    for name in ("explain-1.html", "explain-2.html"):
        with pytest.raises(UserError, match="already exists"):
            msefpn.explain(run("fpn"), image, device="cpu", out=name)


def test_mistakes_are_told_in_one_line(run: Callable[..., Path], tiny_set: Path, tmp_path: Path) -> None:
    image = tiny_set / "val" / "000001.jpg"
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"no image")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(run("fpn").read_bytes()[:5000])
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"")
    good: dict[str, Any] = {"run": run("fpn"), "image": image, "out": tmp_path / "page.html", "device": "cpu"}
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"image": torn}, "torn.png: no image"),
        ({"image": tmp_path / "none.png"}, "none.png"),
        ({"image": tiny_set / "val"}, "val"),
        ({"run": broken}, "broken or half-written"),
        ({"run": tmp_path / "nowhere"}, "no weights at"),
        ({"against": broken}, "broken or half-written"),
        ({"run": exported}, "is an exported file"),
        ({"against": run("fpn")}, "twice"),
        ({"images": [torn]}, "none of the 1 images can be read"),
        ({"images": "none/*.jpg"}, "no image found"),
        ({"score": 1.5}, "must be 0 to 1"),
        ({"size": "huge"}, "size"),
        ({"out": tmp_path / "page.pdf"}, "name a new .html file"),
        ({"out": tmp_path / "none" / "page.html"}, "does not exist"),
    ]
    for wrong, said in mistakes:
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            msefpn.explain(**(good | wrong))
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"torn.png", "broken.safetensors", "model.onnx"}


def test_watching_changes_no_detection(run: Callable[..., Path], tiny_set: Path, tmp_path: Path) -> None:
    detector = load(run("mse_fpn"))
    images = torch.from_numpy(np.array(Image.open(tiny_set / "val" / "000001.jpg"))[:96, :96]).permute(
        2, 0, 1
    )
    sizes = torch.tensor([[96, 96]])
    with torch.no_grad():
        alone = detector(images[None], sizes)
        with watching(detector.neck):
            seen = detector(images[None], sizes)
    torch.testing.assert_close(seen.boxes, alone.boxes, rtol=0, atol=0)
