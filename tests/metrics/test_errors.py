"""Matching, curves, confusion and errors: against COCO's evaluation, and on cases whose answer is known."""

from typing import Any

import numpy as np
import pytest

from msefpn.metrics.coco import evaluate_coco
from msefpn.metrics.confusion import match_outcomes
from msefpn.metrics.curves import ap_over_sizes, best_f1, precision_curves, size_edges
from msefpn.metrics.errors import ERROR_KINDS, analyse_errors
from msefpn.metrics.matching import BoxPredictions, GroundTruth

Box = tuple[float, float, float, float]


def truth_of(*objects: tuple[int, int, Box], crowd: tuple[int, ...] = ()) -> GroundTruth:
    """Objects: image, label, x, y, width, height; `crowd`: the rows that are one."""
    boxes = np.array([box for _, _, box in objects], dtype=np.float64).reshape(-1, 4)
    flags = np.isin(np.arange(len(objects)), crowd)
    image, label = (np.array([item[at] for item in objects], dtype=np.int64) for at in (0, 1))
    return GroundTruth(image, label, boxes, boxes[:, 2] * boxes[:, 3], flags)


def predicted_of(*found: tuple[int, int, Box, float]) -> BoxPredictions:
    """Detections: image, label, box, score."""
    boxes = np.array([item[2] for item in found], dtype=np.float64).reshape(-1, 4)
    image, label = (np.array([item[at] for item in found], dtype=np.int64) for at in (0, 1))
    return BoxPredictions(image, label, boxes, np.array([item[3] for item in found], dtype=np.float64))


def random_set(seed: int, *, images: int = 12, classes: int = 3) -> tuple[GroundTruth, BoxPredictions]:
    """Objects, some of them crowds, and detections around and beside them, with equal scores among them."""
    rng = np.random.default_rng(seed)
    count = 8 * images
    image, label = rng.integers(images, size=count), rng.integers(classes, size=count)
    boxes = np.concatenate([rng.uniform(0, 80, (count, 2)), rng.uniform(4, 120, (count, 2))], axis=1).round(1)
    area = (boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, count)).round(1)
    truth = GroundTruth(image, label, boxes, area, rng.random(count) < 0.1)
    rows = rng.integers(count, size=3 * count)
    near = np.abs(boxes[rows] + rng.normal(0, 5, (len(rows), 4))).round(1)
    classes_ = np.where(rng.random(len(rows)) < 0.8, label[rows], rng.integers(classes, size=len(rows)))
    found = BoxPredictions(image[rows], classes_, near, rng.random(len(rows)).round(2))
    return truth, found.where(np.argsort(found.image, kind="stable"))


def as_coco(
    truth: GroundTruth, predicted: BoxPredictions, classes: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    content = {
        "images": [{"id": int(i) + 1, "height": 300, "width": 300} for i in range(truth.image.max() + 1)],
        "categories": [{"id": i + 1, "name": f"c{i}"} for i in range(classes)],
        "annotations": [
            {"id": row + 1, "image_id": int(i) + 1, "category_id": int(k) + 1, "bbox": b.tolist()}
            | {"area": float(a), "iscrowd": int(c)}
            for row, (i, k, b, a, c) in enumerate(zip(*truth, strict=True))
        ],
    }
    results = [
        {"image_id": int(i) + 1, "category_id": int(k) + 1, "bbox": b.tolist(), "score": float(s)}
        for i, k, b, s in zip(*predicted, strict=True)
    ]
    return content, results


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_coco(seed: int) -> None:
    truth, predicted = random_set(seed)
    scores = evaluate_coco(*as_coco(truth, predicted, 4)).box
    numbers = scores.numbers
    curves = precision_curves(truth, predicted, 4)
    assert curves.ap == pytest.approx(numbers["AP"], abs=1e-9)
    assert curves.per_class == pytest.approx([*scores.per_class.values()], abs=1e-9)
    assert curves.per_class[3] == -1
    assert analyse_errors(truth, predicted, 4).ap50 == pytest.approx(numbers["AP50"], abs=1e-9)
    for name, sizes in {"APs": (0, 32), "APm": (32, 96), "APl": (96, np.inf)}.items():
        assert precision_curves(truth, predicted, 4, sizes=sizes).ap == pytest.approx(numbers[name], abs=1e-9)


def test_only_the_best_hundred_of_an_image_and_class_count() -> None:
    truth = truth_of((0, 0, (0, 0, 10, 10)))
    wrong = [(0, 0, (50.0, 50.0, 10.0, 10.0), 0.9)] * 100
    assert precision_curves(truth, predicted_of(*wrong, (0, 0, (0, 0, 10, 10), 0.1)), 1).ap == 0
    assert precision_curves(truth, predicted_of(*wrong[1:], (0, 0, (0, 0, 10, 10), 0.1)), 1).ap > 0


def test_nothing_at_all_is_no_error() -> None:
    nothing, nobody = truth_of(), predicted_of()
    assert precision_curves(nothing, nobody, 2).ap == -1
    assert best_f1(nothing, nobody, precision_curves(nothing, nobody, 2)) == (0, 0, 0, 0)
    assert analyse_errors(nothing, nobody, 2).ap50 == -1
    verdicts = match_outcomes(nothing, nobody, 2, 3, score=0.5)
    assert verdicts.quality.tolist() == [1, 1, 1]
    assert not verdicts.matrix.any()


BASE: Box = (0, 0, 100, 100)
HALF_OFF: Box = (50, 0, 100, 100)
"""IoU 1/3 with BASE."""
FAR: Box = (500, 500, 100, 100)
PLANTED = {
    "class": (0, 1, BASE, 0.9),
    "location": (0, 0, HALF_OFF, 0.9),
    "both": (0, 1, HALF_OFF, 0.9),
    "background": (0, 0, FAR, 0.9),
    "duplicate": (0, 0, BASE, 0.9),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_error_is_found_once_and_fixed(kind: str) -> None:
    """One object of two classes each; the second is found; the first has the planted error beside it."""
    truth = truth_of((0, 0, BASE), (1, 1, BASE))
    detections = [(1, 1, BASE, 0.8), PLANTED[kind]]
    detections += [(0, 0, BASE, 0.95)] if kind == "duplicate" else []
    errors = analyse_errors(truth, predicted_of(*detections), 2)
    lost = kind in ("both", "background")  # nothing else could have been the first object's
    assert errors.counts == dict.fromkeys(ERROR_KINDS, 0) | {kind: 1} | {"missed": int(lost)}
    # fixed, class and location make both objects found; a wrong detection of the second class halves its AP
    wrong_second = PLANTED[kind][1] == 1
    before = (1.0 if kind == "duplicate" else 0.0, 0.5 if wrong_second else 1.0)
    assert errors.ap50 == pytest.approx(np.mean(before))
    gain = {"class": 0.75, "location": 0.5, "both": 0.25, "background": 0.0, "duplicate": 0.0}
    assert errors.cost[kind] == pytest.approx(gain[kind])
    others = {name: cost for name, cost in errors.cost.items() if name not in (kind, "missed")}
    assert set(others.values()) == {0}
    assert errors.cost["missed"] == pytest.approx(0.5 if lost else 0.0)


def test_missed_object_costs_its_recall() -> None:
    truth = truth_of((0, 0, BASE), (0, 0, FAR), (1, 0, BASE), (1, 0, FAR))
    errors = analyse_errors(truth, predicted_of(*[(i, 0, BASE, 0.9) for i in (0, 1)], (0, 0, FAR, 0.8)), 1)
    assert errors.counts == dict.fromkeys(ERROR_KINDS, 0) | {"missed": 1}
    assert errors.missed.tolist() == [False, False, False, True]
    assert errors.ap50 == pytest.approx(76 / 101)  # recall 0.75: 76 of the 101 points
    assert errors.cost["missed"] == pytest.approx(1 - 76 / 101)


def test_of_two_fixed_detections_the_better_stays() -> None:
    truth = truth_of((0, 0, BASE))
    both = predicted_of((0, 0, HALF_OFF, 0.9), (0, 0, (-50, 0, 100, 100), 0.8), (0, 1, BASE, 0.7))
    errors = analyse_errors(truth, both, 2)
    assert errors.counts["location"] == 2
    assert errors.counts["class"] == 1
    assert errors.cost["location"] == 1
    # the wrong class becomes a match after two wrong ones
    assert errors.cost["class"] == pytest.approx(1 / 3)


def test_detection_on_a_crowd_is_no_error() -> None:
    truth = truth_of((0, 0, BASE), (0, 0, FAR), crowd=(1,))
    on_crowd = (0, 0, (510.0, 510.0, 20.0, 20.0), 0.95)
    found = predicted_of((0, 0, BASE, 0.9), on_crowd, on_crowd)
    assert set(analyse_errors(truth, found, 1).counts.values()) == {0}
    verdicts = match_outcomes(truth, found, 1, 1, score=0.5)
    assert verdicts.matrix.tolist() == [[1, 0], [0, 0]]
    assert verdicts.ignored.sum() == 2


def test_confusion_matrix_of_a_known_case() -> None:
    aside: Box = (200, 0, 100, 100)
    truth = truth_of((0, 0, BASE), (0, 1, aside), (0, 1, FAR), (1, 0, BASE))
    found = predicted_of(
        (0, 1, (2, 0, 100, 100), 0.9),  # a first class taken for the second
        (0, 1, aside, 0.8),
        (0, 0, (800, 0, 50, 50), 0.7),  # background
        (1, 0, BASE, 0.4),  # under the score
    )
    verdicts = match_outcomes(truth, found, 2, 3, score=0.5)
    assert verdicts.matrix.tolist() == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]
    assert verdicts.missed.tolist() == [2, 3]
    assert verdicts.wrong_score == pytest.approx([1.6, 0, 0])
    assert verdicts.quality == pytest.approx([1 / (1 + 0.5 * 2 + 0.5 * 2), 0, 1])


def test_own_class_comes_before_a_nearer_object_of_another() -> None:
    truth = truth_of((0, 0, BASE), (0, 1, (10, 0, 100, 100)))
    found = predicted_of((0, 0, (10, 0, 100, 100), 0.9), (0, 1, BASE, 0.8))
    assert match_outcomes(truth, found, 2, 1, score=0).matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_best_score_is_that_of_the_greatest_f1() -> None:
    truth = truth_of((0, 0, BASE), (0, 0, FAR))
    empty: Box = (900, 0, 9, 9)
    found = predicted_of((0, 0, BASE, 0.9), (0, 0, FAR, 0.6), (0, 0, empty, 0.6), (0, 0, empty, 0.3))
    score, f1, precision, recall = best_f1(truth, found, precision_curves(truth, found, 1))
    assert (score, recall) == (0.6, 1)  # equal scores cannot be told apart: three are kept
    assert precision == pytest.approx(2 / 3)
    assert f1 == pytest.approx(0.8)


def test_size_bins_hold_every_object_once() -> None:
    truth, predicted = random_set(0)
    edges = size_edges(truth)
    assert (edges[0], edges[-1]) == (0, np.inf)
    bins = ap_over_sizes(truth, predicted, 3, edges)
    assert len(bins) == 8
    assert sum(item.objects for item in bins) == (~truth.crowd).sum()
    assert all((item.ap >= 0) == (item.objects > 0) for item in bins)
    one = truth_of((0, 0, BASE))
    assert [item.objects for item in ap_over_sizes(one, predicted_of(), 1, size_edges(one))].count(1) == 1
