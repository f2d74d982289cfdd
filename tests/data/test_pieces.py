"""A json that is read in pieces gives what it gives as a whole, or is read as a whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msefpn.data import columns, pieces, reader
from msefpn.data.coco import scan_coco
from msefpn.data.looking import LOOKING
from msefpn.data.pieces import Unusual
from msefpn.data.quick import scan_in_pieces
from tests.data.sets import assert_same, picture


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few records, of files of any size."""
    monkeypatch.setattr(pieces, "PIECE", 600)
    monkeypatch.setattr(pieces, "_LAST", 64)
    monkeypatch.setattr(reader, "_LEAST", 0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "ü.png", "c d.png"):
        picture(folder / name)
    return folder


OUTLINES: tuple[Any, ...] = (
    [[1, 1, 20, 1, 20.5, 30, 1, 30]],
    [[1, 1, 9, 1, 9, 9, 1, 9], [2, 2, 3, 3, 4, 4]],  # the second has no area
    [[1, 1, 9, 1, 9, 9, 1, 9], [2, 2, 30, 2, 30, 9.5]],
    [[1, 1, 2]],
    [],
    None,
    {"size": [80, 100], "counts": [100, 7900]},
    {"size": [80, 100], "counts": "abc"},
    "outline",
)


def content(rng: random.Random, records: int = 40) -> dict[str, Any]:
    """A set in which some of the records are odd in some way."""
    notes: list[Any] = []
    for index in range(records):
        sides = [rng.uniform(0, 90), rng.uniform(0, 70), rng.choice([0, 0.5, 5, 20.25]), rng.uniform(1, 40)]
        note = {
            "id": index + 1,
            "image_id": rng.choice([3, 5, 9]),
            "category_id": rng.choice([2, 7]),
            "bbox": sides if rng.random() < 0.9 else [int(side) for side in sides],
            "area": rng.choice([12.5, 7, 0, -1, None]),
            "iscrowd": rng.choice([0, 0, 0, 1]),
            "segmentation": rng.choice(OUTLINES),
            "text": 'a "},{" [[ \\ \u00fc ]}',
        }
        odd: dict[str, Any] = {
            "image_id": 4,
            "category_id": 3,
            "bbox": rng.choice([None, [], [1, 2, 3], [1, 2, float("nan"), 4], [1, 2, True, 4], "box"]),
            "iscrowd": rng.choice([True, "1", None, 2, 1.0]),
            "id": rng.choice(["x", None, 1, -1 - index, 10**30]),
            "area": rng.choice(["big", float("inf"), 10**400, [1]]),
            "attributes": {"deep": [{"deeper": [1]}]},
        }
        if rng.random() < 0.15:
            key = rng.choice(list(odd))
            note[key] = odd[key]
        if rng.random() < 0.1:
            del note[rng.choice(list(note))]
        notes.append(note)
    if rng.random() < 0.2:
        notes.insert(5, rng.choice([7, None, [1]]))
    names = {3: "a.png", 5: "ü.png", 9: "c d.png"}
    listed: list[dict[str, Any]] = [
        {"id": id, "file_name": name, "width": 100, "height": 80} for id, name in names.items()
    ]
    if rng.random() < 0.2:
        listed[1] |= rng.choice([{"width": "100"}, {"width": 120}, {"height": None}, {"flickr": {"a": 1}}])
    lists = [
        ("licenses", [{"id": 1}]),
        ("images", listed),
        ("annotations", notes),
        ("info", {"a": [1]}),
        ("categories", [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}]),
    ]
    rng.shuffle(lists)
    return dict(lists)


@pytest.mark.usefixtures("small_pieces")
def test_pieces_give_what_the_whole_gives(images: Path, tmp_path: Path) -> None:
    rng, read, by_columns = random.Random(0), 0, 0
    for round_ in range(40):
        file = tmp_path / "a.json"
        how: dict[str, Any] = rng.choice([{}, {"indent": 1}, {"separators": (",", ":")}])
        text = json.dumps(content(rng), ensure_ascii=rng.random() < 0.5, **how)
        file.write_bytes((b"\xef\xbb\xbf" if round_ % 7 == 0 else b"") + text.encode())
        whole = scan_coco(file, images)
        try:
            found = scan_in_pieces(file, images, LOOKING)
        except Unusual:
            continue
        read += 1
        assert found.report.faults == whole.report.faults
        assert_same(found.data, whole.data)
        assert found.digest == whole.digest
        notes = columns.NoteReader()
        by_columns += notes.quick(json.dumps(json.loads(text)["annotations"][:3]).encode())
    assert read > 25
    assert by_columns > 5


def sound() -> str:
    """A sound json."""
    rng = random.Random(1)
    whole = content(rng, 30) | {"annotations": []}
    note = {"image_id": 3, "category_id": 2, "segmentation": [[1.5] * 20]}
    whole["annotations"] = [{"id": id, "bbox": [1, 2, 10, 10 + id / 8], **note} for id in range(1, 30)]
    return json.dumps(whole)


BROKEN: dict[str, Callable[[str], str]] = {
    "cut off": lambda text: text[: len(text) * 2 // 3],
    "more behind": lambda text: text + "{}",
    "comma": lambda text: text.replace('"bbox": [1, 2', '"bbox": [1,, 2', 1),
    "bad number in an outline": lambda text: text.replace("1.5]]}", "1.5.1]]}", 1),
    "number without end in an outline": lambda text: text.replace("1.5]]}", "9" * 5000 + "]]}", 1),
    "number without end": lambda text: text.replace('"bbox"', f'"x": {"9" * 5000}, "bbox"', 1),
    "surrogate": lambda text: text.replace('"bbox"', '"x": "\\ud800", "bbox"', 1),
    "surrogate in a key": lambda text: text.replace('"bbox"', '"\\udc00": 1, "bbox"', 1),
    "deep": lambda text: text.replace('"bbox"', f'"x": {"[" * 63}{"]" * 63}, "bbox"', 1),
    "deep at the top": lambda text: text.replace("{", f'{{"x": {"[" * 64}{"]" * 64}, ', 1),
    "latin-1": lambda text: text.replace('"bbox"', '"x": "\udcfc", "bbox"', 1),
    "latin-1 in an outline": lambda text: text.replace("[[1.5", '["\udcfc", [1.5', 1),
    "a list": lambda text: f"[{text}]",
    "empty": lambda text: "",
}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_refused_as_a_whole_is_not_read_in_pieces(name: str, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(sound())
    assert scan_in_pieces(file, images, LOOKING).data is not None
    file.write_bytes(BROKEN[name](sound()).encode("utf-8", "surrogateescape"))
    expected = scan_coco(file, images)
    assert expected.report.stops
    with pytest.raises(Unusual):
        scan_in_pieces(file, images, LOOKING)
    assert reader.scan_split(file, images)[1].faults == expected.report.faults


def test_a_file_too_large_to_be_read_at_once_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text(BROKEN["cut off"](sound()))
    monkeypatch.setattr(reader, "MAX_JSON", 10)
    monkeypatch.setattr(reader, "_LEAST", 0)
    _, report = reader.scan_split(file, images)
    assert "is not a complete json, or has a large record, near byte " in str(report)


def test_keys_that_are_there_twice(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    text = sound().replace('"bbox": [1, 2', '"bbox": [7, 7, 7, 7], "bbox": [1, 2', 1)
    file.write_text(text)
    assert_same(scan_in_pieces(file, images, LOOKING).data, scan_coco(file, images).data)
    file.write_text(text.replace("{", '{"annotations": [], ', 1))
    with pytest.raises(Unusual):
        scan_in_pieces(file, images, LOOKING)


def test_numbers_are_those_of_the_json_module() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=300) * 10.0 ** rng.integers(-300, 300, 300)
    texts = list(map(repr, values.tolist()))
    texts += [f"{value:.25g}" for value in rng.uniform(0, 1e4, 300)]
    texts += [
        "9007199254740993",
        "123456789012345678901234567890",
        "-0.0",
        "-0",
        "5e-324",
        "2.2250738585072011e-308",
    ]
    reader_ = columns.NoteReader()
    for start in range(0, len(texts), 4):
        box = ",".join((texts[start : start + 4] + ["1"] * 4)[:4])
        assert reader_.quick(f'[{{"id":{start + 1},"image_id":1,"category_id":1,"bbox":[{box}]}}]'.encode())
    found = reader_.take()["boxes"].reshape(-1)[: len(texts)].tolist()
    assert list(map(repr, found)) == [repr(float(json.loads(text))) for text in texts]
