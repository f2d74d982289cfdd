"""`msefpn train`."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from pathlib import Path

from msefpn.commands.arguments import as_text


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
    from msefpn.training.plan import plan_training

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

    from msefpn.report.report import report_training
    from msefpn.runs.folder import is_first_process
    from msefpn.training import train as engine

    run = engine.train(plan)
    if is_first_process():
        report_training(run)
    return run
