"""A detector as one graph from padded images to detections, whose batch, height and width stay free."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models.detectors import Detector
from msefpn.models.fold import folded
from msefpn.structures import Detections, Proposals

MIN_SIDE, MAX_SIDE = 160, 8192
"""Bounds of the padded height and width, pixels, multiples of 32. Below, the coarsest map has a single cell,
which a graph of free size cannot tell from a side to be repeated."""
MAX_IMAGES = 1024
"""Bound of the batch."""
INPUT_NAMES = ("images", "sizes", "regions", "regions_valid")
"""As in `Detector.forward`; the regions only of a detector that has no RPN."""
OUTPUT_NAMES = Detections._fields
"""Those that are not None for the detector: masks where it draws some, strides where a box has one level."""


def padded(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) with zeros at the right and at the bottom, up to the least sides of a graph."""
    height, width = images.shape[2:]
    return F.pad(images, (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height)))


class _Plain(nn.Module):
    """A detector whose values are tensors and a dictionary of them: no type of ours is in the graph."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        regions: Tensor | None = None,
        regions_valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        given = None
        if regions is not None and regions_valid is not None:
            given = Proposals(regions, regions_valid)
        found = self.detector(images, sizes, given)
        return {name: x for name, x in found._asdict().items() if x is not None}


def trace(detector: Detector) -> torch.export.ExportedProgram:
    """Trace a detector in evaluation mode to a program of `INPUT_NAMES` and `OUTPUT_NAMES`."""
    given, shapes = _example(detector)
    with torch.no_grad(), folded(detector), _quiet():
        program = torch.export.export(_Plain(detector), given, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def trace_onnx(detector: Detector) -> Any:
    """Trace a detector in evaluation mode to an `onnx.ModelProto` of `INPUT_NAMES` and `OUTPUT_NAMES`."""
    given, shapes = _example(detector)
    with torch.no_grad(), folded(detector), _quiet():
        plain = _Plain(detector)
        names = list(plain(*given))
        program = torch.onnx.export(
            plain,
            given,
            dynamo=True,
            verbose=False,
            input_names=INPUT_NAMES[: len(given)],
            output_names=names,
            dynamic_shapes=shapes,
            optimize=False,
        )
    assert program is not None
    _tidy(program.model)
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]  # they name files of this machine
    return model


def _tidy(model: Any) -> None:
    """Fold constants and take out what is unused or there twice, in an `onnx_ir.Model` in place.

    onnxscript's optimizer does this too, but tries its rewriting rules on each node first: a third of an
    export's time, for graphs that onnxruntime and OpenVINO rewrite by rules of their own when they load them.
    """
    import onnx_ir.passes.common as passes  # noqa: PLC0415  belongs to an extra
    import onnxscript.optimizer  # noqa: PLC0415  of an extra

    passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    for tidying in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        tidying(model)


def _example(detector: Detector) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs to trace with, and their dimensions that stay free."""
    images = torch.zeros(2, 3, MIN_SIDE, MIN_SIDE + 32, dtype=torch.uint8)
    sizes = torch.tensor([[MIN_SIDE - 2, MIN_SIDE + 32]] * 2)
    count = torch.export.Dim("batch", min=1, max=MAX_IMAGES)
    height, width = (
        32 * torch.export.Dim(x, min=MIN_SIDE // 32, max=MAX_SIDE // 32) for x in ("rows", "columns")
    )
    shapes: tuple[dict[int, Any], ...] = ({0: count, 2: height, 3: width}, {0: count})
    if not detector.takes_proposals:
        return (images, sizes), shapes
    regions = torch.tensor([8.0, 8, 90, 120]).expand(2, 24, 4)
    free = {0: count, 1: torch.export.Dim("regions", min=2, max=1 << 16)}
    return (images, sizes, regions, torch.ones(2, 24, dtype=torch.bool)), (*shapes, free, free)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
