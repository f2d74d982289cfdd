"""The result of an image, and what it converts to."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msefpn.errors import missing_extra
from msefpn.inference.detect import Predictions, as_results
from msefpn.inference.draw import draw

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, repr=False)
class ImageResult:
    """The predictions for an image or a frame; a notebook shows them as a picture."""

    source: str
    """File, address or camera that the image comes from; of an image in memory `image-N`."""
    frame: int | None
    """Number of the frame in a video or camera, from 0; None: an image."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    predictions: Predictions
    """Arrays over M detections, best first: boxes (M, 4) xyxy in pixels of `image`, scores, labels, masks."""
    classes: tuple[str, ...]
    """Names of the K classes that `predictions.labels` index."""
    category_ids: tuple[int, ...]
    """Their ids in the annotation file, same order."""
    time: float | None = None
    """When the frame is shown, seconds from the video's beginning; None: an image, or not known."""

    @property
    def detections(self) -> supervision.Detections:
        """The same as `supervision.Detections`, with `data["class_name"]`; needs the extra `supervision`.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about OpenCV, which it does not need
                import supervision  # noqa: PLC0415  (of an extra)
        except ImportError:
            raise missing_extra("supervision.Detections", "supervision") from None
        found = self.predictions
        return supervision.Detections(
            xyxy=found.boxes,
            confidence=found.scores,
            class_id=found.labels.astype(int),
            mask=found.decoded_masks(self.image.shape[:2]),
            data={"class_name": np.array([self.classes[label] for label in found.labels], dtype=str)},
        )

    def as_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The same in COCO's result format, best first.

        Args:
            image_id: the id of the image in the annotation file.
        """
        found = self.predictions
        ids = np.full(len(found.scores), image_id, np.int64)
        return as_results(replace(found, image_ids=ids), self.category_ids)

    def as_list(self) -> list[dict[str, Any]]:
        """The same as plain values, best first: `class`, `label`, `score` and `box`, xyxy in pixels.

        `label` is the index in `classes`. Of a detector that draws masks, also `mask`: COCO's run lengths.
        """
        found = self.predictions
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
        items: list[dict[str, Any]] = [
            {"class": self.classes[label], "label": label, "score": score, "box": box}
            for label, score, box in rows
        ]
        if found.masks is not None:
            for item, mask in zip(items, found.masks, strict=True):
                item["mask"] = mask
        return items

    def draw(self) -> NDArray[np.uint8]:
        """A copy of the image with boxes, classes, scores and masks, (H, W, 3) RGB."""
        return draw(self.image, self.predictions, self.classes)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.draw()).save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        counts = Counter(self.classes[label] for label in self.predictions.labels)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"
        height, width = self.image.shape[:2]
        frame = "" if self.frame is None else f", frame {self.frame}"
        return f"ImageResult({self.source}{frame}, {width} x {height}: {found})"
