"""A detector in an exported file, used like the detector itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msefpn.checkpoint import VERSION, DetectorInfo, find_weights, parse_info
from msefpn.errors import UserError, missing_extra
from msefpn.inference.formats import EXPORTERS, format_of
from msefpn.inference.formats.base import Graph
from msefpn.models.graph import INPUT_NAMES, OUTPUT_NAMES, padded
from msefpn.reading import parse_json
from msefpn.structures import Detections, Proposals


class Exported:
    """Detects on the CPU as the detector does that was exported; several threads may share one.

    Attributes:
        config: what the detector was built from; its `size` is the one to predict at.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.
        learns_masks: whether it draws masks.
        takes_proposals: whether it needs given regions.

    Args:
        info: description of the detector.
        graph: runs it.
        path: the file, for messages.

    Raises:
        UserError: the graph has other inputs or outputs than a detector.
    """

    def __init__(self, info: DetectorInfo, graph: Graph, path: Path) -> None:
        self.config, self.classes, self.category_ids = info
        self.path = path
        lacking = {"boxes", "scores", "labels", "valid", "num_dropped"} - set(graph.outputs)
        if lacking or "images" not in graph.inputs or not set(graph.inputs) <= set(INPUT_NAMES):
            raise self._fault("does not have the inputs and outputs of a detector")
        self.learns_masks = "masks" in graph.outputs
        self.takes_proposals = "regions" in graph.inputs
        self._graph = graph

    def __call__(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `msefpn.models.Detector.forward`; images below the graph's least sides are padded."""
        given = dict(zip(INPUT_NAMES, (padded(images), sizes, *(proposals or ())), strict=False))
        try:
            found = self._graph.run({name: np.ascontiguousarray(given[name]) for name in self._graph.inputs})
            values = [torch.as_tensor(found[name]) if name in found else None for name in OUTPUT_NAMES]
            detections = Detections(*values)  # type: ignore[arg-type]  # the last two may be None
        except Exception as error:  # each engine has its own
            raise self._fault(f"cannot be run ({' '.join(str(error).split())[:160]})") from None
        self._check(detections, len(images))
        return detections

    def _check(self, found: Detections, count: int) -> None:
        """Raise UserError for what no detector gives of `count` images: what follows relies on it."""
        shape = found.scores.shape
        shapes = [shape, found.labels.shape, found.valid.shape, found.boxes.shape[:-1]]
        sound = shape[:1] == (count,) and len(shape) == 2 and all(one == shape for one in shapes)
        sound = sound and found.boxes.shape[-1] == 4 and found.num_dropped.shape == (count,)
        if found.masks is not None:
            sound = sound and found.masks.shape[:2] == shape and found.masks.ndim == 4
        if not sound or found.valid.dtype != torch.bool or found.labels.is_floating_point():
            raise self._fault("gives arrays of other shapes or types than a detector")
        labels = found.labels[found.valid]
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < len(self.classes)):
            raise self._fault(f"gives labels outside of its {len(self.classes)} classes")
        if not (found.boxes[found.valid].isfinite().all() and found.scores[found.valid].isfinite().all()):
            raise self._fault("gives boxes or scores that are not finite")

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self.path} {what}: export it again")


def load_exported(path: str | Path, *, trust: bool = False) -> Exported:
    """Open a file that `msefpn export` wrote.

    Args:
        path: the file.
        trust: open it also where its format can execute anything, see `Exporter.executes`.

    Raises:
        UserError: it is missing, broken, not ours or not trusted, or what runs it is not installed.
    """
    path = find_weights(path)
    name = format_of(path)
    if name is None:
        suffixes = ", ".join(exporter.suffix for exporter in EXPORTERS.values())
        raise UserError(f"{path} is neither weights (.safetensors) nor an exported file ({suffixes})")
    if EXPORTERS[name].executes and not trust:
        raise UserError(
            f"{path} can execute anything when torch opens it: add --trust (of predict and evaluate) if it "
            "is yours, or export to onnx"
        )
    info = _read_info(path)
    try:
        return Exported(info, EXPORTERS[name].open(path), path)
    except UserError:
        raise
    except ImportError:
        raise missing_extra(f"running {path}", "export") from None
    except Exception as error:  # each engine refuses a broken file in its own way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} is broken, or its engine cannot run it ({reason}): export it again"
        ) from None


def _read_info(path: Path) -> DetectorInfo:
    """Read what an exported file says of its detector. Raises UserError."""
    try:
        text = EXPORTERS[format_of(path) or ""].read(path)
    except ImportError:
        raise missing_extra(f"reading {path}", "export") from None
    except Exception as error:  # each parser refuses broken bytes in its own way
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is broken or half-written ({reason}): export it again") from None
    if text is None:
        raise UserError(f"{path} was not written by msefpn export: it does not name its classes")
    try:
        values = parse_json(text)
    except ValueError:
        values = None
    return parse_info(values, path, fix="export it again", oldest=VERSION)
