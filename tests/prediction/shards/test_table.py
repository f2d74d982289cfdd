"""A shard's file gives back what was written, masks too; one that is not whole says why."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from msefpn.data.masks import encode_mask, run_lengths
from msefpn.inference.detect import Predictions, as_results
from msefpn.inference.frames import InputSource
from msefpn.prediction.shards.table import (
    Footer,
    Row,
    check_shard_rows,
    decode_shard,
    encode_shard,
    mark_states,
    predictions_in,
)

NAMES = ["a.jpg", "bad.jpg", "c.jpg"]
FOOTER = Footer("f" * 64, 7, (("bad.jpg", "no image"),), (("c.jpg", "3 frames"),), 2, 5, ("x", "y"), (1, 9))


def row(id: int, image: str, count: int, *, masks: bool) -> Row:
    noise = np.random.default_rng(id)
    shapes = np.empty(count, object)
    shapes[:] = [run_lengths(encode_mask(noise.random((6, 8)) > 0.5), (6, 8)) for _ in range(count)]
    found = Predictions(
        np.full(count, id),
        noise.random((count, 4)).astype(np.float32),
        noise.random(count).astype(np.float32),
        noise.integers(0, 2, count),
        shapes if masks else None,
    )
    return Row(id, image, (6, 8), found)


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_written_is_read(masks: bool) -> None:
    rows = [row(10, "a.jpg", 2, masks=masks), row(12, "c.jpg", 0, masks=masks)]
    table, footer = decode_shard(encode_shard(rows, FOOTER, masks=masks))
    assert footer == FOOTER
    check_shard_rows(table, footer, 10, NAMES)
    for written, own in zip(rows, predictions_in(table), strict=True):
        assert (own.id, own.image, own.size) == (written.id, written.image, written.size)
        assert as_results(own.found, (1, 9)) == as_results(written.found, (1, 9))
        np.testing.assert_array_equal(own.found.boxes, written.found.boxes)
    table, _ = decode_shard(encode_shard([], FOOTER, masks=masks))
    assert list(predictions_in(table)) == []


def test_other_rows_are_refused() -> None:
    rows = [row(10, "a.jpg", 2, masks=False), row(12, "c.jpg", 1, masks=False)]
    for changed, footer, message in (
        (rows[:1], FOOTER, "it has 2 images of 3"),
        ([rows[0], rows[0]], FOOTER, "it has the rows of other images"),
        (rows[::-1], FOOTER, "it has the rows of other images"),
        (rows, dataclasses.replace(FOOTER, unreadable=(("d.jpg", ""),)), "lists other images as unreadable"),
    ):
        table, read = decode_shard(encode_shard(changed, footer, masks=False))
        with pytest.raises(ValueError, match=message):
            check_shard_rows(table, read, 10, NAMES)


def test_every_byte_counts() -> None:
    content = encode_shard([row(10, "a.jpg", 20, masks=True)], FOOTER, masks=True)
    whole, _ = decode_shard(content)
    for place in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        try:
            table, footer = decode_shard(bytes(damaged))
        except ValueError:
            continue
        assert (table.equals(whole), footer) == (True, FOOTER), (
            place
        )  # what describes no value, as statistics
    with pytest.raises(ValueError, match=r"\w"):
        decode_shard(content[:-1])
    with pytest.raises(ValueError, match=r"\w"):
        decode_shard(b"")


def test_states_change_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    sources = [InputSource("image", str(tmp_path / name)) for name in "ab"]
    first = mark_states(sources)
    assert first == mark_states([*sources, InputSource("remote", "s3://bucket/c")])
    (tmp_path / "b").write_bytes(b"2")
    second = mark_states(sources)
    (tmp_path / "a").write_bytes(b"12")
    assert len({first, second, mark_states(sources)}) == 3
