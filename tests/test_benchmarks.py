"""The benchmarks run, and compare what they say they compare."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msefpn import plugins
from msefpn.necks import FPN
from tests import ROOT, TINY


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the benchmarks, by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def loader(module: Callable[[str], Any]) -> Any:
    return module("loader")


def run(*words: str) -> str:
    """What the command prints, at a tiny size."""
    tiny = ["--rounds", "1", "--sizes", "64x96", "--train-sizes", "64x96", "--matrix", "64"]
    command = [sys.executable, "-m", "benchmarks", *words, *tiny]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(printed: str) -> dict[str, list[str]]:
    """The cells of the tables' rows after the first, by the first up to a colon."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("|")
    ]
    return {row[0].partition(":")[0]: row[1:] for row in rows}


@pytest.mark.usefixtures("warm_processes")
def test_sides_and_parts_are_measured() -> None:
    printed = run(
        *("predict", "train", "roofline", "--detectors", "retinanet", "--sides", "torchvision", "ours"),
        *("--batches", "1", "--train-batches", "1"),
    )
    predict, train, parts = (rows_of(part) for part in printed.split("### ")[1:4])
    assert predict["torchvision"][0].endswith(" s")
    assert predict["torchvision"][1].endswith(" MB")
    assert [predict[side][-1] for side in ("torchvision", "ours")] == ["100 %", "100 %"]
    assert min(*map(float, predict["ours"][:2]), *map(float, train["ours"])) > 0
    assert {"backbone", "neck", "rpn", "roi"} <= set(parts)
    assert all(float(parts[name][-2].removesuffix(" %")) > 0 for name in ("backbone", "neck"))


@pytest.mark.usefixtures("warm_processes")
def test_a_side_that_cannot_run_is_named(module: Callable[[str], Any]) -> None:
    case = module("sides").Case("ours", "retinanet", 64, 96, 1, neck="none")
    assert "unknown neck 'none'" in module("interleave").interleaved([case], 1)[case]


def test_agreement_counts_what_is_found_again(module: Callable[[str], Any]) -> None:
    agreement = module("sides").agreement
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    one = [{"boxes": boxes, "scores": torch.ones(2), "labels": torch.tensor([1, 2])}]
    moved = [one[0] | {"boxes": boxes + torch.tensor([[0.0], [3.0]])}]
    renamed = [one[0] | {"labels": torch.tensor([2, 2])}]
    assert [agreement(one, other) for other in (one, moved, renamed)] == [1, 0.5, 0.5]


@pytest.mark.parametrize("given", [False, True], ids=["made up", "given"])
def test_both_sides_of_the_loaders_do_the_same_work(loader: Any, tmp_path: Path, given: bool) -> None:
    if given:
        Image.new("RGB", (50, 50), (200, 100, 0)).save(tmp_path / "x.jpg")
    (tmp_path / "set").mkdir()
    case = loader.Case("tiny", (120, 90), (96, 64), 4)
    data = loader.make_set(tmp_path / "set", case, tmp_path if given else None)
    shapes = []
    for make in (loader.ours, loader.theirs):
        load, floats = make(data, case.size, 2)
        batches = [floats(item) for item in load(0)]
        assert all(batch.dtype == torch.float32 for batch in batches)
        shapes.append([tuple(batch.shape) for batch in batches])
    assert shapes == [[(2, 3, 64, 96)] * 2] * 2


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A data set with one image of 100 x 70 pixels a split: 3 x 2 tiles of 32, the first at (2, 3)."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    boxes = {
        (4, 5, 10, 10): 1,  # in the first tile
        (28, 10, 10, 8): 1,  # centre in the first tile, clipped to it
        (40, 8, 8, 8): 2,  # another class
        (70, 4, 10, 10): 1,  # in the third tile of the upper row, and so is
        (80, 10, 3, 3): 1,  # one too small
        (2, 36, 12, 12): 1,  # in the first tile of the lower row
        (20, 40, 40, 20): 1,  # too large, reaches into that and the next
        (70, 40, 12, 12): 1,  # in the last tile, and so is
        (80, 60, 20, 10): 1,  # a crowd region
    }
    notes = [
        {
            "id": id,
            "image_id": 7,
            "category_id": label,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for id, (box, label) in enumerate(boxes.items(), 1)
    ]
    notes[-1]["iscrowd"] = 1
    image = {"id": 7, "file_name": "a.png", "width": 100, "height": 70}
    names = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / split / "a.png")
        text = json.dumps({"images": [image], "annotations": notes, "categories": names})
        (tmp_path / "set" / f"{split}.json").write_text(text)
    return tmp_path / "set"


def test_tiles_hold_small_objects_alone(
    module: Callable[[str], Any], photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiles"
    module("small_objects").main([str(photograph), str(out), "--tile", "32", "--sides", "8", "20"])
    found = json.loads((out / "train.json").read_text())
    [image] = found["images"]
    assert (image["width"], image["height"]) == (32, 32)
    assert found["categories"] == [{"id": 1, "name": "person"}]
    assert [note["bbox"] for note in found["annotations"]] == [[2, 2, 10, 10], [26, 7, 6, 8]]
    assert [note["area"] for note in found["annotations"]] == [100, 48]
    with (
        Image.open(photograph / "train/a.png") as whole,
        Image.open(out / "train" / image["file_name"]) as tile,
    ):
        assert tile.tobytes() == whole.crop((2, 3, 34, 35)).tobytes()
    assert capsys.readouterr().out.splitlines()[0] == "train: tiles 1, objects 2, median side 8 px"


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--tile", "128"], "no tile of 128 pixels"), (["--name", "dog"], "no class 'dog'")],
)
def test_a_set_without_such_tiles_is_refused(
    words: list[str],
    said: str,
    module: Callable[[str], Any],
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        module("small_objects").main([str(photograph), str(tmp_path / "tiles"), *words])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tiles").exists()


def test_frequent_classes_alone(module: Callable[[str], Any], tmp_path: Path) -> None:
    images = [{"id": id, "file_name": f"{id}.jpg", "width": 9, "height": 9} for id in range(6)]
    names = [{"id": id, "name": name} for id, name in ((3, "cup"), (5, "car"), (8, "kite"))]
    pairs = [(0, 3), (1, 3), (2, 3), (2, 5), (3, 8), (4, 8), (4, 8), (5, 5)]
    notes = [
        {"id": id, "image_id": image, "category_id": label, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
        for id, (image, label) in enumerate(pairs)
    ]
    notes[6]["iscrowd"] = 1  # only two kites are left, as two cars
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"images": images, "annotations": notes, "categories": names}))
    words = [str(whole), str(whole), str(tmp_path / "cut"), "--objects", "3", "--images", "2"]
    module("frequent").main(words)
    train, val = (json.loads((tmp_path / "cut" / f"{split}.json").read_text()) for split in ("train", "val"))
    assert [category["name"] for category in train["categories"]] == ["cup"]
    assert train["categories"] == val["categories"]
    drawn = {image["id"] for image in train["images"]}
    assert len(drawn) == 2
    assert drawn < {0, 1, 2}
    assert [note["image_id"] for note in train["annotations"]] == sorted(drawn)
    assert val["images"] == images
    assert [note["image_id"] for note in val["annotations"]] == [0, 1, 2]

    with pytest.raises(SystemExit):
        module("frequent").main([*words[:2], str(tmp_path / "none"), "--objects", "4"])
    assert not (tmp_path / "none").exists()


def test_the_first_loss_is_measured(
    module: Callable[[str], Any], tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test_resnet", "--necks", "fpn", "--seeds", "1", "--size", "64"]
    module("first_loss").main([str(tiny_set), *words])
    uniform, *_, row = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert [len(cell.split()) for cell in cells[2:5]] == [4, 5, 1]
    assert float(cells[5].split()[0]) == pytest.approx(float(uniform.split()[1]), abs=0.5)


def test_loader_is_measured(loader: Any) -> None:
    threads = torch.get_num_threads()
    row = loader.measure(loader.Case("tiny", (64, 48), (32, 32), 2), rounds=1)
    assert min(row[1:]) > 0
    assert row.ratio == row.ours_floats / row.theirs_floats
    assert torch.get_num_threads() == threads


def test_data_at_full_size_is_made_and_read(
    module: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSEFPN_CACHE", "off")
    full_size, data = module("full_size"), module("data")
    place = full_size.make(tmp_path, full_size.Size("tiny", 60, 400, 5, 12.0))
    content = json.loads(place[0].read_text())
    assert [len(content[key]) for key in ("images", "annotations", "categories")] == [60, 400, 5]
    assert {(place[1] / item["file_name"]).stat().st_nlink for item in content["images"]} == {60}
    assert all(data.parse(name, False, place[0])["result"] == 400 for name in data.parsers())
    assert data.start("columns", *place)["result"] == data.start("split", *place)["result"] == 400
    assert data.check(*place)["result"] == 60
    own = data.workers(1, 60, *place)
    assert 0 < own["first"][0] < 500
    speeds = data.load("torchvision, decode_image", 4, *place)
    assert min(speeds.values()) > 0


def test_boxes_without_outlines_are_made(module: Callable[[str], Any], tmp_path: Path) -> None:
    full_size = module("full_size")
    file, folder = full_size.make(tmp_path, full_size.Size("tiny", 9, 30, 5, 0.0), images=False)
    assert all("segmentation" not in note for note in json.loads(file.read_text())["annotations"])
    assert not folder.exists()


@pytest.mark.usefixtures("warm_processes")
def test_scale(
    module: Callable[[str], Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scale, whole = module("scale"), request.config.getoption("whole_grid")
    parts = scale.PARTS if whole else ("communication", "prediction")
    assert scale.ring_bytes(80, 2) == 80
    assert scale.ring_bytes(80, 8) == 140
    monkeypatch.setattr(scale, "known", lambda kind: ["faster_rcnn"])
    monkeypatch.setattr(scale, "OTHERS", (str(TINY),))
    few = ["--recipe", str(TINY), "--rounds", "1", "--size", "96x64", "--detectors", "faster_rcnn"]
    scale.main([*few, "--parts", *parts, "--sides", "64x64", "--images", "2", "--names", "1000"])
    printed = capsys.readouterr().out
    tables = dict(zip(parts, map(rows_of, printed.split("####")[1:]), strict=True))
    assert tables["communication"]["faster_rcnn"] == ["268", "268", "469", "520"]
    assert tables["communication"]["10 Gbit/s"][:3] == ["214.6", "375.6", "415.8"]
    assert float(tables["prediction"]["64x64"][0]) > 0
    if whole:
        assert set(tables["growth"]) == {"boxes", "---", "1", "10", "100", "1000"}
        assert tables["share"]["faster_rcnn"][-1].endswith(" %")
    assert "A list of 1000 names" in printed
    assert "A shard of 1000 images" in printed


@pytest.mark.parametrize(
    ("options", "starts_as_fpn"),
    [
        ({}, True),
        ({"context": True, "upsample": "bilinear"}, True),
        ({"batch_norm": True, "activation": True}, False),
        ({"norm_sums": True, "norm_outputs": True}, False),
        ({"above": 0.5}, False),
    ],
)
def test_designs_change_what_they_name(
    options: dict[str, Any],
    starts_as_fpn: bool,
    module: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugins, "_TABLES", {kind: dict(table) for kind, table in plugins._TABLES.items()})
    kind = module("designs").Trial
    channels, strides = [8, 16, 24, 32], [4, 8, 16, 32]
    torch.manual_seed(0)
    maps = [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    trial = kind(channels, strides, 16, **options)
    fpn = FPN(channels, strides, 16, norm="gn", upsample=options.get("upsample", "nearest"))
    fpn.load_state_dict({name: x for name, x in trial.state_dict().items() if name in fpn.state_dict()})
    made = trial(maps)
    assert all(torch.equal(x, y) for x, y in zip(made, fpn(maps), strict=True)) is starts_as_fpn
    torch.stack([x.sum() for x in made]).sum().backward()
    assert all(parameter.grad is not None for parameter in trial.parameters())


def test_gap_beside_gain(
    module: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gap = module("gap")
    values = {"fpn": 0.4, "near": 0.6, "far": 0.2, "middle": 0.5}
    gains = {"near": 0.03, "far": -0.02, "middle": 0.01}
    rows = [
        {"row": name, "epochs": 5, "trials": [{"seed": 0}, {"seed": 1}], "baseline": name == "fpn"}
        | ({"difference": {"mean": gains[name]}} if name in gains else {})
        for name in values
    ]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")

    def similarity(run: Path, images: list[Path]) -> tuple[float, float]:
        assert images == [tmp_path / "photo.png"]
        row, epochs, seed = run.relative_to(tmp_path).parts
        assert epochs == "epochs-5"
        return values[row] + {"seed-0": -0.1, "seed-1": 0.1}[seed], 0.25

    monkeypatch.setattr(gap, "similarity", similarity)
    gap.main([str(tmp_path), str(tmp_path)])
    printed = capsys.readouterr().out
    assert rows_of(printed)["near"] == ["5", "+3.0", "0.60 ± 0.14", "+0.25", "+0.20"]
    assert printed.splitlines()[-1] == "rank correlation over 3 rows: +1.00"


def test_gains_across_settings(
    module: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    across = module("across")
    gains = [{"a": 0.01, "b": 0.02, "alone": 0.5}, {"a": 0.03, "b": -0.02}]
    for number, grid in enumerate(gains):
        rows: list[dict[str, Any]] = [{"row": "fpn", "epochs": 5}, {"row": "a", "epochs": 18}]
        rows[1]["difference"] = {"mean": 0.9, "pairs": 3}
        rows += [
            {"row": name, "epochs": 5, "difference": {"mean": gain, "pairs": 3}}
            for name, gain in grid.items()
        ]
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "results.json").write_text(json.dumps({"rows": rows}))
    across.main([str(tmp_path / "0"), str(tmp_path / "1")])
    printed = rows_of(capsys.readouterr().out)
    assert printed["a"][:2] == ["+1.0 (3)", "+3.0 (3)"]
    # Student's t of 97.5 % with one degree of freedom, after Holm: neither row is told from zero at 5 % / 2
    assert printed["a"][2] == "+2.0 (-23.5 to +27.5)"
    assert printed["b"][2].startswith("+0.0 (")
    assert "alone" not in printed
    with pytest.raises(SystemExit):
        across.main([str(tmp_path / "0")])
