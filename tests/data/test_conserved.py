"""What goes into a reader comes out, or is named: generated sets in each format, and round trips."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from msefpn.data.formats import ReadLog, open_source
from msefpn.data.formats.write import write_coco, write_yolo
from msefpn.data.images import read_header
from msefpn.errors import UserError

CLASSES = ("blue", "red")
ENDINGS = (".jpg", ".png", ".bmp", ".gif")
BOX = tuple[int, int, int, int]


class Shot(NamedTuple):
    """One picture of a generated set."""

    ending: str
    boxes: list[tuple[int, BOX]]
    """Class, and x, y, width, height in pixels of the picture as it was labelled."""
    stated: tuple[int, int]
    """Width and height at labelling."""
    factor: float
    """By which it was resized since."""
    there: bool
    """Whether the picture is there."""


@st.composite
def shots(draw: st.DrawFn) -> Shot:
    width, height = 4 * draw(st.integers(5, 30)), 4 * draw(st.integers(5, 30))
    found = []
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
        found.append(
            (
                draw(st.integers(0, 1)),
                (x, y, draw(st.integers(8, width - x)), draw(st.integers(8, height - y))),
            )
        )
    unique = list(dict.fromkeys(found))
    factor = draw(st.sampled_from([1.0, 1.0, 0.5, 2.0]))
    return Shot(draw(st.sampled_from(ENDINGS)), unique, (width, height), factor, draw(st.integers(0, 5)) > 0)


def write_pictures(folder: Path, made: list[Shot]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, shot in enumerate(made):
        names.append(f"p{number}{shot.ending}")
        if shot.there:
            width, height = (round(side * shot.factor) for side in shot.stated)
            Image.new("RGB", (width, height), (number, 90, 30)).save(folder / names[-1])
    return names


def as_coco(root: Path, made: list[Shot]) -> None:
    names = write_pictures(root / "train", made)
    rows = [(n, label, box) for n, shot in enumerate(made) for label, box in shot.boxes]
    content = {
        "images": [
            {"id": n, "file_name": name, "width": shot.stated[0], "height": shot.stated[1]}
            for n, (name, shot) in enumerate(zip(names, made, strict=True))
        ],
        "annotations": [
            {"id": k, "image_id": n, "category_id": label + 1, "bbox": box}
            for k, (n, label, box) in enumerate(rows)
        ],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)],
    }
    (root / "train.json").write_text(json.dumps(content))


def as_voc(root: Path, made: list[Shot]) -> None:
    for name, shot in zip(write_pictures(root, made), made, strict=True):
        items = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h) in shot.boxes
        )
        size = f"<size><width>{shot.stated[0]}</width><height>{shot.stated[1]}</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{items}</annotation>"
        (root / name).with_suffix(".xml").write_text(text)


def as_labelme(root: Path, made: list[Shot]) -> None:
    for name, shot in zip(write_pictures(root, made), made, strict=True):
        shapes = [
            {"label": CLASSES[label], "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle"}
            for label, (x, y, w, h) in shot.boxes
        ]
        size = {"imageWidth": shot.stated[0], "imageHeight": shot.stated[1]}
        (root / name).with_suffix(".json").write_text(
            json.dumps({"shapes": shapes, "imagePath": name, **size})
        )


def as_yolo(root: Path, made: list[Shot]) -> None:
    (root / "labels").mkdir()
    for name, shot in zip(write_pictures(root / "images", made), made, strict=True):
        width, height = shot.stated
        rows = [
            (label, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            for label, (x, y, w, h) in shot.boxes
        ]
        lines = [" ".join(f"{number:.10g}" for number in row) + "\n" for row in rows]
        (root / "labels" / name).with_suffix(".txt").write_text("".join(lines))
    (root / "data.yaml").write_text(f"names: {list(CLASSES)}\n")


def as_createml(root: Path, made: list[Shot]) -> None:
    """It states no size, so that its pictures are as they were labelled."""
    entries: list[dict[str, Any]] = []
    for name, shot in zip(write_pictures(root, made), made, strict=True):
        notes = [
            {
                "label": CLASSES[label],
                "coordinates": {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h},
            }
            for label, (x, y, w, h) in shot.boxes
        ]
        entries.append({"image": name, "annotations": notes})
    (root / "train.json").write_text(json.dumps(entries))


MAKERS: dict[str, Callable[[Path, list[Shot]], None]] = {
    "coco": as_coco,
    "voc": as_voc,
    "labelme": as_labelme,
    "yolo": as_yolo,
    "createml": as_createml,
}
Found = dict[str, list[tuple[str, tuple[float, ...]]]]


def expected(made: list[Shot]) -> Found:
    return {
        f"p{number}": sorted(
            (CLASSES[label], tuple(float(side * shot.factor) for side in box)) for label, box in shot.boxes
        )
        for number, shot in enumerate(made)
        if shot.there
    }


def read(root: Path) -> tuple[Found, ReadLog]:
    source = open_source(root)
    data = source.splits["train"].read(ReadLog())
    found: Found = {}
    for index, name in enumerate(data.names):
        corners, labels, _ = data.boxes_of(index)
        rows = zip(corners.astype(float).tolist(), labels.tolist(), strict=True)
        found[Path(name).stem] = sorted(
            (data.classes[label], (x1, y1, x2 - x1, y2 - y1)) for (x1, y1, x2, y2), label in rows
        )
    return found, source.log


def assert_same(found: Found, wanted: Found) -> None:
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert [label for label, _ in found[name]] == [label for label, _ in rows]
        have, want = (np.array([box for _, box in part]).reshape(-1, 4) for part in (found[name], rows))
        np.testing.assert_allclose(have, want, rtol=0, atol=0.01)


@pytest.mark.parametrize("form", MAKERS)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(made=st.lists(shots(), min_size=1, max_size=4))
def test_what_goes_in_comes_out_or_is_named(form: str, made: list[Shot]) -> None:
    if form == "createml":
        made = [shot._replace(factor=1.0) for shot in made]
    wanted = expected(made)
    missing = [f"p{number}{shot.ending}" for number, shot in enumerate(made) if not shot.there]
    rescaled = sum(shot.there and shot.factor != 1 for shot in made)
    root = Path(tempfile.mkdtemp())
    try:
        (root / "in").mkdir()
        MAKERS[form](root / "in", made)
        if not any(wanted.values()):  # no object is left: refused, by the same readers
            with pytest.raises(UserError):
                read(root / "in")
            return
        found, log = read(root / "in")
        assert_same(found, wanted)
        told = "\n".join(log.lines(100))
        lost = [f"{Path(name).stem}.txt" for name in missing] if form == "yolo" else missing
        assert all(name in told or Path(name).stem in told for name in lost)
        if rescaled and form in ("coco", "voc", "labelme"):
            assert "rescaled" in told
        round_trips(root, wanted)
    finally:
        shutil.rmtree(root)


def round_trips(root: Path, wanted: Found) -> None:
    """Write as COCO, that as YOLO, and that as COCO again: nothing changes."""
    for number, form in enumerate(("coco", "yolo", "coco")):
        source = open_source(root / ("in" if not number else str(number - 1)))
        out = root / str(number)
        out.mkdir()
        log = ReadLog()
        splits = {name: part.cleaned(log) for name, part in source.splits.items()}
        write_coco(splits, out, link=False) if form == "coco" else write_yolo(splits, out, log, link=False)
        found, log = read(out)
        assert_same(found, wanted)
        assert not log.skipped
        for item in open_source(out).splits["train"].content["images"]:
            file = next(out.rglob(item["file_name"]))
            assert read_header(file).size == (item["height"], item["width"])
