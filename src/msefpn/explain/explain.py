"""What a run's neck does to a picture, beside another run's, as a page and as numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from msefpn.data.images import ImageFault, read_image
from msefpn.errors import UserError
from msefpn.explain import page as explain_page
from msefpn.explain.hooks import watching
from msefpn.explain.panels import Seen, level_name, sections
from msefpn.inference.detect import predict_batch
from msefpn.inference.device import telling_memory
from msefpn.inference.formats import format_of
from msefpn.inference.predictor import Predictor
from msefpn.metrics.similarity import Estimate, Moments, contrast, moments
from msefpn.models import Detector
from msefpn.models.roi import RoIHead
from msefpn.models.roi_align import RoIAlign
from msefpn.runs.console import Bar, say
from msefpn.runs.folder import write_text

Key = tuple[str, int]
"""A stage, `C` for example, and the stride of the finer one of two neighbouring levels."""


@dataclass(frozen=True)
class Opened:
    """A run, ready to look at pictures."""

    name: str
    """What it is called on the page."""
    path: Path
    predictor: Predictor
    detector: Detector

    @torch.no_grad()
    def look(self, pixels: NDArray[np.uint8], score: float | None = None) -> Seen:
        """Watch the neck on a picture (H, W, 3) RGB; detect, where a score is given."""
        where, size = self.predictor.device, self.predictor.size
        batch = self.predictor.batch([pixels])
        found = None
        with telling_memory(1, size), watching(self.detector.neck) as capture:
            if score is None or self.detector.config.takes_proposals:
                self.detector.pyramid(batch.images.to(where), batch.sizes.to(where))
            else:
                (found,) = predict_batch(self.detector, batch, where, score)
        height, width = batch.sizes[0].tolist()
        return Seen(capture, found, (height, width), (batch.images.shape[2], batch.images.shape[3]))


def explain(
    runs: Sequence[Path],
    image: Path,
    images: Sequence[Path],
    *,
    out: Path | None,
    score: float,
    size: str | None,
    device: str,
) -> dict[str, Any]:
    """Write the page and the numbers; see `msefpn.commands.inspect.explain`."""
    out = out or _free_page()
    beside = out.with_suffix(".json")
    _check_page(out, beside)
    if not 0 <= score <= 1:
        raise UserError(f"score is {score}: it must be 0 to 1")
    pixels = _read(image)
    if isinstance(pixels, str):
        raise UserError(f"{pixels}: give another image")
    opened = [_open(run, name, size, device) for run, name in zip(runs, _names(runs), strict=True)]
    shown = [run.look(pixels, score) for run in opened]
    alike, unreadable = _alike(opened, shown, images)
    result: dict[str, Any] = {
        "image": str(image),
        "score": score,
        "runs": [_about(run, seen, pixels.shape[:2]) for run, seen in zip(opened, shown, strict=True)],
        "similarity": similarity([run.name for run in opened], alike),
    }
    drawn = sections([(run.name, seen) for run, seen in zip(opened, shown, strict=True)])
    write_text(out, explain_page.page(result, pixels, drawn))
    write_text(beside, json.dumps(result, indent=1))
    say(*(f"skipped: {text}" for text in unreadable))
    say(*explain_page.summary(result), f"{out} and {beside}")
    return result


def _free_page() -> Path:
    number = 1
    while any(Path(f"explain-{number}").with_suffix(suffix).exists() for suffix in (".html", ".json")):
        number += 1
    return Path(f"explain-{number}.html")


def _check_page(out: Path, beside: Path) -> None:
    """Raise UserError where the page and its numbers cannot be written, before the work; write nothing."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out '{out}' is no page: name a new .html file")
    for path in (out, beside):
        if path.exists() or path.is_symlink():
            raise UserError(f"out '{path}' is there already: name another file")
    if not out.absolute().parent.is_dir():
        raise UserError(
            f"out '{out}' cannot be written: the folder '{out.parent}' is not there: make it first"
        )
    if not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"out '{out}' cannot be written: no permission to write in '{out.absolute().parent}'")


def _open(run: Path, name: str, size: str | None, device: str) -> Opened:
    if format_of(run):
        raise UserError(
            f"run '{run}' is an exported file, whose inside cannot be seen: name the run's folder"
        )
    predictor = Predictor.open(run, size=size, device=device)
    assert isinstance(predictor.detector, Detector)
    return Opened(name, run, predictor, predictor.detector)


def _names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path; as much of it as tells two apart. Raises UserError where they are one."""
    parts = [run.absolute().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise UserError(f"run '{runs[0]}' is named twice: give another with --against")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(own[-length:]) for own in parts]


def _read(file: Path) -> NDArray[np.uint8] | str:
    """The pixels, or why there are none."""
    try:
        return read_image(file)
    except (OSError, ImageFault) as error:
        return f"{file}: {' '.join(str(error).split())}"


def _alike(
    opened: Sequence[Opened], shown: Sequence[Seen], images: Sequence[Path]
) -> tuple[list[dict[Key, Moments]], list[str]]:
    """Moments (images, 3) of each run, and what could not be read; without images, of the picture shown."""
    rows = [[level_moments(seen)] for seen in shown]
    unreadable = []
    if images:
        rows = [[] for _ in opened]
        with Bar("explain", len(images)) as bar:
            for file in images:
                pixels = _read(file)
                if isinstance(pixels, str):
                    unreadable.append(pixels)
                else:
                    for own, run in zip(rows, opened, strict=True):
                        own.append(level_moments(run.look(pixels)))
                bar.seen(1)
        if len(unreadable) == len(images):
            raise UserError(
                f"none of the {len(images)} images can be read: {unreadable[0]}: give other files"
            )
    return [{key: np.stack([row[key] for row in own]) for key in own[0]} for own in rows], unreadable


def level_moments(seen: Seen) -> dict[Key, Moments]:
    """HSIC of each two neighbouring levels at each stage, (3,); of the backbone's levels alone.

    The finer map is averaged to the coarser one's cells; those whose centre is padding are left out.
    """
    found = {}
    levels = seen.capture.stages["C"]
    for stage, maps in seen.capture.stages.items():
        for stride in [s for s in maps if 2 * s in maps and 2 * s in levels]:
            coarse = maps[2 * stride]
            fine = F.adaptive_avg_pool2d(maps[stride], (coarse.shape[1], coarse.shape[2]))
            rows, columns = (max(1, math.ceil(side / (2 * stride) - 0.5)) for side in seen.size)
            x, y = (m[:, :rows, :columns].flatten(1).T.numpy() for m in (fine, coarse))
            found[stage, stride] = moments(x, y)
    return found


def similarity(names: Sequence[str], alike: Sequence[dict[Key, Moments]]) -> dict[str, Any]:
    """CKA of neighbouring levels by stage, for each pair of levels and their mean; and between two runs.

    Args:
        names: of the runs.
        alike: moments (images, 3) of each run.
    """
    common = [{s for k, s in own if k == "C"} & {s for k, s in own if k == "P"} for own in alike]
    pairs = sorted(set.intersection(*common))
    table = []
    for name, own in zip(names, alike, strict=True):
        stages = list(dict.fromkeys(stage for stage, _ in own))
        for levels in ([pair] for pair in pairs):
            table.append(_row(name, levels, own, stages))
        table.append(_row(name, pairs, own, stages))
    result = {"images": len(next(iter(alike[0].values()))), "runs": table}
    if len(alike) == 2 and pairs:
        result["difference"] = _difference(names, alike, pairs)
    return result


def _row(name: str, levels: Sequence[int], own: dict[Key, Moments], stages: Sequence[str]) -> dict[str, Any]:
    """CKA at each stage that has these pairs of levels, their mean, and the change from C to P."""
    has = [stage for stage in stages if all((stage, level) in own for level in levels)]
    row = {stage: _plain(contrast(_mean(stage, levels, own, 1))) for stage in has}
    change = contrast([*_mean("P", levels, own, 1), *_mean("C", levels, own, -1)])
    label = "mean" if len(levels) != 1 else f"{level_name(levels[0])}–{level_name(2 * levels[0])}"
    return {"run": name, "levels": label, "stages": row, "change": _plain(change)}


def _difference(
    names: Sequence[str], alike: Sequence[dict[Key, Moments]], pairs: Sequence[int]
) -> dict[str, Any]:
    """How far the second run's mean lies over the first's, at each stage of both, and in the change."""
    first, second = alike
    common = [
        stage
        for stage in dict.fromkeys(stage for stage, _ in second)
        if all((stage, level) in own for own in alike for level in pairs)
    ]
    terms = {stage: [*_mean(stage, pairs, second, 1), *_mean(stage, pairs, first, -1)] for stage in common}
    before = [(-factor, of) for factor, of in terms["C"]]
    stages = {stage: _plain(contrast(own)) for stage, own in terms.items()}
    return {"of": [names[1], names[0]], "stages": stages, "change": _plain(contrast([*terms["P"], *before]))}


def _mean(
    stage: str, levels: Sequence[int], own: dict[Key, Moments], factor: float
) -> list[tuple[float, Moments]]:
    return [(factor / len(levels), own[stage, level]) for level in levels]


def _plain(estimate: Estimate) -> dict[str, Any]:
    """As numbers for json, which knows no NaN."""
    numbers = dataclasses.asdict(estimate)
    return {
        key: None if value is None or not math.isfinite(value) else round(value, 5)
        for key, value in numbers.items()
        if key != "images"
    }


def _about(run: Opened, seen: Seen, size: tuple[int, int]) -> dict[str, Any]:
    config = run.detector.config
    return {
        "name": run.name,
        "run": str(run.path),
        "detector": config.detector,
        "backbone": config.backbone,
        "neck": config.neck,
        "seen_at": list(seen.size),
        "levels": {level_name(s): {"stride": s} for s in seen.capture.stages["P"]},
        "detections": None if seen.found is None else _detections(run.detector, seen, size),
    }


def _detections(detector: Detector, seen: Seen, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Best first; boxes xyxy, pixels of the file, and the level that such a region is pooled from."""
    found = seen.found
    assert found is not None
    factor = seen.size[0] / size[0]
    levels = _pooled_from(detector, torch.from_numpy(found.boxes) * factor)
    rows = zip(found.boxes, found.scores, found.labels, levels, strict=True)
    listed = [
        {
            "class": detector.classes[label],
            "score": round(float(score), 4),
            "box": [round(float(side), 1) for side in box],
            "level": level,
        }
        for box, score, label, level in rows
    ]
    return sorted(listed, key=lambda item: -float(str(item["score"])))


def _pooled_from(detector: Detector, boxes: torch.Tensor) -> list[str | None]:
    """By RoIAlign's rule; None for each box where a detector pools none, or all levels."""
    head = next((m for m in detector.modules() if isinstance(m, RoIHead)), None)
    pool = next((m for m in detector.modules() if isinstance(m, RoIAlign)), None)
    if pool is None or (head is not None and head.select is not None):
        return [None] * len(boxes)
    return [level_name(pool.strides[level]) for level in pool.level_of(boxes).tolist()]
