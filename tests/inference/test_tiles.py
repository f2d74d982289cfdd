"""Large images in parts: covered whole, nothing twice, nothing cut."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from msefpn.data.masks import decode_masks, encode_mask, moved_mask, run_lengths
from msefpn.inference.detect import Predictions
from msefpn.inference.tiles import detect_in_tiles, suppress, windows

SQUARES = [(10, 10, 20), (195, 90, 24), (390, 290, 10), (60, 150, 140)]
"""x, y and side: a small one, one on tiles' borders, one in the corner, one larger than the overlap."""


def found_of(boxes: Sequence[Sequence[float]], scores: Sequence[float], labels: Sequence[int]) -> Predictions:
    return Predictions(
        np.zeros(len(boxes), np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def look(images: Sequence[NDArray[np.uint8]]) -> list[Predictions]:
    """Find the visible parts of each square by its grey, surest where most of it is to be seen.

    Small ones are not seen on an image that is much larger than a tile.
    """
    found = []
    for place, image in enumerate(images):
        boxes, scores, labels, masks = [], [], [], []
        for number, (_, _, side) in enumerate(SQUARES, start=1):
            rows, columns = (image[..., 0] == number).nonzero()
            if len(rows) < 4 or (side < 100 and image.shape[1] > 200):
                continue
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            scores.append(0.5 + 0.4 * len(rows) / side**2)
            labels.append(0)
            masks.append(run_lengths(encode_mask(image[..., 0] == number), image.shape[:2]))
        one = found_of(boxes, scores, labels)
        drawn = np.empty(len(masks), dtype=object)
        drawn[:] = masks
        found.append(
            Predictions(one.image_ids + place, one.boxes, one.scores, one.labels, drawn, num_dropped=1)
        )
    return found


def test_windows_cover_and_overlap() -> None:
    tiles = windows(300, 400, (160, 120), 0.25)
    seen = np.zeros((300, 400), int)
    for x, y, right, bottom in tiles:
        assert (right - x, bottom - y) == (160, 120)
        seen[y:bottom, x:right] += 1
    assert seen.min() == 1
    starts = np.unique(tiles[:, 0])
    assert (np.diff(starts) <= 120).all()
    assert windows(100, 90, (160, 120), 0.25).tolist() == [[0, 0, 90, 100]]
    assert windows(100, 161, (160, 120), 0.0).tolist() == [[0, 0, 160, 100], [1, 0, 161, 100]]


@pytest.mark.parametrize("batch", [1, 4])
def test_every_object_once_and_whole(batch: int) -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    for number, (x, y, side) in enumerate(SQUARES, start=1):
        pixels[y : y + side, x : x + side] = number
    found = detect_in_tiles(look, pixels, tile=(160, 120), overlap=0.25, batch=batch)
    boxes = {tuple(box) for box in found.boxes.tolist()}
    assert boxes == {(x, y, x + side, y + side) for x, y, side in SQUARES}
    assert len(found.boxes) == len(SQUARES)
    assert (found.image_ids == 0).all()
    assert (np.diff(found.scores) <= 0).all()
    assert found.num_dropped == len(windows(300, 400, (160, 120), 0.25)) + 1
    assert found.masks is not None
    for box, mask in zip(found.boxes.astype(int), found.masks, strict=True):
        assert mask["size"] == [300, 400]
        rows, columns = decode_masks([mask["counts"].encode()], (300, 400))[0].nonzero()
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.tolist()


def test_a_small_image_is_looked_at_once() -> None:
    looked: list[NDArray[np.uint8]] = []

    def count(images: Sequence[NDArray[np.uint8]]) -> list[Predictions]:
        looked.extend(images)
        return look(images)

    detect_in_tiles(count, np.zeros((100, 100, 3), np.uint8), tile=(160, 120), overlap=0.25, batch=4)
    assert [image.shape for image in looked] == [(100, 100, 3)]


def test_suppression_is_per_class_and_puts_whole_objects_first() -> None:
    boxes = [[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 10], [20, 0, 30, 10]]
    found = found_of(boxes, [0.8, 0.7, 0.6, 0.95, 0.9], [0, 0, 1, 0, 0])
    pieces = np.array([False, False, False, True, False])
    assert suppress(found, pieces).tolist() == [4, 0, 2]
    assert suppress(found, np.zeros(5, bool)).tolist() == [3, 4, 0, 2]
    assert suppress(found_of([], [], []), np.zeros(0, bool)).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_a_moved_mask_is_the_same_mask_elsewhere(seed: int) -> None:
    rng = np.random.default_rng(seed)
    part = rng.random((7, 5)) < (0, 0.2, 0.5, 0.9, 1.1)[seed]
    for offset, size in (((2, 3), (12, 9)), ((0, 0), (7, 9)), ((5, 4), (12, 9)), ((0, 0), (7, 5))):
        whole = np.zeros(size, np.uint8)
        whole[offset[0] : offset[0] + 7, offset[1] : offset[1] + 5] = part
        moved = moved_mask(run_lengths(encode_mask(part), (7, 5)), offset, size)
        assert moved["size"] == list(size)
        assert (decode_masks([moved["counts"].encode()], size)[0] == whole).all()
