"""Checkpoints of others, brought to our names, with a configuration: an importer is one file.

An importer has three functions. One tells from the names alone whether a state dict is its origin's; one
takes the tensors under our names (`msefpn.models.importers.base.Names`); one describes the detector from the
shapes. A fourth says of which style the backbone is, where the origin has several. `_convert` calls them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from msefpn.checkpoint import DetectorInfo
from msefpn.config import Config
from msefpn.errors import UserError, unknown_name
from msefpn.models.detectors import Detector
from msefpn.models.factory import build
from msefpn.models.importers.base import (
    PYTORCH,
    STYLES,
    Carried,
    Description,
    Names,
    Style,
    check_fit,
    coco_classes,
    summary_of,
)
from msefpn.models.importers.detectron2 import (
    convert_detectron2,
    describe_detectron2,
    is_detectron2,
    style_of,
)
from msefpn.models.importers.files import Checkpoint, read_checkpoint, read_safetensors
from msefpn.models.importers.mmdetection import convert_mmdetection, describe_mmdetection, is_mmdetection
from msefpn.models.importers.mmdetection_settings import read_settings
from msefpn.models.importers.torchvision import (
    convert_torchvision,
    describe_torchvision,
    from_torchvision,
    is_torchvision,
    labels_of,
)
from msefpn.plain import cell, one_line

__all__ = ["Foreign", "from_torchvision", "read_foreign", "read_safetensors"]


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of somebody else, under our names."""

    path: Path
    origin: str
    """`torchvision`, `mmdetection`, `detectron2`, or `` for names that none of them has."""
    state: dict[str, Tensor]
    """Tensors under our names, those without a place under their own."""
    carried: tuple[Carried, ...]
    """What became of each tensor that has a place or was ignored."""
    left: tuple[str, ...]
    """Names of tensors that have no place."""
    skipped: tuple[str, ...]
    """Names of classes in the file whose objects were not made."""
    style: Style
    style_source: str
    """Where the style is from."""
    description: Description | None
    """The detector; None: it is none of ours."""
    problem: str = ""
    """Why it is none of ours."""
    notes: tuple[str, ...] = ()
    """What was assumed or not carried over."""

    @property
    def needed_style(self) -> dict[str, Any] | None:
        """The `backbone_options` that the weights need; None: their origin is not known."""
        return self.style.options if self.origin else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes; None: they are not known."""
        return None if self.description is None else self.description.classes

    def named(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Names of the classes: those given, else the file's. Raises UserError."""
        if self.description is None:
            raise UserError(f"{self.path}: {self.problem}")
        count = self.description.num_classes
        known = tuple(classes) or self.description.classes
        if known is None:
            raise UserError(
                f"{self.path} does not name its {count} classes: import it with "
                f"msefpn import {self.path} --classes NAME ... --out model.safetensors"
            )
        if len(known) != count:
            whose = "were given" if classes else "are named in it"
            raise UserError(
                f"{self.path} has {count} classes, but {len(known)} {whose}: name each of them once"
            )
        if len(set(known)) != count:
            raise UserError(f"{self.path}: two classes have the same name: name each of them once")
        return known

    def detector(self, classes: Sequence[str] = ()) -> Detector:
        """Build the detector, in evaluation mode.

        Args:
            classes: names of all classes, in the file's order; empty: as the file names them.

        Raises:
            UserError: it is none of ours, or the names of its classes are missing or too few.
        """
        made = build(*self.info(classes))
        made.load_state_dict(self.state, strict=False)
        return made.eval()

    def info(self, classes: Sequence[str] = ()) -> DetectorInfo:
        """What the detector is built from; arguments and errors as of `detector`."""
        names = self.named(classes)
        assert self.description is not None  # `named` has seen to it
        try:
            check_fit(self.description, self.state, self.left)
        except UserError as error:
            raise UserError(f"{self.path} (from {self.origin}): {error}") from None
        coco = coco_classes()
        ids = tuple(coco.values()) if tuple(coco) == names else tuple(range(1, len(names) + 1))
        return DetectorInfo(replace(self.description.config, init=self.path.name, batch=2), names, ids)

    @property
    def config(self) -> Config | None:
        """The detector's configuration; None: it is none of ours."""
        return None if self.description is None else self.description.config

    def lines(self) -> list[str]:
        """What the file is and what became of its tensors, for people."""
        config = self.config
        what = "" if config is None else f": {config.detector}, {config.backbone}, {config.neck}"
        lines = [f"{self.path} is from {self.origin or 'an unknown origin'}{what}"]
        if config is not None and self.description is not None:
            known = self.classes or ()
            named = f": {', '.join(known[:4])}" if known else ""
            more = ", ..." if len(known) > 4 else ""
            lines[0] += f", {self.description.num_classes} classes{named}{more}"
        order = "BGR" if self.style.bgr else "RGB"
        strides = "1x1" if self.style.stride_in_1x1 else "3x3"
        lines.append(
            f"style ({self.style_source}): stride in the {strides} convolution, {order}, "
            f"deviation {', '.join(f'{x:g}' for x in self.style.std)}"
        )
        lines += [f"note: {note}" for note in self.notes]
        lines += summary_of(self.carried)
        if self.skipped:
            more = f" and {len(self.skipped) - 4} more" if len(self.skipped) > 4 else ""
            lines.append(f"objects in the file that were not made: {', '.join(self.skipped[:4])}{more}")
        return lines

    def table(self) -> str:
        """What became of every tensor, a line each, separated by tabs."""
        rows = [("what", "theirs", "ours", "note")]
        rows += [(item.kind, item.theirs, item.ours or "", item.note) for item in self.carried]
        rows += [("left", name, "", "") for name in self.left]
        return "".join("\t".join(cell(one_line(text)) for text in row) + "\n" for row in rows)


def read_foreign(path: str | Path, *, style: str | None = None) -> Foreign:
    """Read a checkpoint of torchvision, mmdetection or detectron2, or of a backbone; nothing of it is run.

    Args:
        path: .pth, .pt, .pkl or .safetensors.
        style: `pytorch` or `caffe`, see `STYLES`; None: as the file says, else what its origin publishes.

    Raises:
        UserError: the file is missing, broken or hostile, or does not hold a state dict.
    """
    if style is not None and style not in STYLES:
        raise unknown_name("style", style, STYLES)
    return _convert(read_checkpoint(path), style)


def _convert(checkpoint: Checkpoint, style: str | None) -> Foreign:
    """Find the origin, take the tensors and describe the detector; what cannot be described is said there."""
    state = checkpoint.state
    names = Names(dict(state))
    origin, chosen, source = "", STYLES[style] if style else PYTORCH, "given" if style else "assumed"
    problem, description, notes = "", None, list[str]()
    straight = not any(name.endswith(".conv3.weight") for name in state)  # no bottlenecks
    try:
        if is_torchvision(state):
            origin = "torchvision"
            if style == "caffe":
                raise UserError("torchvision's weights are of pytorch style: leave the style out")
            convert_torchvision(names, labels_of(state))
            description = describe_torchvision(state)
        elif is_mmdetection(state):
            origin = "mmdetection"
            settings = read_settings(checkpoint.meta, style)
            if straight:
                settings = replace(settings, style=replace(settings.style, stride_in_1x1=False))
            notes = settings.notes
            origin, chosen, source = (
                f"mmdetection {settings.version}".strip(),
                settings.style,
                settings.style_source,
            )
            convert_mmdetection(names)
            description = describe_mmdetection(state, settings)
        elif is_detectron2(state):
            origin = "detectron2"
            chosen, source = style_of(state, style)
            chosen = replace(chosen, stride_in_1x1=False) if straight else chosen
            convert_detectron2(names)
            description = describe_detectron2(state, chosen)
        else:
            some = ", ".join(list(state)[:3])
            problem = (
                "it holds tensors but no detector: it was not written by msefpn, and its names "
                f"({some}, ...) are not those of torchvision, mmdetection or detectron2 with a pyramid; "
                "use a backbone's as initial weights with --init"
            )
    except UserError as error:
        problem = f"from {origin}, but {error}"
    if chosen.bgr:
        names.reverse_channels("backbone.body.conv1.weight")
    return Foreign(
        path=checkpoint.path,
        origin=origin,
        state=names.own | names.left,
        carried=tuple(names.carried),
        left=tuple(names.left),
        skipped=checkpoint.skipped,
        style=chosen,
        style_source=source,
        description=description,
        problem=problem,
        notes=tuple(notes),
    )
