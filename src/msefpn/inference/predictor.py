"""A trained detector, ready for pictures: arrays in, what was found out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from msefpn.checkpoint import is_exported
from msefpn.config import parse_size
from msefpn.data.loader import ImageSample, collate
from msefpn.data.transforms import eval_transform
from msefpn.errors import UserError
from msefpn.inference.detect import Detects, Predictions, pick_device, predict_batch, telling_memory
from msefpn.inference.exported import load_exported
from msefpn.models import load
from msefpn.models.fold import fold_for_good
from msefpn.structures import Batch


class Predictor:
    """Detects on images as they are in memory; several threads may share one.

    Attributes:
        detector: what detects; not to be trained any more.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.
        size: longest and shortest side that images are resized to fit into, pixels.
        device: where it runs.

    Args:
        detector: in evaluation mode, on `device`.
        size: see above.
        device: see above.
    """

    def __init__(self, detector: Detects, size: tuple[int, int], device: torch.device) -> None:
        self.detector = detector
        self.classes = detector.classes
        self.category_ids = detector.category_ids
        self.size = size
        self.device = device
        self._transform = eval_transform(size)

    @classmethod
    def open(cls, run: Path, *, size: str | None = None, device: str = "auto") -> Predictor:
        """Read a run's weights, or an exported file.

        Args:
            run: run folder (its best weights), a .safetensors file of one, or an exported file.
            size: as in training, 320 or 1333x800; None: the run's own.
            device: auto, cpu or gpu.

        Raises:
            UserError: there are no weights, they are damaged, or there is no such device.
        """
        detector, where = open_detector(run, device)
        return cls(detector, parse_size(size or detector.config.size), where)

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        score: float = 0.0,
        proposals: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[Predictions]:
        """Detect on images, together as one batch.

        Args:
            images: (H, W, 3) uint8 RGB each.
            score: detections below are left out.
            proposals: for Fast R-CNN, the regions (r, 4) float32 of each image, xyxy, pixels, best first.

        Returns:
            What was found on each image, best first, boxes in its pixels; `image_ids` is its place here.

        Raises:
            UserError: the GPU has not the memory.
        """
        if not images:
            return []
        with telling_memory(len(images), self.size):
            return predict_batch(self.detector, self.batch(images, proposals), self.device, score)

    def batch(
        self, images: Sequence[NDArray[np.uint8]], proposals: Sequence[NDArray[np.float32]] | None = None
    ) -> Batch:
        """Resize images and put them together, as the detector takes them; arguments as in a call."""
        regions = [None] * len(images) if proposals is None else proposals
        numbered = zip(range(len(images)), images, regions, strict=True)
        return collate([self._sample(*item) for item in numbered])

    def _sample(self, number: int, pixels: NDArray[np.uint8], regions: NDArray[np.float32] | None) -> ImageSample:
        height, width = pixels.shape[:2]
        image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1))
        corners = torch.from_numpy(np.zeros((0, 4), np.float32) if regions is None else regions)
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
        resized, target = self._transform(image, {"boxes": boxes})
        return ImageSample(
            resized.as_subclass(torch.Tensor),
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            original_size=(height, width),
            id=number,
            proposals=None if regions is None else target["boxes"].as_subclass(torch.Tensor),
        )


def open_detector(run: Path, device: str) -> tuple[Detects, torch.device]:
    """What a path leads to, a run or an exported file, ready to detect, and where it runs.

    Args:
        run: run folder (its best weights), a .safetensors file of one, or an exported file.
        device: auto, cpu or gpu.

    Raises:
        UserError: there are no weights, they are damaged, or there is no such device.
    """
    if is_exported(run):
        if device == "gpu":
            raise UserError(f"{run} is an exported file, which is run on the CPU: leave out --device gpu")
        return load_exported(run), pick_device("cpu")
    where = pick_device(device)
    detector = load(run).to(where)
    fold_for_good(detector)
    return detector, where
