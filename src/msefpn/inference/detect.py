"""A detector over a set of images, and its predictions in COCO's terms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msefpn.config import Config
from msefpn.data.masks import decode_masks, encode_mask, run_lengths
from msefpn.models.fold import folded
from msefpn.models.mask import paste
from msefpn.names import DetectorInputs
from msefpn.structures import Batch, Detections, Proposals


@dataclass(frozen=True)
class Predictions:
    """Detections over a set of images. M: detections."""

    image_ids: NDArray[np.int64]
    """(M,)"""
    boxes: NDArray[np.float32]
    """(M, 4) xyxy, pixels of the image in its file."""
    scores: NDArray[np.float32]
    """(M,) 0..1."""
    labels: NDArray[np.int64]
    """(M,) 0..K-1."""
    masks: NDArray[np.object_] | None = None
    """(M,) COCO's run lengths, of the size of the image in its file; None: the detector draws no masks."""
    num_dropped: int = 0
    """Candidates over the score threshold that were dropped before NMS; see `Detections.num_dropped`."""
    strides: NDArray[np.int64] | None = None
    """(M,) strides of the levels that they were found on, see `Detections.strides`; None: not known."""

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
        """Return some of the detections; `rows` is a mask (M,) or their indices."""
        masks = None if self.masks is None else self.masks[rows]
        strides = None if self.strides is None else self.strides[rows]
        columns = self.image_ids[rows], self.boxes[rows], self.scores[rows], self.labels[rows]
        return Predictions(*columns, masks, self.num_dropped, strides)

    def decoded_masks(self, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Return the masks (M, H, W) of one image of `size`, height and width, pixels."""
        if self.masks is None:
            return None
        return decode_masks([mask["counts"].encode() for mask in self.masks], (size[0], size[1])).astype(bool)


class Detects(Protocol):
    """A detector, or an exported file of one."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    @property
    def learns_masks(self) -> bool:
        """Whether it draws masks."""

    @property
    def takes_proposals(self) -> bool:
        """Whether it needs given regions."""

    def __call__(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `msefpn.models.Detector.forward`."""


def inputs_read(detector: Detects) -> DetectorInputs:
    """What a detector reads beside images."""
    return DetectorInputs(detector.config.detector, detector.learns_masks, detector.takes_proposals)


@torch.no_grad()
def detect(
    detector: Detects,
    batches: Iterable[Batch],
    device: torch.device,
    seen: Callable[[int], None] = lambda count: None,
    *,
    score: float = 0.0,
) -> Predictions:
    """Run a detector, in float32, over batches.

    Args:
        detector: on `device`.
        batches: the images.
        device: where it runs.
        seen: called with the number of images of each batch.
        score: detections below are left out.
    """
    parts = [no_predictions()]
    with _ready(detector):
        for batch in batches:
            parts += predict_batch(detector, batch, device, score)
            seen(len(batch.images))
    return merge_predictions(parts)


@contextlib.contextmanager
def _ready(detector: Detects) -> Iterator[None]:
    """Put a module into evaluation mode and fold it for the body; restore its mode afterwards."""
    if not isinstance(detector, nn.Module):
        yield
        return
    training = detector.training
    detector.eval()
    with folded(detector):
        yield
    detector.train(training)


def predict_batch(
    detector: Callable[[Tensor, Tensor, Proposals | None], Detections],
    batch: Batch,
    device: torch.device,
    score: float,
) -> list[Predictions]:
    """Predictions for each image of a batch; arguments as in `detect`, without gradients."""
    given = batch.proposals
    if given is not None:
        given = Proposals(given.boxes.to(device), given.valid.to(device))
    found = detector(batch.images.to(device), batch.sizes.to(device), given)
    boxes = _to_original(found.boxes.float().cpu(), batch.sizes, batch.original_sizes)
    scores, labels, num_dropped = found.scores.float().cpu(), found.labels.cpu(), found.num_dropped.tolist()
    valid = found.valid.cpu() & (scores >= score)
    masks = None if found.masks is None else found.masks.float().cpu()
    strides = None if found.strides is None else found.strides.cpu()
    return [
        Predictions(
            np.full(int(kept.sum()), int(id)),
            boxes[row, kept].numpy(),
            scores[row, kept].numpy(),
            labels[row, kept].numpy(),
            None if masks is None else draw_masks(masks[row, kept], boxes[row, kept], size.tolist()),
            num_dropped[row],
            None if strides is None else strides[row, kept].numpy(),
        )
        for row, (id, kept, size) in enumerate(zip(batch.ids, valid, batch.original_sizes, strict=True))
    ]


def merge_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of several batches or processes."""
    masks = [part.masks for part in parts if part.masks is not None]  # an empty part may have None
    strides = [part.strides for part in parts if part.strides is not None]
    return Predictions(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(masks) if masks else None,
        sum(part.num_dropped for part in parts),
        np.concatenate(strides) if strides else None,
    )


def as_results(found: Predictions, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return COCO's result format; box sides to 0.01 px, scores to 5 digits."""
    order = np.argsort(found.image_ids, kind="stable")
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = np.concatenate([found.boxes[:, :2], sides], 1).astype(np.float64).round(2)  # (M, 4) xywh
    scores = found.scores.astype(np.float64).round(5)
    results: list[dict[str, Any]] = [
        {
            "image_id": int(found.image_ids[row]),
            "category_id": category_ids[found.labels[row]],
            "bbox": boxes[row].tolist(),
            "score": float(scores[row]),
        }
        for row in order
    ]
    if found.masks is not None:
        for row, item in zip(order, results, strict=True):
            item["segmentation"] = found.masks[row]
    return results


def _to_original(boxes: Tensor, sizes: Tensor, original_sizes: Tensor) -> Tensor:
    """Scale boxes (B, D, 4) from the resized images (B, 2: height, width) to those of the files."""
    factor = (original_sizes / sizes).flip(-1).repeat(1, 2)  # (B, 4) as x, y, x, y
    return boxes * factor[:, None].to(boxes.dtype)


def draw_masks(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> NDArray[np.object_]:
    """Run lengths of masks (D, M, M), each in its box (D, 4), of an image of `size`: height and width."""
    height, width = size
    found = np.empty(len(masks), dtype=object)
    for row, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        found[row] = run_lengths(encode_mask(paste(mask, box, (height, width)).numpy()), size)
    return found


def no_predictions() -> Predictions:
    """Predictions without any detection."""
    none = np.zeros(0, np.int64)
    return Predictions(none, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), none)
