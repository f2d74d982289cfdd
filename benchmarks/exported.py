"""A detector as exported files, run by onnxruntime, OpenVINO or torch."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.checkpoint import FORMATS
from msefpn.export.formats import WRITERS, describe
from msefpn.inference.exported import load_exported
from msefpn.models import Detector
from msefpn.structures import Batch, Targets


def exported_call(
    detector: Detector, images: Tensor, sizes: Tensor, kind: str, precision: str, *, bf16: bool = False
) -> Callable[[], Any]:
    """A call of the file that `msefpn export` writes, with as many threads as torch has.

    Args:
        detector: what is exported.
        images: padded uint8 images (B, 3, H, W), which int8 is calibrated on as well.
        sizes: (B, 2).
        kind: onnx, openvino or pt2.
        precision: fp32, fp16 or int8.
        bf16: let OpenVINO compute in bfloat16.
    """
    none = Targets(*(torch.zeros(0),) * 3)
    samples = [Batch(images, sizes, sizes, sizes[:, 0], none)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"detector{FORMATS[kind]}")
        WRITERS[kind](detector.eval(), describe(detector, "640", kind, precision), path, precision, samples)
        exported = load_exported(path, bf16=bf16)
    return lambda: exported(images, sizes)
