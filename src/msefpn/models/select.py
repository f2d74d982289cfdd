"""From scored candidates to the detections of an image: the last step of every detector."""

import torch
from torch import Tensor

from msefpn.models.boxes import PAD_SCORE, nms, top_candidates
from msefpn.structures import Detections


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    score: float,
    nms_iou: float,
    detections: int,
    candidates: int,
    cut: Tensor | None = None,
) -> Detections:
    """Threshold, suppress within each class, keep the best; with fixed shapes.

    Args:
        boxes: (B, N, 4), clipped to the image.
        scores: (B, N), 0..1.
        labels: (B, N) int64.
        score: candidates must exceed this.
        nms_iou: suppression threshold within a class.
        detections: D, kept an image.
        candidates: best ones an image that go into suppression; the rest is counted as cut.
        cut: (B,) int64, candidates of each image that were cut before.
    """
    cut_here = ((scores > score).sum(dim=1) - candidates).clamp(min=0)
    best, index = top_candidates(scores, candidates)
    box = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    label = labels.gather(1, index)
    keep = nms(box, best, label, best > score, nms_iou)
    best, index = top_candidates(best.masked_fill(~keep, PAD_SCORE), detections)
    valid = best > PAD_SCORE
    return Detections(
        boxes=box.gather(1, index[..., None].expand(-1, -1, 4)) * valid[..., None],
        scores=torch.where(valid, best, 0),
        labels=torch.where(valid, label.gather(1, index), 0),
        valid=valid,
        cut=cut_here if cut is None else cut_here + cut,
    )
