"""Masks of objects as COCO's compressed run lengths, whatever form the annotation file has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from msefpn.data.packed import pack


@dataclass(frozen=True)
class Masks:
    """M masks, each of its image's size. One array: a list would hold millions of Python objects."""

    text: NDArray[np.uint8]
    """The run lengths of all masks, one after the other."""
    offsets: NDArray[np.int64]
    """(M + 1,) those of mask i are offsets[i] to offsets[i + 1]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def pack(cls, counts: Sequence[bytes]) -> Masks:
        """Put run lengths together."""
        return cls(*pack(counts))

    def counts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """The run lengths of the masks at `rows`."""
        return [self.text[self.offsets[row] : self.offsets[row + 1]].tobytes() for row in rows]

    def take(self, rows: NDArray[np.int64]) -> Masks:
        """The masks at `rows`, in that order."""
        return Masks.pack(self.counts(rows))


def encode_segmentation(value: Any, size: tuple[int, int]) -> bytes:
    """Run lengths of an annotation's `segmentation`: polygons, or run lengths, compressed or not.

    Args:
        value: of the json.
        size: height and width of the image, pixels.

    Raises:
        ValueError: it is none of these, or of another size; the message says what is wrong.
    """
    height, width = size
    far = 10 * max(size)  # memory grows with the length of an edge
    if isinstance(value, list):
        for polygon in value:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError("a polygon is not a list of x, y of at least three corners")
            if not all(type(number) in (int, float) and abs(number) < far for number in polygon):
                raise ValueError("a polygon has a value that is not a number, or far outside the image")
        parts = coco_mask.frPyObjects([list(map(float, polygon)) for polygon in value], height, width)
        return _counts(coco_mask.merge(parts))
    if not isinstance(value, dict) or not {"size", "counts"} <= value.keys():
        raise ValueError("is neither a list of polygons nor run lengths")
    if value["size"] != [height, width]:
        raise ValueError(f"run lengths of size {value['size']}, the image has [{height}, {width}]")
    counts = value["counts"]
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
            raise ValueError("the run lengths do not add up to the image's pixels")
        return _counts(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not isinstance(counts, str):
        raise ValueError("the run lengths are neither a list nor a text")
    try:
        coco_mask.decode([{"size": [height, width], "counts": counts}])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the compressed run lengths are broken ({error})") from None
    return counts.encode()


def decode_masks(counts: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Run lengths as masks (G, H, W), 1 on the object; `size`: height and width."""
    if not counts:
        return np.zeros((0, *size), dtype=np.uint8)
    masks: NDArray[np.uint8] = coco_mask.decode([run_lengths(text, size) for text in counts])  # (H, W, G)
    return np.ascontiguousarray(masks.transpose(2, 0, 1))


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as run lengths."""
    return _counts(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def moved_mask(mask: dict[str, Any], offset: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's object for the mask of a part of an image as that of the whole, without drawing the whole.

    Args:
        mask: of the part.
        offset: row and column of the part's upper left pixel.
        size: height and width of the whole image, pixels.
    """
    drawn = decode_masks([mask["counts"].encode()], mask["size"])[0].T  # columns, as COCO counts
    edges = np.diff(np.pad(drawn, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = (
        (columns + offset[1]) * size[0] + rows + offset[0]
        for columns, rows in ((edges == 1).nonzero(), (edges == -1).nonzero())
    )
    joined = starts[1:] != ends[:-1]  # a run that goes on at the top of the next column
    starts, ends = starts[np.r_[True, joined][: len(starts)]], ends[np.r_[joined, True][: len(ends)]]
    counts = np.diff(np.r_[0, np.stack([starts, ends], 1).reshape(-1), size[0] * size[1]])
    whole = {"size": list(size), "counts": counts.tolist()}
    return run_lengths(_counts(coco_mask.frPyObjects(whole, *size)), size)


def box_of_mask(value: dict[str, Any]) -> list[float] | None:
    """The box (x, y, width, height) around run lengths of a json; None where they are wrong or empty."""
    size = value.get("size")
    try:
        counts = encode_segmentation(value, (int(size[0]), int(size[1])))  # type: ignore[index]  # any error is caught
        box: list[float] = coco_mask.toBbox([run_lengths(counts, size)])[0].tolist()  # type: ignore[arg-type]  # likewise
    except (ValueError, TypeError, LookupError):
        return None
    return box if box[2] > 0 and box[3] > 0 else None


def resized_mask(value: dict[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """Run lengths of a json for the image at another size (height, width); None where they are wrong."""
    try:
        old = (int(value["size"][0]), int(value["size"][1]))
        mask = decode_masks([encode_segmentation(value, old)], old)[0]
    except (ValueError, TypeError, LookupError):
        return None
    rows, columns = (
        ((np.arange(new) + 0.5) * before / new).astype(np.int64)
        for new, before in zip(size, old, strict=True)
    )
    return run_lengths(encode_mask(mask[rows[:, None], columns].astype(np.bool_)), size)


def run_lengths(counts: bytes, size: Iterable[int]) -> dict[str, Any]:
    """COCO's object for a mask; `size`: height and width."""
    return {"size": [int(side) for side in size], "counts": counts.decode()}


def _counts(value: dict[str, Any]) -> bytes:
    counts: bytes | str = value["counts"]
    return counts if isinstance(counts, bytes) else counts.encode()
