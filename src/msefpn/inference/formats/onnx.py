"""The export format ONNX, run by onnxruntime."""

# ruff: noqa: PLC0415  (onnx and onnxruntime belong to an extra, and torch is slow to import)
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msefpn.checkpoint import KEY
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.inference.formats.base import Graph, fits_half
from msefpn.inference.formats.quantize import quantize
from msefpn.reading import read_bytes

if TYPE_CHECKING:
    from msefpn.models import Detector
    from msefpn.structures import Batch

MAX_ONNX = (2 << 30) - 1
"""Bytes of the largest file: protobuf's own limit."""
REPEATING = ("Loop", "Scan", "SequenceMap")
"""Operators that may run for ever; none of ours."""


class ONNX:
    """An .onnx file, see `Exporter`."""

    suffix = ".onnx"
    suffixes: tuple[str, ...] = (suffix,)
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    executes = False
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def refuse(self, config: Config) -> str:
        """Nothing is refused."""
        return ""

    def write(
        self, detector: Detector, info: str, path: Path, precision: str, samples: Iterable[Batch]
    ) -> None:
        """Write a file, see `Exporter.write`."""
        from msefpn.models.graph import trace_onnx

        model = trace_onnx(detector)
        if precision == "fp16":
            _halve(model)
        if precision == "int8":
            model = quantize(model, samples)
        model.metadata_props.add(key=KEY, value=info)
        path.write_bytes(model.SerializeToString())

    def read(self, path: Path) -> str | None:
        """Return what a file says of itself."""
        import onnx

        entries = onnx.load_from_string(read_bytes(path, MAX_ONNX)).metadata_props
        return {entry.key: entry.value for entry in entries}.get(KEY)

    def open(self, path: Path) -> Graph:
        """Make a file ready to run, with as many threads as torch has."""
        import onnxruntime
        import torch

        content = read_bytes(path, MAX_ONNX)
        _check_model(content, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs = tuple(item.name for item in session.get_inputs())
        outputs = tuple(item.name for item in session.get_outputs())
        return Graph(
            inputs, outputs, lambda feed: dict(zip(outputs, session.run(outputs, feed), strict=True))
        )


def _check_model(content: bytes, path: Path) -> None:
    """Raise UserError for a graph that reads other files, or whose operators run graphs again and again."""
    import onnx

    model = onnx.load_from_string(content)
    waiting, tensors = [model.graph, *model.functions], list[Any]()
    while waiting:
        graph = waiting.pop()
        tensors += getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            tensors += (sparse.values, sparse.indices)
        for node in graph.node:
            if node.op_type in REPEATING:
                raise UserError(
                    f"{path} has the operator {node.op_type}, which no detector has: export it again"
                )
            for attribute in node.attribute:
                tensors += (attribute.t, *attribute.tensors)
                waiting += [attribute.g, *attribute.graphs]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise UserError(f"{path} keeps weights in other files, which are not read: export it again")


def _halve(model: Any) -> None:
    """Store large weights in float16, each with a cast to float32 before the operators that read it."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if not fits_half(values):
            continue
        name = tensor.name
        half = f"{name}.half"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
