"""The other verbs on a full disk: one line with the right advice, and nothing half-written."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msefpn.cli import main
from msefpn.data.images import write_image
from msefpn.errors import UserError
from msefpn.exporting.export import _put
from msefpn.inference.formats.onnx import ONNX
from msefpn.runs.folder import new_folder
from tests.data.test_conserved import Shot, as_coco
from tests.faults.conftest import Unbroken
from tests.faults.disk import FullDisk, watching
from tests.faults.test_full_disk import file_limit, first_writes, one_line

VERBS = {
    "predict": "predict RUN DATA/val/000001.jpg --save pictures json csv yolo --device cpu --out OUT/found",
    "evaluate": "evaluate RUN --data DATA --workers 0 --device cpu --out OUT/numbers",
    "report": "report RUN --out OUT/page.html",
    "explain": "explain RUN DATA/val/000001.jpg --device cpu --out OUT/page.html",
    "convert": "convert DATA --to yolo --out OUT/a/b",
    "split": "split SHOTS --out OUT/a/b",
    "check": "check DATA --out OUT/checked",
    "upgrade": "upgrade RUN --neck mse_fpn --out OUT/new/detector.safetensors",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_on_a_full_disk(
    verb: str, unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(out: Path) -> list[str]:
        out.mkdir()
        places = {"RUN": unbroken.out, "DATA": unbroken.data, "SHOTS": tmp_path / "shots", "OUT": out}
        text = VERBS[verb]
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text.split()

    (tmp_path / "shots").mkdir()
    as_coco(tmp_path / "shots", [Shot(".png", [(0, (1, 1, 9, 9))], (20, 20), 1.0, there=True)] * 4)
    tried = first_writes(words(tmp_path / "whole"), tmp_path / "whole")
    for number, name in {tried[0], tried[len(tried) // 2], tried[-1]}:
        out = tmp_path / f"out-{number}"
        arguments = words(out)
        capsys.readouterr()
        with watching(out, FullDisk(number)):
            assert main(arguments) == 2, name
        said = one_line(capsys.readouterr().err)
        assert "No space left on device: free some space, or name another " in said
        assert "--resume" not in said
        assert not list(out.iterdir()), name


def test_a_picture_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with file_limit(1000), pytest.raises(UserError, match="File too large"), new_folder(tmp_path / "out"):
        write_image(Image.fromarray(noise), tmp_path / "out" / "a.jpg", quality=92)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_interrupted_goes_away(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "out"):
            (tmp_path / "out" / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_graph_of_openvino_that_does_not_fit(
    size: int,
    unbroken: Unbroken,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is written by OpenVINO itself, which no hook of Python sees."""
    onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    save = openvino.save_model
    number = onnx.TensorProto.FLOAT

    def write(_: object, detector: object, info: str, path: Path, *__: object) -> None:
        weights = onnx.numpy_helper.from_array(np.ones(50_000, np.float32), "w")
        ends = [onnx.helper.make_tensor_value_info(name, number, [50_000]) for name in "xy"]
        node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        path.write_bytes(model.SerializeToString())

    def limited(*args: object, **options: object) -> None:
        with file_limit(size):
            save(*args, **options)

    monkeypatch.setattr(ONNX, "write", write)
    words = ["export", str(unbroken.out), "--format", "openvino", "--compare", "0", "--out"]
    assert main([*words, str(tmp_path / "whole" / "a.xml")]) == 0
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["a.bin", "a.xml"]
    monkeypatch.setattr(openvino, "save_model", limited)
    capsys.readouterr()
    assert main([*words, str(tmp_path / "new" / "a.xml")]) == 2
    said = one_line(capsys.readouterr().err)
    assert "a.xml' cannot be written: " in said
    assert said.endswith(": free some space, or name another place")
    assert not (tmp_path / "new").exists()


def test_exported_files_take_their_places_together(tmp_path: Path) -> None:
    for name in ("a.xml", "a.bin"):
        (tmp_path / name).write_text(name)
    places = {tmp_path / name: tmp_path / "to" / name for name in ("a.xml", "a.bin")}
    (tmp_path / "to" / "a.bin").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        _put(places)
    assert os.listdir(tmp_path / "to") == ["a.bin"]
