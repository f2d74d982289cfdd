"""Exported files of others: nothing is unpickled, no other file is read, what a graph gives is checked."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msefpn.checkpoint import KEY, write_info
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.inference.exported import load_exported
from tests import ROOT
from tests.test_hostile import Evil, one_line


def test_a_pt2_file_runs_nothing_unless_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil, mark = tmp_path / "evil.pt2", tmp_path / "run"
    with zipfile.ZipFile(evil, "w") as archive:
        for name in ("data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt"):
            archive.writestr(f"evil/{name}", pickle.dumps(Evil(mark)))
        archive.writestr(f"evil/extra/{KEY}", json.dumps(write_info(Config(), ["a"], [1])))
        archive.writestr("evil/archive_version", "0")
    for arguments in (
        ("predict", evil, ROOT / "docs" / "images"),
        ("evaluate", evil, "--data", tmp_path, "--out", tmp_path / "out"),
        ("export", evil),
    ):
        one_line(capsys, *arguments)
    with pytest.raises(UserError, match=r"evil\.pt2 can execute anything when torch opens it: add --trust"):
        load_exported(evil)
    assert not mark.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt2"]


def onnx_file(path: Path, **arrays: Any) -> Path:
    """A graph that gives these arrays whatever it is given."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    given: dict[str, Any] = {
        "boxes": np.array([[[0, 0, 5, 5]]], np.float32),
        "scores": np.array([[0.9]], np.float32),
        "labels": np.array([[0]], np.int64),
        "valid": np.array([[True]]),
        "num_dropped": np.array([0], np.int64),
    } | arrays
    make, tensors = onnx.helper, [onnx.numpy_helper.from_array(value, f"c_{n}") for n, value in given.items()]
    nodes = [make.make_node("Identity", [f"c_{name}"], [name]) for name in given]
    outs = [
        make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in given.items()
    ]
    ins = [make.make_tensor_value_info("images", onnx.TensorProto.UINT8, None)]
    graph = make.make_graph(nodes, "g", ins, outs, tensors)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key=KEY, value=json.dumps(write_info(Config(size="64"), ["a"], [1])))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"labels": np.array([[7]])}, "labels outside of its 1 classes"),
        ({"labels": np.array([[-1]])}, "labels outside of its 1 classes"),
        ({"labels": np.array([[0.5]], np.float32)}, "other shapes or types"),
        ({"boxes": np.array([[[0, 0, np.nan, 5]]], np.float32)}, "not finite"),
        ({"scores": np.array([[0.9, 0.8]], np.float32)}, "other shapes or types"),
        ({"num_dropped": np.zeros((3, 3), np.int64)}, "other shapes or types"),
    ],
)
def test_what_an_onnx_graph_gives_is_checked(arrays: Any, says: str, tmp_path: Path) -> None:
    exported = load_exported(onnx_file(tmp_path / "a.onnx", **arrays))
    with pytest.raises(UserError, match=rf"a\.onnx gives .*{says}"):
        exported(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))


def test_an_onnx_graph_reads_no_other_file_and_ends(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    file = onnx_file(tmp_path / "a.onnx")
    sound = load_exported(file)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    assert sound.labels.tolist() == [[0]]
    model = onnx.load(file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="keeps weights in other files"):
        load_exported(file)
    model = onnx.load(onnx_file(file))
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["x"], body=model.graph))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="has the operator Loop"):
        load_exported(file)


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ('<!DOCTYPE n [<!ENTITY a "b">]><net/>', "has a DOCTYPE"),
        ("<net>" + "<a>" * 100 + "</a>" * 100 + "</net>", "nested more than 64 deep"),
        ('<net>INFO<layer type="Const"><data offset="0" size="99"/></layer></net>', "do not belong together"),
        ('<net>INFO<layer type="Const"><data offset="-8" size="9"/></layer></net>', "do not belong together"),
        ('<net>INFO<layer type="Loop"/></net>', "has the layer Loop"),
    ],
)
def test_openvino_files(xml: str, says: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    info = json.dumps(write_info(Config(), ["a"], [1])).replace('"', "&quot;")
    text = xml.replace("INFO", f'<rt_info><{KEY} value="{info}"/></rt_info>')
    (tmp_path / "a.xml").write_text(text)
    (tmp_path / "a.bin").write_bytes(bytes(16))
    with pytest.raises(UserError, match=says):
        load_exported(tmp_path / "a.xml")
