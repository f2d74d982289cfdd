"""The numbers equal those of pycocotools, the judge."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from msefpn.data import synthetic
from msefpn.data.coco import read_coco
from msefpn.data.locate import find_split
from msefpn.data.masks import decode_masks, encode_mask, run_lengths
from msefpn.engine.truth import truth_of
from msefpn.metrics.coco import MASK, NUMBERS, evaluate_coco, scores_of

CATEGORY_IDS = (3, 7, 8, 90)


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


@pytest.mark.parametrize("seed", range(6))
def test_numbers_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    predictions = random_predictions(rng, truth)
    expected, per_class = judge(truth, predictions)

    before = copy.deepcopy((truth, predictions))
    result = evaluate_coco(truth, predictions)

    assert [result[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-6)
    assert result["per_class"] == pytest.approx(per_class, abs=1e-6)
    assert 0.05 < result["AP"] < 0.95
    assert result["per_class"]["class 90"] == -1, "a class without truth has no AP"
    assert (truth, predictions) == before, "the arguments are left as they were"


def test_more_than_a_hundred_detections_in_an_image() -> None:
    rng = np.random.default_rng(7)
    truth = random_truth(rng, images=2)
    predictions = [item for _ in range(25) for item in random_predictions(rng, truth)]
    predictions = [item for item in predictions if item["image_id"] in (10, 11)]
    assert len(predictions) > 100
    expected, _ = judge(truth, predictions)
    result = evaluate_coco(truth, predictions)
    assert [result[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-6)


def test_no_predictions(tmp_path: Path) -> None:
    truth = random_truth(np.random.default_rng(0))
    expected, _ = judge(truth, [])
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    result = evaluate_coco(file, [])
    assert [result[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-6)
    assert result["AP"] == 0


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
    assert complete["APs"] > 0


def test_the_data_as_read_is_judged_as_its_json(tmp_path: Path) -> None:
    """The areas in the json are those of masks: the sizes of objects must follow them, not the boxes."""
    synthetic.draw(tmp_path / "set", train=12, val=1, seed=0)
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
    result = evaluate_coco(ours, predictions)
    assert [result[name] for name in NUMBERS] == pytest.approx(expected, abs=1e-6)
    assert min(result[name] for name in ("APs", "APm", "APl")) > 0
    for item in ours["annotations"]:
        item["area"] = item["bbox"][2] * item["bbox"][3]
    by_boxes = evaluate_coco(ours, predictions)
    assert by_boxes["AP"] == result["AP"]
    assert all(by_boxes[name] != result[name] for name in ("APs", "APm", "APl"))


def test_masks_are_judged_as_by_pycocotools(tmp_path: Path) -> None:
    synthetic.draw(tmp_path / "set", train=12, val=1, seed=0)
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
    result = evaluate_coco(truth, predictions, masks=True)
    assert [result[MASK + name] for name in NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert 0.2 < result["mask_AP"] < 0.95
    assert min(result[MASK + name] for name in ("APs", "APm", "APl")) > 0
    assert set(result["mask_per_class"]) == set(result["per_class"])
    boxes = evaluate_coco(truth, predictions)
    assert {name: result[name] for name in boxes} == boxes
    assert set(scores_of(result)) == {*NUMBERS, *(MASK + name for name in NUMBERS)}
