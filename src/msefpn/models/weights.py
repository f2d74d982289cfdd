"""Weights on disk: a detector's own file, and initial weights from others'."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from msefpn.checkpoint import (
    KEY,
    DetectorInfo,
    find_weights,
    is_foreign,
    is_ours,
    missing_weights,
    read_info,
    write_info,
)
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.blank import blank
from msefpn.models.class_rows import move_class_rows
from msefpn.models.detectors import Detector
from msefpn.models.factory import build
from msefpn.models.importers import read_foreign, read_safetensors
from msefpn.models.pretrained import load_pretrained, read_pretrained
from msefpn.models.style import check_style, style_in
from msefpn.places import is_pretrained, on_hub
from msefpn.writing import replacing


def save(detector: Detector, path: str | Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write a detector as one safetensors file, its configuration and class names in the metadata.

    The file is written beside its final place and renamed, so that it is whole or not there.

    Args:
        detector: what to write.
        path: final place.
        tensors: state dict to write instead of the detector's own, such as an average's.

    Raises:
        UserError: the file system refuses.
    """
    with replacing(Path(path)) as part:
        write_weights(detector, part, tensors)


def write_weights(detector: Detector, path: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write what `save` writes at once to its place. Raises OSError."""
    state = tensors if tensors is not None else detector.state_dict()
    only_training = tuple(f"{name}." for name in detector.training_parts())
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if not name.startswith(only_training)
    }
    info = write_info(detector.config, detector.classes, detector.category_ids)
    try:
        save_file(state, path, metadata={"format": "pt", KEY: json.dumps(info)})
    except SafetensorError as error:  # how it tells of a full disk
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else None
        raise OSError(code, os.strerror(code) if code else str(error)) from None


def load(path: str | Path) -> Detector:
    """Give a detector back, in evaluation mode, with its `classes`.

    Args:
        path: a file written by `save`, or a run's folder: its `best.safetensors`, else `last.safetensors`;
            a checkpoint of torchvision, mmdetection or detectron2, see `read_foreign`; or the name of a
            detector with COCO weights, or hf://USER/NAME, which are downloaded.

    Raises:
        UserError: no such file, a broken one, one of an unknown detector or without the names of its classes,
            or one that cannot be downloaded.
    """
    if is_pretrained(path):
        return load_pretrained(str(path))
    file = find_weights(path)
    if is_foreign(file):
        return read_foreign(file).detector()
    info, state = read_info(file), read_safetensors(file)
    detector = _check_fit(info, state, file)
    if detector is not None and _fill(detector, state):
        return detector.eval()
    detector = build(*info, owner=str(file))
    detector.drop_training_parts()
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:  # of a plug-in that could not be looked at before
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{file} does not fit the detector that it describes: {detail}") from None
    return detector.eval()


def _fill(detector: Detector, state: Mapping[str, Tensor]) -> bool:
    """Give a detector without values those of a file; whether it has all values then."""
    own = detector.state_dict()
    detector.load_state_dict(
        {name: value.to(own[name].dtype, copy=True) for name, value in state.items()}, assign=True
    )
    detector.to(memory_format=torch.channels_last)
    return not any(value.is_meta for value in (*detector.parameters(), *detector.buffers()))


def _check_fit(info: DetectorInfo, state: Mapping[str, Tensor], file: Path) -> Detector | None:
    """Raise UserError where a file's tensors are not those of the detector that it describes.

    Returns:
        The detector, without memory for its values: a description may ask for more than any machine has.
        None for one of a plug-in that has to look at values.
    """
    try:
        with blank():
            detector = build(*info, owner=str(file))
    except UserError:
        raise
    except Exception as error:  # an option of a wrong type leads anywhere
        if info.config.plugins:  # which may look at values
            return None
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{file} describes a detector that cannot be built ({reason}): take another copy of it"
        ) from None
    detector.drop_training_parts()
    own = {name: _kind_of(value) for name, value in detector.state_dict().items()}
    theirs = {name: _kind_of(value) for name, value in state.items()}
    if own != theirs:
        name = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))[0]
        there, here = theirs.get(name, "missing"), own.get(name, "not part of it")
        raise UserError(
            f"{file} does not fit the detector that it describes: {name} is {there} in the file, {here} in "
            "the detector: take another copy of it"
        )
    return detector


def _kind_of(value: Tensor) -> str:
    """Shape of a tensor, and whether it is of whole numbers; in how many bits, a file may choose."""
    kind = "" if value.is_floating_point() else f" of {value.dtype}"
    return f"{tuple(value.shape)}{kind}"


def info_of(path: str | Path) -> DetectorInfo:
    """Tell what weights that `load` reads are of. Raises UserError as `load` does."""
    if is_pretrained(path) or not is_foreign(file := find_weights(path)):
        return read_info(path)
    return read_foreign(file).info()


@dataclass(frozen=True)
class InitReport:
    """What became of initial weights."""

    source: str
    loaded: tuple[str, ...]
    """Tensors of the detector that were set."""
    missing: tuple[str, ...]
    """Tensors of the detector that the source lacks: they keep their random values."""
    left_out: tuple[str, ...]
    """Tensors of the source that did not fit, with the reason."""
    kept_classes: tuple[str, ...] = ()
    """Classes that the source has too, whose rows in the class layers were set."""
    new_classes: tuple[str, ...] = ()
    """Classes that the source lacks; their rows keep their random values."""

    def __str__(self) -> str:
        lines = [f"initial weights: {len(self.loaded)} tensors from {self.source}"]
        if self.kept_classes and self.new_classes:
            lines.append(f"  class rows kept of: {_summary(self.kept_classes)}")
        if self.new_classes:
            lines.append(f"  new class rows for: {_summary(self.new_classes)}")
        if self.missing:
            lines.append(f"  {len(self.missing)} start at random: {_summary(self.missing)}")
        if self.left_out:
            lines.append(f"  {len(self.left_out)} of the file not used: {_summary(self.left_out)}")
        return "\n".join(lines)


def init_weights(detector: Detector, source: str) -> InitReport:
    """Load what fits.

    Args:
        detector: what to fill.
        source: `imagenet` (the backbone's weights from timm's hub; a plug-in's backbone keeps the weights
            that it was made with), `none`, the name of a detector with COCO weights, hf://USER/NAME, or a
            file of a timm backbone, of a detector of torchvision, mmdetection or detectron2, or of one of
            ours (.safetensors, .pth, .pt, .pkl). Of a detector whose class names are known, rows of class
            layers are taken by name.

    Raises:
        UserError: no such file, a broken one, nothing in it fits, its images are normalised in another way,
            or the hub cannot be reached.
    """
    if source == "none":
        return InitReport("nowhere", (), tuple(detector.state_dict()), ())
    backbone = detector.backbone
    if source == "imagenet" and backbone.timm_name is None:
        return _as_made(detector)
    state, classes = _read_source(source, detector)
    left_out: list[str] = []
    kept: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    if classes is not None:
        state, kept, new, dropped = move_class_rows(state, classes, detector, detector.classes)
        left_out = [f"{name} (its classes are others)" for name in dropped]
    own = detector.state_dict()
    fitting: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place = _place(name, own)
        if place is None:
            left_out.append(name)
        elif own[place].shape != tensor.shape:
            left_out.append(f"{name} {tuple(tensor.shape)}, here {tuple(own[place].shape)}")
        else:
            fitting[place] = tensor
    if not fitting:
        raise UserError(
            f"nothing in {source} fits {detector.config.detector} with {detector.config.backbone}: "
            "give weights of this backbone or of such a detector"
        )
    detector.load_state_dict(fitting, strict=False)
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    return InitReport(source, tuple(fitting), tuple(missing), tuple(left_out), kept, new)


def _read_source(source: str, detector: Detector) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Tensors under our names, those without a place under their own, and the classes where they are known.

    Raises UserError where the weights mean something else in this detector.
    """
    if source == "imagenet":
        return _from_hub(detector.backbone.name), None
    if is_pretrained(source):
        info, state = read_pretrained(source)
        return state, info.classes
    path = find_weights(source) if on_hub(source) else Path(source)
    if not path.is_file():
        raise missing_weights(path)
    if not is_ours(path):
        foreign = read_foreign(path)
        check_style(detector.config, foreign.needed_style, source)
        return foreign.state, foreign.classes
    theirs, classes, _ = read_info(path)
    check_style(detector.config, style_in(theirs), source)
    _check_start(detector.config, theirs, source)
    return read_safetensors(path), classes


def _check_start(config: Config, theirs: Config, source: str) -> None:
    """Raise UserError where weights are of a neck with these tensors but another `start`."""
    start, own = theirs.neck_options.get("start"), config.neck_options.get("start")
    if theirs.neck == config.neck and start != own and {start, own} != {None, "paper"}:
        raise UserError(
            f"initial weights {source} are of a neck with start '{start or 'paper'}': "
            f"add --set neck_options.start={start or 'paper'}"
        )


def _as_made(detector: Detector) -> InitReport:
    """The report of a plug-in's backbone, which brings its own weights."""
    own = tuple(name for name in detector.state_dict() if name.startswith("backbone."))
    others = tuple(name for name in detector.state_dict() if not name.startswith("backbone."))
    return InitReport(f"backbone '{detector.backbone.name}' itself", own, others, ())


def check_initial_weights(detector: Detector, report: InitReport) -> None:
    """Raise UserError where the backbone would keep random weights, or statistics of no data, to the end."""
    backbone = detector.backbone
    fixed = {f"backbone.body.{name}" for name in backbone.frozen}
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and not module.training:
            fixed |= {f"backbone.{name}.running_mean", f"backbone.{name}.running_var"}
    random = sorted(fixed.intersection(report.missing))
    if random:
        options = ["frozen_stages: -1"] + ["train_norm: true"] * bool(backbone.norms())
        raise UserError(
            f"init {detector.config.init} would leave {len(random)} fixed tensors of {backbone.name} random, "
            f"such as {random[0]}: set backbone_options: {{{', '.join(options)}}} in the recipe, or give "
            "--init imagenet or a file that has them"
        )


def _place(name: str, own: Mapping[str, Tensor]) -> str | None:
    """Where a tensor of a detector or of a timm backbone belongs; timm flattens one level of names."""
    names = (name, f"backbone.body.{name}", f"backbone.body.{name.replace('.', '_', 1)}")
    return next((candidate for candidate in names if candidate in own), None)


def _from_hub(name: str) -> dict[str, Tensor]:
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of each of ten attempts
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, the hub's client and the network each have their own
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"ImageNet weights of {name} cannot be downloaded ({reason}): give a file of them with "
            "--init FILE, or train from random weights with --init none"
        ) from None
    finally:
        logger.setLevel(level)
    state: dict[str, Tensor] = model.state_dict()
    return state


def _summary(names: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
