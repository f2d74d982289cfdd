"""The records of a COCO json as columns of numbers; those that need a change stay as they are.

msgspec parses a list of records into objects of known fields, all or none; where that fails, each record is
parsed and judged by itself.
"""

from __future__ import annotations

import json
import re
from array import array
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from msefpn.data.pieces import Unusual
from msefpn.data.records import area_of, is_bbox, is_id, stated_size
from msefpn.data.repair import has_no_area, is_degenerate
from msefpn.reading import shown

_PLAIN = str | int | float | bool | None
_EXTRA = _PLAIN | list[_PLAIN]
"""Values of unused keys; a record with deeper ones is parsed by itself."""
_MOST_EXTRA = 64
"""Unused keys that are known."""
_UNSET = msgspec.UNSET
_POLYGONS = msgspec.json.Decoder(list[list[float]])
_DIGITS = 4300
"""Digits of the longest integer that Python reads."""
_LONG = re.compile(rb"\d{%d}" % _DIGITS)
_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)


class _RunLengths(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    counts: list[int] | str
    size: list[int]


_REGION = msgspec.json.Decoder(_RunLengths)


class _Reader:
    """Parses lists of records with the fields that are read, and with the unused keys seen so far."""

    fields: tuple[tuple[Any, ...], ...]

    def __init__(self) -> None:
        self._extra: dict[str, str] | None = None
        self._decoder: Any = None

    def parse(self, piece: bytes) -> list[Any] | None:
        """The records of a json list; None where one of them has other fields or types."""
        if self._extra is None:
            try:
                self._learn(json.JSONDecoder().raw_decode(piece[1:].decode())[0])
            except (ValueError, RecursionError):
                return None
        try:
            found: list[Any] = self._decoder.decode(piece)
            if not piece.isascii():  # msgspec does not check the UTF-8 of what it skips
                piece.decode()
        except _ERRORS:
            return None
        return found

    def _learn(self, item: Any) -> None:
        """Know the keys of a record from now on."""
        known = {field[0] for field in self.fields}
        extra = {} if self._extra is None else self._extra
        new = [key for key in (item if isinstance(item, dict) else ()) if key not in known | extra.keys()]
        if self._extra is not None and (not new or len(extra) + len(new) > _MOST_EXTRA):
            return
        self._extra = extra | {
            key: f"extra{len(extra) + place}" for place, key in enumerate(new[:_MOST_EXTRA])
        }
        fields = [*self.fields, *((name, _EXTRA, _UNSET) for name in self._extra.values())]
        names = {name: key for key, name in self._extra.items()}
        record = msgspec.defstruct("Record", fields, gc=False, forbid_unknown_fields=True, rename=names)
        self._decoder = msgspec.json.Decoder(list[record])  # type: ignore[valid-type]  # made here


class ImageReader(_Reader):
    """The entries of `images`."""

    _side = int | float | None | msgspec.UnsetType
    fields = (("id", int), ("file_name", str), ("height", _side, _UNSET), ("width", _side, _UNSET))

    def __init__(self) -> None:
        super().__init__()
        self._ids, self._stated = array("q"), array("q")
        self.names: list[str] = []

    def quick(self, piece: bytes) -> bool:
        """Take a list of entries, see `Pieces.records`."""
        items = self.parse(piece)
        if items is None:
            return False
        try:
            ids = _whole([item.id for item in items])
        except _ERRORS:
            return False
        self._ids.frombytes(ids.tobytes())
        self.names += [item.file_name for item in items]
        for item in items:
            self._stated.extend(stated_size(item.height, item.width) or (0, 0))
        return True

    def careful(self, item: Any) -> None:
        """Take one. Raises Unusual where it has no id or no name."""
        whole = isinstance(item, dict) and is_id(item.get("id")) and isinstance(item.get("file_name"), str)
        if not whole:
            raise Unusual(f"has {shown(item)} in 'images', without an id or a file_name")
        self._learn(item)
        self._ids.append(item["id"])
        self.names.append(item["file_name"])
        self._stated.extend(stated_size(item.get("height"), item.get("width")) or (0, 0))

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,)."""
        return np.frombuffer(self._ids, np.int64)

    @property
    def stated(self) -> NDArray[np.int64]:
        """(N, 2) height and width, pixels; 0 where the entry states none."""
        return np.frombuffer(self._stated, np.int64).reshape(-1, 2)


class NoteReader(_Reader):
    """The entries of `annotations`.

    Attributes:
        count: entries.
        odd: place in the list and content of those that are not in the columns.
    """

    fields = (
        ("image_id", int),
        ("category_id", int),
        ("bbox", tuple[float, float, float, float]),
        ("id", int | msgspec.UnsetType, _UNSET),
        ("area", float | None, None),
        ("iscrowd", int, 0),
        ("segmentation", msgspec.Raw, msgspec.Raw()),
    )

    def __init__(self) -> None:
        super().__init__()
        self._clear()
        self.count = 0
        self.odd: list[tuple[int, Any]] = []

    def quick(self, piece: bytes) -> bool:
        """Take a list of entries, see `Pieces.records`."""
        items = self.parse(piece)
        if items is None:
            return False
        made = np.arange(-1 - self.count, -1 - self.count - len(items), -1)
        try:
            given = [item.id for item in items]
            ids = made if _UNSET in given else _whole(given)
            if (ids is made and any(id is not _UNSET for id in given)) or (
                ids is not made and (ids == made).any()
            ):
                return False
            images = _whole([item.image_id for item in items])
            categories = _whole([item.category_id for item in items])
            crowd = np.array([item.iscrowd for item in items])
            boxes = np.array([item.bbox for item in items])
            areas = np.array([item.area for item in items], dtype=np.float64)  # None is NaN
        except _ERRORS:
            return False
        if not np.isin(crowd, (0, 1)).all() or not all(
            _is_plain_outline(item.segmentation) for item in items
        ):
            return False
        areas[~(areas > 0)] = np.nan
        columns = (self._ids, ids), (self._images, images), (self._categories, categories)
        for column, values in (*columns, (self._boxes, boxes), (self._areas, areas)):
            column.frombytes(np.ascontiguousarray(values).tobytes())
        self._crowd.frombytes(crowd.astype(np.int8).tobytes())
        self.count += len(items)
        return True

    def careful(self, item: Any) -> None:
        """Take one."""
        made = -1 - self.count
        self.count += 1
        if not _is_plain(item, made):
            self.odd.append((self.count - 1, item))
            return
        self._learn(item)
        self._ids.append(item.get("id", made))
        self._images.append(item["image_id"])
        self._categories.append(item["category_id"])
        self._boxes.extend(item["bbox"])
        self._areas.append(area_of(item))
        self._crowd.append(item.get("iscrowd", 0))

    def take(self) -> dict[str, NDArray[Any]]:
        """The columns: ids, images and categories (A,) int64, boxes (A, 4), areas (A,), crowd (A,) bool."""
        columns = {
            "ids": np.frombuffer(self._ids, np.int64),
            "images": np.frombuffer(self._images, np.int64),
            "categories": np.frombuffer(self._categories, np.int64),
            "boxes": np.frombuffer(self._boxes, np.float64).reshape(-1, 4),
            "areas": np.frombuffer(self._areas, np.float64),
            "crowd": np.frombuffer(self._crowd, np.int8).view(np.bool_),
        }
        self._clear()  # the caller alone holds them now
        return columns

    def _clear(self) -> None:
        self._ids, self._images, self._categories = array("q"), array("q"), array("q")
        self._boxes, self._areas, self._crowd = array("d"), array("d"), array("b")


def _whole(values: list[Any]) -> NDArray[np.int64]:
    """Integers as a column. Raises OverflowError where 64 bits do not hold one, or hold just its sign."""
    column = np.array(values, dtype=np.int64)
    if len(column) and column.min() == np.iinfo(np.int64).min:
        raise OverflowError
    return column


def _is_plain_outline(raw: Any) -> bool:
    """Whether an entry with this `segmentation` needs no change; `raw`: its json, empty for none."""
    text = bytes(raw)
    if len(text) > _DIGITS and _LONG.search(text):
        return False
    if text[:2] == b"[[" and text.count(b"[") == 2 and b"{" not in text:
        return True  # a single polygon is never dropped
    if text in (b"", b"null", b"[]"):
        return True
    try:
        if text.startswith(b"{"):
            return _REGION.decode(text) is not None
        bad = [len(line) < 6 or len(line) % 2 == 1 or has_no_area(line) for line in _POLYGONS.decode(text)]
    except _ERRORS:
        return False
    return all(bad) or not any(bad)


def _is_plain(item: Any, made: int) -> bool:
    """Whether an entry needs no change; `made`: the id that it gets where it has none."""
    if not isinstance(item, dict) or not is_id(item.get("image_id")) or not is_id(item.get("category_id")):
        return False
    if ("id" in item and not is_id(item["id"])) or item.get("id") == made or not is_bbox(item.get("bbox")):
        return False
    crowd, shape = item.get("iscrowd", 0), item.get("segmentation")
    if type(crowd) is not int or crowd not in (0, 1):
        return False
    bad = [is_degenerate(line) for line in shape] if isinstance(shape, list) else []
    return all(bad) or not any(bad)
