"""Detections for COCO's server: what is written, and what is refused in a line."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from msefpn.cli import main
from msefpn.config import Config
from msefpn.data.reader import read_images_alone
from msefpn.errors import UserError
from msefpn.inference.submission import CATEGORIES, check_results
from msefpn.models import build, save
from tests.data.sets import picture

CLASSES = [f"c{id}" for id in sorted(CATEGORIES)]
FILE = "image_info_test-dev2017.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of COCO's ids, and three images without annotations."""
    folder = tmp_path_factory.mktemp("submission")
    config = Config(
        backbone="test_resnet",
        neck_options={"out_channels": 32},
        detector_options={"roi": {"hidden": 32, "score": 0.0}},
        init="none",
        size="96",
    )
    save(build(config, CLASSES), folder / "w.safetensors")
    names = [picture(folder / f"images/{id}.png").name for id in (3, 7, 9)]
    images = [{"id": int(name[0]), "file_name": name, "width": 100, "height": 80} for name in names]
    classes = [{"id": id, "name": name} for id, name in zip(sorted(CATEGORIES), CLASSES, strict=True)]
    write(folder, {"images": images, "categories": classes})
    return folder


def write(folder: Path, content: dict[str, Any], name: str = FILE) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def submit(place: Path, out: Path, method: str = "mse-fpn", file: str = FILE) -> int:
    words = ["evaluate", place / "w.safetensors", "--json", place / file, "--images", place / "images"]
    words += ["--out", out, "--submit", method, "--workers", "0", "--device", "cpu"]
    return main(list(map(str, words)))


def test_the_zip_of_a_split_without_annotations(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(place, tmp_path / "out") == 0
    name = "detections_test-dev2017_mse-fpn_results"
    assert f"for COCO's server: {tmp_path / 'out' / name}.zip" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out" / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        results = json.loads(archive.read(f"{name}.json"))
    assert results == json.loads((tmp_path / "out/predictions.json").read_text())
    assert {item["image_id"] for item in results} <= {3, 7, 9}
    assert all(set(item) == {"image_id", "category_id", "bbox", "score"} for item in results)
    assert {item["category_id"] for item in results} <= CATEGORIES
    assert all(side == round(side, 2) for item in results for side in item["bbox"])
    assert "AP" not in json.loads((tmp_path / "out/metrics.json").read_text())


REFUSED = {
    "method": "name the method with letters",
    "name of the file": "is not a file that COCO's server evaluates",
    "an image": "1 unreadable image (id 9): a submission needs all images",
    "missing": "is missing in",
    "ids": "its category ids are not COCO's 80 (such as 1)",
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((place / FILE).read_text())
    method, file = "m", "test-dev2017/" + FILE
    if what == "method":
        method = "a/b"
    elif what == "name of the file":
        file = "test-dev2017/test.json"
    elif what == "an image":
        (place / "images/broken.png").write_bytes(b"x")
        content["images"][2]["file_name"] = "broken.png"
    elif what == "missing":
        content["images"][2]["file_name"] = "no.png"
    else:
        content["categories"][0]["id"] = 91
    (place / "test-dev2017").mkdir(exist_ok=True)
    write(place, content, file)
    assert submit(place, tmp_path / "out", method, file) == 2
    said = capsys.readouterr().err
    assert REFUSED[what] in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_results_that_the_server_refuses(place: Path) -> None:
    data, _ = read_images_alone(place / FILE, place / "images")
    good = {"image_id": 3, "category_id": 1, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5}
    check_results([good], data)
    for change, says in (
        ({"image_id": 4}, "no such image"),
        ({"category_id": 12}, "category 12 is not one of COCO's"),
        ({"bbox": [0, 0, -1, 5]}, "are not valid"),
        ({"score": float("nan")}, "are not valid"),
    ):
        with pytest.raises(UserError, match=says):
            check_results([good | change], data)
    with pytest.raises(UserError, match="nothing was detected"):
        check_results([], data)
