"""The export format of OpenVINO: a graph (.xml) and its weights (.bin), made from ONNX."""

# ruff: noqa: PLC0415  (openvino belongs to an extra, and torch is slow to import)
from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from msefpn.checkpoint import KEY
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.inference.formats.base import Arrays, Graph
from msefpn.inference.formats.onnx import ONNX
from msefpn.reading import MAX_TEXT, parse_xml, read_bytes

if TYPE_CHECKING:
    from msefpn.models import Detector
    from msefpn.structures import Batch

_REPEATING = ("Loop", "TensorIterator")
"""Operators that may run for ever; none of ours."""


class OpenVINO:
    """An .xml file with a .bin file of the same stem, see `Exporter`."""

    suffix = ".xml"
    suffixes: tuple[str, ...] = (suffix, ".bin")
    packages: tuple[str, ...] = (*ONNX.packages, "openvino")
    executes = False
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")

    def refuse(self, config: Config) -> str:
        """OpenVINO does not have torchvision's deformable convolution."""
        deformable = config.neck_options.get("deformable")
        return "has deformable convolutions, which OpenVINO lacks" if deformable else ""

    def write(
        self, detector: Detector, info: str, path: Path, precision: str, samples: Iterable[Batch]
    ) -> None:
        """Write a file, see `Exporter.write`."""
        import openvino

        source = path.with_suffix(ONNX.suffix)
        ONNX().write(detector, info, source, "int8" if precision == "int8" else "fp32", samples)
        model = openvino.Core().read_model(source)  # openvino.convert_model would send telemetry
        model.set_rt_info(info, KEY)
        try:
            openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
        except RuntimeError as error:  # how it tells of a full disk
            raise OSError(" ".join(str(error).split())[:200]) from None
        source.unlink()

    def read(self, path: Path) -> str | None:
        """Return what a file says of itself."""
        entry = parse_xml(read_bytes(path, MAX_TEXT)).find(f"rt_info/{KEY}")
        return None if entry is None else entry.get("value")

    def open(self, path: Path, *, bf16: bool = False) -> Graph:
        """Make a file ready to run, with as many threads as torch has.

        Args:
            path: the .xml file.
            bf16: compute in bfloat16 where the processor can: faster, with other boxes.

        Raises:
            UserError: the .bin file is missing.
        """
        import openvino
        import torch

        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise UserError(f"{path} needs {weights.name} in the same folder: copy both files")
        _check_graph(path, weights.stat().st_size)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # the default is bf16 on some processors
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        request, lock = compiled.create_infer_request(), threading.Lock()

        def run(feed: Arrays) -> Arrays:
            with lock:
                found = request.infer(feed)
            return {output.get_any_name(): value for output, value in found.items()}

        inputs, outputs = (
            tuple(port.get_any_name() for port in ports) for ports in (compiled.inputs, compiled.outputs)
        )
        return Graph(inputs, outputs, run)


def _check_graph(path: Path, size: int) -> None:
    """Raise UserError where a graph reads beyond its weights of `size` bytes, or runs a graph repeatedly."""
    root = parse_xml(read_bytes(path, MAX_TEXT))
    for layer in root.iter("layer"):
        if layer.get("type") in _REPEATING:
            raise UserError(
                f"{path} has the layer {layer.get('type')}, which no detector has: export it again"
            )
    for data in root.iter("data"):
        if data.get("offset") is None:
            continue
        numbers = [data.get("offset", ""), data.get("size", "")]
        if not all(text.isdecimal() and len(text) < 16 for text in numbers) or sum(map(int, numbers)) > size:
            raise UserError(f"{path} and its .bin file do not belong together: copy both files again")
