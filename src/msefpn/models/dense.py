"""What heads that predict in every cell share: towers of convolutions, and the way to detections."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from msefpn.models.boxes import PAD_SCORE, clip_to_images, full_precision, top_candidates
from msefpn.models.select import Selection
from msefpn.necks.layers import group_norm
from msefpn.structures import Detections


def tower(channels: int, depth: int, *, norm: bool, bias: bool) -> nn.Sequential:
    """3x3 convolutions, each with group normalisation, if asked for, and a ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias))
        if norm:
            layers.append(group_norm(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def by_cell(x: Tensor, values: int) -> Tensor:
    """A prediction (B, A * values, H, W) of A anchors in each cell as (B, H * W * A, values)."""
    batch, channels, height, width = x.shape
    # All sizes named: with -1 for one, tracing spends a third of its time on proving that it divides.
    return x.permute(0, 2, 3, 1).reshape(batch, height * width * (channels // values), values)


def strides_of(anchors: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """For each level's anchors (N_i, P) its stride, so often: (N_i,) int64."""
    pairs = zip(anchors, strides, strict=True)
    return [torch.full_like(level[:, 0], stride, dtype=torch.int64) for level, stride in pairs]


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score, anchor and label, each (B, n), of the best pairs of scores (B, N, K).

    The best n pairs are among the n anchors whose best class scores highest, so the full N * K sort is not
    needed.
    """
    classes = scores.shape[2]
    peak, anchor = top_candidates(scores.amax(dim=2), count)
    pairs = scores.gather(1, anchor[..., None].expand(-1, -1, classes))
    pairs = torch.where(peak[..., None] > PAD_SCORE, pairs, PAD_SCORE).flatten(1)  # (B, n * K)
    score, pair = top_candidates(pairs, count)
    return score, anchor.gather(1, pair // classes), pair % classes


def select_detections(
    levels: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    boxes_of: Callable[[Tensor, Tensor], Tensor],
    sizes: Tensor,
    selection: Selection,
    *,
    threshold: float | None = None,
    factors: Sequence[Tensor] | None = None,
    root: bool = False,
) -> Detections:
    """The detections among the best pairs of anchor and class of each level.

    Args:
        levels: for each level scores (B, N, K), predictions (B, N, 4), anchors (N, P) and their strides (N,).
            A head whose levels share their `pre_nms_top_k` gives one for all.
        boxes_of: boxes (B, n, 4), pixels, of predictions (B, n, 4) and their anchors (B, n, P).
        sizes: (B, 2), height and width of each image, pixels.
        selection: chooses the detections; its `pre_nms_top_k` are those of each of `levels`.
        threshold: the scores are logits, and this is `selection.score` as one; None: they are 0..1.
        factors: for each level (B, N), 0..1: what the scores of the pairs that are chosen are multiplied by.
            `selection.score` is then compared with the scores before that.
        root: the root is taken of the product.
    """
    chooses = selection if factors is None else replace(selection, score=0.0)
    boxes, scores, labels, strides, dropped = [], [], [], [], []
    for level, (every_score, predictions, anchors, stride) in enumerate(levels):
        score, anchor, label = best_pairs(full_precision(every_score), selection.pre_nms_top_k)
        chosen = full_precision(predictions).gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes.append(clip_to_images(boxes_of(chosen, anchors[anchor]), sizes))
        probability = score if threshold is None else score.sigmoid()
        if factors is not None:
            product = probability * factors[level].gather(1, anchor)
            probability = torch.where(probability > selection.score, product.sqrt() if root else product, 0)
        scores.append(torch.where(score > PAD_SCORE, probability, 0))
        labels.append(label)
        strides.append(stride[anchor])
        over = every_score > (selection.score if threshold is None else threshold)
        dropped.append((over.flatten(1).sum(dim=1) - selection.pre_nms_top_k).clamp(min=0))
    return chooses(
        torch.cat(boxes, 1),
        torch.cat(scores, 1),
        torch.cat(labels, 1),
        torch.cat(strides, 1),
        sets=len(scores),
        num_dropped=torch.stack(dropped).sum(dim=0),
    )
