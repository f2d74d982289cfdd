"""Boxes: deltas, clipping, IoU, suppression, selection. All boxes are xyxy in pixels."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msefpn.necks.layers import is_exporting

MAX_LOG_RATIO = math.log(1000 / 16)
"""Bound of a decoded width's or height's log ratio to its anchor (mmdetection's wh_ratio_clip)."""

COLUMNS = 32
"""Of the grid on which groups are laid apart for suppression: near its corner, offsets are small."""

_PAIRS = 2**22
"""Whose IoU is held at a time on a GPU, where eight times as many may wait to be settled."""

_ROUNDS = 4
"""Of suppression on a GPU before it asks whether anything has changed, for which Python waits."""

_LONGEST = 2048
"""Boxes of a part up to which a GPU suppresses those of several images in rounds."""

PAD_SCORE = -1e4
"""Score of a place that holds no candidate. A finite value: exported graphs compare with it."""


def full_precision(x: Tensor) -> Tensor:
    """x in float32 if it is in a 16-bit type: what boxes, scores and losses are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def encode(boxes: Tensor, anchors: Tensor, stds: Sequence[float]) -> Tensor:
    """Deltas (..., 4: x, y, w, h) that lead from anchors to boxes, both (..., 4) (R-CNN, appendix C)."""
    centre, size = _centre_size(boxes)
    anchor_centre, anchor_size = _centre_size(anchors)
    deltas = torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode(deltas: Tensor, anchors: Tensor, stds: Sequence[float], *, clamp_both: bool = True) -> Tensor:
    """Boxes (..., 4) from deltas and anchors, the inverse of `encode`.

    Args:
        deltas: (..., 4).
        anchors: (..., 4).
        stds: what the four deltas were divided by.
        clamp_both: bound the log ratios on both sides (mmdetection), else from above only (torchvision).
    """
    deltas = deltas * deltas.new_tensor(stds)
    anchor_centre, anchor_size = _centre_size(anchors)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    ratio = deltas[..., 2:].clamp(min=-MAX_LOG_RATIO if clamp_both else None, max=MAX_LOG_RATIO)
    half = 0.5 * ratio.exp() * anchor_size
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_to_images(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes (B, N, 4) to their images' sizes (B, 2: height, width)."""
    limit = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4) as x, y, x, y
    return boxes.clamp(min=0).minimum(limit)


def larger_than(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of boxes (..., 4) exceed `side` pixels: (...) bool."""
    return (boxes[..., 2:] - boxes[..., :2] > side).all(dim=-1)


def within(boxes: Tensor, sizes: Tensor, border: float) -> Tensor:
    """Whether boxes (N, 4) stand out of images (B, 2: height, width) by `border` at the most: (B, N).

    By less than it at the right and at the bottom (mmdetection's `anchor_inside_flags`).
    """
    limit = sizes.flip(-1)[:, None] + border  # (B, 1, 2) as x, y
    return (boxes[:, :2] >= -border).all(dim=1) & (boxes[:, 2:] < limit).all(dim=2)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every pair of a (..., N, 4) and b (..., M, 4): (..., N, M)."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = _area(a) + _area(b) - intersection
    return intersection / union.clamp(min=1e-6)


def top_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of each row.

    Args:
        scores: (B, N).
        count: candidates to keep. A row that is shorter gives all it has; in a traced graph, where N is
            symbolic, the rest is filled with `PAD_SCORE`.

    Returns:
        Scores and indices, (B, count) or (B, N), best first.
    """
    if not torch.compiler.is_compiling():
        return scores.topk(min(count, scores.shape[1]))
    values, index = F.pad(scores, (0, count), value=PAD_SCORE).topk(count)
    return values, index.clamp(max=scores.shape[1] - 1)


def nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    iou: float,
    parts: Sequence[int] | None = None,
) -> Tensor:
    """Greedy non-maximum suppression within each group of each image.

    The cost is quadratic: there is one suppression per group on the CPU. On a GPU there is one per part, of
    all images together, or, of a single image and of long parts, one per image, whichever was faster on an
    H200. An exported graph makes one call. Where groups share a call they are shifted apart, in float64, as
    large offsets eat float32's fraction; in ONNX, whose suppression knows float32 only, this is exact to
    about 0.01 pixels.

    Args:
        boxes: (B, N, 4), clipped to the image.
        scores: (B, N).
        groups: (B, N) int64, level or class of each box.
        valid: (B, N) bool; other boxes neither suppress nor stay.
        iou: boxes that overlap a better one by more than this go.
        parts: lengths of pieces of the N boxes, in order, where no group is in two; None: one piece.

    Returns:
        (B, N) bool, the boxes that stay.
    """
    if is_exporting():
        return _nms_at_once(boxes, scores, groups, valid, iou)
    parts = [boxes.shape[1]] if parts is None else list(parts)
    if torch.compiler.is_compiling():
        kept: Tensor = _nms_apart(boxes, scores, groups, valid, iou, parts)
        return kept
    return _nms_eagerly(boxes, scores, groups, valid, iou, parts)


@torch.library.custom_op("msefpn::nms", mutates_args=())
def _nms_apart(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float, parts: Sequence[int]
) -> Tensor:
    """As one operator, so that a compiled graph need not look into its loops."""
    return _nms_eagerly(boxes, scores, groups, valid, iou, parts)


@_nms_apart.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float, parts: Sequence[int]
) -> Tensor:
    return torch.empty_like(valid)


def _nms_eagerly(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float, parts: Sequence[int]
) -> Tensor:
    if boxes.is_cpu:
        images = torch.arange(boxes.shape[0])[:, None]
        group = groups + images * (groups.max() + 1)
        flat = _nms_by_group(boxes.flatten(0, 1), scores.flatten(), group.flatten(), valid.flatten(), iou)
        return flat.view_as(valid)
    return nms_on_gpu(boxes, scores, groups, valid, iou, parts)


def nms_on_gpu(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float, parts: Sequence[int]
) -> Tensor:
    """`nms` in the way that is faster on a GPU: in rounds, or image by image."""
    if len(boxes) == 1 or max(parts) > _LONGEST:
        rows = [slice(i, i + 1) for i in range(len(boxes))]
        return torch.cat([_nms_at_once(boxes[i], scores[i], groups[i], valid[i], iou) for i in rows])
    pieces = [x.split(list(parts), dim=1) for x in (boxes, scores, groups, valid)]
    kept = [_nms_in_rounds(box, score, group, of, iou) for box, score, group, of in zip(*pieces, strict=True)]
    return torch.cat(kept, dim=1)


def _nms_in_rounds(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float) -> Tensor:
    """`nms` of all images together: going from box to box, a GPU would wait for each.

    In each round those go that overlap a better box that stayed in the round before. A box is settled one
    round after all better ones that it overlaps, so that in the end nothing changes: the greedy result.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    box = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    group, candidate = groups.gather(1, order), valid.gather(1, order)
    images = max(1, 8 * _PAIRS // max(1, order.shape[1]) ** 2)
    pieces = [slice(start, start + images) for start in range(0, len(order), images)]
    kept = torch.cat([_settled(box[piece], group[piece], candidate[piece], iou) for piece in pieces])
    return torch.empty_like(valid).scatter_(1, order, kept)


def _settled(boxes: Tensor, groups: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Those (B, N) that stay of boxes in the order of their scores."""
    rows = max(1, _PAIRS // max(1, groups.numel()))
    overlap = [
        (pairwise_iou(box, boxes) > iou) & (group[..., None] == groups[:, None])
        for box, group in zip(boxes.split(rows, dim=1), groups.split(rows, dim=1), strict=True)
    ]
    better = torch.cat(overlap, dim=1).tril_(-1)  # (B, N, N): of a row's box, the better ones it overlaps
    kept = valid
    while True:
        before = kept
        for _ in range(_ROUNDS):
            kept = valid & ~(better & kept[:, None]).any(dim=2)
        if torch.equal(kept, before):
            return kept


def _nms_at_once(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float) -> Tensor:
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    group = torch.where(valid, groups + images * (groups.max() + 1), -1).flatten()  # (B * N,)
    precise = torch.float32 if torch.onnx.is_in_onnx_export() else torch.float64
    corners = boxes.flatten(0, 1).to(precise)
    place = torch.stack([group % COLUMNS, group // COLUMNS], dim=1).repeat(1, 2)  # (B * N, 4) as x, y, x, y
    shifted = corners + place * (corners.max() + 1)
    keep = torch.ops.torchvision.nms(shifted, scores.flatten().to(precise), iou)
    kept = torch.zeros_like(group, dtype=torch.bool).scatter(0, keep, torch.ones_like(keep, dtype=torch.bool))
    return kept.view_as(valid) & valid


def _nms_by_group(boxes: Tensor, scores: Tensor, group: Tensor, valid: Tensor, iou: float) -> Tensor:
    kept = torch.zeros_like(valid)
    candidates = valid.nonzero().squeeze(1)
    group, order = group[candidates].sort(stable=True)
    candidates = candidates[order]
    boxes, scores = boxes[candidates], scores[candidates]
    start = 0
    for count in group.unique_consecutive(return_counts=True)[1].tolist():
        part = slice(start, start + count)
        kept[candidates[part][torch.ops.torchvision.nms(boxes[part], scores[part], iou)]] = True
        start += count
    return kept


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
