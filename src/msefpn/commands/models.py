"""Detectors from names and files, and into files: build, load, export."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.commands.arguments import as_path, as_text
from msefpn.config import Config

if TYPE_CHECKING:
    from msefpn.models import Detector


def export(
    run: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    out: str | Path | None = None,
    data: str | Path | None = None,
    compare: int = 50,
    calibrate: str | Path | None = None,
    samples: int = 100,
    size: str | int | None = None,
    matched: float | None = None,
    ap_drop: float | None = None,
) -> dict[str, Any]:
    """Export a run to one file, from image to final boxes, and compare it with the run on real images.

    The graph takes padded RGB images (B, 3, H, W) uint8 and their sizes (B, 2) int64 and gives boxes, scores,
    labels, valid, num_dropped and, of mask_rcnn, masks; B is free, H and W are multiples of 32 from 160 to 8192. A
    file that fails the comparison is kept with `.failed` in its name, and the exit code is 1.

    Args:
        run: run folder (its best weights) or a .safetensors file of one
        format: onnx, openvino or pt2 (torch.export)
        precision: fp32; fp16: weights are stored in 16 bits and computed with in 32; int8: layers with
            weights are quantised, calibrated on images, all else stays in 32 bits; pt2 has no int8
        out: the file; none: detector.onnx, detector-fp16.onnx, ... in the run's folder
        data: data folder to compare and to calibrate on; none: the run's own data
        compare: so many images of the val split are detected on by both; 0: no comparison
        calibrate: for int8, a folder of images like those it will see; none: the training images
        samples: so many of them are taken
        size: to be used with the file, to compare at and to calibrate at; the run's own
        matched: least share of detections with a score of 0.1 or more that both have, with an IoU of 0.95,
            0.9 or 0.5; none: 0.99 for fp32, 0.98 for fp16, 0.85 for int8
        ap_drop: the most that AP, 0 to 1, may fall; none: 0.002 for fp32, 0.005 for fp16, 0.02 for int8

    Returns:
        The comparison, as in FILE.parity.json, with `file` and `passed`.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.export.plan import plan_export

    plan = plan_export(
        Path(run),
        format=format,
        precision=precision,
        out=as_path(out),
        data=as_path(data),
        compare=compare,
        calibrate=as_path(calibrate),
        samples=samples,
        size=as_text(size),
        matched=matched,
        ap_drop=ap_drop,
    )

    from msefpn.export import export as engine

    return engine.export(plan)


def load(path: str | Path) -> Detector:
    """Give a trained detector back, in evaluation mode, with its classes.

    Args:
        path: run folder (its best weights) or a .safetensors file of one

    Raises:
        UserError: there are no weights, or they are damaged.
    """
    from msefpn import models

    return models.load(path)


def build(
    classes: Sequence[str],
    *,
    detector: str = "faster_rcnn",
    backbone: str = "resnet50",
    neck: str = "mse_fpn",
    init: str | Path = "none",
) -> Detector:
    """Build a detector.

    Args:
        classes: names of the classes
        detector: faster_rcnn, fast_rcnn, mask_rcnn, cascade_rcnn, retinanet, fcos, ssd or yolov3
        backbone: timm model with four levels
        neck: fpn, pafpn, bifpn, aug_fpn, ce_fpn, ac_fpn or mse_fpn; with bfp on top as in fpn+bfp
        init: initial weights: imagenet, none, or a file

    Raises:
        UserError: an unknown name, or weights that do not fit.
    """
    from msefpn import models

    config = Config(detector=detector, backbone=backbone, neck=neck, init=str(init))
    built = models.build(config, classes)
    models.init_weights(built, config.init)
    return built
