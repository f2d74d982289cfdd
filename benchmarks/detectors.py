"""Our detectors beside torchvision's, side by side in one run: python benchmarks/detectors.py

Same R50-FPN architecture, same weights, same images; rounds are interleaved, so that a drift of the machine's
speed falls on all alike. Ratios of medians are what counts. Proposals are not suppressed, so that with random
weights every side's second stage has its 1000 regions. Peak memory is that of one process for each side.
A second table tells where the time of a prediction goes.
"""

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from msefpn.config import Config
from msefpn.memory import keep_freed_memory, peak_memory
from msefpn.models import Detector, TwoStage, build, from_torchvision
from msefpn.structures import Targets

CLASSES = [f"class {label}" for label in range(1, 91)]
LABELS = list(range(1, 91))
SIDES = ("torchvision", "fpn", "mse_fpn")
PARTS = {
    "backbone": "backbone.body",
    "neck": "backbone.fpn",
    "rpn": "rpn",
    "roi": "roi_heads",
    "head": "head",
}
"""Our name of each part, and torchvision's."""


def theirs(detector: str, height: int, width: int) -> Any:
    """torchvision's detector with random weights, frozen norms as with its own weights, resizing nothing."""
    torch.manual_seed(0)
    body = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    size = {"min_size": min(height, width), "max_size": max(height, width)}
    if detector == "faster_rcnn":
        backbone = _resnet_fpn_extractor(body, trainable_layers=3)
        return FasterRCNN(backbone, num_classes=91, rpn_nms_thresh=1.0, **size)
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    return RetinaNet(backbone, num_classes=91, anchor_generator=_default_anchorgen(), **size)


def make(side: str, detector: str, height: int, width: int) -> nn.Module:
    """One side's detector; ours with FPN has torchvision's weights."""
    reference: nn.Module = theirs(detector, height, width)
    if side == "torchvision":
        return reference
    ours = from_torchvision(reference.state_dict(), CLASSES, LABELS, norm_eps=1e-5)
    if side == "mse_fpn":
        options = dict(ours.config.detector_options)
        ours = build(Config(detector=detector, neck="mse_fpn", detector_options=options), CLASSES, LABELS)
    if isinstance(ours, TwoStage) and ours.rpn is not None:
        ours.rpn.nms_iou = 1.0
    return ours


def prepare(
    side: str, model: nn.Module, height: int, width: int, batch: int, train: bool, device: str
) -> Callable[[], Any]:
    """A call that predicts, or takes a training step without the optimizer."""
    torch.manual_seed(1)
    model.to(device).train(train)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=device)
    corner = torch.rand(batch, 8, 2, device=device) * torch.tensor([width, height], device=device) * 0.6
    boxes = torch.cat([corner, corner + 20 + torch.rand(batch, 8, 2, device=device) * 120], dim=-1)
    labels = torch.randint(1, 91, (batch, 8), device=device)
    if isinstance(model, Detector):
        sizes = torch.tensor([[height, width]] * batch, device=device)
        targets = Targets(boxes, labels - 1, torch.ones_like(labels, dtype=torch.bool))
        detector = model
        return lambda: detector.losses(images, sizes, targets) if train else detector(images, sizes)
    inputs = [image.float() / 255 for image in images]
    truth = [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]
    return lambda: model(inputs, truth) if train else model(inputs)


def timed(call: Callable[[], Any], train: bool, device: str) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    if train:
        losses: dict[str, Tensor] = call()
        torch.stack(list(losses.values())).sum().backward()
    else:
        with torch.no_grad():
            call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(detector: str, height: int, width: int, batch: int, train: bool, args: Any) -> None:
    """Print a row: medians and ratios of all sides."""
    calls = {
        side: prepare(side, make(side, detector, height, width), height, width, batch, train, args.device)
        for side in SIDES
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for round_ in range(args.rounds + 1):
        for side, call in calls.items():
            elapsed = timed(call, train, args.device)
            if round_:
                seconds[side].append(elapsed)
    middle = {side: statistics.median(values) for side, values in seconds.items()}
    memory = {side: megabytes_alone(side, detector, height, width, batch, train, args) for side in SIDES}
    what = f"{detector} {'train step' if train else 'predict'} {batch} x {height} x {width}"
    print(
        f"| {what} | {middle['torchvision']:.2f} s | {middle['torchvision'] / middle['fpn']:.2f} | "
        f"{100 * (middle['mse_fpn'] / middle['fpn'] - 1):+.1f} % | {memory['torchvision']:.0f} MB | "
        f"{memory['fpn'] / memory['torchvision']:.2f} |",
        flush=True,
    )


def profile(detector: str, height: int, width: int, args: Any) -> None:
    """Print a row for each side: where the time of a prediction goes, medians in % of the whole."""
    for side in SIDES:
        model = make(side, detector, height, width)
        call = prepare(side, model, height, width, 1, False, args.device)
        modules = dict(model.named_modules())
        names = {name: path if side == "torchvision" else name for name, path in PARTS.items()}
        parts = {name: modules[path] for name, path in names.items() if path in modules}
        spent: dict[str, list[float]] = {name: [] for name in parts}
        for name, part in parts.items():
            _clock(part, spent[name], args.device)
        whole = [timed(call, False, args.device) for _ in range(args.rounds + 1)]
        total = statistics.median(whole[1:])
        shares = {name: 100 * statistics.median(values[1:]) / total for name, values in spent.items()}
        text = ", ".join(f"{name} {share:.0f} %" for name, share in shares.items())
        print(f"| {side} {detector} 1 x {height} x {width} | {total:.2f} s | {text} |", flush=True)


def _clock(module: nn.Module, seconds: list[float], device: str) -> None:
    """Note how long each call of a module takes."""
    began = [0.0]

    def before(*_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began[0])

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def megabytes_alone(
    side: str, detector: str, height: int, width: int, batch: int, train: bool, args: Any
) -> float:
    """Peak memory in MB of a process that makes two calls of one side."""
    alone = [side, detector, str(height), str(width), str(batch), str(int(train)), args.device]
    keep = ["--keep-memory"] if args.keep_memory else []
    command = [sys.executable, __file__, *keep, "--alone", *alone]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(words: list[str]) -> None:
    """Print the peak memory of this process in MB after two calls."""
    side, detector, device = words[0], words[1], words[6]
    height, width, batch, train = (int(word) for word in words[2:6])
    call = prepare(side, make(side, detector, height, width), height, width, batch, bool(train), device)
    for _ in range(2):
        timed(call, bool(train), device)
    print((torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()) / 2**20)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--detector", choices=["faster_rcnn", "retinanet"], nargs="*", default=["faster_rcnn"]
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="as the command msefpn does, for all sides"
    )
    parser.add_argument("--alone", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.keep_memory:
        keep_freed_memory()
    if args.alone:
        return alone(args.alone)
    print(
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} "
        f"threads, {args.device}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"median of {args.rounds}\n\n"
        "| what | torchvision | ours, times faster | MSE-FPN for FPN | torchvision's peak | ours / its |\n"
        "|---|---|---|---|---|---|"
    )
    for detector in args.detector:
        compare(detector, 480, 640, 1, False, args)
        compare(detector, 800, 1344, 1, False, args)
        compare(detector, 480, 640, 2, True, args)
    print("\n| what | predict | of which |\n|---|---|---|")
    for detector in args.detector:
        profile(detector, 480, 640, args)
        profile(detector, 800, 1344, args)


if __name__ == "__main__":
    main()
