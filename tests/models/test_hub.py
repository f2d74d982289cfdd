"""Detectors written for the Hugging Face hub and read back, without a network."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

from msefpn.checkpoint import find_weights
from msefpn.errors import UserError
from msefpn.models import Detector, OneStage, TwoStage, init_weights, load
from msefpn.pretrained import fetch_from_hub
from tests.models.test_weights import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes of a detector."""
    folder = tmp_path_factory.mktemp("hub") / "cells"
    make("retinanet", init="/home/me/private/weights.pth").save_pretrained(
        folder, model_card_kwargs={"license": "mit"}
    )
    return folder


def test_round_trip_in_a_folder(folder: Path) -> None:
    before = make("retinanet")
    for again in (Detector.from_pretrained(folder), OneStage.from_pretrained(str(folder)), load(folder)):
        assert isinstance(again, OneStage)
        assert not again.training
        assert (again.classes, again.category_ids) == (("cat", "dog", "eel"), (2, 5, 9))
        state = again.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert find_weights(folder) == folder / "model.safetensors"


def test_the_card_says_what_it_is(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "mit",
        "msefpn",
        "object-detection",
    )
    assert "Detects 3 classes: cat, dog, eel." in card.text
    assert "msefpn predict hf://USER/NAME photos" in card.text
    assert "detector: retinanet" in card.text
    assert "Weights: mit." in card.text
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["classes"] == ["cat", "dog", "eel"]
    for file in ("README.md", "config.json"):
        assert "private" not in (folder / file).read_text(encoding="utf-8")


def test_a_card_without_a_licence_says_so() -> None:
    text = str(make().generate_model_card(repository="me/cells"))
    assert "license:" not in text
    assert "The licence of the weights is not stated." in text
    assert "hf://me/cells" in text


def test_a_folder_that_holds_something_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds something"):
        make().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == "mine"


def test_another_kind_of_detector_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="holds a retinanet, not a TwoStage: use Detector"):
        TwoStage.from_pretrained(folder)


class Hub:
    """Stands for the hub: its repositories are folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reached = folder, True

    def url(self, repository: str, file: str, revision: str | None = None) -> str:
        """The address of a file."""
        return f"{repository}/{file}"

    def metadata(self, url: str, **_: Any) -> None:
        """Ask for a file."""
        if not self.reached:
            raise ConnectionError("Name or service not known")

    def download(self, repository: str, file: str, **_: Any) -> str:
        """Fetch a file."""
        return str(self.folder / repository / file)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, which nothing reaches a network for."""
    found = Hub(tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", found.url)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", found.metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    return found


def test_weights_of_the_hub_are_used_by_name(hub: Hub, folder: Path) -> None:
    shutil.copytree(folder, hub.folder / "me" / "cells")
    assert load("hf://me/cells").classes == ("cat", "dog", "eel")
    assert Detector.from_pretrained("me/cells").config.detector == "retinanet"
    report = init_weights(make("retinanet"), "hf://me/cells")
    assert not report.missing
    assert report.kept_classes == ("cat", "dog", "eel")
    assert fetch_from_hub(Path("hf://me/cells@v1")) == hub.folder / "me" / "cells" / "model.safetensors"


def test_without_a_network_one_line_says_why(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.reached = False
    for read in (load, find_weights, lambda name: init_weights(make(), name)):
        with pytest.raises(UserError, match="Name or service not known") as caught:
            read("hf://me/cells")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "cached.safetensors")
    assert fetch_from_hub("hf://me/cells") == Path("cached.safetensors")


def test_a_push_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match="hf://me/cells cannot be written \\(no route\\)"):
        make().push_to_hub("me/cells")


def test_a_push_uploads_what_a_folder_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, str] = {}

    def create(_: Any, repo_id: str, **__: Any) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(_: Any, *, folder_path: Path, **__: Any) -> str:
        uploaded.update({file.name: file.read_text(errors="replace") for file in folder_path.iterdir()})
        return "https://huggingface.co/me/cells/commit/1"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert make().push_to_hub("me/cells").endswith("/commit/1")
    assert sorted(uploaded) == ["README.md", "config.json", "model.safetensors"]
    assert "msefpn predict hf://me/cells photos" in uploaded["README.md"]


@pytest.mark.parametrize("name", ["hf://", "hf://cells", "hf://me/a/b", "hf://me/../x", "hf:/me"])
def test_wrong_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="write hf://USER/NAME"):
        fetch_from_hub(name)


def test_detectors_are_still_copied() -> None:
    detector = make()
    again = copy.deepcopy(detector)
    assert torch.equal(again.state_dict()["roi.box.fc1.weight"], detector.state_dict()["roi.box.fc1.weight"])
