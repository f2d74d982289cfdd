"""The files that a detector is exported to, each of which says what it is."""

# ruff: noqa: PLC0415  (onnx and OpenVINO are of an extra)
from __future__ import annotations

import importlib.metadata
import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from msefpn.checkpoint import KEY, VERSION
from msefpn.config import parse_size
from msefpn.errors import UserError
from msefpn.export.quantize import quantize
from msefpn.models import Detector
from msefpn.models.graph import MAX_SIDE, MIN_SIDE, trace, trace_onnx
from msefpn.structures import Batch

PRECISIONS = ("fp32", "fp16", "int8")
_HALVED = 1024
"""Weights with fewer values stay in float32: they are shifts, anchors and the like, and no bytes."""


def describe(detector: Detector, size: str, kind: str, precision: str) -> str:
    """What a file says of itself, as json.

    Args:
        detector: what is exported.
        size: what images are to be resized to fit into: 320 or 1333x800.
        kind: key of `msefpn.checkpoint.FORMATS`.
        precision: one of `PRECISIONS`.
    """
    packages = {"onnx": ["onnx", "onnxscript"], "openvino": ["onnx", "onnxscript", "openvino"], "pt2": []}
    named = ["msefpn", "torch", "torchvision", *packages[kind]]
    about = {
        "version": VERSION,
        "made_with": {name: importlib.metadata.version(name) for name in named},
        "classes": detector.classes,
        "category_ids": detector.category_ids,
        "size": parse_size(size),
        "mean": [round(x, 4) for x in detector.mean.flatten().tolist()],
        "std": [round(x, 4) for x in (1 / detector.scale).flatten().tolist()],
        "multiple": 32,
        "sides": [MIN_SIDE, MAX_SIDE],
        "precision": precision,
        "config": asdict(replace(detector.config, size=size)),
    }
    return json.dumps(about)


def write_onnx(
    detector: Detector, about: str, path: Path, precision: str = "fp32", samples: Iterable[Batch] = ()
) -> None:
    """Write an ONNX file.

    Args:
        detector: in evaluation mode, in float32 on the CPU.
        about: as `describe` gives it.
        path: the file.
        precision: fp32; fp16: large weights are stored in float16 and computed with in float32; int8:
            convolutions and linear layers, see `quantize`.
        samples: what int8 is calibrated on.
    """
    model = trace_onnx(detector)
    if precision == "fp16":
        _halve_onnx(model)
    if precision == "int8":
        model = quantize(model, samples)
    model.metadata_props.add(key=KEY, value=about)
    path.write_bytes(model.SerializeToString())


def write_openvino(
    detector: Detector, about: str, path: Path, precision: str = "fp32", samples: Iterable[Batch] = ()
) -> None:
    """Write an OpenVINO file (.xml) and its weights (.bin) by way of ONNX; arguments as for `write_onnx`."""
    import openvino

    between = path.with_suffix(".onnx")
    write_onnx(detector, about, between, "int8" if precision == "int8" else "fp32", samples)
    model = openvino.Core().read_model(between)  # convert_model would report to its makers
    model.set_rt_info(about, KEY)
    openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
    between.unlink()


def write_pt2(
    detector: Detector, about: str, path: Path, precision: str = "fp32", samples: Iterable[Batch] = ()
) -> None:
    """Write a file of `torch.export`; arguments as for `write_onnx`. Raises UserError for int8."""
    if precision == "int8":
        raise UserError("pt2 has no int8: export to onnx or openvino, or with --precision fp32 or fp16")
    program = trace(detector)
    if precision == "fp16":
        _halve_pt2(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights on other devices
        torch.export.save(program, path, extra_files={KEY: about})


WRITERS = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}


def _halve_onnx(model: Any) -> None:
    """Store large weights in float16, each with a cast to float32 before whatever reads it."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < _HALVED or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        half = f"{name}.half"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _halve_pt2(program: torch.export.ExportedProgram) -> None:
    """The same in a program of torch."""
    stores: list[dict[str, Any]] = [program.state_dict, program.constants]
    graph = program.graph_module.graph
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        target = targets.get(node.name, "")
        store = next((store for store in stores if target in store), {})
        value = store.get(target)
        if value is None or value.dtype != torch.float32 or value.numel() < _HALVED:
            continue
        half = value.detach().half()
        store[target] = nn.Parameter(half, requires_grad=False) if isinstance(value, nn.Parameter) else half
        with graph.inserting_after(inputs[-1]):
            cast = graph.call_function(torch.ops.aten.to.dtype, (node, torch.float32))
        cast.meta["val"] = node.meta["val"]
        node.meta["val"] = node.meta["val"].half()
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, own=cast: user is not own)
    program.graph_module.recompile()
