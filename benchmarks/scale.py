"""How cost grows with boxes, classes, GPUs and images: python -m benchmarks scale, or one part of it:
python -m benchmarks.scale --parts communication growth share prediction

communication: bytes of the gradients of each detector, and what a ring all-reduce sends for them: each of N
processes sends 2 (N - 1) / N of the bytes (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002).
Computed.
growth: a training step of an image by its boxes and by classes. Measured, in seconds of the processor.
share: a training step of two processes on this machine with and without the exchange of gradients. Measured.
prediction: images per second of a core through shards, measured, and what ten million images would take,
computed.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import in_two, table
from msefpn.config import load_recipe, parse_size
from msefpn.inference.detect import Predictions
from msefpn.inference.frames import InputSource
from msefpn.models import build, save
from msefpn.plugins import known
from msefpn.prediction.request import PredictionOptions
from msefpn.prediction.shards.job import ImageNames, Job, mark_model
from msefpn.prediction.shards.processes import in_this_process
from msefpn.prediction.shards.store import JOB, open_store
from msefpn.prediction.shards.table import Footer, Row, check_shard_rows, decode_shard, encode_shard
from msefpn.prediction.shards.work import shard_file
from msefpn.runs.memory import keep_freed_memory
from msefpn.structures import Targets

PARTS = ("communication", "growth", "share", "prediction")
RECIPE = "faster_rcnn_r50_mse_fpn_1x"
OTHERS = ("faster_rcnn_r50_fpn_1x", "faster_rcnn_r101_mse_fpn_1x", "faster_rcnn_x101_64x4d_mse_fpn_1x")
COCO = 80
LINKS = {"10 Gbit/s": 1.25, "100 Gbit/s": 12.5, "NVLink, 300 GB/s": 300.0}
"""Bandwidths of one process in one direction, GB/s, as they are advertised."""
IMAGES = 10_000_000


def made(recipe: str = RECIPE, classes: int = COCO, **given: Any) -> Any:
    """A detector by a recipe, with changes."""
    return build(load_recipe(recipe, init="none", **given), [f"class {number}" for number in range(classes)])


def gradient_bytes(module: nn.Module) -> int:
    """Bytes of the gradients that processes exchange each step: of the trained parameters."""
    return sum(x.numel() * x.element_size() for x in module.parameters() if x.requires_grad)


def ring_bytes(size: float, processes: int) -> float:
    """What each process sends for a ring all-reduce of `size` bytes."""
    return 2 * (processes - 1) / processes * size


def communication() -> dict[str, int]:
    """Print the bytes of each detector on ResNet-50 with MSE-FPN, and of the recipes; return them."""
    sizes = {}
    with torch.device("meta"):
        for name in sorted(known("detector")):
            sizes[name] = gradient_bytes(made(detector=name))
        for recipe in OTHERS:
            sizes[recipe] = gradient_bytes(made(recipe))
    rows = [
        [name, f"{size / 1e6:.0f}", *(f"{ring_bytes(size, count) / 1e6:.0f}" for count in (2, 8, 32))]
        for name, size in sizes.items()
    ]
    table(["detector", "gradients, MB", "sent by each of 2", "of 8", "of 32"], rows)
    size = sizes["faster_rcnn"]
    rows = []
    for link, speed in LINKS.items():
        seconds = [ring_bytes(size, count) / speed / 1e9 for count in (2, 8, 32)]
        rows.append([link, *(f"{1000 * x:.1f}" for x in seconds), f"{1000 * 9 * seconds[-1]:.0f}"])
    head = [
        "link of each process",
        "2, ms",
        "8, ms",
        "32, ms",
        "shortest step with at most 10 % for it (32), ms",
    ]
    table(head, rows)
    return sizes


def step_of(detector: Any, size: tuple[int, int], boxes: int, classes: int) -> Callable[[], Tensor]:
    """The loss of an image of `size` (width, height) with so many boxes."""
    generator = torch.Generator().manual_seed(0)
    width, height = size
    images = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    start = torch.rand(1, boxes, 2, generator=generator) * torch.tensor([width, height]) * 0.8
    sides = 8 + 40 * torch.rand(1, boxes, 2, generator=generator)
    labels = torch.randint(0, classes, (1, boxes), generator=generator)
    targets = Targets(
        torch.cat([start, start + sides], -1), labels, torch.ones_like(labels, dtype=torch.bool)
    )
    sizes = torch.tensor([[height, width]])
    return lambda: torch.stack(list(detector.losses(images, sizes, targets).values())).sum()


def median_of(call: Callable[[], Any], rounds: int) -> float:
    """Seconds of the processor for a call: median, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        began = time.process_time()
        call()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:])


def growth(recipe: str, size: tuple[int, int], rounds: int) -> None:
    """Print a training step by boxes and by classes."""
    rows = []
    for boxes, classes in ((1, 80), (10, 80), (100, 80), (1000, 80), (10, 1), (10, 365), (10, 1203)):
        detector = made(recipe, classes).train()
        loss = step_of(detector, size, boxes, classes)
        seconds = median_of(lambda loss=loss: loss().backward(), rounds)  # type: ignore[misc]  # mypy cannot infer it
        rows.append([str(boxes), str(classes), f"{seconds:.2f}", f"{gradient_bytes(detector) / 1e6:.0f}"])
    table(["boxes", "classes", "step, s of a core", "gradients, MB"], rows)


class Loss(nn.Module):
    """A detector's loss as a forward pass, which DistributedDataParallel wraps."""

    def __init__(self, detector: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.loss = step_of(detector, size, 8, COCO)

    def forward(self) -> Tensor:
        """The sum of the losses."""
        return self.loss()


def share(recipe: str, size: tuple[int, int], rounds: int, detectors: Sequence[str]) -> None:
    """Print the steps of two processes that exchange gradients by gloo, and of the same that do not."""
    rows = []
    for name in detectors:
        task = json.dumps({"recipe": recipe, "detector": name, "size": size, "rounds": rounds})
        found = in_two("benchmarks.scale", ["--one-of-two", task])
        part = 1 - found["alone"] / found["together"]
        rows.append(
            [
                name,
                f"{found['bytes'] / 1e6:.0f}",
                f"{found['alone']:.2f}",
                f"{found['together']:.2f}",
                f"{100 * part:.0f} %",
            ]
        )
    table(["detector", "gradients, MB", "step without exchange, s", "with, s", "share of the exchange"], rows)


def one_of_two(task: dict[str, Any]) -> None:
    """Train as one of two processes; the first prints its medians."""
    dist.init_process_group("gloo")
    keep_freed_memory()
    model = Loss(made(task["recipe"], detector=task["detector"]).train(), tuple(task["size"]))
    wrapped = DistributedDataParallel(model)

    def alone() -> None:
        with wrapped.no_sync():
            wrapped().backward()
        wrapped.zero_grad()

    def together() -> None:
        wrapped().backward()
        wrapped.zero_grad()

    seconds = {"alone": list[float](), "together": list[float]()}
    for _ in range(task["rounds"] + 1):
        for name, call in (("alone", alone), ("together", together)):
            dist.barrier()
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        print(json.dumps({**medians, "bytes": gradient_bytes(model)}), flush=True)
    dist.destroy_process_group()


def prediction(recipe: str, sides: Sequence[str], images: int, listed: int) -> None:
    """Print images per second of a core through shards, and the time of ten million."""
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(made(recipe), folder / "weights.safetensors")
        for side in sides:
            height, width = sorted(parse_size(side))
            noise = np.random.default_rng(0)
            for number in range(2 * images):
                small = noise.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3)).astype(np.uint8)
                Image.fromarray(small).resize((width, height)).save(folder / f"{number}.jpg", quality=90)
            speed, size = _through_shards(folder, side, images)
            days = IMAGES / speed / 86400
            rows.append(
                [
                    side,
                    f"{speed:.2f}",
                    f"{size:.0f}",
                    f"{days:.0f}",
                    f"{days / 64:.1f}",
                    f"{IMAGES * size / 1e9:.1f}",
                ]
            )
    head = [
        "size",
        "images/s of a core",
        "bytes per image",
        "10 million: core-days",
        "days on 64 cores",
        "GB",
    ]
    table(head, rows)
    began = time.process_time()
    made_up = ImageNames(
        InputSource("image", f"/data/images/train/{number:012}.jpg") for number in range(listed)
    )
    digest = made_up.digest()
    seconds, size = time.process_time() - began, made_up.names.nbytes / 2**20
    print(f"A list of {listed} names ({digest[:6]}): {seconds:.1f} s of a core, {size:.0f} MB\n")


def shards(detections: int = 10, images: int = 1000) -> None:
    """Print the size of a shard of made-up detections, and the time to write and to check it."""
    noise = np.random.default_rng(0)
    names, rows = [f"/data/images/train/{number:012}.jpg" for number in range(images)], []
    for number, name in enumerate(names):
        boxes = noise.uniform(0, 600, (detections, 4)).astype(np.float32)
        scores, labels = noise.random(detections).astype(np.float32), noise.integers(0, COCO, detections)
        rows.append(Row(number, name, (480, 640), Predictions(labels, boxes, scores, labels)))
    footer = Footer("0" * 64, 0, (), (), images * detections, 0, ("class",) * COCO, tuple(range(COCO)))
    content = encode_shard(rows, footer, masks=False)
    write = median_of(lambda: encode_shard(rows, footer, masks=False), 5)
    check = median_of(lambda: check_shard_rows(*decode_shard(content), 0, names), 5)
    print(
        f"A shard of {images} images, {detections} detections on each: {len(content) / 1000:.0f} kB, written "
        f"in {1000 * write:.0f} ms and checked in {1000 * check:.0f} ms of a core\n"
    )


def _through_shards(folder: Path, side: str, images: int) -> tuple[float, float]:
    """Images per second of two shards' second, and bytes of a shard per image."""
    store = open_store(str(folder / f"out-{side}"))
    options = PredictionOptions.given(size=side, device="cpu", score=0.0, max_per_image=10)
    weights = str(folder / "weights.safetensors")
    job = Job(weights, store.shown(), options, images, 2 * images, "", mark_model(weights), os.getcwd())
    names = [str(folder / f"{number}.jpg") for number in range(2 * images)]
    began = 0.0
    with store.working():
        store.write(JOB, b"{}")
        for report in in_this_process(job, [(0, names[:images]), (1, names[images:])]):
            assert report.images == images, report
            began, before = time.process_time(), began
    seconds = began - before
    content = store.read(shard_file(0))
    assert content is not None
    assert decode_shard(content)[0].num_rows == images
    return images / seconds, len(content) / images


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--size", type=parse_size, default=(320, 256), help="of the training steps")
    parser.add_argument("--detectors", nargs="+", default=["faster_rcnn", "retinanet"])
    parser.add_argument("--sides", nargs="+", default=["640x384", "1333x800"], help="of the predictions")
    parser.add_argument("--images", type=int, default=10, help="of a shard of the predictions")
    parser.add_argument("--names", type=int, default=1_000_000, help="of the list")
    parser.add_argument("--one-of-two", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one_of_two is not None:
        one_of_two(args.one_of_two)
        return
    keep_freed_memory()
    for part in args.parts:
        print(f"#### {part}\n", flush=True)
        if part == "communication":
            communication()
        elif part == "growth":
            growth(args.recipe, args.size, args.rounds)
        elif part == "share":
            share(args.recipe, args.size, args.rounds, args.detectors)
        else:
            prediction(args.recipe, args.sides, args.images, args.names)
            shards()


if __name__ == "__main__":
    main()
