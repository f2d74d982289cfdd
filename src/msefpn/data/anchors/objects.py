"""The objects of a split as training meets them: resized, crowd regions aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msefpn.data.coco import CocoData
from msefpn.data.images import fitted_size

MOST_OBJECTS = 20_000
"""Of a larger set, evenly chosen images with about so many are measured."""


@dataclass(frozen=True)
class Objects:
    """R objects on N images."""

    boxes: NDArray[np.float32]
    """(R, 4) xyxy, pixels of the resized images."""
    image: NDArray[np.int64]
    """(R,) row of each one's image in `sizes`, ascending."""
    labels: NDArray[np.int64]
    """(R,) 0..K-1."""
    sizes: NDArray[np.int64]
    """(N, 2) height and width of the resized images, pixels."""
    classes: tuple[str, ...]
    total: int
    """Objects of the whole split, of which these are a part or all."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def sides(self) -> NDArray[np.float64]:
        """(R,) square roots of the areas, pixels."""
        extent = (self.boxes[:, 2:] - self.boxes[:, :2]).astype(np.float64)
        sides: NDArray[np.float64] = np.sqrt(extent.prod(axis=1))
        return sides

    def fewer(self, most: int) -> Objects:
        """Those of evenly chosen images, about `most` of them."""
        step = -(-len(self) // most)
        return self if step <= 1 else self.of_images(self.image % step == 0)

    def of_images(self, chosen: NDArray[np.bool_]) -> Objects:
        """The objects chosen, (R,) bool; the images keep their rows."""
        return Objects(
            self.boxes[chosen],
            self.image[chosen],
            self.labels[chosen],
            self.sizes,
            self.classes,
            self.total,
        )


def resized_objects(data: CocoData, size: tuple[int, int], *, most: int = MOST_OBJECTS) -> Objects:
    """The objects of a split when its images are resized as training does without augmentation.

    Args:
        data: the images and boxes.
        size: longest and shortest side to fit into, pixels.
        most: about so many objects are taken, of evenly chosen images.
    """
    sizes = np.array([fitted_size(int(h), int(w), *size) for h, w in data.sizes]).reshape(-1, 2)
    ratio = sizes / np.maximum(data.sizes.reshape(-1, 2), 1)
    image = np.repeat(np.arange(len(data), dtype=np.int64), np.diff(data.offsets))
    kept = ~data.crowd
    image = image[kept]
    factors = np.tile(ratio[:, ::-1], 2)[image]  # (R, 4) as x, y, x, y
    boxes = (data.boxes[kept] * factors).astype(np.float32)
    labels = data.labels[kept]
    return Objects(boxes, image, labels, sizes, data.classes, len(boxes)).fewer(most)
