"""What an evaluation is to do, and its data; imports no torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from msefpn.checkpoint import DetectorInfo, place_beside
from msefpn.config import parse_size
from msefpn.data.coco import CocoData, category_ids_for
from msefpn.data.formats import needs_no_copy
from msefpn.data.formats.write import as_coco, with_fixed_names
from msefpn.data.locate import locate_split, refuse_unread
from msefpn.data.proposals import with_proposals
from msefpn.data.reader import read_coco, read_images_alone, reads_quickly
from msefpn.errors import UserError, unknown_name
from msefpn.inference.options import DetectionOptions
from msefpn.inference.submission import check_images, check_method, coco_split_of, has_truth
from msefpn.links import check_links, roots_of
from msefpn.names import DetectorInputs, check_proposals_given, known_inputs
from msefpn.places import is_named
from msefpn.runs.console import Bar, say
from msefpn.runs.folder import check_out, free_folder, read_run


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that has been asked for."""

    run: Path
    data: Path | None
    """Folder, or file in any format; None: `file`, or the run's own data."""
    split: str
    file: Path | None
    images: Path | None
    proposals: Path | None
    out: Path
    batch: int | None
    """Images at a time; None: as in the run's training."""
    sides: tuple[int, int] | None
    """Longest and shortest, pixels; None: the run's."""
    device: str
    workers: int
    options: DetectionOptions
    fix_names: bool
    follow_links: bool
    submit: str | None = None
    """The method's name in a submission to COCO's server; None: no submission."""
    read: CocoData | None = None
    """The data, if it was read already."""

    @functools.cached_property
    def found(self) -> tuple[tuple[Path, Path], Path | None]:
        """The json and its image folder, made where they are of another format, and the proposals.

        Raises UserError.
        """
        data = self.data
        roots = () if self.file is None else roots_of(self.file, self.images)
        check_links(data, *roots, follow=self.follow_links)
        made = self.out.parent / "converted"
        if data is not None:
            fixing = {"fix_names": self.fix_names, "follow_links": self.follow_links}
            data, log = as_coco(data, made, [self.split], **fixing)
            say(*log.lines())
        place = locate_split(data, self.split, self.file, self.images)
        if place is None:
            named = read_run(place_beside(self.run))[1]
            named.check_links(follow=self.follow_links)
            files = named.given()
            own = files[f"{self.split}_json"], files[f"{self.split}_images"]
            return own, self.proposals or files.get(f"{self.split}_proposals")
        if self.fix_names and data is None:
            place, log = with_fixed_names(*place, made)
            say(*log.lines())
        return place, self.proposals

    def read_data(self, inputs: DetectorInputs) -> CocoData:
        """The data, without annotations where a submission needs none. Raises UserError."""
        if self.read is not None:
            return self.read
        place, proposals = self.found
        if self.submit is None:
            return read_for(inputs, self.run, place, proposals)
        coco_split_of(place[0])
        read = read_for(inputs, self.run, place, proposals, truth=has_truth(place[0]))
        check_images(read)
        return read


def plan_evaluation(
    run: Path,
    data: Path | None,
    *,
    about: DetectorInfo | None,
    split: str,
    file: Path | None,
    images: Path | None,
    proposals: Path | None,
    out: Path | None,
    batch: int | None,
    size: str | None,
    device: str,
    workers: int,
    options: DetectionOptions,
    fix_names: bool,
    follow_links: bool,
    submit: str | None,
) -> EvaluationPlan:
    """Check a request; read its data, where that is quick and writes nothing.

    Args:
        about: what the run's weights describe; None: not known yet.
        run, data, split, file, images, proposals, out, batch, size, device, workers, options, fix_names,
            follow_links, submit: see `msefpn.commands.predict.evaluate`.

    Raises:
        UserError: it cannot be met.
    """
    if batch is not None and batch < 1:
        raise UserError(f"batch is {batch}: it must be at least 1")
    if workers < 0:
        raise UserError(f"workers is {workers}: it must be at least 0")
    if split not in ("train", "val"):
        raise unknown_name("split", split, ("train", "val"))
    if submit is not None:
        check_method(submit)
    options.check_size(size)
    sides = None if size is None else parse_size(size)
    refuse_unread(data, file)
    if is_named(run) and data is None and file is None:
        raise UserError(f"{run} has no data of its own to evaluate on: give --data, or --json and --images")
    out = out or free_folder(place_beside(run) / "evaluate")
    check_out(out)
    plan = EvaluationPlan(
        run,
        data,
        split,
        file,
        images,
        proposals,
        out,
        batch,
        sides,
        device,
        workers,
        options,
        fix_names,
        follow_links,
        submit,
    )
    return plan if about is None else _read_early(plan, about)


def _read_early(plan: EvaluationPlan, about: DetectorInfo) -> EvaluationPlan:
    """With the data, where it is small and in COCO's layout: its faults are then told at once."""
    inputs = known_inputs(about.config.detector)
    if inputs is None or plan.fix_names:
        return plan
    if plan.data is not None and plan.data.exists() and not needs_no_copy(plan.data):
        return plan
    place, _ = plan.found
    if plan.submit is not None:
        coco_split_of(place[0])
    if not reads_quickly(place[0]):
        return plan
    read = plan.read_data(inputs)
    category_ids_for(about.classes, read, f"the run {plan.run}")
    return replace(plan, read=read)


def read_for(
    inputs: DetectorInputs,
    run: Path,
    place: tuple[Path, Path],
    proposals: Path | None,
    *,
    truth: bool = True,
) -> CocoData:
    """Read a json and its image folder with the masks and proposals that a detector needs.

    Args:
        inputs: what it needs.
        run: its name in messages.
        place: the json, and the folder of its images.
        proposals: json in COCO's result format; None: there are none.
        truth: read the annotations; otherwise the json needs none.

    Raises:
        UserError: proposals are missing or unused, or the data cannot be used.
    """
    check_proposals_given(inputs, proposals is not None, run)
    if truth:
        read, report = read_coco(*place, masks=inputs.masks, progress=Bar)
    else:
        read, report = read_images_alone(*place, progress=Bar)
    say(*(f"{place[0].name}: {text}" for text in report.summary(changes_only=True)))
    return read if proposals is None else with_proposals(read, proposals)
