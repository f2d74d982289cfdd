"""A detector in an exported file, run by onnxruntime, OpenVINO or torch in a detector's place."""

# ruff: noqa: PLC0415  (the engines are of an extra)
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msefpn.checkpoint import About, read_about
from msefpn.errors import UserError, missing_extra
from msefpn.models.graph import INPUTS, OUTPUTS, padded
from msefpn.structures import Detections, Proposals

Arrays = dict[str, NDArray[Any]]
Engine = Callable[[Arrays], Mapping[str, Any]]
"""From the graph's inputs by name to its outputs by name."""


class Exported:
    """Detects as the detector does that was exported, on the CPU; several threads may share one.

    Attributes:
        config: what the detector was built from; its `size` is the one to predict at.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.

    Args:
        about: see above.
        engine: runs the graph.
    """

    def __init__(self, about: About, engine: Engine) -> None:
        self.config, self.classes, self.category_ids = about
        self._engine = engine

    @property
    def takes_proposals(self) -> bool:
        """Whether it needs proposals with its images."""
        return self.config.takes_proposals

    def __call__(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `msefpn.models.Detector.forward`; smaller images than the graph takes are padded."""
        given = (padded(images), sizes, *(proposals or ()))
        feed = {name: np.ascontiguousarray(x) for name, x in zip(INPUTS, given, strict=False)}
        found = self._engine(feed)
        values = [torch.as_tensor(found[name]) if name in found else None for name in OUTPUTS]
        return Detections(*values)  # type: ignore[arg-type]  # the last two may be None


def load_exported(path: str | Path, *, bf16: bool = False) -> Exported:
    """Open a file that `msefpn export` wrote.

    Args:
        path: an .onnx, .xml (OpenVINO; its .bin beside it) or .pt2 file.
        bf16: let OpenVINO compute in bfloat16 where the processor can: faster, and other boxes.

    Raises:
        UserError: it is broken, or not ours, or what runs it is not installed.
    """
    path = Path(path)
    about = read_about(path)
    engines = {".onnx": _onnxruntime, ".xml": _openvino, ".pt2": _torch}
    try:
        engine = _openvino(path, bf16=bf16) if path.suffix == ".xml" else engines[path.suffix](path)
    except ImportError:
        raise missing_extra(f"running {path}", "export") from None
    except Exception as error:  # each engine refuses a broken file in its own way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} is broken, or its engine cannot run it ({reason}): export it again"
        ) from None
    return Exported(about, engine)


def _onnxruntime(path: Path) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def _openvino(path: Path, *, bf16: bool = False) -> Engine:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # else bf16 wherever the processor can
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not path.with_suffix(".bin").is_file():
        raise UserError(f"{path} has no {path.with_suffix('.bin').name} beside it: copy both files")
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    request, lock = compiled.create_infer_request(), threading.Lock()

    def run(feed: Arrays) -> Arrays:
        with lock:
            found = request.infer(feed)
        return {output.get_any_name(): value for output, value in found.items()}

    return run


def _torch(path: Path) -> Engine:
    import torchvision  # noqa: F401  (the graph calls its operators)

    program = torch.export.load(path).module()

    def run(feed: Arrays) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = program(*map(torch.from_numpy, feed.values()))
        return found

    return run
