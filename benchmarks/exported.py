"""A detector as an ONNX file, run by onnxruntime or OpenVINO."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.models import Detector
from msefpn.models.fold import folded


def write_onnx(detector: Detector, images: Tensor, sizes: Tensor, path: Path) -> None:
    """Export from padded uint8 images (B, 3, H, W) and sizes (B, 2) to detections, for these shapes."""
    with torch.no_grad(), folded(detector):
        program = torch.onnx.export(detector, (images, sizes), dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=False)


def onnxruntime_call(detector: Detector, images: Tensor, sizes: Tensor) -> Callable[[], Any]:
    """A call that runs the exported graph in onnxruntime, with as many threads as torch has."""
    import onnxruntime  # noqa: PLC0415  (wanted by this side only)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(detector, images, sizes, Path(folder, "detector.onnx"))
        session = onnxruntime.InferenceSession(
            Path(folder, "detector.onnx"), options, providers=["CPUExecutionProvider"]
        )
    feed = dict(zip((x.name for x in session.get_inputs()), (images.numpy(), sizes.numpy()), strict=True))
    return lambda: session.run(None, feed)


def openvino_call(detector: Detector, images: Tensor, sizes: Tensor, kind: str) -> Callable[[], Any]:
    """A call that runs the exported graph in OpenVINO in `f32` or `bf16`, with torch's number of threads."""
    import openvino  # noqa: PLC0415  (wanted by this side only)

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(detector, images, sizes, Path(folder, "detector.onnx"))
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": kind,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(Path(folder, "detector.onnx"), "CPU", settings)
    values = [images.numpy(), sizes.numpy()]
    return lambda: list(compiled(values).values())
