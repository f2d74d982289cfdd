"""Detectors from names and files, and into files: build, load, import, export, upgrade."""

# ruff: noqa: PLC0415  (what is slow to import is imported where it is needed)
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msefpn import plugins
from msefpn.checkpoint import check_initial_name, check_run, place_beside
from msefpn.commands.arguments import as_list, as_path, as_text, configured, takes
from msefpn.config import Config, from_dict
from msefpn.errors import UserError
from msefpn.exporting.options import ExportOptions
from msefpn.inference.options import DetectionOptions
from msefpn.names import check_name
from msefpn.places import is_named
from msefpn.pretrained import LICENCE, PRETRAINED, published_weights
from msefpn.runs.folder import CONFIG, DATA, check_file
from msefpn.runs.imports import import_models

if TYPE_CHECKING:
    from msefpn.exporting.export import ExportReport
    from msefpn.models import Detector
    from msefpn.prediction.loaded import LoadedDetector

_SAME = 1e-4
"""Largest difference of an upgraded detector's pyramid, as a share of a level's largest value."""


class Upgrade(NamedTuple):
    """What `upgrade` did."""

    file: Path
    parameters: tuple[int, int]
    """Of the neck, before and after."""
    difference: float
    """Largest difference of the pyramid on noise, as a share of a level's largest value."""


def import_file(
    file: str | Path,
    *,
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    style: str | None = None,
    table: str | Path | None = None,
) -> Path:
    """Import a checkpoint of mmdetection, detectron2 or torchvision, or a configuration of mmdetection.

    A checkpoint becomes weights that every command takes: its origin is told from the names of its tensors,
    its detector from their shapes, and each tensor must have its place. A configuration becomes a recipe;
    what has no place in one is printed. Nothing in the file is executed.

    Args:
        file: checkpoint (.pth, .pt, .pkl, .safetensors), or configuration (.py), its `_base_` files beside it
        out: file to write, .safetensors or .yaml (default: named like the file, in the current folder)
        classes: of a checkpoint, names of all classes, in its order (default: as the file names them; COCO's
            where there are 80)
        style: style of a checkpoint's backbone: pytorch, or caffe, with the stride in the first 1x1
            convolution of a block, BGR images and no deviation (default: as the file says, else what its
            origin publishes)
        table: file for a table of what became of each of a checkpoint's tensors, separated by tabs

    Returns:
        The file that was written.

    Raises:
        UserError: the file is broken, hostile or of another architecture, its classes have no names, it
            computes values that are needed, or out is there already; nothing is written then.
    """
    if Path(file).suffix == ".py":
        if classes or style or table:
            raise UserError(f"{file} is a configuration: leave out --classes, --style and --table")

        from msefpn.importing.recipe import import_recipe

        return import_recipe(Path(file), as_path(out))

    from msefpn.importing.weights import import_weights

    return import_weights(
        Path(file), as_path(out), classes=as_list(classes), style=style, table=as_path(table)
    )


@takes(ExportOptions)
def export(run: str | Path, **options: Any) -> ExportReport:
    """Export a run to one file, from image to final boxes, and compare it with the run on real images.

    The graph takes padded RGB images (B, 3, H, W) uint8 and their sizes (B, 2) int64 and returns boxes,
    scores, labels, valid, num_dropped and, for mask_rcnn, masks; B is free, H and W are multiples of 32 from
    160 to 8192. A file that fails the comparison is kept with `.failed` in its name; the exit code is then 1.

    Args:
        run: run folder (its best weights), a .safetensors file of one, a checkpoint that `msefpn import`
            reads, or a name of `msefpn models`

    Returns:
        The file and the comparison; FILE.parity.json holds the same.

    Raises:
        UserError: the request cannot be met; the message says what to change.
    """
    chosen = ExportOptions.given(**options)
    about = check_run(run)

    from msefpn.exporting.images import read_images_early
    from msefpn.exporting.plan import plan_export

    plan = plan_export(Path(run), chosen, about)
    early = read_images_early(plan, about)

    from msefpn.exporting.export import export as export_run

    return export_run(plan, early)


@takes(DetectionOptions)
def load(
    path: str | Path,
    *,
    size: str | int | None = None,
    device: str = "auto",
    compile: bool = False,
    **options: Any,
) -> LoadedDetector:
    """Load a trained detector, to detect on images in memory.

    Args:
        path: run folder (its best weights), a .safetensors or exported file of one, a checkpoint that
            `import_file` reads, hf://USER/NAME, or a name that `list_models` lists
        size: longest x shortest side, pixels, that images are resized to fit into (default: the run's)
        device: auto, cpu or gpu
        compile: compile the detector on its first call (inductor); it takes a minute or more

    Returns:
        The detector: its `predict` takes images; the torch module is its `detector`.

    Raises:
        UserError: the weights are missing, damaged or cannot be downloaded, or they need a plug-in that is
            not loaded.
    """
    merging = DetectionOptions.given(**options)
    check_run(path)
    if not compile:
        import_models()

    from msefpn import models
    from msefpn.prediction.loaded import LoadedDetector
    from msefpn.reporting.card import describe_run

    loaded = LoadedDetector.open(
        Path(path), size=as_text(size), device=device, compile=compile, options=merging
    )
    detector, run = loaded.detector, place_beside(Path(path))
    named = is_named(path) or not ((run / CONFIG).is_file() and (run / DATA).is_file())
    if isinstance(detector, models.Detector) and not named:
        detector.describe = functools.partial(describe_run, run)
    return loaded


@takes(
    Config,
    only=("detector", "detector_options", "backbone", "backbone_options", "neck", "neck_options"),
)
def build(
    classes: Sequence[str], *, init: str | Path = "none", set: Sequence[str] = (), **options: Any
) -> Detector:
    """Build a detector.

    Args:
        classes: names of the classes
        init: initial weights: imagenet, none, a name of `msefpn models`, hf://USER/NAME, or a file
        set: configuration keys, such as neck_options.gate=none

    Returns:
        The detector, in training mode.

    Raises:
        UserError: an unknown name or option, or weights that do not fit.
    """
    values, _ = configured(options | {"init": str(init)}, set)
    config = from_dict(values, source="build")
    check_initial_name(config.init)
    config = replace(config, plugins=plugins.origins(config.uses()))

    from msefpn import models

    config, _ = models.styled(config)
    built = models.build(config, classes)
    models.init_weights(built, config.init)
    return built


def list_models() -> list[dict[str, Any]]:
    """List the detectors with COCO weights that a name stands for, as --init NAME and predict NAME take it.

    They are torchvision's, downloaded when they are first used; AP is torchvision's figure on COCO val2017.

    Returns:
        One entry per detector: name, detector, AP of boxes and of masks (0 to 1), megabytes, licence and
        address.
    """
    found: list[dict[str, Any]] = []
    for name, about in PRETRAINED.items():
        weights = published_weights(name)
        found.append(
            {
                "name": name,
                "detector": about.detector,
                "AP": round(weights.ap / 100, 6),
                "mask_AP": None if weights.mask_ap is None else round(weights.mask_ap / 100, 6),
                "megabytes": weights.megabytes,
                "licence": LICENCE,
                "url": weights.url,
            }
        )

    from msefpn.runs.console import percent, say, show_table

    rows = [
        [
            entry["name"],
            entry["detector"],
            percent(entry["AP"]),
            "" if entry["mask_AP"] is None else percent(entry["mask_AP"]),
            f"{entry['megabytes']:.0f} MB",
            entry["licence"],
        ]
        for entry in found
    ]
    show_table(["name", "detector", "AP", "mask AP", "file", "licence"], rows)
    say(
        "COCO's 80 classes. AP: of boxes on val2017, as torchvision publishes it. The licence is "
        "torchvision's own; it states none for the weights, which are trained on COCO's photographs."
    )
    return found


@takes(Config, only=("neck", "neck_options"))
def upgrade(
    model: str | Path, *, out: str | Path | None = None, set: Sequence[str] = (), **options: Any
) -> Upgrade:
    """Give an FPN detector another neck, such as MSE-FPN, that detects the same before further training.

    The new parts start as the identity: neck_options.start is identity, which is ours, not the paper's.

    Args:
        model: run folder (its best weights) or a .safetensors file of one, hf://USER/NAME, or a name of
            `msefpn models`, with the neck fpn
        out: file for the upgraded detector (default: upgraded.safetensors in the folder of the weights)
        set: options of the new neck, such as neck_options.preset=lean

    Returns:
        The file, the neck's parameters before and after, and the largest difference of the pyramid.

    Raises:
        UserError: the neck is not an FPN, the new one cannot start as one, or the file exists.
    """
    check_run(model)
    values, _ = configured(options, set)
    if other := sorted(values.keys() - {"neck", "neck_options"}):
        raise UserError(f"upgrade changes the neck alone: leave out --set {other[0]}")
    neck = values.get("neck", "mse_fpn")
    for member in neck.split("+"):
        check_name("neck", member)
    file = as_path(out) or place_beside(Path(model)) / "upgraded.safetensors"
    if file.suffix != ".safetensors":
        raise UserError(f"out '{file}' is not a .safetensors file: name one")
    check_file(file)

    from msefpn import models
    from msefpn.runs.console import say
    from msefpn.writing import new_parents

    old = models.load(model)
    new = models.upgrade_neck(old, neck, values.get("neck_options", {}))
    difference = models.pyramid_difference(old, new)
    if not difference <= _SAME:
        raise UserError(f"the pyramid would change by {difference:.1e} of its values: {file} is not written")
    with new_parents(file):
        models.save(new, file)
    before, after = (sum(p.numel() for p in one.neck.parameters()) for one in (old, new))
    say(
        f"{model}: fpn to {neck}, {before:,} to {after:,} parameters of the neck; "
        f"the pyramid differs by {difference:.1e} at most: {file}"
    )
    settings = " ".join(f"neck_options.{key}={value}" for key, value in new.config.neck_options.items())
    say(f"train on with --init {file} --neck {neck}" + (f" --set {settings}" if settings else ""))
    return Upgrade(file, (before, after), difference)
