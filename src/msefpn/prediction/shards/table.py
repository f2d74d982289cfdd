"""A shard's file: a Parquet table of detections, a row for each image, with checksums.

The footer's key `msefpn` holds a json, see `Footer`. The json and every page of the file have a checksum.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msefpn.inference.frames import InputSource
from msefpn.prediction.shards.job import JOB_VERSION
from msefpn.reading import MAX_TEXT, parse_json

if TYPE_CHECKING:
    from msefpn.inference.detect import Predictions

_KEY, _CHECKSUM = b"msefpn", b"msefpn_crc32"
_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What reading a damaged file raises."""


class Row(NamedTuple):
    """An image and what was found on it."""

    id: int
    """Its index among all images of the job."""
    image: str
    size: tuple[int, int]
    """Height and width, pixels."""
    found: Predictions


@dataclass(frozen=True)
class Footer:
    """The metadata of a shard."""

    fingerprint: str
    """See `Job.fingerprint`."""
    states: int
    """See `mark_states`."""
    unreadable: tuple[tuple[str, str], ...]
    """Images that have no row, and why."""
    notes: tuple[tuple[str, str], ...]
    """Images whose file was not used as it is, and why, such as 16-bit values."""
    objects: int
    dropped: int
    """Candidates that were dropped before NMS."""
    classes: tuple[str, ...]
    """Names that labels index."""
    category_ids: tuple[int, ...]
    version: int = JOB_VERSION


def _schema(masks: bool) -> pa.Schema:
    fields = [
        ("image_id", pa.int64()),
        ("image", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int32())),
    ]
    return pa.schema([*fields, *([("masks", pa.list_(pa.string()))] if masks else [])])


def encode_shard(rows: Sequence[Row], footer: Footer, *, masks: bool) -> bytes:
    """The file of a shard.

    Args:
        rows: its images that could be read.
        footer: its metadata.
        masks: whether to write a column of masks: COCO's run lengths for an image of `height` and `width`.
    """
    schema = _schema(masks)
    columns: dict[str, Any] = {
        "image_id": [row.id for row in rows],
        "image": [row.image for row in rows],
        "height": [row.size[0] for row in rows],
        "width": [row.size[1] for row in rows],
        "boxes": [list(row.found.boxes) for row in rows],
        "scores": [row.found.scores for row in rows],
        "labels": [row.found.labels for row in rows],
    }
    if masks:
        found = [() if row.found.masks is None else row.found.masks for row in rows]
        columns["masks"] = [[mask["counts"] for mask in own] for own in found]
    about = json.dumps(dataclasses.asdict(footer)).encode()
    metadata = {_KEY: about, _CHECKSUM: str(zlib.crc32(about)).encode()}
    table = pa.Table.from_pydict(columns, schema.with_metadata(metadata))
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.getvalue()


def decode_shard(content: bytes) -> tuple[pa.Table, Footer]:
    """The table of a shard, every page checked, and its footer. Raises ValueError if it is damaged."""
    try:
        file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
        about = metadata[_KEY]
        if len(about) > MAX_TEXT or int(metadata[_CHECKSUM]) != zlib.crc32(about):
            raise ValueError("its footer has another checksum, or is too large")
        footer = _parse(parse_json(about))
        table = file.read()
        if not table.schema.equals(_schema("masks" in table.column_names)):
            raise ValueError("it has other columns")
        return table, footer
    except _ERRORS as error:
        raise ValueError(" ".join(str(error).split())[:120] or type(error).__name__) from None


def _parse(values: Any) -> Footer:
    """Raises ValueError, KeyError or TypeError for what `encode_shard` does not write."""
    given = dict(values)
    for name in ("unreadable", "notes"):
        given[name] = tuple((str(image), str(text)) for image, text in given[name])
    given["classes"] = tuple(map(str, given["classes"]))
    given["category_ids"] = tuple(map(int, given["category_ids"]))
    return Footer(**given)


def check_shard_rows(table: pa.Table, footer: Footer, first: int, names: Sequence[str]) -> None:
    """Raise ValueError unless each image has one row or one reason, and the rows are in order.

    Args:
        table: of a shard.
        footer: of the shard.
        first: index of its first image among all images of the job.
        names: its images.
    """
    missing = [image for image, _ in footer.unreadable]
    if table.num_rows + len(missing) != len(names):
        raise ValueError(f"it has {table.num_rows + len(missing)} images of {len(names)}")
    left = set(missing)
    expected = [(first + place, name) for place, name in enumerate(names) if name not in left]
    ids, images = table.column("image_id").to_pylist(), table.column("image").to_pylist()
    if len(left) != len(missing) or not left <= set(names):
        raise ValueError("it lists other images as unreadable")
    if list(zip(ids, images, strict=True)) != expected:
        raise ValueError("it has the rows of other images")
    lengths = [table.column(name).combine_chunks().value_lengths() for name in ("boxes", "scores", "labels")]
    if lengths[0] != lengths[1] or lengths[1] != lengths[2]:
        raise ValueError("its boxes, scores and labels differ in number")


def predictions_in(table: pa.Table) -> Iterator[Row]:
    """The rows of a shard, as they were encoded."""
    from msefpn.inference.detect import Predictions  # noqa: PLC0415  (imports torch)

    for row in table.to_pylist():
        size = row["height"], row["width"]
        masks = None
        if "masks" in row:
            masks = np.empty(len(row["masks"]), object)
            masks[:] = [{"size": list(size), "counts": counts} for counts in row["masks"]]
        found = Predictions(
            np.full(len(row["scores"]), row["image_id"]),
            np.array(row["boxes"], np.float32).reshape(-1, 4),
            np.array(row["scores"], np.float32),
            np.array(row["labels"], np.int64),
            masks,
        )
        yield Row(row["image_id"], row["image"], size, found)


def mark_states(sources: Sequence[InputSource]) -> int:
    """A checksum of the sizes and times of the pictures on this machine; addresses are not looked at."""
    mark = 0
    for source in sources:
        if source.kind == "image":
            try:
                about = os.stat(source.name)
                text = f"{about.st_size} {about.st_mtime_ns}"
            except (OSError, ValueError):
                text = "missing"
            mark = zlib.crc32(text.encode(), mark)
    return mark
