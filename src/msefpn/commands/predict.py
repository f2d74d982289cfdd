"""`msefpn predict` and `evaluate`, and `stream` for programs: detection with what was trained."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.commands.arguments import as_list, as_path, as_text

if TYPE_CHECKING:
    from msefpn.prediction.predict import Result


def predict(
    run: str | Path,
    sources: Sequence[str | Path] | str | Path,
    *,
    proposals: str | Path | None = None,
    out: str | Path | None = None,
    save: Sequence[str] | None = None,
    score: float = 0.3,
    classes: Sequence[str] | None = None,
    tile: bool = False,
    tile_size: str | int | None = None,
    overlap: float = 0.2,
    stride: int = 1,
    frames: int | None = None,
    batch: int = 1,
    size: str | int | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Detect objects in images and videos: pictures with boxes and masks, and predictions.json.

    What cannot be read is named, skipped and counted.

    Args:
        run: run folder (its best weights), a .safetensors file of one, or an exported file of one
        sources: image and video files, folders of images, globs, http and https addresses of files, or a
            camera: camera:0
        proposals: for fast_rcnn, the regions to look at: predictions.json of another prediction on the images
        out: folder for the results; the first free one of predictions-1, predictions-2, ...
        save: what to write: pictures (images and videos with boxes), json, csv, yolo (a text per image),
            crops (a picture per object); pictures and json
        score: detections below are left out; 0 to 1
        classes: names of the classes that are wanted; all
        tile: look at large images in overlapping parts too, for small objects
        tile_size: of such a part, pixels: 640 or 1333x800; the size that the detector looks at
        overlap: of neighbouring parts; 0.2 is a fifth of a side
        stride: of a video or camera, look at every so many frames
        frames: of a video or camera, look at so many frames at most
        batch: images, frames or parts at a time
        size: as in training; the run's own
        device: auto, cpu or gpu

    Returns:
        One entry per object, as in predictions.json: COCO's result format with file and class names, and the
        number of the frame in a video.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.prediction.request import plan_prediction, plan_tiling

    plan = plan_prediction(
        Path(run),
        as_list(sources),
        out=as_path(out),
        save=None if save is None else as_list(save),
        proposals=as_path(proposals),
        score=score,
        classes=None if classes is None else as_list(classes),
        tiling=plan_tiling(tile=tile, tile_size=as_text(tile_size), overlap=overlap),
        stride=stride,
        frames=frames,
        batch=batch,
        size=as_text(size),
    )

    from msefpn.prediction import predict as engine

    return engine.predict(plan, device=device)


def stream(
    run: str | Path,
    sources: Sequence[str | Path] | str | Path,
    *,
    score: float = 0.3,
    classes: Sequence[str] | None = None,
    tile: bool = False,
    tile_size: str | int | None = None,
    overlap: float = 0.2,
    stride: int = 1,
    frames: int | None = None,
    batch: int = 1,
    size: str | int | None = None,
    device: str = "auto",
) -> Iterator[Result]:
    """Detect objects in images and videos, one result after the other; nothing is written.

    What cannot be read is skipped, with a warning that names it.

    Args:
        run: run folder (its best weights), a .safetensors file of one, or an exported file of one
        sources: image and video files, folders of images, globs, http and https addresses of files, or a
            camera: camera:0
        score: detections below are left out; 0 to 1
        classes: names of the classes that are wanted; all
        tile: look at large images in overlapping parts too, for small objects
        tile_size: of such a part, pixels: 640 or 1333x800; the size that the detector looks at
        overlap: of neighbouring parts; 0.2 is a fifth of a side
        stride: of a video or camera, look at every so many frames
        frames: of a video or camera, look at so many frames at most
        batch: images, frames or parts at a time
        size: as in training; the run's own
        device: auto, cpu or gpu

    Returns:
        A generator of `Result`: source, frame, image (H, W, 3) uint8 RGB, and `supervision.Detections`.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.prediction.request import plan_request, plan_tiling

    request = plan_request(
        Path(run),
        as_list(sources),
        proposals=None,
        score=score,
        classes=None if classes is None else as_list(classes),
        tiling=plan_tiling(tile=tile, tile_size=as_text(tile_size), overlap=overlap),
        stride=stride,
        frames=frames,
        batch=batch,
        size=as_text(size),
    )

    from msefpn.prediction import predict as engine

    return engine.stream(request, device=device)


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
        The numbers by name, and `per_class`: name -> AP; under `mask`, the same for masks.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    from msefpn.training.plan import plan_evaluation

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

    from msefpn.inference import evaluate as engine

    return engine.evaluate(plan, device=device)
