"""Shrinking with and without smoothing, wherever images are resized: values worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from msefpn import plugins
from msefpn.config import Config, load_recipe
from msefpn.data.coco import CocoData
from msefpn.data.images import read_reduced
from msefpn.data.loader import eval_loader, train_loader
from msefpn.data.packed import PackedNames
from msefpn.data.transforms import eval_transform, train_transform
from msefpn.inference.options import View
from msefpn.inference.predictor import Predictor
from msefpn.inference.tiles import detect_in_tiles

CPU = torch.device("cpu")
SIZE = (48, 48)
LIGHT = {False: 255, True: 85}
"""Of `stripes` shrunk to a third, inside: the middle pixel of three alone, or five, weighted 1 2 3 2 1."""


def stripes() -> NDArray[np.uint8]:
    """144 x 144 pixels, of each three columns the middle one white."""
    pixels = np.zeros((144, 144, 3), np.uint8)
    pixels[:, 1::3] = 255
    return pixels


def light_of(image: Any) -> int:
    """The one value inside of an image (3, H, W)."""
    (value,) = image[:, 2:44, 2:44].unique().tolist()
    return int(value)


@pytest.mark.parametrize(
    ("row", "width", "expected"),
    [
        # new pixel i looks at (i + 1/2) old / new - 1/2
        ([10, 20, 30, 40, 50, 60], 2, [20, 50]),  # at 1 and 4
        ([0, 1, 5, 9, 200, 3, 7], 3, [1, 9, 4]),  # at 2/3, 3 and 5 1/3: 0.67, 9 and 4.33
        ([0, 100, 7, 31], 2, [50, 19]),  # at 1/2 and 2 1/2
        ([0, 100], 4, [0, 25, 75, 100]),  # at -1/4, 1/4, 3/4 and 5/4
        ([0, 0, 200, 0, 0, 0, 0], 2, [50, 0]),  # at 1 1/4 and 4 3/4
    ],
)
def test_opencvs_bilinear_by_hand(row: list[int], width: int, expected: list[int]) -> None:
    image = torch.tensor(row, dtype=torch.uint8).expand(3, 4, -1).contiguous()
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(4, len(row)))
    resize: Any = eval_transform((99, 99), antialias=False)
    resize.make_params = lambda flat: {"size": [4, width]}
    found, _ = resize(tv_tensors.Image(image), {"boxes": boxes, "labels": torch.zeros(0).long()})
    assert found[0, 0].tolist() == expected


@pytest.fixture
def striped(tmp_path: Path) -> CocoData:
    Image.fromarray(stripes()).save(tmp_path / "0.png")
    return CocoData(
        file=tmp_path / "x.json",
        folder=tmp_path,
        names=PackedNames.pack(["0.png"]),
        ids=np.array([1]),
        sizes=np.array([[144, 144]]),
        offsets=np.array([0, 1]),
        boxes=np.array([[30, 30, 90, 90]], np.float32),
        areas=np.array([3600.0]),
        labels=np.array([0]),
        crowd=np.zeros(1, np.bool_),
        classes=("thing",),
        category_ids=(1,),
    )


@pytest.mark.parametrize("antialias", [False, True])
def test_loaders(striped: CocoData, antialias: bool) -> None:
    options: dict[str, Any] = {"size": SIZE, "batch": 1, "workers": 0, "antialias": antialias}
    (batch,) = eval_loader(striped, **options)
    assert light_of(batch.images[0]) == LIGHT[antialias]
    for augment in ("none", "paper"):
        (batch,) = train_loader(striped, **options, augment=augment, seed=0, epoch=0)
        assert light_of(batch.images[0]) == LIGHT[antialias]


@pytest.mark.parametrize("antialias", [False, True])
def test_every_augmentation_has_the_setting(antialias: bool, registry: None) -> None:
    plugins.register("augmentation", "same")(lambda image, target: (image, target))
    for name in ("none", "paper", "multiscale", "strong"):
        transforms = train_transform(name, SIZE, antialias=antialias).transforms  # type: ignore[attr-defined]
        assert [item.antialias for item in transforms if hasattr(item, "scales")] == [antialias]
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(144, 144))
    image = tv_tensors.Image(torch.from_numpy(stripes()).permute(2, 0, 1))
    target = {"boxes": boxes, "labels": torch.zeros(0).long()}
    found, _ = train_transform("same", SIZE, antialias=antialias)(image, target)
    assert light_of(found) == LIGHT[antialias]


def test_a_jpeg_is_decoded_whole_without_it(striped: CocoData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding at half the size would smooth it before."""
    asked: list[Any] = []

    def recorded(path: Path, size: Any, least: Any) -> Any:
        asked.append(least)
        return read_reduced(path, size, least)

    monkeypatch.setattr("msefpn.data.loader.read_reduced", recorded)
    options: dict[str, Any] = {"size": SIZE, "batch": 1, "workers": 0}
    for antialias in (False, True):
        list(eval_loader(striped, **options, antialias=antialias))
        list(train_loader(striped, **options, augment="paper", seed=0, epoch=0, antialias=antialias))
    assert asked == [None, None, (72, 72), (72, 72)]


@pytest.mark.parametrize("antialias", [False, True])
def test_predictor_and_tiles(antialias: bool) -> None:
    detector: Any = type("Nothing", (), {"classes": ("a",), "category_ids": (1,)})()
    detector.config = Config(antialias=antialias)
    predictor = Predictor(detector, SIZE, CPU)
    assert light_of(predictor.batch([stripes()]).images[0]) == LIGHT[antialias]
    mirrored = predictor.batch([stripes()], view=View(SIZE, mirrored=True))
    assert light_of(mirrored.images[0]) == LIGHT[antialias]
    seen: list[int] = []

    def look(views: Any) -> Any:
        seen.extend(light_of(image) for image in predictor.batch(views).images)
        raise StopIteration

    large = np.concatenate([stripes(), stripes()], axis=1)
    with pytest.raises(StopIteration):
        detect_in_tiles(look, large[:, :144], tile=(144, 144), overlap=0.0, batch=1)
    assert seen == [LIGHT[antialias]]


def test_recipes_of_published_numbers_have_it_off() -> None:
    assert not load_recipe("mmdetection_1x").antialias
    assert not load_recipe("retinanet_r50_mse_fpn_1x").antialias
    assert load_recipe("small_data").antialias
