"""A trained detector, ready for images: arrays in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from msefpn.checkpoint import is_foreign
from msefpn.config import parse_size
from msefpn.data.images import fitted_size
from msefpn.errors import UserError
from msefpn.inference.detect import Detects, Predictions, predict_batch
from msefpn.inference.device import pick_device, telling_compiler, telling_memory
from msefpn.inference.exported import load_exported
from msefpn.inference.options import DetectionOptions, View
from msefpn.inference.views import MergedViews, apply_options
from msefpn.models import load
from msefpn.models.fold import fold_for_good
from msefpn.models.select import selecting, selections_in
from msefpn.places import is_named
from msefpn.structures import Batch, Proposals, Targets


class Predictor:
    """Detects on arrays; several threads may share one.

    Attributes:
        detector: what detects.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.
        size: longest and shortest side that images are resized to fit into, pixels.
        device: where it runs.
        merged: detects on several views of an image; None: the detector does on one.

    Args:
        detector: in evaluation mode, on `device`.
        size: see above.
        device: see above.
        merged: see above.
    """

    def __init__(
        self,
        detector: Detects,
        size: tuple[int, int],
        device: torch.device,
        merged: MergedViews | None = None,
    ) -> None:
        self.detector, self.merged = detector, merged
        self.classes = detector.classes
        self.category_ids = detector.category_ids
        self.size = size
        self.device = device

    @classmethod
    def open(
        cls,
        run: Path,
        *,
        size: str | None = None,
        device: str = "auto",
        compile: bool = False,
        options: DetectionOptions | None = None,
    ) -> Predictor:
        """Read a run's weights, or an exported file.

        Args:
            run: run folder (its best weights), a .safetensors file of one, a name, a checkpoint that
                `msefpn.models.load` reads, or an exported file.
            size: as in training, 320 or 1333x800; None: the run's own.
            device: auto, cpu or gpu.
            compile: whether the first call compiles the detector.
            options: soft-NMS and test-time augmentation; None: neither.

        Raises:
            UserError: there are no weights, they are damaged, or cannot do what the options say, there is no
                such device, or an exported file, or several views, are to be compiled.
        """
        options = options or DetectionOptions()
        options.check_size(size)
        if compile and options.augments:
            raise UserError("several views cannot be compiled: leave out --compile, or --flip and --scales")
        detector, where = open_detector(run, device, trust=options.trust)
        if compile:
            if not isinstance(detector, nn.Module):
                raise UserError(f"{run} is an exported file, which runs as it is: leave out --compile")
            detector.compile()
        sides = parse_size(size or detector.config.size)
        return cls(detector, sides, where, apply_options(detector, options, run, sides))

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        score: float = 0.0,
        proposals: Sequence[NDArray[np.float32]] | None = None,
        iou: float | None = None,
        max_per_image: int | None = None,
    ) -> list[Predictions]:
        """Detect on images, together as one batch.

        Args:
            images: (H, W, 3) uint8 RGB each.
            score: detections below are left out.
            proposals: for Fast R-CNN, the regions (r, 4) float32 of each image, xyxy, pixels, best first.
            iou: detections that overlap a better one of their class by more than this go; None: the
                detector's own. Without effect where `limits` is None.
            max_per_image: most detections of an image; likewise.

        Returns:
            The predictions for each image, best first, boxes in its pixels; `image_ids` is its index.

        Raises:
            UserError: the GPU does not have the memory, or torch cannot compile the detector.
        """
        if not images:
            return []
        limits = selecting(iou, max_per_image)
        with telling_memory(len(images), self.size), telling_compiler(), limits:
            if self.merged is not None:
                return self._merged(self.merged, images, score)
            return predict_batch(self.detector, self.batch(images, proposals), self.device, score)

    def _merged(
        self, merged: MergedViews, images: Sequence[NDArray[np.uint8]], score: float
    ) -> list[Predictions]:
        """The predictions of all views together."""
        found = merged(lambda view: self.batch(images, view=view), self.device, score)
        pairs = enumerate(found)
        return [replace(one, image_ids=np.full(len(one.scores), row)) for row, one in pairs]

    @property
    def limits(self) -> tuple[float, int] | None:
        """The detector's own `iou` and `max_per_image`; None: they cannot be changed."""
        if self.merged is not None or not isinstance(self.detector, nn.Module):
            return None
        if self.detector._compiled_call_impl is not None:
            return None  # a graph keeps what it was traced with
        found = selections_in(self.detector)
        return (found[-1][1].nms_iou, found[-1][1].max_per_image) if found else None

    def batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        proposals: Sequence[NDArray[np.float32]] | None = None,
        view: View | None = None,
    ) -> Batch:
        """Resize images and pad them to one batch, as the evaluation does; arguments as in a call.

        `view`: size and direction; None: of `size`, as they are.
        """
        size, mirrored = view or View(self.size, mirrored=False)
        original = torch.tensor([image.shape[:2] for image in images])  # (B, 2)
        fitted = [fitted_size(image.shape[0], image.shape[1], *size) for image in images]
        sizes = torch.tensor(fitted)
        height, width = ((sizes.amax(0) + 31) // 32 * 32).tolist()
        # Pixel by pixel (channels_last), as files are decoded and as convolutions like it.
        padded = torch.zeros(len(images), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        for row, (pixels, (rows, columns)) in enumerate(zip(images, fitted, strict=True)):
            image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
            image = functional.resize(image, [rows, columns], antialias=self.detector.config.antialias)
            padded[row, :, :rows, :columns] = image.flip(-1) if mirrored else image
        none = torch.zeros(len(images), 1)
        targets = Targets(none[..., None].repeat(1, 1, 4), none.long(), none.bool())
        regions = None if proposals is None else _padded(proposals, sizes / original)
        return Batch(padded, sizes, original, torch.arange(len(images)), targets, regions)


def _padded(proposals: Sequence[NDArray[np.float32]], factors: Tensor) -> Proposals:
    """Regions (r, 4) of each image, scaled by factors (B, 2: height, width), as one tensor."""
    boxes = torch.zeros(len(proposals), max([1, *map(len, proposals)]), 4)
    valid = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for row, (regions, factor) in enumerate(zip(proposals, factors, strict=True)):
        boxes[row, : len(regions)] = torch.from_numpy(regions) * factor.flip(0).repeat(2)
        valid[row, : len(regions)] = True
    return Proposals(boxes, valid)


def open_detector(run: Path, device: str, *, trust: bool = False) -> tuple[Detects, torch.device]:
    """Open a run or an exported file, ready to detect, and return the device that it runs on too.

    Args:
        run: run folder (its best weights), a .safetensors file of one, a name, a checkpoint that
            `msefpn.models.load` reads, or an exported file.
        device: auto, cpu or gpu.
        trust: see `load_exported`.

    Raises:
        UserError: the weights are missing, damaged or not trusted, or the device does not exist.
    """
    if is_named(run) or run.is_dir() or run.suffix == ".safetensors" or is_foreign(run):
        where = pick_device(device)
        detector = load(run).to(where)
        fold_for_good(detector)
        return detector, where
    exported = load_exported(run, trust=trust)
    if device == "gpu":
        raise UserError(f"{run} is an exported file, which runs on the CPU: leave out --device gpu")
    return exported, pick_device("cpu")
