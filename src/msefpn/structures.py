"""The values that travel between the parts: Batch, Targets, Proposals, Detections.

All are named tuples of tensors, so that they move between devices, processes and graphs as they are.
B: images in the batch, G: boxes of the fullest image (at least 1), D: detections kept per image.
Boxes are xyxy in pixels; y grows downwards; a box may touch the image's right and lower edge.
"""

from typing import NamedTuple

from torch import Tensor


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the fullest image."""

    boxes: Tensor
    """(B, G, 4) float32, xyxy, pixels of the padded image; zeros where not valid."""
    labels: Tensor
    """(B, G) int64, 0..K-1; 0 where not valid."""
    valid: Tensor
    """(B, G) bool: a real box, not padding."""
    masks: Tensor | None = None
    """(B, G, H, W) uint8, 1 on the object; None where no part learns from them."""


class Proposals(NamedTuple):
    """Regions that may hold an object. R: regions of an image."""

    boxes: Tensor
    """(B, R, 4) float32, xyxy, pixels of the padded image, best first."""
    valid: Tensor
    """(B, R) bool: a real region, not padding."""


class Batch(NamedTuple):
    """Images of one batch, padded at the right and at the bottom to a common size."""

    images: Tensor
    """(B, 3, H, W) uint8, RGB; H and W are multiples of 32; zeros where padded."""
    sizes: Tensor
    """(B, 2) int64, height and width of each image inside the padded tensor, pixels."""
    original_sizes: Tensor
    """(B, 2) int64, height and width of each image in its file, pixels."""
    ids: Tensor
    """(B,) int64, image ids of the annotation file."""
    targets: Targets
    proposals: Proposals | None = None
    """Given ones, for a detector that has no RPN."""


class Detections(NamedTuple):
    """Detections of a batch, best first, padded to a fixed count."""

    boxes: Tensor
    """(B, D, 4) float32, xyxy, pixels of the padded image."""
    scores: Tensor
    """(B, D) float32, 0..1; 0 where not valid."""
    labels: Tensor
    """(B, D) int64, 0..K-1."""
    valid: Tensor
    """(B, D) bool: a real detection, not padding."""
    num_dropped: Tensor
    """(B,) int64, candidates over the score threshold that were dropped before NMS."""
    masks: Tensor | None = None
    """(B, D, M, M) float32, 0..1: how likely each cell of a box is on the object; None: no such part."""
    strides: Tensor | None = None
    """(B, D) int64, pixels: stride of the level that a detection was found on, or that its region was pooled
    from; 0 where not valid; None: there is no one such level, or it is not told.
    """
