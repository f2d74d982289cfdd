"""Post-training static quantisation of an ONNX graph to int8, calibrated on images."""

# ruff: noqa: PLC0415  (onnxruntime belongs to an extra)
from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from msefpn.structures import Batch

QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators that are quantised; all others (boxes, scores, NMS) stay in float32."""
FLOAT_LAYERS = re.compile(r"\.(classes|objectness|deltas|distances)\b")
"""Names of weights whose layers stay in float32 as well."""


def quantize(model: Any, samples: Iterable[Batch]) -> Any:
    """Quantise convolutions and linear layers: weights by channel, what flows between them by tensor.

    Args:
        model: an `onnx.ModelProto`, see `msefpn.models.graph`.
        samples: images like those that it will see; the ranges of values are taken from them.

    Returns:
        An `onnx.ModelProto` with pairs of QuantizeLinear and DequantizeLinear around those layers.
    """
    import onnx
    from onnxruntime import quantization as q

    _end_names(model)
    kept = [node.name for node in model.graph.node if any(map(FLOAT_LAYERS.search, node.input))]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises on options
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
            before.write_bytes(model.SerializeToString())
            q.quantize_static(
                before,
                after,
                _reader(samples),
                quant_format=q.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                activation_type=q.QuantType.QUInt8,
                weight_type=q.QuantType.QInt8,
                nodes_to_exclude=kept,
            )
            return onnx.load(after)
    finally:
        logger.setLevel(level)


def _end_names(model: Any) -> None:
    """End the names of weights: onnxruntime puts a number behind one that several layers share."""
    ended = {tensor.name: f"{tensor.name}." for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = ended[tensor.name]
    for node in model.graph.node:
        node.input[:] = [ended.get(name, name) for name in node.input]


def _reader(samples: Iterable[Batch]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.feeds = _feeds(samples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.feeds, None)

    return Reader()


def _feeds(samples: Iterable[Batch]) -> Iterator[dict[str, NDArray[Any]]]:
    for batch in samples:
        feed = {"images": np.ascontiguousarray(batch.images), "sizes": batch.sizes.numpy()}
        if batch.proposals is not None:
            feed |= {"regions": batch.proposals.boxes.numpy(), "regions_valid": batch.proposals.valid.numpy()}
        yield feed
