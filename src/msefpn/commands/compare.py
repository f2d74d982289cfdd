"""The public functions that compare detectors; each is a command of the same name, see `api`."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.commands.arguments import as_path, as_text


def cost(
    rows: Sequence[str],
    *,
    recipe: str | Path | None = None,
    detector: str | None = None,
    backbone: str | None = None,
    size: str | int | None = None,
    classes: int = 80,
    batch: int = 1,
    rounds: int = 5,
    device: str = "auto",
    out: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Measure what detectors cost: parameters, multiply-accumulates, time and memory, as one table.

    Args:
        rows: necks (fpn, fpn+bfp, ...) or recipes by name or file
        recipe: what the rows have in common, a recipe's own lines are put over it; none: recipes stand alone,
            necks go into faster_rcnn_r50_mse_fpn_1x
        detector: faster_rcnn, fast_rcnn, mask_rcnn, cascade_rcnn, retinanet, fcos, ssd, yolov3; the recipe's
        backbone: timm model with four levels; the recipe's
        size: images are this large: 320 or 1333x800; the recipe's
        classes: number of classes
        batch: images at a time
        rounds: predictions of each row that are timed
        device: auto, cpu or gpu
        out: json file for the table

    Returns:
        One entry per row: counts by part, seconds, ratio to the first row, peak memory in bytes.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.ablation import cost as engine

    configs = engine.rows_of(
        rows, as_text(recipe), "faster_rcnn_r50_mse_fpn_1x", detector=detector, backbone=backbone
    )
    return engine.cost(
        configs,
        size=str(size or configs[rows[0]].size),
        classes=classes,
        batch=batch,
        rounds=rounds,
        device=device,
        out=as_path(out),
    )


def ablate(
    rows: Sequence[str],
    *,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    seeds: int = 3,
    epochs: Sequence[int] | int | None = None,
    jobs: int = 1,
    detector: str | None = None,
    backbone: str | None = None,
    init: str | Path | None = None,
    size: str | int | None = None,
    augment: str | None = None,
    batch: int | None = None,
    lr: float | None = None,
    device: str | None = None,
    precision: str | None = None,
    workers: int | None = None,
    rounds: int = 5,
    out: str | Path = "runs/ablate",
    train_json: str | Path | None = None,
    train_images: str | Path | None = None,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    train_proposals: str | Path | None = None,
    val_proposals: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Train rows of detectors with the same seeds and compare them: accuracy, cost, difference to the first.

    A grid that was stopped goes on when the same command is given again; what is finished is not trained
    again. Rows, seeds and budgets may be added: the table holds those that the command names.

    Args:
        rows: necks (fpn, fpn+bfp, ...) or recipes by name or file; the first of each budget is its baseline
        data: folder with train.json + train/ and val.json + val/, or in COCO's, Pascal VOC's or YOLO's
            layout; none: a built-in set is drawn
        recipe: what the rows have in common, a recipe's own lines are put over it; none: recipes stand alone,
            necks go into faster_rcnn_r50_mse_fpn_1x, or quickstart for the built-in set
        seeds: trainings of each row, with seeds 0, 1, ...: the same data order, augmentation and, where
            shapes agree, initial weights in all rows
        epochs: passes over the training data, one budget or several; none: the recipe's
        jobs: trainings at a time
        detector: faster_rcnn, fast_rcnn, mask_rcnn, cascade_rcnn, retinanet, fcos, ssd or yolov3
        backbone: timm model with four levels
        init: initial weights, as in train
        size: images are resized, ratio kept, to fit into this: 320 or 1333x800
        augment: none, paper (flip), multiscale, or strong for small sets
        batch: images per step
        lr: learning rate for 16 images per step; scaled linearly to the batch
        device: auto, cpu or gpu
        precision: fp32, bf16, or auto: bf16 on a capable GPU
        workers: processes that load images, per training
        rounds: predictions of each row that are timed
        out: folder of the grid
        train_json: COCO json of the training images, instead of a data folder
        train_images: folder of the training images; the one beside the json with its name
        val_json: COCO json of the validation images
        val_images: folder of the validation images; the one beside the json with its name
        train_proposals: for rows of fast_rcnn, as in train
        val_proposals: the same for the validation images

    Returns:
        One entry per row and budget, as in results.json: costs, mean and spread of AP, the paired difference
        to the baseline with its 95 % interval, and the numbers, or the failure, of each training.

    Raises:
        UserError: the request cannot be met; the message says what to change.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    from msefpn.ablation.ablate import ablate as engine

    return engine(
        rows,
        data,
        {
            "train_json": train_json,
            "train_images": train_images,
            "val_json": val_json,
            "val_images": val_images,
            "train_proposals": train_proposals,
            "val_proposals": val_proposals,
        },
        recipe=as_text(recipe),
        seeds=seeds,
        epochs=[epochs] if isinstance(epochs, int) else list(epochs or []),
        jobs=jobs,
        rounds=rounds,
        out=Path(out),
        options={
            "detector": detector,
            "backbone": backbone,
            "init": as_text(init),
            "size": as_text(size),
            "augment": augment,
            "batch": batch,
            "lr": lr,
            "device": device,
            "precision": precision,
            "workers": workers,
        },
    )
