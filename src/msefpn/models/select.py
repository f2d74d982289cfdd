"""From scored candidates to the detections of an image: the last step of every detector."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from msefpn.models.boxes import PAD_SCORE, larger_than, nms, top_candidates
from msefpn.models.soft_nms import soft_nms
from msefpn.structures import Detections

_LIMITS: ContextVar[tuple[float | None, int | None]] = ContextVar("limits", default=(None, None))
"""What `selecting` sets for the thread that it is called in."""


@contextlib.contextmanager
def selecting(nms_iou: float | None, max_per_image: int | None) -> Iterator[None]:
    """Let every `Selection` in the body, in this thread alone, use other limits; None: its own.

    A graph that is traced keeps its own.
    """
    token = _LIMITS.set((nms_iou, max_per_image))
    try:
        yield
    finally:
        _LIMITS.reset(token)


@dataclass(frozen=True)
class Selection:
    """Drop small boxes, threshold, suppress within each class, keep the best; with fixed shapes.

    Exported graphs have `hard` suppression only.
    """

    score: float
    """Candidates must exceed this, 0..1."""
    nms_iou: float
    """Suppression threshold within a class."""
    max_per_image: int
    """D, kept an image."""
    pre_nms_top_k: int
    """Best ones of a level or an image that go into suppression; the others are counted as dropped."""
    min_size: float
    """Boxes with a side not above this, pixels, are dropped."""
    suppression: str = "hard"
    """`hard`: NMS; `linear` or `gaussian`: see `soft_nms`; `none`: all candidates stay, however many."""
    sigma: float = 0.5
    """Of `gaussian` suppression."""

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        strides: Tensor | None = None,
        *,
        sets: int = 1,
        num_dropped: Tensor | None = None,
    ) -> Detections:
        """Select.

        Args:
            boxes: (B, N, 4), clipped to the image.
            scores: (B, N), 0..1.
            labels: (B, N) int64.
            strides: (B, N) int64, of the levels that they come from; None: of none in particular.
            sets: how many sets an image's N candidates come from.
            num_dropped: (B,) int64, candidates of each image that were dropped before.
        """
        nms_iou, max_per_image = self.nms_iou, self.max_per_image
        if not torch.compiler.is_compiling():
            given = _LIMITS.get()
            nms_iou = nms_iou if given[0] is None else given[0]
            max_per_image = max_per_image if given[1] is None else given[1]
        scores = scores * larger_than(boxes, self.min_size)
        pre_nms_top_k = sets * self.pre_nms_top_k
        dropped = ((scores > self.score).sum(dim=1) - pre_nms_top_k).clamp(min=0)
        best, index = top_candidates(scores, pre_nms_top_k)
        box = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        label = labels.gather(1, index)
        best = self._suppressed(box, best, label, nms_iou)
        count = pre_nms_top_k if self.suppression == "none" else max_per_image
        best, last = top_candidates(best, count)
        valid = best > PAD_SCORE
        return Detections(
            boxes=box.gather(1, last[..., None].expand(-1, -1, 4)) * valid[..., None],
            scores=torch.where(valid, best, 0),
            labels=torch.where(valid, label.gather(1, last), 0),
            valid=valid,
            num_dropped=dropped if num_dropped is None else dropped + num_dropped,
            strides=None if strides is None else strides.gather(1, index).gather(1, last) * valid,
        )

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
        """Scores (B, N) of the candidates that stay, `PAD_SCORE` for the others."""
        candidate = scores > self.score
        if self.suppression == "none":
            return scores.masked_fill(~candidate, PAD_SCORE)
        if self.suppression == "hard":
            return scores.masked_fill(~nms(boxes, scores, labels, candidate, iou), PAD_SCORE)
        return soft_nms(boxes, scores, labels, candidate, method=self.suppression, iou=iou, sigma=self.sigma)


def selections_in(detector: nn.Module) -> list[tuple[nn.Module, Selection]]:
    """The parts of a detector with a `selection`, and that; of a cascade's stages the last one chooses."""
    found = [(part, vars(part).get("selection")) for part in detector.modules()]
    return [(part, selection) for part, selection in found if isinstance(selection, Selection)]
