"""What it takes to bring two processes' detections into the first: python -m benchmarks.gather

Two processes of this machine, connected by gloo, hold the detections of half of the images each, 100 an
image, as after an evaluation. `arrays` is what a training does (`msefpn.training.group`), `objects` what
`torch.distributed.all_gather_object` did before. Prints the memory that the first process takes besides its
own half, at the peak, and the time; then the same for COCO's results and numbers made from them. Linux.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from benchmarks.common import in_two
from msefpn.inference.detect import Predictions, as_results, merge_predictions
from msefpn.metrics.coco import evaluate_coco
from msefpn.runs.meeting import meeting
from msefpn.runs.world import launched
from msefpn.training.group import Group, opened

PER_IMAGE = 100
CLASSES = 80


def memory(key: str) -> float:
    """A line of this process's status, MB: VmRSS now, VmHWM at the peak."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in text.splitlines() if line.startswith(key)).split()[1]) / 1024


def measured(function: Callable[[], Any]) -> tuple[Any, list[float]]:
    """What a function returns, its seconds, and the MB that it took at the peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, began = memory("VmRSS"), time.perf_counter()
    result = function()
    return result, [time.perf_counter() - began, memory("VmHWM") - before]


def detections(images: int, rank: int, world: int) -> Predictions:
    """Random ones of every `world`-th image."""
    rng = np.random.default_rng(rank)
    ids = np.repeat(np.arange(rank, images, world), PER_IMAGE)
    start, side = rng.random((len(ids), 2)) * 400, 20 + rng.random((len(ids), 2)) * 200
    boxes = np.concatenate([start, start + side], 1).astype(np.float32)
    scores = rng.random(len(ids)).astype(np.float32)
    return Predictions(ids, boxes, scores, rng.integers(0, CLASSES, len(ids)), strides=ids % 4 + 4)


def truth(images: int) -> dict[str, Any]:
    """Seven objects an image."""
    rng = np.random.default_rng(9)
    return {
        "images": [{"id": id, "width": 640, "height": 480} for id in range(images)],
        "categories": [{"id": id, "name": str(id)} for id in range(CLASSES)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": number // 7,
                "category_id": number % CLASSES,
                "bbox": [*(rng.random(2) * 400), 50.0, 60.0],
                "iscrowd": 0,
            }
            for number in range(7 * images)
        ],
    }


def of_objects(group: Group, own: Predictions) -> Predictions:
    """The predictions of all processes in each."""
    parts: list[Any] = [None] * group.peers.world.size
    distributed.all_gather_object(parts, own)
    return merge_predictions(parts)


def work(images: int, way: str, numbers: bool) -> None:
    """Be one of the processes; the first one prints."""
    with meeting(launched(os.environ), 600) as peers, opened(peers, torch.device("cpu"), 1) as group:
        own = detections(images, peers.world.rank, peers.world.size)
        gather = group.gather if way == "arrays" else lambda own: of_objects(group, own)
        found, row = measured(lambda: gather(own))
        if peers.first and numbers:
            results, more = measured(lambda: as_results(found, range(CLASSES)))
            _, most = measured(lambda: evaluate_coco(truth(images), results))
            row += [*more, *most]
        if peers.first:
            print(json.dumps(row))


def main(arguments: list[str] | None = None) -> None:
    """Measure each way for each number of images, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 100_000])
    parser.add_argument("--numbers", action="store_true", help="also COCO's results and numbers")
    parser.add_argument("--way", choices=("arrays", "objects"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.way:
        work(args.images[0], args.way, args.numbers)
        return
    print("| images | way | gather | its peak | results | their peak | numbers | their peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for images in args.images:
        for way in ("arrays", "objects"):
            words = ["--images", str(images), "--way", way, *["--numbers"] * args.numbers]
            row = in_two("benchmarks.gather", words)
            cells = [f"{value:.1f} s" if i % 2 == 0 else f"{value:.0f} MB" for i, value in enumerate(row)]
            print(f"| {' | '.join([f'{images:,}', way, *cells, *['-'] * (6 - len(cells))])} |", flush=True)


if __name__ == "__main__":
    main()
