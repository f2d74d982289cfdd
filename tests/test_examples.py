"""The examples run: plug-ins pass the checks that users call, those of the package train together.

Those in files are trained by the commands of their pages, see test_docs_commands. The adapters train a step,
and the server answers.
"""

import importlib
import importlib.util
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import msefpn
from msefpn import models, plugins
from msefpn.config import load_recipe
from msefpn.data.images import read_image
from msefpn.testing import check_backbone, check_detector, check_neck
from tests import ROOT, TINY

PACKAGE = ROOT / "examples" / "package" / "src"
FILES = ROOT / "examples" / "plugins"
MODULES = ("msefpn_example", *(path.stem for path in FILES.glob("*.py")))


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Make the examples importable, and forget them afterwards; the package's module."""
    for kind in plugins.KINDS:
        plugins.known(kind)
    before = {kind: dict(table) for kind, table in plugins._TABLES.items()}
    monkeypatch.syspath_prepend(PACKAGE)
    monkeypatch.syspath_prepend(FILES)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("msefpn_example")
    for kind, table in plugins._TABLES.items():
        table.clear()
        table.update(before[kind])
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("module", "name"), [("laterals", "Laterals"), ("msefpn_example", "MeanMap")])
def test_necks(module: str, name: str, examples: ModuleType) -> None:
    neck = getattr(importlib.import_module(module), name)
    check_neck(neck, extra_levels="pool", start_level=1)


def test_backbone(examples: ModuleType) -> None:
    check_backbone(importlib.import_module("backbone").resnet18)


@pytest.mark.parametrize(("module", "name"), [("head", "points"), ("msefpn_example", "squares")])
def test_detectors(module: str, name: str, examples: ModuleType, pytestconfig: pytest.Config) -> None:
    # most of the time; .ci/run exports squares by the command, and test_plugins.py a head by its check
    export = pytestconfig.getoption("--whole-grid")
    check_detector(getattr(importlib.import_module(module), name), export=export)


def test_package_trains(examples: ModuleType, tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    msefpn.train(
        tiny_set,
        recipe=TINY,
        neck="mean_map",
        detector="squares",
        augment="darker",
        logger=["csv", "jsonl", "hours"],
        set=["detector_options={anchor_scale: 3}"],
        backbone="test_resnet",
        steps=1,
        workers=0,
        out=run,
    )
    assert "AP" in (run / "hours.txt").read_text(encoding="utf-8")
    assert type(models.load(run).neck) is examples.MeanMap


def example(path: str) -> ModuleType:
    """Import a file of the examples, under no name that another module has."""
    spec = importlib.util.spec_from_file_location(f"example_{Path(path).stem}", ROOT / "examples" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_necks_in_torchvisions_detectors(name: str) -> None:
    torch.manual_seed(0)
    model = getattr(example("adapters/in_torchvision.py"), name)(3, "test_resnet", pretrained=False)
    model.transform.min_size, model.transform.max_size = (96,), 128
    target = {"boxes": torch.tensor([[10.0, 10, 60, 80]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 96, 128)], [target])
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.neck.parameters())
    assert set(model.eval()([torch.rand(3, 96, 128)])[0]) == {"boxes", "labels", "scores"}


def test_neck_on_timm() -> None:
    torch.manual_seed(0)
    model = example("adapters/on_timm.py").PyramidClassifier(5, "test_resnet", pretrained=False)
    scores = model(torch.rand(2, 3, 96, 64))
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    assert all(p.grad is not None for p in model.neck.parameters())


def test_neck_on_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=stages
    )
    backbone = transformers.AutoBackbone.from_config(config)
    model = example("adapters/on_transformers.py").Pyramid(backbone, out_channels=16)
    assert model.neck.in_strides == [4, 8, 16, 32]
    assert [x.shape[-1] for x in model(torch.rand(1, 3, 96, 64))] == [16, 8, 4, 2]


def test_neck_on_a_backbone_in_the_form_of_transformers() -> None:
    """What the adapter asks of a backbone: `channels`, and `feature_maps` of what it returns."""

    class Output:
        def __init__(self, feature_maps: tuple[torch.Tensor, ...]) -> None:
            self.feature_maps = feature_maps

    class Backbone(torch.nn.Module):
        channels = (8, 16)

        def __init__(self) -> None:
            super().__init__()
            self.stages = torch.nn.ModuleList(torch.nn.Conv2d(3, c, c, stride=c) for c in (8, 16))

        def forward(self, pixel_values: torch.Tensor) -> Output:
            return Output(tuple(stage(pixel_values) for stage in self.stages))

    model = example("adapters/on_transformers.py").Pyramid(Backbone(), out_channels=16)
    assert model.neck.in_strides == [8, 16]
    assert [x.shape for x in model(torch.rand(1, 3, 96, 64))] == [(1, 16, 12, 8), (1, 16, 6, 4)]


def test_training_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = example("adapters/training_loop.py")
    options = {"neck": "fpn", "neck_options": {"out_channels": 32}, "detector": "faster_rcnn"}
    detector = models.build(load_recipe(str(TINY), backbone="test_resnet", **options), ["square"])
    history = module.train(detector, 40, side=64, lr=0.02)
    assert np.mean(history[-10:]) < 0.75 * np.mean(history[:10])
    models.save(detector, tmp_path / "squares.safetensors")
    result = msefpn.load(tmp_path / "squares.safetensors", device="cpu").predict(module.draw(1)[0][0])
    assert result.classes == ("square",)


def test_server(tiny_set: Path, tmp_path: Path) -> None:
    """Requests in parallel are answered as the images alone are."""
    pytest.importorskip("fastapi")
    pytest.importorskip("multipart")
    from fastapi.testclient import TestClient  # noqa: PLC0415  (of an extra)

    torch.manual_seed(0)
    detector = models.build(load_recipe(str(TINY), backbone="test_resnet"), ["circle", "square"])
    models.save(detector, tmp_path / "model.safetensors")
    loaded = msefpn.load(tmp_path / "model.safetensors", device="cpu")
    client = TestClient(example("serve.py").create_app(tmp_path / "model.safetensors"))
    assert client.get("/classes").json() == ["circle", "square"]
    crops = [read_image(file)[:96, :96] for file in sorted((tiny_set / "val").iterdir())]

    def post(numbers: list[int]) -> list[list[dict[str, object]]]:
        files = []
        for number in numbers:
            buffer = io.BytesIO()
            Image.fromarray(crops[number]).save(buffer, "PNG")
            files.append(("images", (f"{number}.png", buffer.getvalue())))
        answer = client.post("/detect", params={"score": 0.1}, files=files)
        assert answer.status_code == 200, answer.text
        found: list[list[dict[str, object]]] = answer.json()
        return found

    asked = [[0], [1, 2], [3], [4, 0], [2], [1]]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, asked))
    for numbers, answer in zip(asked, answers, strict=True):
        for number, objects in zip(numbers, answer, strict=True):
            expected = loaded.predict(crops[number], score=0.1).as_list()
            assert len(objects) == len(expected) > 0
            for item, other in zip(objects, expected, strict=True):
                assert item["class"] == other["class"]
                assert item["box"] == pytest.approx(other["box"], abs=0.05)
    wrong = client.post("/detect", files=[("images", ("a.txt", b"text"))])
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "a.txt is not an image that can be read")
    assert client.post("/detect", params={"score": 2}, files=[("images", ("a", b""))]).status_code == 422
