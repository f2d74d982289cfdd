"""A loaded detector: images in memory give what files give, from several threads too."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import msefpn
from msefpn.config import load_recipe
from msefpn.data.images import read_image
from msefpn.errors import UserError
from msefpn.inference.predictor import Predictor
from msefpn.models import build, load, save
from msefpn.prediction.loaded import LoadedDetector
from msefpn.prediction.results import ImageResult
from tests import TINY


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    detector = build(
        load_recipe(str(TINY), backbone="test_resnet"), ["circle", "square"], category_ids=[3, 7]
    )
    file = tmp_path_factory.mktemp("loaded") / "best.safetensors"
    save(detector, file)
    return file


@pytest.fixture(scope="module")
def loaded(weights: Path) -> LoadedDetector:
    return msefpn.load(weights, device="cpu")


@pytest.fixture(scope="module")
def files(tiny_set: Path) -> list[Path]:
    return sorted((tiny_set / "val").iterdir())


def boxes(results: list[ImageResult]) -> Iterator[np.ndarray[Any, Any]]:
    return (result.predictions.boxes for result in results)


def test_it_says_what_it_is(loaded: LoadedDetector, weights: Path) -> None:
    assert (loaded.classes, loaded.category_ids, loaded.size) == (("circle", "square"), (3, 7), (96, 96))
    assert repr(loaded) == f"LoadedDetector({weights}: faster_rcnn, 2 classes, size 96x96, cpu)"
    assert msefpn.load(weights, size=64, device="cpu").size == (64, 64)
    with pytest.raises(UserError, match="no weights at"):
        msefpn.load(weights.with_name("nothing"))


def test_the_same_whatever_holds_the_image(loaded: LoadedDetector, files: list[Path]) -> None:
    pixels = read_image(files[0])
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    given = [files[0], str(files[0]), pixels, Image.fromarray(pixels), planes, planes / 255]
    results = loaded.predict(given, score=0.0)
    alone = loaded.predict(pixels, score=0.0)
    assert isinstance(alone, ImageResult)
    assert len(alone.predictions.boxes) > 5
    for found in boxes(results):
        np.testing.assert_array_equal(found, alone.predictions.boxes)
    sources = [result.source for result in results]
    assert sources == [str(files[0])] * 2 + [f"image-{index}" for index in range(2, 6)]
    assert loaded.predict([]) == []


def test_files_and_streams_give_the_same(
    loaded: LoadedDetector, weights: Path, files: list[Path], tmp_path: Path
) -> None:
    results = loaded.predict(list(files), score=0.1)
    for run in (loaded, weights):
        streamed = list(msefpn.stream(run, list(files), score=0.1))
        for one, other in zip(boxes(results), boxes(streamed), strict=True):
            np.testing.assert_array_equal(one, other)
    written = msefpn.predict(loaded, list(files), out=tmp_path / "out", score=0.1)
    assert written
    assert len(written) == sum(map(len, boxes(results)))
    with pytest.raises(
        UserError, match=r"size is given for a detector that is loaded: give it to msefpn\.load"
    ):
        msefpn.stream(loaded, files[0], size=64)
    with pytest.raises(UserError, match=r"--flip given for a detector that is loaded"):
        msefpn.stream(loaded, files[0], flip=True)


def test_threads_give_what_one_gives(loaded: LoadedDetector, files: list[Path]) -> None:
    images = [read_image(file) for file in files]
    options: list[dict[str, Any]] = [
        {},
        {"iou": 0.2},
        {"max_per_image": 3},
        {"classes": "circle"},
        {"batch": 2},
    ]
    tasks = [(image, given | {"score": 0.0}) for image in images for given in options]
    serial = [loaded.predict(image, **given) for image, given in tasks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda task: loaded.predict(task[0], **task[1]), tasks))
    for one, other in zip(serial, together, strict=True):
        np.testing.assert_array_equal(one.predictions.boxes, other.predictions.boxes)
        np.testing.assert_array_equal(one.predictions.scores, other.predictions.scores)


def test_a_batch_gives_what_one_image_at_a_time_gives(loaded: LoadedDetector, files: list[Path]) -> None:
    same = [read_image(files[0]), read_image(files[0])[::-1].copy()]
    for one, other in zip(boxes(loaded.predict(same)), boxes(loaded.predict(same, batch=2)), strict=True):
        np.testing.assert_allclose(one, other, atol=0.01)


def test_iou_and_max_per_image(loaded: LoadedDetector, weights: Path, files: list[Path]) -> None:
    own = loaded.predict(files[0], score=0.0).predictions
    strict = loaded.predict(files[0], score=0.0, iou=0.1).predictions
    loose = loaded.predict(files[0], score=0.0, iou=0.9).predictions
    assert len(strict.boxes) < len(own.boxes) < len(loose.boxes)
    for label in (0, 1):
        kept = torch.from_numpy(strict.boxes[strict.labels == label])
        overlap = box_iou(kept, kept).fill_diagonal_(0)
        assert overlap.max() <= 0.1 + 1e-4
    detector: Any = load(weights)
    detector.roi.selection = replace(detector.roi.selection, nms_iou=0.1)
    (expected,) = Predictor(detector, (96, 96), torch.device("cpu"))([read_image(files[0])])
    np.testing.assert_allclose(strict.boxes, expected.boxes, atol=1e-3)
    few = loaded.predict(files[0], score=0.0, max_per_image=3).predictions
    np.testing.assert_array_equal(few.boxes, own.boxes[:3])
    many = loaded.predict(files[0], score=0.0, max_per_image=len(own.boxes) + 50, iou=0.95).predictions
    assert len(many.boxes) > len(loose.boxes) - 1
    squares = loaded.predict(files[0], score=0.0, max_per_image=2, classes="square").predictions
    np.testing.assert_array_equal(squares.boxes, own.boxes[own.labels == 1][:2])


def test_tiles(loaded: LoadedDetector, files: list[Path]) -> None:
    large = np.tile(read_image(files[0]), (2, 2, 1))
    plain, tiled = (
        loaded.predict(large, score=0.0),
        loaded.predict(large, score=0.0, tile=True, tile_size=160),
    )
    assert len(tiled.predictions.boxes) > len(plain.predictions.boxes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"score": 2}, "score is 2: it must be 0 to 1"),
        ({"score": "high"}, "score is high"),
        ({"iou": -0.5}, "iou is -0.5: it must be 0 to 1"),
        ({"max_per_image": 0}, "max_per_image is 0: .*at least 1"),
        ({"classes": ["ball"]}, "unknown class 'ball': known: circle, square"),
        ({"tile_size": 64}, "without --tile"),
        ({"save": ["jsn"]}, "unknown kind of results 'jsn'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], says: str, loaded: LoadedDetector) -> None:
    with pytest.raises(UserError, match=says):
        loaded.predict(np.zeros((9, 9, 3), np.uint8), **options)


def test_an_option_that_load_lacks_is_refused(weights: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'flipp': did you mean 'flip'"):
        msefpn.load(weights, flipp=True)


def test_a_wrong_image_is_named_and_nothing_is_written(loaded: LoadedDetector, tmp_path: Path) -> None:
    good = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(UserError, match=r"^images\[1\] is channels first"):
        loaded.predict([good, np.zeros((3, 9, 9), np.uint8)], out=tmp_path / "out")
    with pytest.raises(UserError, match=r"^the image is of type dict"):
        loaded.predict({}, out=tmp_path / "out")  # type: ignore[call-overload]  # a mistake
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        loaded.predict(good, out=tmp_path / "full")


def test_a_folder_gets_what_predict_writes(
    loaded: LoadedDetector, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = loaded.predict([read_image(files[0]), files[1]], score=0.1)
    assert list(tmp_path.iterdir()) == []
    loaded.predict([read_image(files[0]), files[1]], score=0.1, out="found")
    assert {path.name for path in Path("found").iterdir()} == {
        "image-0.jpg",
        f"{files[1].stem}.jpg",
        "predictions.json",
    }
    entries = json.loads(Path("found/predictions.json").read_text())
    coco = [item for index, result in enumerate(results) for item in result.as_coco(index)]
    assert [{key: item[key] for key in coco[0]} for item in entries] == coco


def test_results_convert(loaded: LoadedDetector, files: list[Path]) -> None:
    result = loaded.predict(files[0], score=0.0)
    found = result.predictions
    for item, box, score, label in zip(
        result.as_list(), found.boxes, found.scores, found.labels, strict=True
    ):
        assert item == {
            "class": result.classes[label],
            "label": label,
            "score": pytest.approx(float(score)),
            "box": pytest.approx(box.tolist()),
        }
    json.dumps(result.as_list())
    first = result.as_coco(41)[0]
    assert (first["image_id"], first["category_id"]) == (41, (3, 7)[found.labels[0]])
    assert first["bbox"][2] == pytest.approx(float(found.boxes[0, 2] - found.boxes[0, 0]), abs=0.01)
    assert result._repr_png_().startswith(b"\x89PNG")
    assert (result.draw() != result.image).any()
    height, width = result.image.shape[:2]
    assert repr(result).startswith(f"ImageResult({files[0]}, {width} x {height}: ")
    nothing = loaded.predict(np.zeros((9, 9, 3), np.uint8), score=1.0)
    assert repr(nothing) == "ImageResult(image-0, 9 x 9: nothing found)"
    assert (nothing.as_list(), nothing.as_coco()) == ([], [])


def test_its_module_trains(weights: Path, files: list[Path]) -> None:
    """What was folded for speed must not stay where training changes the weights."""
    loaded = msefpn.load(weights, device="cpu")
    images, sizes = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8), torch.tensor([[96, 96]])
    detector: Any = loaded.detector
    before = detector.pyramid(images, sizes)
    detector.train()
    with torch.no_grad():
        for parameter in detector.backbone.parameters():
            parameter.mul_(1.1)
    detector.eval()
    changed = [not torch.allclose(x, y) for x, y in zip(before, detector.pyramid(images, sizes), strict=True)]
    fresh = load(weights)
    with torch.no_grad():
        for parameter in fresh.backbone.parameters():
            parameter.mul_(1.1)
    for x, y in zip(detector.pyramid(images, sizes), fresh.pyramid(images, sizes), strict=True):
        torch.testing.assert_close(x, y)
    assert all(changed)


def test_a_compiled_detector_keeps_its_limits(weights: Path) -> None:
    """They are in its graph; nothing is compiled before the first image."""
    loaded = msefpn.load(weights, device="cpu", compile=True)
    with pytest.raises(UserError, match=r"iou cannot be changed in .*compiled"):
        loaded.predict(np.zeros((9, 9, 3), np.uint8), iou=0.3)
