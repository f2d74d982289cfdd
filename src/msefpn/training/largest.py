"""The largest batch that fits into a GPU's memory."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from msefpn.config import Config, parse_size
from msefpn.data.coco import CocoData
from msefpn.errors import UserError
from msefpn.models import Detector
from msefpn.runs.peers import Peers
from msefpn.structures import Batch, Proposals, Targets
from msefpn.training.schedule import make_optimizer

SPARE = 0.1
"""Share of the memory that stays free: it falls into pieces, and real batches differ."""
_REGIONS = 1000
"""Given regions of an image."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What precisions compute in."""


def settle_batch(
    config: Config,
    detector: Detector,
    data: CocoData,
    device: torch.device,
    precision: str,
    peers: Peers | None,
) -> tuple[Config, str]:
    """The configuration with a number for `batch: auto`, and a line that tells it.

    The first process tries full batches of random images, each of the largest size and with as many objects
    as the fullest training image, and tells the others.

    Raises:
        UserError: not even one image fits.
    """
    others = config.processes * config.accumulate
    each, used = 0, 0.0
    if peers is None or peers.first:
        rehearsal = Rehearsal(detector, config, device, precision, int(np.diff(data.offsets).max(initial=1)))
        each = largest_that_fits(rehearsal.fits, max(1, len(data) // others))
        used = rehearsal.used
    if peers is not None:
        each = peers.tell("batch", each)
    if not each:
        raise UserError(
            f"batch auto: the GPU does not have the memory for one image at size {config.size}: lower "
            "--size, or add --grad-checkpoint"
        )
    batch = each * others
    total = torch.cuda.get_device_properties(device).total_memory
    parts = f"{each} on each of {config.processes} devices" if config.processes > 1 else f"{each} at a time"
    passes = f" in {config.accumulate} passes" * (config.accumulate > 1)
    line = (
        f"batch: {batch} images a step, {parts}{passes}: the largest power of two that fits "
        f"({used / 2**30:.1f} of {total / 2**30:.1f} GB)"
    )
    return replace(config, batch=batch), line


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two, up to `most`, for which `fits` is true; 0: none."""
    found = 0
    while (tried := max(1, 2 * found)) <= most and fits(tried):
        found = tried
    return found


class Rehearsal:
    """Training steps on random images, for their memory.

    Args:
        detector: it is copied, and stays as it is.
        config: of the run.
        device: a GPU.
        precision: fp32, bf16 or fp16.
        objects: of each image.

    Attributes:
        used: bytes of the largest trial that fitted.
    """

    def __init__(
        self, detector: Detector, config: Config, device: torch.device, precision: str, objects: int
    ) -> None:
        self.detector, self.config, self.device, self.precision = detector, config, device, precision
        self.objects = max(1, objects)
        self.used = 0.0

    def fits(self, images: int) -> bool:
        """Whether two steps on so many images leave `SPARE` of the memory free."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        try:
            self._train(images)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        used = torch.cuda.max_memory_reserved()
        if used > (1 - SPARE) * free:
            return False
        self.used = used
        return True

    def _train(self, images: int) -> None:
        detector = copy.deepcopy(self.detector).to(self.device).train()
        kept = [[value.clone() for value in detector.state_dict().values()]] if self.config.ema else []
        if self.config.processes > 1:  # the buffers that gradients are exchanged in
            kept.append([torch.empty_like(weight) for weight in detector.parameters()])
        optimizer = make_optimizer(detector, self.config)
        batch = self._batch(images)
        dtype = TYPES.get(self.precision)
        for _ in range(2):
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                losses = detector.losses(batch.images, batch.sizes, batch.targets, batch.proposals)
                total = torch.stack(list(losses.values())).sum()
            total.backward()
            optimizer.step()
            optimizer.zero_grad()

    def _batch(self, images: int) -> Batch:
        """Random images of the largest size, full of objects."""
        width, height = (-(-side // 32) * 32 for side in parse_size(self.config.size))
        device, count = self.device, self.objects
        valid = torch.ones(images, count, dtype=torch.bool, device=device)
        masks = None
        if self.detector.learns_masks:
            masks = torch.ones(images, count, height, width, dtype=torch.uint8, device=device)
        proposals = None
        if self.detector.takes_proposals:
            regions = self._boxes(images, _REGIONS, width, height)
            proposals = Proposals(regions, torch.ones(images, _REGIONS, dtype=torch.bool, device=device))
        sizes = torch.tensor([[height, width]] * images, device=device)
        return Batch(
            torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, device=device),
            sizes,
            sizes,
            torch.arange(images, device=device),
            Targets(
                self._boxes(images, count, width, height),
                torch.zeros(images, count, dtype=torch.int64, device=device),
                valid,
                masks,
            ),
            proposals,
        )

    def _boxes(self, images: int, count: int, width: int, height: int) -> torch.Tensor:
        """Boxes (B, N, 4) of 16 pixels to half of the image."""
        limit = torch.tensor([width, height], device=self.device)
        shape = images, count, 2
        side = 16 + torch.rand(*shape, device=self.device) * (limit / 2 - 16)
        start = torch.rand(*shape, device=self.device) * (limit - side)
        return torch.cat([start, start + side], dim=-1)
