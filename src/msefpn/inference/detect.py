"""A detector over a set of images, and what it found in COCO's terms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msefpn.config import CHOICES, Config
from msefpn.data.masks import encode_mask, run_lengths
from msefpn.errors import UserError, unknown_name
from msefpn.models.fold import folded
from msefpn.models.mask import paste
from msefpn.structures import Batch, Detections, Proposals, to_original


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
    """(M,) COCO's run lengths of the image in its file; None: the detector draws none."""
    num_dropped: int = 0
    """Candidates over the score threshold that were dropped before NMS; see `Detections.num_dropped`."""
    strides: NDArray[np.int64] | None = None
    """(M,) strides of the levels that they were found on, see `Detections.strides`; None: not told."""

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
        """Return some of the detections; `rows` is a mask (M,) or their indices."""
        masks = None if self.masks is None else self.masks[rows]
        strides = None if self.strides is None else self.strides[rows]
        columns = self.image_ids[rows], self.boxes[rows], self.scores[rows], self.labels[rows]
        return Predictions(*columns, masks, self.num_dropped, strides)


def pick_device(name: str) -> torch.device:
    """Return the device for 'auto', 'cpu' or 'gpu'. Raises UserError for others and where there is no GPU."""
    if name not in CHOICES["device"]:
        raise unknown_name("device", name, CHOICES["device"])
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("device gpu: this machine has no GPU that torch can use: give --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def telling_memory(batch: int, size: tuple[int, int]) -> Iterator[None]:
    """Raise UserError where the body needs more memory than the GPU has.

    Args:
        batch: images at a time, for the message.
        size: longest and shortest side that they are resized to fit into, pixels.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"the GPU has not the memory for batch {batch} at size {size[0]}x{size[1]}: "
            "lower --batch or --size"
        ) from None


class Detects(Protocol):
    """What detects: a detector, or an exported file of one."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    @property
    def takes_proposals(self) -> bool:
        """Whether it needs proposals with its images."""

    def __call__(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `msefpn.models.Detector.forward`."""


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
        seen: is told the number of images of each batch.
        score: detections below are left out.
    """
    parts = [_nothing()]
    with _ready(detector):
        for batch in batches:
            parts += predict_batch(detector, batch, device, score)
            seen(len(batch.images))
    return merge_predictions(parts)


@contextlib.contextmanager
def _ready(detector: Detects) -> Iterator[None]:
    """In evaluation mode and folded, where it is a module; afterwards in its mode again."""
    if not isinstance(detector, nn.Module):
        yield
        return
    training = detector.training
    detector.eval()
    with folded(detector):
        yield
    detector.train(training)


def predict_batch(detector: Detects, batch: Batch, device: torch.device, score: float) -> list[Predictions]:
    """What a detector finds on each image of a batch; arguments as in `detect`, without gradients."""
    given = batch.proposals
    if given is not None:
        given = Proposals(given.boxes.to(device), given.valid.to(device))
    found = detector(batch.images.to(device), batch.sizes.to(device), given)
    boxes = to_original(found.boxes.float().cpu(), batch.sizes, batch.original_sizes)
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
            None if masks is None else _masks(masks[row, kept], boxes[row, kept], size.tolist()),
            num_dropped[row],
            None if strides is None else strides[row, kept].numpy(),
        )
        for row, (id, kept, size) in enumerate(zip(batch.ids, valid, batch.original_sizes, strict=True))
    ]


def merge_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Put the detections of several batches or processes together."""
    masks = [part.masks for part in parts if part.masks is not None]  # one without any may have found nothing
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
    """COCO's result format; box sides to 0.01 px, scores to 5 digits."""
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


def _masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> NDArray[np.object_]:
    """Run lengths of masks (D, M, M), each in its box (D, 4), of an image of `size`: height and width."""
    found = np.empty(len(masks), dtype=object)
    for row, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        found[row] = run_lengths(encode_mask(paste(mask, box, size).numpy()), size)
    return found


def _nothing() -> Predictions:
    none = np.zeros(0, np.int64)
    return Predictions(none, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), none)
