"""Test-time augmentation: an image is detected on in several sizes, also mirrored, and the boxes are merged.

Of each view the candidates that would go into suppression (over the score threshold, at most `pre_nms_top_k`)
are brought to the pixels of the image, and put together; then one suppression within each class, NMS or
soft-NMS, chooses among all of them, and the best `max_per_image` are kept. Boxes and scores are not averaged:
mmdetection does so in its one-stage detectors too; in its two-stage ones it averages over views the boxes and
scores that the head gives for common proposals. Masks are drawn in the boxes that are left, on each view, and
averaged over the views before they are cut off at 0.5, as mmdetection does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msefpn.errors import UserError
from msefpn.inference.detect import Detects, Predictions, draw_masks, predict_batch
from msefpn.inference.options import DetectionOptions, View
from msefpn.models import Detector, TwoStage
from msefpn.models.select import Selection, selections_in
from msefpn.structures import Batch


class MergedViews:
    """Detects on several views of an image.

    Args:
        detector: whose `Selection`s let all candidates pass.
        views: of each image.
        selection: chooses among the candidates of all views.
    """

    def __init__(self, detector: Detector, views: Sequence[View], selection: Selection) -> None:
        self.detector, self.views = detector, views
        self.selection = replace(selection, score=0.0, min_size=-1.0)  # each view's have been applied

    def __call__(
        self, batch_of: Callable[[View], Batch], device: torch.device, score: float
    ) -> list[Predictions]:
        """Predictions for each image.

        Args:
            batch_of: gives the images as they are in a view, the same ones for each.
            device: where the detector is.
            score: detections below are left out.
        """
        find = self.detector.without_masks if isinstance(self.detector, TwoStage) else self.detector
        found: list[list[Predictions]] = []
        sizes: list[list[int]] = []
        for view in self.views:
            batch = batch_of(view)
            sizes = batch.original_sizes.tolist()
            parts = predict_batch(find, batch, device, 0.0)
            pairs = zip(parts, sizes, strict=True)
            found.append([_unmirrored(part, width) if view.mirrored else part for part, (_, width) in pairs])
        merged = [self._merge(parts, score) for parts in zip(*found, strict=True)]
        return self._with_masks(merged, sizes, batch_of, device) if self.detector.learns_masks else merged

    def _merge(self, parts: Sequence[Predictions], score: float) -> Predictions:
        """One image's predictions of all views, in its pixels, as one."""
        boxes, scores, labels = (
            torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
            for name in ("boxes", "scores", "labels")
        )
        dropped = sum(part.num_dropped for part in parts)
        if not len(scores):
            return replace(parts[0], num_dropped=dropped, strides=None)
        selection = replace(self.selection, pre_nms_top_k=len(scores))
        chosen = selection(boxes[None], scores[None], labels[None])
        kept = chosen.valid[0] & (chosen.scores[0] >= score)
        boxes, scores, labels = (x[0, kept] for x in (chosen.boxes, chosen.scores, chosen.labels))
        image = np.zeros(len(scores), np.int64)
        return Predictions(image, boxes.numpy(), scores.numpy(), labels.numpy(), num_dropped=dropped)

    def _with_masks(
        self,
        merged: Sequence[Predictions],
        sizes: Sequence[Sequence[int]],
        batch_of: Callable[[View], Batch],
        device: torch.device,
    ) -> list[Predictions]:
        """Draw masks in the merged boxes of each image, the mean over the views."""
        assert isinstance(self.detector, TwoStage)
        most = max(1, *(len(found.scores) for found in merged))
        boxes, labels = torch.zeros(len(merged), most, 4), torch.zeros(len(merged), most, dtype=torch.int64)
        for row, found in enumerate(merged):
            boxes[row, : len(found.boxes)] = torch.from_numpy(found.boxes)
            labels[row, : len(found.labels)] = torch.from_numpy(found.labels)
        total: Tensor | float = 0.0
        for view in self.views:
            batch = batch_of(view)
            factor = (batch.sizes / batch.original_sizes).flip(-1).repeat(1, 2)[:, None]
            seen = _mirrored(boxes, batch.original_sizes[:, 1]) if view.mirrored else boxes
            given = batch.images, batch.sizes, (seen * factor).float(), labels
            masks = self.detector.masks_of(*(x.to(device) for x in given)).float().cpu()
            total = total + (masks.flip(-1) if view.mirrored else masks)
        mean = total / len(self.views)
        assert isinstance(mean, Tensor)
        rows = zip(merged, boxes, mean, sizes, strict=True)
        return [
            replace(found, masks=draw_masks(mask[:n], box[:n], size))
            for found, box, mask, size in rows
            for n in (len(found.scores),)
        ]


def _mirrored(boxes: Tensor, width: Tensor) -> Tensor:
    """Boxes (B, D, 4) in mirrored images of width (B,)."""
    wide = width[:, None].to(boxes.dtype)
    return torch.stack([wide - boxes[..., 2], boxes[..., 1], wide - boxes[..., 0], boxes[..., 3]], dim=-1)


def _unmirrored(found: Predictions, width: int) -> Predictions:
    x1, y1, x2, y2 = found.boxes.T
    boxes: NDArray[np.float32] = np.stack([width - x2, y1, width - x1, y2], axis=1)
    return replace(found, boxes=boxes)


def apply_options(
    detector: Detects, options: DetectionOptions, run: Path, size: tuple[int, int]
) -> MergedViews | None:
    """Change how a detector chooses its detections, for good.

    Args:
        detector: of a run.
        options: how.
        run: its name, for messages.
        size: longest and shortest side, pixels, that images are resized to where no scales are given.

    Returns:
        What detects on several views; None: the detector itself detects.

    Raises:
        UserError: the detector cannot do it.
    """
    if not options.flags():
        return None
    if not isinstance(detector, Detector):
        raise UserError(
            f"{run} is an exported file, whose graph ends in NMS: leave out {options.flags()}, or give the "
            "run that it was exported from"
        )
    name = detector.config.detector
    if options.augments and detector.takes_proposals:
        raise UserError(
            f"the run {run} is a {name}, whose proposals are of the image as it is: leave out "
            f"{options.flags()}"
        )
    if options.augments and detector.learns_masks and not isinstance(detector, TwoStage):
        raise UserError(
            f"the run {run} is a {name}, whose masks cannot be merged: leave out {options.flags()}"
        )
    owners = selections_in(detector)
    if not owners:
        raise UserError(
            f"the run {run} is a {name}, which has no msefpn.models.select.Selection to change: leave out "
            f"{options.flags()}"
        )
    suppression = options.soft_nms or "hard"
    for module, own in owners:
        now = "none" if options.augments else suppression
        module.selection = replace(own, suppression=now, sigma=options.sigma or 0.5)  # type: ignore[assignment]  # no tensor
    if not options.augments:
        return None
    chosen = replace(owners[-1][1], suppression=suppression, sigma=options.sigma or 0.5)
    return MergedViews(detector, options.views(size), chosen)
