"""The numbers equal those of pycocotools, the judge."""

import contextlib
import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msefpn.data import synthetic
from msefpn.data.coco import truth_of
from msefpn.data.locate import find_split
from msefpn.data.masks import decode_masks, encode_mask, run_lengths
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.metrics.coco import NUMBERS, CocoEvaluation, CocoScores, evaluate_coco
from tests import ROOT

CATEGORY_IDS = (3, 7, 8, 90)
MODULE = "msefpn.metrics.coco"


@pytest.fixture(params=["hotcoco", "faster_coco_eval"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the evaluators, with the other out of reach."""
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
        monkeypatch.setattr(f"{MODULE}.COCOeval_faster", None)
    else:
        monkeypatch.setattr(f"{MODULE}.hotcoco", None)


def random_truth(rng: np.random.Generator, images: int = 24) -> dict[str, Any]:
    """Boxes of all three sizes; crowds, images without boxes, one class that never occurs."""
    annotations: list[dict[str, Any]] = []
    for image in range(10, 10 + images):
        for _ in range(rng.integers(0, 12) if image % 5 else 0):
            side = np.exp(rng.uniform(np.log(6), np.log(220), 2))
            x, y = rng.uniform(0, 300, 2)
            box = [round(float(v), 2) for v in (x, y, *side)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(CATEGORY_IDS[:3])),
                    "bbox": box,
                    "area": box[2] * box[3] * float(rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    return {
        "images": [{"id": image, "width": 640, "height": 480} for image in range(10, 10 + images)],
        "categories": [{"id": id, "name": f"class {id}"} for id in CATEGORY_IDS],
        "annotations": annotations,
    }


def random_predictions(rng: np.random.Generator, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Jittered truth, doubles, wrong classes and noise, with scores so coarse that many are equal."""
    predictions = []
    for item in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(item["bbox"]) + rng.normal(0, 0.08, 4) * np.array(item["bbox"])[[2, 3, 2, 3]]
            wrong = rng.random() < 0.2
            predictions.append(
                {
                    "image_id": int(rng.integers(10, 34)) if rng.random() < 0.05 else item["image_id"],
                    "category_id": int(rng.choice(CATEGORY_IDS)) if wrong else item["category_id"],
                    "bbox": [round(float(v), 2) for v in np.maximum(box, 1)],
                    "score": round(float(rng.random()), 1),
                }
            )
    return predictions


def judge(
    truth: dict[str, Any], predictions: list[dict[str, Any]], kind: str = "bbox"
) -> tuple[list[float], dict[str, float]]:
    """What pycocotools says: the 12 numbers and AP per class."""
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = copy.deepcopy(truth)
        expected.createIndex()
        if predictions:
            found = expected.loadRes(copy.deepcopy(predictions))
        else:
            found = COCO()
            found.dataset = copy.deepcopy(truth) | {"annotations": []}
            found.createIndex()
        evaluator = COCOeval(expected, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    per_class = {}
    for index, category in enumerate(evaluator.params.catIds):
        values = evaluator.eval["precision"][:, :, index, 0, 2]
        values = values[values > -1]
        per_class[f"class {category}"] = float(values.mean()) if values.size else -1.0
    return list(evaluator.stats), per_class


def corner_case(rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Few boxes, corners on a grid: equal scores, IoUs at the thresholds, areas at the limits; any ids."""
    height, width = 160, 200
    images = rng.choice(1000, rng.integers(1, 7), replace=False).tolist()
    categories = rng.choice(100, rng.integers(1, 5), replace=False).tolist()
    if rng.random() < 0.3:
        images[0] = categories[-1] = 0
    step, digits, many = int(rng.choice([1, 4, 16])), int(rng.integers(0, 4)), rng.random() < 0.1
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []

    def item(image: int, category: int, box: Any) -> dict[str, Any]:
        shared = {"image_id": image, "category_id": category, "bbox": [float(side) for side in box]}
        mask = np.zeros((height, width), dtype=bool)
        x, y, w, h = (int(side) for side in box)
        mask[y : y + h : 1 + (rng.random() < 0.3), x : x + w] = True
        return shared | {"segmentation": run_lengths(encode_mask(mask), mask.shape)}

    def anywhere() -> Any:
        sides = np.exp(rng.uniform(np.log(4), np.log(150), 2))
        box = np.concatenate([rng.uniform(0, 1, 2) * (np.array([width, height]) - sides), sides])
        return np.maximum((box / step).round() * step, [0, 0, step, step])

    for image in images:
        own: list[dict[str, Any]] = []
        for _ in range(rng.integers(0, 8) if rng.random() < 0.8 else 0):
            truth = item(image, int(rng.choice(categories[: max(1, len(categories) - 1)])), anywhere())
            area = truth["bbox"][2] * truth["bbox"][3]
            truth["area"] = float(rng.choice([area, area * rng.uniform(0.5, 1), 32**2, 96**2]))
            own.append(truth | {"id": len(annotations) + len(own) + 1, "iscrowd": int(rng.random() < 0.2)})
        annotations += own
        for _ in range(rng.integers(110, 200) if many else rng.integers(0, 16)):
            box, category = anywhere(), int(rng.choice(categories))
            if own and rng.random() < 0.7:
                near = own[rng.integers(len(own))]
                moved = np.array(near["bbox"]) + rng.integers(-1, 2, 4) * step
                box, category = np.maximum(moved, [0, 0, 1, 1]), near["category_id"]
            score = round(float(rng.random()), digits)
            predictions.append(item(image, category, box) | {"score": score})
    for shuffled in (images, annotations, predictions):
        if rng.random() < 0.3:
            rng.shuffle(shuffled)
    truth = {
        "images": [{"id": id, "width": width, "height": height} for id in images],
        "categories": [{"id": id, "name": f"class {id}"} for id in categories],
        "annotations": annotations,
    }
    return truth, predictions if rng.random() < 0.95 else []


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("seed", range(6))
def test_numbers_equal_pycocotools(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    predictions = random_predictions(rng, truth)
    expected, per_class = judge(truth, predictions)

    before = copy.deepcopy((truth, predictions))
    result = evaluate_coco(truth, predictions).box

    assert [result.numbers[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert result.per_class == pytest.approx(per_class, abs=1e-9)
    assert 0.05 < result.numbers["AP"] < 0.95
    assert result.per_class["class 90"] == -1, "a class without truth has no AP"
    assert (truth, predictions) == before, "the arguments are left as they were"
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def judged_corner_cases() -> list[tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]]:
    """Ground truth, predictions, and what pycocotools says of their boxes and masks."""
    cases = []
    for seed in range(40):
        truth, predictions = corner_case(np.random.default_rng(seed))
        bare = [{key: value for key, value in item.items() if key != "bbox"} for item in predictions]
        sides = {"box": judge(truth, predictions), "mask": judge(truth, bare, "segm")}
        cases.append((truth, predictions, sides))
    return cases


@pytest.mark.usefixtures("either")
def test_corner_cases_equal_pycocotools(judged_corner_cases: Any) -> None:
    found = 0
    for seed, (truth, predictions, sides) in enumerate(judged_corner_cases):
        result = evaluate_coco(truth, predictions, masks=True)
        for kind, (expected, per_class) in sides.items():
            scores = getattr(result, kind)
            assert [scores.numbers[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9), seed
            assert scores.per_class == pytest.approx(per_class, abs=1e-9), seed
        found += result.box.numbers["AP"] > 0.05
    assert found > 10, "many cases have something to compare"


@pytest.mark.usefixtures("either")
def test_more_than_a_hundred_detections_in_an_image() -> None:
    rng = np.random.default_rng(7)
    truth = random_truth(rng, images=2)
    predictions = [item for _ in range(25) for item in random_predictions(rng, truth)]
    predictions = [item for item in predictions if item["image_id"] in (10, 11)]
    assert len(predictions) > 100
    expected, _ = judge(truth, predictions)
    result = evaluate_coco(truth, predictions).box
    assert [result.numbers[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("either")
def test_no_predictions(tmp_path: Path) -> None:
    truth = random_truth(np.random.default_rng(0))
    expected, _ = judge(truth, [])
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    result = evaluate_coco(file, []).box
    assert [result.numbers[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert result.numbers["AP"] == 0


@pytest.mark.usefixtures("either")
def test_what_belongs_to_no_category_or_image_counts_for_nothing() -> None:
    rng = np.random.default_rng(2)
    truth = random_truth(rng)
    predictions = random_predictions(rng, truth)
    expected = evaluate_coco(truth, predictions)
    strays = [predictions[0] | {"category_id": 5}, predictions[0] | {"image_id": 5}]
    unknown = [truth["annotations"][0] | {"category_id": 5}, truth["annotations"][0] | {"image_id": 5}]
    twice = {"annotations": truth["annotations"] + unknown, "images": truth["images"] + truth["images"][:3]}
    assert evaluate_coco(truth | twice, predictions + strays) == expected


@pytest.mark.parametrize("kind", ["image", "category"])
def test_ids_below_0_are_judged_too(kind: str) -> None:
    """hotcoco refuses them."""
    rng = np.random.default_rng(3)
    truth = random_truth(rng)
    predictions = random_predictions(rng, truth)
    for item in [*truth["annotations"], *predictions]:
        item[f"{kind}_id"] -= 20
    for item in truth["images" if kind == "image" else "categories"]:
        item["id"] -= 20
    expected, _ = judge(truth, predictions)
    result = evaluate_coco(truth, predictions).box
    assert [result.numbers[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert result.numbers["AP"] > 0.05


def test_works_without_hotcoco(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    truth = random_truth(rng)
    predictions = random_predictions(rng, truth)
    (tmp_path / "both.json").write_text(json.dumps([truth, predictions]))
    code = f"import sys, json; sys.modules['hotcoco'] = None; from {MODULE} import evaluate_coco; "
    code += f"print(json.dumps(evaluate_coco(*json.load(open({str(tmp_path / 'both.json')!r}))).to_json()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    without, result = json.loads(done.stdout), evaluate_coco(truth, predictions).to_json()
    assert without.pop("per_class") == pytest.approx(result.pop("per_class"), abs=1e-9)
    assert without == pytest.approx(result, abs=1e-9)


@pytest.mark.usefixtures("either")
def test_missing_areas_are_those_of_the_boxes() -> None:
    rng = np.random.default_rng(1)
    truth = random_truth(rng)
    predictions = random_predictions(rng, truth)
    for item in truth["annotations"]:
        item |= {"area": item["bbox"][2] * item["bbox"][3], "iscrowd": 0}
    complete = evaluate_coco(truth, predictions)
    for item in truth["annotations"]:
        del item["area"], item["iscrowd"]
    assert evaluate_coco(truth, predictions) == complete
    assert complete.box.numbers["APs"] > 0


@pytest.mark.usefixtures("either")
def test_the_data_as_read_is_judged_as_its_json(tmp_path: Path) -> None:
    """The areas in the json are those of masks: the sizes of objects must follow them, not the boxes."""
    synthetic.draw_builtin_set(tmp_path / "set", train=12, val=1, seed=0)
    file, folder = find_split(tmp_path / "set", "train")
    content = json.loads(file.read_text())
    ours = truth_of(read_coco(file, folder)[0])
    rng = np.random.default_rng(0)
    predictions = [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": [v * float(rng.uniform(0.9, 1.1)) for v in item["bbox"]],
            "score": float(rng.random()),
        }
        for item in content["annotations"]
    ]
    expected, _ = judge(content, predictions)
    result = evaluate_coco(ours, predictions).box
    assert [result.numbers[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert min(result.numbers[name] for name in ("APs", "APm", "APl")) > 0
    for item in ours["annotations"]:
        item["area"] = item["bbox"][2] * item["bbox"][3]
    by_boxes = evaluate_coco(ours, predictions).box
    assert by_boxes.numbers["AP"] == result.numbers["AP"]
    assert all(by_boxes.numbers[name] != result.numbers[name] for name in ("APs", "APm", "APl"))


@pytest.mark.usefixtures("either")
def test_masks_are_judged_as_by_pycocotools(tmp_path: Path) -> None:
    synthetic.draw_builtin_set(tmp_path / "set", train=12, val=1, seed=0)
    file, folder = find_split(tmp_path / "set", "train")
    truth = truth_of(read_coco(file, folder, masks=True)[0])
    rng = np.random.default_rng(0)
    predictions = []
    for item in truth["annotations"]:
        mask = decode_masks([item["segmentation"]["counts"].encode()], item["segmentation"]["size"])[0]
        moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1)).astype(bool)
        segmentation = run_lengths(encode_mask(moved), mask.shape)
        shared = {key: item[key] for key in ("image_id", "category_id", "bbox")}
        predictions.append(shared | {"score": float(rng.random()), "segmentation": segmentation})
    bare = [{key: value for key, value in item.items() if key != "bbox"} for item in predictions]
    expected, _ = judge(truth, bare, "segm")
    both = evaluate_coco(truth, predictions, masks=True)
    assert both.mask is not None
    result = both.mask.numbers
    assert [result[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert 0.2 < result["AP"] < 0.95
    assert min(result[name] for name in ("APs", "APm", "APl")) > 0
    assert set(both.mask.per_class) == set(both.box.per_class)
    boxes = evaluate_coco(truth, predictions)
    assert (boxes.box, boxes.mask) == (both.box, None)


def test_layout_of_files() -> None:
    numbers = {name: place / 20 for place, name in enumerate(NUMBERS)}
    box, mask = CocoScores(numbers, {"a": 0.5}), CocoScores(numbers | {"AP": 0.9}, {"a": 0.9})
    alone, both = CocoEvaluation(box), CocoEvaluation(box, mask)
    assert alone.to_json() == {**numbers, "per_class": {"a": 0.5}}
    assert both.to_json() == {**alone.to_json(), "mask": {**mask.numbers, "per_class": {"a": 0.9}}}
    for one in (alone, both):
        assert CocoEvaluation.from_json({"epoch": 3} | json.loads(json.dumps(one.to_json()))) == one
    assert alone.named() == numbers
    assert both.named() == numbers | {f"mask_{name}": value for name, value in mask.numbers.items()}
    with pytest.raises(UserError, match=r"layout of msefpn 0\.1: evaluate the run again"):
        CocoEvaluation.from_json({**alone.to_json(), "mask_AP": 0.3})


def test_benchmark_compares_evaluators() -> None:
    words = ["--images", "20", "--boxes", "150", "--detections", "1500", "--classes", "6", "--rounds", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "coco.py"), *words]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[-3:]]
    assert [row[0] for row in rows] == ["ours", "faster-coco-eval", "pycocotools"]
    assert all(float(row[-1]) <= 1e-9 for row in rows)
