"""COCO's evaluation by ours, faster-coco-eval and pycocotools, side by side: python benchmarks/coco.py

Truth and detections of the size of val2017 are drawn. Each evaluation runs in a process of its own, on one
thread; rounds are interleaved, so that a drift of the machine's speed falls on all alike. The time is that
from lists of dicts to the 12 numbers and AP per class: the clock's, and the processor's, which other work on
the machine hardly changes. Ratios of medians are what counts. Memory is the process's peak beyond what it
held once the inputs were drawn and a small evaluation had loaded the libraries; on Linux alone.
"""

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msefpn.metrics.coco import NUMBERS, evaluate_coco
from msefpn.runs.memory import peak_memory

Numbers = tuple[list[float], list[float]]
"""The 12 numbers, and AP of each class in the order of the category ids."""
THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
REFERENCE = "pycocotools"


@dataclass(frozen=True)
class Sizes:
    """How much is drawn; val2017's by default."""

    images: int = 5000
    boxes: int = 36_000
    detections: int = 500_000
    classes: int = 80


@dataclass(frozen=True)
class Measured:
    """One evaluator's medians."""

    seconds: float
    processor_seconds: float
    peak: float
    """Bytes beyond the inputs; 0 where the system does not tell."""
    difference: float
    """Largest from pycocotools' of the 12 numbers and AP per class."""
    ap: float


def draw(sizes: Sizes, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's json and results: a third of the detections near a true box, many equal scores, 1 % crowds.

    Ids neither begin at 1 nor are they without gaps; some images have no box and rare classes may have none.
    """
    rng = np.random.default_rng(seed)
    frame = np.array([640, 480])
    crowded, common = rng.exponential(size=sizes.images), 1 / np.arange(1, sizes.classes + 1)
    owner = np.sort(rng.choice(sizes.images, sizes.boxes, p=crowded / crowded.sum()))
    label = rng.choice(sizes.classes, sizes.boxes, p=common / common.sum())
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (sizes.boxes, 2)))
    boxes = np.concatenate([rng.uniform(0, 1, (sizes.boxes, 2)) * (frame - sides), sides], 1).round(2)
    areas = boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, sizes.boxes)
    crowd = rng.random(sizes.boxes) < 0.01

    image = np.arange(sizes.detections) * sizes.images // sizes.detections
    first, count = np.searchsorted(owner, image), np.bincount(owner, minlength=sizes.images)[image]
    near = (rng.random(sizes.detections) < 1 / 3) & (count > 0)
    source = np.where(
        near,
        first + (rng.random(sizes.detections) * count).astype(int),
        rng.integers(sizes.boxes, size=len(image)),
    )
    scale = np.where(near, 0.08, 1)[:, None] * boxes[source][:, [2, 3, 2, 3]]
    places = np.maximum(boxes[source] + rng.normal(size=(sizes.detections, 4)) * scale, 1).round(2)
    scores = np.where(near, rng.beta(2, 2, len(near)), rng.beta(1, 6, len(near))).round(3)

    def records(images: Any, labels: Any, places: Any) -> list[dict[str, Any]]:
        return [
            {"image_id": 10 + 3 * int(image), "category_id": 5 + 2 * int(label), "bbox": place.tolist()}
            for image, label, place in zip(images, labels, places, strict=True)
        ]

    annotations, found = records(owner, label, boxes), records(image, label[source], places)
    for row, item in enumerate(annotations):
        item |= {"id": row + 1, "area": float(areas[row]), "iscrowd": int(crowd[row])}
    for item, score in zip(found, scores.tolist(), strict=True):
        item["score"] = score
    truth = {
        "images": [{"id": 10 + 3 * index, "width": 640, "height": 480} for index in range(sizes.images)],
        "categories": [{"id": 5 + 2 * index, "name": f"class {index}"} for index in range(sizes.classes)],
        "annotations": annotations,
    }
    return truth, found


def by_ours(truth: dict[str, Any], found: list[dict[str, Any]]) -> Numbers:
    """Evaluate with `evaluate_coco`."""
    scores = evaluate_coco(truth, found).box
    return [scores.numbers[name] for name in NUMBERS], list(scores.per_class.values())


def by_faster_coco_eval(truth: dict[str, Any], found: list[dict[str, Any]]) -> Numbers:
    """Evaluate with faster-coco-eval, as its users do."""
    from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415

    expected = COCO(truth)
    evaluator = COCOeval_faster(expected, expected.loadRes(found), iouType="bbox")
    evaluator.run()
    return [float(value) for value in evaluator.stats[:12]], _per_class(evaluator.eval["precision"])


def by_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]]) -> Numbers:
    """Evaluate with pycocotools, the judge."""
    from pycocotools.coco import COCO  # noqa: PLC0415
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        evaluator = COCOeval(expected, expected.loadRes(found), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats], _per_class(evaluator.eval["precision"])


def _per_class(precision: Any) -> list[float]:
    classes = np.moveaxis(np.asarray(precision)[:, :, :, 0, -1], 2, 0)
    return [float(values[values > -1].mean()) if (values > -1).any() else -1.0 for values in classes]


SIDES: dict[str, Callable[[dict[str, Any], list[dict[str, Any]]], Numbers]] = {
    "ours": by_ours,
    "faster-coco-eval": by_faster_coco_eval,
    REFERENCE: by_pycocotools,
}


def alone(side: str, sizes: Sizes) -> dict[str, Any]:
    """Evaluate once in this process."""
    truth, found = draw(sizes)
    SIDES[side](*draw(Sizes(4, 20, 40, 3)))
    gc.collect()
    with contextlib.suppress(OSError):  # forget the peak of the drawing
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    held = peak_memory()
    start, start_of_processor = time.perf_counter(), time.process_time()
    numbers, per_class = SIDES[side](truth, found)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - start_of_processor,
        "peak": peak_memory() - held,
        "numbers": numbers + per_class,
    }


def measure(sizes: Sizes, rounds: int = 3, sides: Sequence[str] = tuple(SIDES)) -> dict[str, Measured]:
    """Run each side `rounds` times, each time in a fresh process; pycocotools is one of the sides."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    words = [str(value) for value in (sizes.images, sizes.boxes, sizes.detections, sizes.classes)]
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, __file__, "--alone", side, *words]
            environment = os.environ | dict.fromkeys(THREADS, "1")
            said = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout
            runs[side].append(json.loads(said))
    right = np.array(runs[REFERENCE][0]["numbers"])
    return {
        side: Measured(
            seconds=statistics.median(run["seconds"] for run in done),
            processor_seconds=statistics.median(run["processor_seconds"] for run in done),
            peak=statistics.median(run["peak"] for run in done),
            difference=max(float(np.abs(np.array(run["numbers"]) - right).max()) for run in done),
            ap=done[0]["numbers"][0],
        )
        for side, done in runs.items()
    }


def show(measured: dict[str, Measured]) -> None:
    """Print a row for each side, beside pycocotools'."""
    print(
        "| evaluator | time | times faster | processor | times faster | peak beyond the inputs | of its | "
        "largest difference |\n|---|---|---|---|---|---|---|---|"
    )
    reference = measured[REFERENCE]
    for side, own in measured.items():
        faster = reference.seconds / own.seconds
        less_work = reference.processor_seconds / own.processor_seconds
        share = f"{100 * own.peak / reference.peak:.1f} %" if reference.peak else "-"
        print(
            f"| {side} | {own.seconds:.2f} s | {faster:.1f} | {own.processor_seconds:.2f} s | "
            f"{less_work:.1f} | {own.peak / 2**20:.0f} MB | {share} | {own.difference:.1e} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    whole = Sizes()
    parser.add_argument("--images", type=int, default=whole.images)
    parser.add_argument("--boxes", type=int, default=whole.boxes)
    parser.add_argument("--detections", type=int, default=whole.detections)
    parser.add_argument("--classes", type=int, default=whole.classes)
    parser.add_argument("--rounds", type=int, default=3, help="of all evaluators (3)")
    parser.add_argument("--alone", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.alone:
        side, *words = args.alone
        return print(json.dumps(alone(side, Sizes(*map(int, words)))))
    sizes = Sizes(args.images, args.boxes, args.detections, args.classes)
    names = ("hotcoco", "faster-coco-eval", "pycocotools")
    installed = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed.get(name, 'not installed')}" for name in names)
    print(
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, one thread, {versions}, "
        f"median of {args.rounds}\n{sizes.images} images, {sizes.boxes} boxes, "
        f"{sizes.detections} detections, {sizes.classes} classes\n",
        flush=True,
    )
    show(measure(sizes, args.rounds))


if __name__ == "__main__":
    main()
