"""The sides of the comparison: one architecture and one set of weights, run in several ways.

Weights are random, but wide enough for the heads to detect; an image is a smooth random one.
"""

import contextlib
import ctypes
import dataclasses
import gc
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.common import neck_settings
from benchmarks.exported import exported_call
from msefpn.models import Detector, build, from_torchvision
from msefpn.models.fold import folded
from msefpn.runs.memory import keep_freed_memory
from msefpn.structures import Targets

NAMES = [f"class {label}" for label in range(1, 91)]
LABELS = list(range(1, 91))
Predictions = list[dict[str, Tensor]]
"""For each image `boxes`, `scores` and `labels` (1..90), on the CPU."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process runs."""

    side: str
    """torchvision, or ours, and after a + each change of it: see `SIDES`."""
    detector: str
    """faster_rcnn or retinanet, on ResNet-50."""
    height: int
    width: int
    batch: int
    train: bool = False
    """A training step without the optimizer, else a prediction."""
    device: str = "cpu"
    neck: str = "fpn"
    """Of our side; then its options, such as `fpn norm=gn`."""
    processor: bool = False
    """Count the processor's seconds, of all threads, not the clock's: a busy machine changes them less."""

    def __str__(self) -> str:
        what = "train step" if self.train else "predict"
        return f"{self.detector} {what}, {self.batch} x {self.height} x {self.width}"

    @property
    def changes(self) -> set[str]:
        """The changes of the side."""
        return set(self.side.split("+")[1:])


SIDES = {
    "torchvision": "eager, as its users run it",
    "torchvision+kept": "with the memory setting of the command msefpn",
    "torchvision+compiled": "its backbone and FPN compiled",
    "torchvision+exact": "in float32 throughout; a GPU takes TF32 for convolutions unless told not to",
    "torchvision+tf32": "matrix products in TF32 too",
    "torchvision+bf16": "under autocast",
    "ours": "eager, as the command msefpn runs it",
    "ours+library": "eager, in a process that has not set what the command sets",
    "ours+exact": "in float32 throughout",
    "ours+tf32": "matrix products in TF32 too",
    "ours+bf16": "under autocast",
    "ours+compiled": "the whole detector, one graph",
    "ours+compiled+bf16": "likewise, under autocast",
    "ours+onnxruntime": "exported to ONNX",
    "ours+onnxruntime+int8": "likewise, in int8",
    "ours+openvino": "exported to OpenVINO, in float32",
    "ours+openvino+bf16": "the same file in bfloat16",
    "ours+openvino+int8": "exported in int8",
}
"""The sides and what they are."""
ONLY_ON = {
    "cpu": {"kept", "library", "onnxruntime", "openvino", "int8"},
    "cuda": {"exact", "tf32"},
}
"""Changes that mean something on one kind of device alone."""


def sides_on(device: str, *, train: bool) -> list[str]:
    """The sides that mean something on a device; exported files do not train, and to compile takes long."""
    foreign = {"compiled", "onnxruntime", "openvino"} if train else set()
    foreign |= set().union(*(changes for kind, changes in ONLY_ON.items() if kind != device))
    return [side for side in SIDES if not foreign & set(side.split("+")[1:])]


def prepare(case: Case) -> tuple[Callable[[], Any], Callable[[Any], Predictions]]:
    """The call that is timed, and what makes detections of its result."""
    if "kept" in case.changes or (case.side.startswith("ours") and "library" not in case.changes):
        keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = "exact" not in case.changes
    torch.backends.cuda.matmul.allow_tf32 = "tf32" in case.changes
    images, targets = inputs(case)
    if case.side.startswith("torchvision"):
        return _their_call(case, images, targets), lambda found: found
    return _our_call(case, images, targets), _as_theirs


def inputs(case: Case) -> tuple[Tensor, Targets]:
    """Images (B, 3, H, W) uint8 and eight objects on each, labels from 0."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(case.batch, 3, case.height // 16, case.width // 16, generator=generator)
    images = F.interpolate(255 * coarse, size=(case.height, case.width), mode="bicubic").clamp(0, 255)
    limit = torch.tensor([case.width, case.height])
    start = torch.rand(case.batch, 8, 2, generator=generator) * limit * 0.6
    sides = limit * (0.05 + 0.3 * torch.rand(case.batch, 8, 2, generator=generator))
    boxes = torch.cat([start, start + sides], dim=-1)
    labels = torch.randint(0, 90, (case.batch, 8), generator=generator)
    targets = Targets(boxes, labels, torch.ones_like(labels, dtype=torch.bool))
    device = torch.device(case.device)
    return images.byte().to(device), Targets(*(x.to(device) for x in targets[:3]))


def their_model(case: Case) -> Any:
    """torchvision's detector, its norms frozen as with its own weights; the size is the images' own."""
    torch.manual_seed(0)
    body = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    for name, module in body.named_modules():
        if name.endswith("bn3"):  # else the maps grow with each block
            module.weight.fill_(0.2)
    size = {"min_size": min(case.height, case.width), "max_size": max(case.height, case.width)}
    if case.detector == "faster_rcnn":
        model = FasterRCNN(_resnet_fpn_extractor(body, 3), num_classes=91, **size)
        nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.05)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.7)
    else:
        backbone = _resnet_fpn_extractor(
            body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
        )
        anchors = _default_anchorgen()
        model = RetinaNet(backbone, num_classes=91, anchor_generator=anchors, **size)
        for tower in (model.head.classification_head.conv, model.head.regression_head.conv):
            for layer in tower:
                nn.init.kaiming_normal_(layer[0].weight)
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.07)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.01)
    return model.to(case.device)


def our_model(case: Case) -> Detector:
    """Ours: with FPN it has torchvision's weights, with another neck what of them fits."""
    detector = from_torchvision(their_model(case).state_dict(), NAMES, LABELS, norm_eps=1e-5)
    if case.neck != "fpn":
        config = dataclasses.replace(detector.config, **neck_settings(case.neck))
        other = build(config, NAMES, LABELS)
        state = {name: x for name, x in detector.state_dict().items() if not name.startswith("neck.")}
        other.load_state_dict(state, strict=False)
        detector = other
    return detector.to(case.device)


def _their_call(case: Case, images: Tensor, targets: Targets) -> Callable[[], Any]:
    model = their_model(case).train(case.train)
    if "compiled" in case.changes:
        model.backbone.compile()
    truth = [
        {"boxes": boxes, "labels": labels + 1}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    inputs = [image.float() / 255 for image in images]
    return _run(case, model, lambda: model(inputs, truth) if case.train else model(inputs))


def _our_call(case: Case, images: Tensor, targets: Targets) -> Callable[[], Any]:
    model = our_model(case).train(case.train)
    sizes = torch.tensor([[case.height, case.width]] * case.batch, device=case.device)
    kinds = {"onnxruntime": "onnx", "openvino": "openvino"}
    for engine in kinds.keys() & case.changes:
        precision = "int8" if "int8" in case.changes else "fp32"
        bf16 = "bf16" in case.changes
        return exported_call(model, images, sizes, kinds[engine], precision, bf16=bf16)
    if "compiled" in case.changes:
        model.compile(fullgraph=True)
    if case.train:
        losses = torch.compile(model.losses) if "compiled" in case.changes else model.losses
        return _run(case, model, lambda: losses(images, sizes, targets))
    fold = contextlib.ExitStack()
    fold.enter_context(folded(model))  # for as long as the call is held, as in a loop over many images
    return _run(case, model, lambda: (fold, model(images, sizes))[1])


def _run(case: Case, model: nn.Module, call: Callable[[], Any]) -> Callable[[], Any]:
    """A call of a model in the case's precision; in training with the backward pass."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what building the model has left is not the call's
    autocast = torch.autocast(case.device, dtype=torch.bfloat16, enabled="bf16" in case.changes)

    def predict() -> Any:
        with torch.no_grad(), autocast:
            return call()

    def step() -> Any:
        model.zero_grad()
        with autocast:
            losses: dict[str, Tensor] = call()
        torch.stack(list(losses.values())).sum().backward()

    return step if case.train else predict


def _as_theirs(found: Any) -> Predictions:
    boxes, scores, labels, valid = (torch.as_tensor(x).cpu() for x in found[:4])
    return [
        {"boxes": boxes[i][valid[i]], "scores": scores[i][valid[i]], "labels": labels[i][valid[i]] + 1}
        for i in range(len(boxes))
    ]


def agreement(reference: Predictions, found: Predictions, *, iou: float = 0.95) -> float:
    """The share of the reference's detections that have one of the same label at the same place."""
    matched = total = 0
    for one, other in zip(reference, found, strict=True):
        overlap = torchvision.ops.box_iou(one["boxes"].float().cpu(), other["boxes"].float().cpu())
        same = one["labels"].cpu()[:, None] == other["labels"].cpu()[None]
        matched += int(((overlap >= iou) & same).any(dim=1).sum())
        total += len(overlap)
    return matched / max(total, 1)
