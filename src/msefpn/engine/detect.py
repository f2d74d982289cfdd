"""A detector over a set of images, and what it found in COCO's terms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msefpn.config import CHOICES
from msefpn.errors import UserError, unknown_name
from msefpn.models import Detector
from msefpn.structures import Batch, to_original


@dataclass(frozen=True)
class Found:
    """Detections over a set of images. M: detections."""

    image_ids: NDArray[np.int64]
    """(M,)"""
    boxes: NDArray[np.float32]
    """(M, 4) xyxy, pixels of the image in its file."""
    scores: NDArray[np.float32]
    """(M,) 0..1."""
    labels: NDArray[np.int64]
    """(M,) 0..K-1."""
    cut: int = 0
    """Candidates over the score threshold that were not looked at; see `Detections.cut`."""

    def where(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Found:
        """Return some of the detections; `rows` is a mask (M,) or their indices."""
        return Found(self.image_ids[rows], self.boxes[rows], self.scores[rows], self.labels[rows], self.cut)


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


@torch.no_grad()
def detect(
    detector: Detector,
    batches: Iterable[Batch],
    device: torch.device,
    seen: Callable[[int], None] = lambda count: None,
) -> Found:
    """Run a detector, in float32, over batches on `device`; `seen` is told the images of each batch."""
    training = detector.training
    detector.eval()
    parts = [_nothing()]
    for batch in batches:
        detections = detector(batch.images.to(device), batch.sizes.to(device))
        boxes = to_original(detections.boxes.float().cpu(), batch.sizes, batch.original_sizes)
        valid = detections.valid.cpu()
        part = Found(
            batch.ids[:, None].expand_as(valid)[valid].numpy(),
            boxes[valid].numpy(),
            detections.scores.float().cpu()[valid].numpy(),
            detections.labels.cpu()[valid].numpy(),
            int(detections.cut.sum()),
        )
        parts.append(part)
        seen(len(batch.images))
    detector.train(training)
    return merged(parts)


def merged(parts: Sequence[Found]) -> Found:
    """Put the detections of several batches or processes together."""
    return Found(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        sum(part.cut for part in parts),
    )


def as_results(found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO's result format; box sides to 0.01 px, scores to 5 digits."""
    order = np.argsort(found.image_ids, kind="stable")
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    boxes = np.concatenate([found.boxes[:, :2], sides], 1).astype(np.float64).round(2)  # (M, 4) xywh
    scores = found.scores.astype(np.float64).round(5)
    return [
        {
            "image_id": int(found.image_ids[row]),
            "category_id": category_ids[found.labels[row]],
            "bbox": boxes[row].tolist(),
            "score": float(scores[row]),
        }
        for row in order
    ]


def _nothing() -> Found:
    none = np.zeros(0, np.int64)
    return Found(none, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), none)
