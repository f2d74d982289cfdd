"""convert, split and check as commands, and data of other formats as it is."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import msefpn
from msefpn import plugins
from msefpn.cli import main
from msefpn.config import load_recipe
from msefpn.data.advice import advise
from msefpn.data.coco import CocoData
from msefpn.data.formats import (
    LabelledImage,
    LabelledObject,
    LoadedDataset,
    ReadLog,
    assemble,
    open_source,
    size_of,
)
from msefpn.data.packed import PackedNames
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.models import build, save
from msefpn.reporting.dataset import choose_images
from msefpn.runs.folder import write_run
from msefpn.training.data import read_data
from msefpn.training.plan import Plan, plan_training
from tests import TINY, copy_to
from tests.data.sets import BOXES_ALONE


def planned(data: Path, out: Path) -> Plan:
    """Plan a training."""
    return plan_training(data, {}, recipe=str(TINY), out=out, resume=False, steps=None, options={})


@pytest.fixture(scope="module")
def yolo(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small set in YOLO's layout."""
    folder = tmp_path_factory.mktemp("yolo") / "shapes"
    msefpn.convert(tiny_set, out=folder, to="yolo")
    return folder


def test_convert_there_and_back(yolo: Path, tiny_set: Path, tmp_path: Path) -> None:
    done = msefpn.convert(yolo, out=tmp_path / "back", link=True)
    assert done.format == "yolo"
    assert done.images == {"train": 12, "val": 5}
    for split in ("train", "val"):
        old, _ = read_coco(tiny_set / f"{split}.json", tiny_set / split)
        new, _ = read_coco(tmp_path / "back" / f"{split}.json", tmp_path / "back" / split)
        assert (old.names, old.classes) == (new.names, new.classes)
        np.testing.assert_allclose(old.boxes, new.boxes, atol=1e-3)
        assert (tmp_path / "back" / split / new.names[0]).is_symlink()


def test_real_boxes_agree_there_and_back(shared: Path, tmp_path: Path) -> None:
    bccd = shared / "data" / "bccd"
    msefpn.convert(bccd, out=tmp_path / "yolo", to="yolo", link=True)
    msefpn.convert(tmp_path / "yolo", out=tmp_path / "coco", link=True, follow_links=True)
    for split in ("train", "test"):
        old, _ = read_coco(bccd / f"{split}.json", bccd / split)
        new, _ = read_coco(tmp_path / "coco" / f"{split}.json", tmp_path / "coco" / split)
        assert (old.names, old.classes) == (new.names, new.classes)
        np.testing.assert_array_equal(old.labels, new.labels)
        np.testing.assert_allclose(old.boxes, new.boxes, atol=1e-3)


def test_what_is_left_out_is_named_and_counted(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    msefpn.convert(yolo, out=source, to="yolo")
    label = next((source / "labels" / "train").iterdir())
    label.write_text("0 one two three four\n")
    capsys.readouterr()
    assert main(["convert", str(source), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"skipped: {label}: line 1: could not convert" in said
    assert "1 file skipped, see" in said
    assert str(label) in (tmp_path / "out" / "skipped.txt").read_text()
    assert len(json.loads((tmp_path / "out" / "train.json").read_text())["images"]) == 11


def test_nothing_of_the_users_is_overwritten(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for command in ("convert", "split", "check"):
        assert main([command, str(yolo), "--out", str(tmp_path)]) == 2
        assert f"out '{tmp_path}' is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_train_evaluate_and_resume_on_a_yolo_folder_as_it_is(yolo: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    before = sorted(yolo.rglob("*"))
    plan = planned(yolo, out)
    files, (train, _), _ = read_data(plan, BOXES_ALONE)
    assert len(train) == 12
    assert files.train_json.parent.parent == tmp_path / "runs" / "converted"
    assert train.path_of(0).resolve().is_relative_to(yolo.resolve())
    out.mkdir(parents=True)
    write_run(out, plan.config, files)
    (out / "resume.ckpt").write_bytes(b"")
    for data in (None, yolo, yolo / "data.yaml"):
        again = plan_training(data, {}, recipe=None, out=out, resume=True, steps=None, options={})
        assert read_data(again, BOXES_ALONE)[0] == files
    assert sorted(yolo.rglob("*")) == before


def test_a_yolo_folder_without_val_names_split(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "one"
    source.mkdir()
    (source / "data.yaml").write_text((yolo / "data.yaml").read_text().replace("val: images/val\n", ""))
    for name in ("images", "labels"):
        copy_to(yolo / name, source / name)
    with pytest.raises(UserError, match=f"has no val split, only train: 'msefpn split {source} --out NEW'"):
        read_data(planned(source, tmp_path / "o"), BOXES_ALONE)
    assert main(["check", str(source)]) == 2
    assert "val: stops a run" in capsys.readouterr().out
    assert main(["split", str(source), "--out", str(tmp_path / "both"), "--val", "0.3", "--link"]) == 0
    assert "share of val" in capsys.readouterr().out
    assert msefpn.check(tmp_path / "both", follow_links=True).splits[1].images in (3, 4, 5)


def test_evaluation_on_a_yolo_folder(yolo: Path, tmp_path: Path) -> None:
    config = load_recipe(str(TINY))
    (train, _) = open_source(yolo).split("train").scan()
    assert train is not None
    (tmp_path / "run").mkdir()
    save(build(config, train.classes), tmp_path / "run" / "best.safetensors")
    numbers = msefpn.evaluate(tmp_path / "run", yolo, device="cpu", workers=0)
    assert numbers["images"] == 5
    assert list((tmp_path / "run" / "converted").iterdir())


class Rows:
    """A csv file for each split: file, x1, y1, x2, y2, label."""

    def holds(self, path: Path) -> bool:
        return any(path.glob("*/boxes.csv"))

    def read(self, path: Path, images: Path | None, log: ReadLog) -> LoadedDataset:
        splits = {}
        for file in path.glob("*/boxes.csv"):
            objects: dict[Path, list[LabelledObject]] = {}
            for name, *corners, label in csv.reader(file.read_text().splitlines()):
                x1, y1, x2, y2 = map(float, corners)
                box = LabelledObject(label, (x1, y1, x2 - x1, y2 - y1))
                objects.setdefault(file.parent / name, []).append(box)
            splits[file.parent.name] = [
                LabelledImage(image, size_of(image), tuple(boxes)) for image, boxes in objects.items()
            ]
        return assemble(path, "rows", splits, None, log)


@pytest.mark.usefixtures("registry")
def test_every_command_reads_a_format_of_a_plug_in(tiny_set: Path, tmp_path: Path) -> None:
    plugins.register("format", "rows")(Rows)
    source = tmp_path / "source"
    boxes = {}
    for split in ("train", "val"):
        data, _ = read_coco(tiny_set / f"{split}.json", tiny_set / split)
        (source / split).mkdir(parents=True)
        rows = []
        for index, name in enumerate(data.names):
            copy_to(data.path_of(index), source / split / name)
            corners, labels, _ = data.boxes_of(index)
            rows += [
                [name, *map(str, box), data.classes[label]]
                for box, label in zip(corners.tolist(), labels, strict=True)
            ]
        (source / split / "boxes.csv").write_text("".join(",".join(row) + "\n" for row in rows))
        boxes[split] = len(rows)
    checked = msefpn.check(source)
    assert checked.exit_code == 0
    assert {split.name: split.boxes for split in checked.splits} == boxes
    assert checked.read[0].endswith("read as rows")
    for format in (None, "rows"):
        assert msefpn.convert(source, out=tmp_path / str(format), format=format).format == "rows"
    division = msefpn.split(source, out=tmp_path / "split", val=0.5)
    assert sum(len(split.content["annotations"]) for split in division.splits.values()) == sum(boxes.values())
    out = tmp_path / "run"
    plan = planned(source, out)
    assert len(read_data(plan, BOXES_ALONE)[1][0].boxes) == boxes["train"]


def test_check_draws_a_page(tiny_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "<b>data"
    msefpn.convert(tiny_set, out=data)
    content = json.loads((data / "train.json").read_text())
    content["categories"][0]["name"] = "<script>alert(1)</script>"
    for split in ("train", "val"):
        whole = json.loads((data / f"{split}.json").read_text())
        (data / f"{split}.json").write_text(json.dumps(whole | {"categories": content["categories"]}))
    msefpn.check(data, size=160, out=tmp_path / "page")
    text = (tmp_path / "page" / "check.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<b>data" not in text
    assert text.count("data:image/jpeg;base64,") == 12
    assert all(title in text for title in ("Box sizes against", "Shapes against", "Boxes per class"))


def _data(side: float, *, image: int = 640, labels: int = 20) -> CocoData:
    """Return square boxes of a side, each on its own square image."""
    return CocoData(
        file=Path("x.json"),
        folder=Path("x"),
        names=PackedNames.pack([f"{index}.jpg" for index in range(labels)]),
        ids=np.arange(labels),
        sizes=np.full((labels, 2), image),
        offsets=np.arange(labels + 1),
        boxes=np.tile(np.array([[0, 0, side, side]], dtype=np.float32), (labels, 1)),
        areas=np.ones(labels),
        labels=np.zeros(labels, dtype=np.int64),
        crowd=np.zeros(labels, dtype=np.bool_),
        classes=("thing",),
        category_ids=(1,),
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (_data(6), "100% of the boxes are under 8 px after the resize into 640: train with --size 864, or"),
        (_data(2), "too many for a larger --size alone (2560): predict with --tile"),
        (_data(40), "sizes fit: keep --size 640"),
        (_data(200), "19 of 20 boxes are over 200 px: --size 320 shows them too, in about 25% of the time"),
        (_data(40, image=320), "the images are enlarged 2.0 times"),
        (_data(40, labels=4), "under 10 training boxes: thing 4"),
    ],
)
def test_advice_follows_the_numbers(data: CocoData, says: str) -> None:
    assert says in " ".join(advise(data, (640, 640)))


def test_the_sheet_shows_every_class(tiny_set: Path) -> None:
    data, _ = read_coco(tiny_set / "train.json", tiny_set / "train")
    chosen = dict(choose_images(data, (160, 160), most=6))
    assert {int(label) for index in chosen for label in data.boxes_of(index)[1]} == set(data.labels.tolist())
    counts = np.diff(data.offsets)
    assert {int(counts.argmax()), int(counts.argmin())} <= chosen.keys()
