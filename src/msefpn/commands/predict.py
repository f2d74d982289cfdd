"""`msefpn predict` and `evaluate`, and `stream` for programs: detection with a trained detector."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.checkpoint import check_run
from msefpn.commands.arguments import as_path, as_text, at_hand, takes
from msefpn.errors import UserError, missing_extra
from msefpn.inference.options import DetectionOptions
from msefpn.names import check_proposals_given, known_inputs
from msefpn.places import is_address
from msefpn.prediction.request import (
    PredictionOptions,
    ShardOptions,
    check_classes,
    check_kinds,
)
from msefpn.runs.folder import check_out, free_folder
from msefpn.runs.imports import import_models

if TYPE_CHECKING:
    from msefpn.inference.frames import InputSource
    from msefpn.prediction.loaded import LoadedDetector
    from msefpn.prediction.results import ImageResult


@takes(PredictionOptions, DetectionOptions, ShardOptions)
def predict(
    run: str | Path | Any,
    sources: Sequence[str | Path] | str | Path,
    *,
    out: str | Path | None = None,
    save: Sequence[str] | None = None,
    follow_links: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Detect objects in images and videos: pictures with boxes and masks, and predictions.json.

    Files that cannot be read are named, skipped and counted. With `jobs` or `ray` the images are predicted
    in shards, Parquet files in OUT/shards: the same command continues a job that was stopped.

    Args:
        run: run folder (its best weights), a .safetensors or exported file of one, a checkpoint that
            `msefpn import` reads, an address s3://... of one of these, hf://USER/NAME, or a name of
            `msefpn models`; from Python also what `msefpn.load` returns
        sources: image and video files, folders of images, globs, http and https addresses of files, lists of
            these (.txt: one on each line; .parquet: a column image, path, file_name or url), addresses of
            fsspec such as s3://BUCKET/FOLDER, or a camera: camera:0
        out: folder for the results, or in shards an address of fsspec (default: the first free one of
            predictions-1, predictions-2, ...)
        save: what to write: pictures (images and videos with boxes), json, csv, yolo (a text per image),
            crops (a picture per object); in shards parquet, json (default: pictures json; in shards parquet)
        follow_links: follow symbolic links that lead out of a given folder

    Returns:
        One entry per object, as in predictions.json: COCO's result format with file and class names, and the
        number and time (seconds) of the frame in a video. In shards, one entry per shard: file, images,
        objects and unreadable (images).

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    sharding = ShardOptions.taken(options)
    chosen = PredictionOptions.given(**options)
    run = at_hand(run)
    if sharding.wanted:
        return _in_shards(run, sources, chosen, sharding, out=out, save=save, follow_links=follow_links)
    kinds = check_kinds(["pictures", "json"] if save is None else save)
    if is_address(out):
        raise UserError(f"out {out}: only shards are written to an address: add --jobs or --ray")
    folder = as_path(out) or free_folder(Path("predictions"))
    check_out(folder)
    found = _check_given(run, sources, chosen, follow_links=follow_links)

    if not chosen.compile:
        import_models()

    from msefpn.inference.sources import describe_left_out
    from msefpn.prediction.predict import predict as write_predictions
    from msefpn.runs.console import say

    say(*filter(None, [describe_left_out(sources)]))
    return write_predictions(_opened(run), found, chosen, out=folder, kinds=kinds)


@takes(PredictionOptions, DetectionOptions)
def stream(
    run: str | Path | LoadedDetector,
    sources: Sequence[str | Path] | str | Path,
    *,
    follow_links: bool = False,
    **options: Any,
) -> Iterator[ImageResult]:
    """Detect objects in images and videos, one result after the other; nothing is written.

    Files that cannot be read are skipped, with a warning that names them.

    Args:
        run: run folder (its best weights), a .safetensors or exported file of one, a checkpoint that
            `msefpn import` reads, an address s3://... of one of these, hf://USER/NAME, or a name of
            `msefpn models`; from Python also what `msefpn.load` returns
        sources: image and video files, folders of images, globs, http and https addresses of files, or a
            camera: camera:0
        follow_links: follow symbolic links that lead out of a given folder

    Returns:
        A generator of `ImageResult`: source, frame, image (H, W, 3) uint8 RGB and predictions (arrays).

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    chosen = PredictionOptions.given(**options)
    run = at_hand(run)
    found = _check_given(run, sources, chosen, follow_links=follow_links)

    if not chosen.compile:
        import_models()

    from msefpn.prediction.predict import stream as stream_results

    return stream_results(_opened(run), found, chosen)


@takes(DetectionOptions)
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
    fix_names: bool = False,
    follow_links: bool = False,
    submit: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a run by COCO's protocol: 12 numbers and AP per class, of boxes and of masks if it draws them.

    Args:
        run: run folder (its best weights), a .safetensors or exported file of one, a checkpoint that
            `msefpn import` reads, an address s3://..., hf://USER/NAME, or a name of `msefpn models`
        data: data folder (default: the run's own data)
        split: train or val
        json: COCO json to evaluate on, instead of a data folder
        images: its image folder (default: the folder named like the json)
        proposals: proposals for fast_rcnn: a json in COCO's result format (default: the run's own)
        out: folder for metrics.json and predictions.json (default: the first free RUN/evaluate-1, ...)
        batch: images at a time (default: as in the run's training)
        size: longest x shortest side, pixels, that images are resized to fit into (default: the run's)
        device: auto, cpu or gpu
        workers: processes that load images; 0: none but the command itself
        fix_names: where a picture is missing, take the one of a similar name (other case, slashes, folders)
        follow_links: follow symbolic links that lead out of the data folder
        submit: name of the method: write detections_test-dev2017_NAME_results.zip for COCO's server into out;
            --json image_info_test-dev2017.json (or instances_val2017.json) and --images name its data

    Returns:
        The numbers by name, and `per_class`: name -> AP; under `mask`, the same for masks.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    chosen = DetectionOptions.given(**options)
    if (copy := at_hand(run)) is not run:
        run, out = copy, out or free_folder(Path("evaluate"))
    about = check_run(run)

    from msefpn.inference.plan import plan_evaluation

    plan = plan_evaluation(
        Path(run),
        as_path(data),
        about=about,
        split=split,
        file=as_path(json),
        images=as_path(images),
        proposals=as_path(proposals),
        out=as_path(out),
        batch=batch,
        size=as_text(size),
        device=device,
        workers=workers,
        options=chosen,
        fix_names=fix_names,
        follow_links=follow_links,
        submit=submit,
    )

    import_models()

    from msefpn.inference.evaluate import evaluate as evaluate_run

    return evaluate_run(plan)


def _check_given(
    run: str | Path | LoadedDetector,
    sources: Sequence[str | Path] | str | Path,
    options: PredictionOptions,
    *,
    follow_links: bool,
) -> list[InputSource]:
    """Check the run and return the sources, before torch is imported. Raises UserError."""
    from msefpn.inference.sources import check_video, find_sources

    if isinstance(run, (str, Path)) and (about := check_run(run)) is not None:
        check_classes(options.classes, about.classes)
        if (inputs := known_inputs(about.config.detector)) is not None:
            check_proposals_given(inputs, options.proposals is not None, run)
    found = find_sources(sources, follow_links=follow_links)
    check_video(found)
    return found


def _in_shards(
    run: str | Path | LoadedDetector,
    sources: Sequence[str | Path] | str | Path,
    options: PredictionOptions,
    sharding: ShardOptions,
    *,
    out: str | Path | None,
    save: Sequence[str] | None,
    follow_links: bool,
) -> list[dict[str, Any]]:
    """Check and predict in shards, see `predict`. Raises UserError."""
    kinds = check_kinds("parquet" if save is None else save, in_shards=True)
    if not isinstance(run, (str, Path)):
        raise UserError(
            "jobs and ray need the path of a run, since each process loads its own: give it instead of a "
            "loaded detector"
        )
    if (about := check_run(run)) is not None:
        check_classes(options.classes, about.classes)
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("predicting in shards", "ray" if sharding.ray else "parquet")

    from msefpn.inference.sources import describe_left_out, each_source
    from msefpn.prediction.shards.run import predict_in_shards
    from msefpn.runs.console import say

    say(*filter(None, [describe_left_out(sources)]))
    found = each_source(sources, follow_links=follow_links)
    folder = str(out or free_folder(Path("predictions")))
    return predict_in_shards(str(run), found, options, sharding, out=folder, kinds=kinds)


def _opened(run: str | Path | LoadedDetector) -> Path | LoadedDetector:
    return Path(run) if isinstance(run, str) else run
