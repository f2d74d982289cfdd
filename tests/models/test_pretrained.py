"""Detectors with COCO weights by name: the names, the cache, and what is refused."""

import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models import detection

from msefpn import pretrained
from msefpn.checkpoint import read_info
from msefpn.cli import main
from msefpn.config import Config, load_recipe
from msefpn.errors import UserError
from msefpn.exporting.options import ExportOptions
from msefpn.exporting.plan import plan_export
from msefpn.models import build, init_weights
from msefpn.models.pretrained import convert_pretrained
from msefpn.pretrained import PRETRAINED, fetch_pretrained, published_weights

NAME = "fasterrcnn_resnet50_fpn"


@pytest.mark.parametrize("name", PRETRAINED)
def test_all_of_torchvisions_tensors_find_their_place(name: str) -> None:
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None)
    info = read_info(name)
    state = convert_pretrained(info, model.state_dict())
    with torch.device("meta"):
        own = build(*info).state_dict()
    assert {key for key in own if not key.endswith("num_batches_tracked")} == set(state)
    assert (info.classes[0], info.classes[-1], len(info.classes)) == ("person", "toothbrush", 80)
    assert (info.category_ids[0], info.category_ids[-1]) == (1, 90)


@pytest.mark.parametrize("name", PRETRAINED)
def test_epsilon_is_that_of_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision overwrites the epsilon of its oldest weights when it loads them."""
    weights: Any = getattr(detection, PRETRAINED[name].enumeration).COCO_V1
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"):
        model = getattr(detection, name)(weights=weights, weights_backbone=None)
    assert model.backbone.body.bn1.eps == PRETRAINED[name].norm_eps


def test_the_recipe_builds_the_detector_of_its_weights() -> None:
    recipe = load_recipe("finetune")
    about = read_info(recipe.init).config
    for key in (
        "detector",
        "detector_options",
        "backbone",
        "backbone_options",
        "neck",
        "neck_options",
        "size",
    ):
        assert getattr(recipe, key) == getattr(about, key), key


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A state dict of the right architecture that finds persons everywhere, and dogs, its label 18, less."""
    with torch.device("meta"):
        model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.fill_(1.0)
    scores = state["roi_heads.box_predictor.cls_score.bias"]
    scores[1], scores[18] = 6.0, 5.0
    return state


@pytest.fixture
def cache(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """A file of the name and the hash that torchvision's enumeration says, in a cache of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    file = (folder / "new.pth").rename(folder / f"{NAME}_coco-{digest[:8]}.pth")
    weights: Any = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    url = f"https://example.org/models/{file.name}"
    monkeypatch.setattr(weights.value, "url", url)
    return file, url


def test_predict_by_name_detects(
    cache: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), (90, 120, 30)).save("photo.png")
    assert main(["predict", NAME, "photo.png", "--size", "96", "--score", "0.2", "--out", "found"]) == 0
    found = json.loads(Path("found/predictions.json").read_text(encoding="utf-8"))
    assert {(entry["category_id"], entry["category"]) for entry in found} == {(1, "person"), (18, "dog")}
    best = max(entry["score"] for entry in found)
    expected = torch.tensor([6.0, 5.0, *[0.0] * 79]).softmax(0)  # of 80 classes and background
    assert best == pytest.approx(float(expected[0]), abs=1e-4)


def test_init_by_name_keeps_rows_of_common_classes(
    cache: tuple[Path, str], state: dict[str, torch.Tensor]
) -> None:
    config = Config(detector="mask_rcnn", backbone="resnet50", neck="fpn", init=NAME)
    detector = build(config, ["ship", "dog"])
    before = detector.state_dict()["roi.box.classes.bias"].clone()
    report = init_weights(detector, NAME)
    assert (report.kept_classes, report.new_classes) == (("dog",), ("ship",))
    assert detector.state_dict()["roi.box.classes.bias"].tolist() == [float(before[0]), 5.0, 0.0]
    assert all(name.startswith("mask.") for name in report.missing)
    assert not report.left_out
    assert torch.equal(detector.state_dict()["neck.laterals.0.weight"], torch.zeros(256, 256, 1, 1))


def test_an_export_by_name_goes_into_the_current_folder(
    cache: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_export(Path(NAME), ExportOptions.given(format="pt2", ap_drop=1.0))
    assert (plan.out, plan.size) == (Path("detector.pt2"), "1333x800")


def test_another_file_of_that_name_is_refused(
    cache: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, url = cache
    file.write_bytes(b"half a file")
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    out = tmp_path / "found"
    assert main(["predict", NAME, str(tmp_path / "photo.png"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(file) in error
    assert url in error
    assert "SHA-256" in error
    assert not out.exists()
    assert file.read_bytes() == b"half a file"


def test_without_a_network_one_line_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    def unreachable(*_: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(UserError, match="Name or service not known") as caught:
        fetch_pretrained(NAME)
    url = published_weights(NAME).url
    assert url in str(caught.value)
    assert str(tmp_path / "home" / "hub" / "checkpoints" / Path(url).name) in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_download_of_another_content_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    served = tmp_path / "served.pth"
    served.write_bytes(b"not the weights")
    weights: Any = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    monkeypatch.setattr(
        pretrained, "published_weights", lambda _: published_weights(NAME)._replace(url=weights.url)
    )
    opened = urllib.request.urlopen
    monkeypatch.setattr("torch.hub.urlopen", lambda _: opened(served.as_uri()))
    with pytest.raises(UserError, match="invalid hash"):
        fetch_pretrained(NAME)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "fasterrcnn_resnet50_fnp", "x.jpg"], "did you mean 'fasterrcnn_resnet50_fpn'"),
        (["train", "--init", "fcos_resnet_fpn"], "did you mean 'fcos_resnet50_fpn'"),
        (["train", "--init", "hf://name"], "write hf://USER/NAME"),
        (["evaluate", NAME], "give --data"),
    ],
)
def test_wrong_names_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_of_that_name_is_meant_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()
    with pytest.raises(UserError, match=r"has no best\.safetensors"):
        read_info(NAME)


def test_models_lists_names_with_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "maskrcnn_resnet50_fpn" in line]
    assert line.split() == ["maskrcnn_resnet50_fpn", "mask_rcnn", "37.9", "34.6", "170", "MB", "BSD-3-Clause"]
    assert all(name in text for name in PRETRAINED)
