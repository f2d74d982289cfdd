"""The public functions; each is a command of the same name, its options are the arguments here.

Nothing that is slow to import is imported before it is needed.
"""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.config import Config

if TYPE_CHECKING:
    from msefpn.models import Detector


def train(
    data: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    detector: str | None = None,
    backbone: str | None = None,
    neck: str | None = None,
    init: str | Path | None = None,
    size: str | int | None = None,
    augment: str | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    devices: int | None = None,
    precision: str | None = None,
    workers: int | None = None,
    steps: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    train_json: str | Path | None = None,
    train_images: str | Path | None = None,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    train_proposals: str | Path | None = None,
    val_proposals: str | Path | None = None,
) -> Path:
    """Train a detector and return its run folder; RUN/report.html shows it.

    An option that is not given is the recipe's. Each epoch is evaluated and kept; a run that was stopped goes
    on with `resume`. With several `devices` the calling script runs once in each process.

    Args:
        data: folder with train.json + train/ and val.json + val/, or in COCO's, Pascal VOC's or YOLO's
            layout; none: a built-in set is drawn
        recipe: name or YAML file of the other options' values; none: faster_rcnn_r50_mse_fpn_1x, or
            quickstart for the built-in set
        detector: faster_rcnn, fast_rcnn, mask_rcnn, cascade_rcnn, retinanet, fcos, ssd or yolov3
        backbone: timm model with four levels
        neck: fpn, pafpn, bifpn, aug_fpn, ce_fpn, ac_fpn or mse_fpn; with bfp on top as in fpn+bfp
        init: initial weights: imagenet (from timm's hub), none, or a file of a backbone or a detector:
            what fits is loaded
        size: images are resized, ratio kept, to fit into this: 320 or 1333x800
        augment: none, paper (flip), multiscale, or strong for small sets
        epochs: passes over the training data
        batch: images per step, over all devices
        lr: learning rate for 16 images per step; scaled linearly to the batch
        seed: decides weights, order and augmentation
        device: auto, cpu or gpu
        devices: number of GPUs, or of processes on the CPU
        precision: fp32, bf16, or auto: bf16 on a capable GPU
        workers: processes that load images, per device
        steps: stop after so many steps; for trials
        out: run folder; the first free one of runs/train-1, runs/train-2, ...
        resume: go on with the run in the out folder
        train_json: COCO json of the training images, instead of a data folder
        train_images: folder of the training images; the one beside the json with its name
        val_json: COCO json of the validation images
        val_images: folder of the validation images; the one beside the json with its name
        train_proposals: for fast_rcnn, the regions to look at: a json in COCO's result format
        val_proposals: the same for the validation images

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.engine.plan import plan_training

    files = {
        "train_json": train_json,
        "train_images": train_images,
        "val_json": val_json,
        "val_images": val_images,
        "train_proposals": train_proposals,
        "val_proposals": val_proposals,
    }
    options = {
        "detector": detector,
        "backbone": backbone,
        "neck": neck,
        "init": as_text(init),
        "size": as_text(size),
        "augment": augment,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "device": device,
        "devices": devices,
        "precision": precision,
        "workers": workers,
    }
    plan = plan_training(data, files, recipe=recipe, out=out, resume=resume, steps=steps, options=options)

    from msefpn.engine import train as engine
    from msefpn.engine.report import report_training
    from msefpn.engine.run import is_first_process

    run = engine.train(plan)
    if is_first_process():
        report_training(run)
    return run


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "val",
    json: str | Path | None = None,
    images: str | Path | None = None,
    proposals: str | Path | None = None,
    out: str | Path | None = None,
    batch: int | None = None,
    size: str | int | None = None,
    device: str = "auto",
    workers: int = 2,
) -> dict[str, Any]:
    """Evaluate a run by COCO's protocol: 12 numbers and AP per class; also written with the predictions.

    A detector that draws masks is evaluated by these too.

    Args:
        run: run folder (its best weights), a .safetensors file of one, or an exported file
        data: data folder; none: the run's own data
        split: train or val
        json: COCO json to evaluate on, instead of a data folder
        images: its image folder; the one beside the json with its name
        proposals: for fast_rcnn, the regions to look at: a json in COCO's result format; the run's own
        out: folder for metrics.json and predictions.json; the first free one of RUN/evaluate-1, ...
        batch: images at a time; as in the run's training
        size: as in training; the run's own
        device: auto, cpu or gpu
        workers: processes that load images; 0: the command itself

    Returns:
        The numbers by name, and `per_class`: name -> AP; those of masks begin with `mask_`.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.engine.plan import plan_evaluation

    plan = plan_evaluation(
        Path(run),
        as_path(data),
        split=split,
        file=as_path(json),
        images=as_path(images),
        out=as_path(out),
        proposals=as_path(proposals),
        batch=batch,
        size=as_text(size),
        workers=workers,
    )

    from msefpn.engine import evaluate as engine

    return engine.evaluate(plan, device=device)


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
    labels, valid, cut and, of mask_rcnn, masks; B is free, H and W are multiples of 32 from 160 to 8192. A
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
    from msefpn.engine.export_plan import plan_export

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

    from msefpn.engine import export as engine

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


def as_path(value: str | Path | None) -> Path | None:
    """Turn what a user gave into a path; None stays None."""
    return None if value is None else Path(value)


def as_text(value: str | Path | int | None) -> str | None:
    """Turn what a user gave into a text; None stays None."""
    return None if value is None else str(value)
