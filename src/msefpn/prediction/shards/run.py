"""A prediction in shards: existing shards are checked, missing ones are made, and all are put together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msefpn import plugins
from msefpn.errors import UserError
from msefpn.inference.frames import InputSource
from msefpn.places import is_address, is_named
from msefpn.prediction.request import PredictionOptions, ShardOptions
from msefpn.prediction.shards.job import ImageNames, Job, check_shard_options, mark_model, shard_size
from msefpn.prediction.shards.journal import UNREADABLE, Journal, Totals, look_before, put_together
from msefpn.prediction.shards.on_ray import check_ray, on_ray
from msefpn.prediction.shards.processes import Shards, in_processes, in_this_process
from msefpn.prediction.shards.store import GO_ON, JOB, SHARDS, open_store
from msefpn.prediction.shards.work import Report, shard_file
from msefpn.runs.console import Bar, say, show_dropped

_IN_MEMORY = "memory://"
_HOPELESS = 3
"""The job stops when so many shards were left out before the first one was made."""
_MOST = 5
"""Damaged shards that are named one by one."""


def predict_in_shards(
    run: str,
    sources: Iterable[InputSource],
    options: PredictionOptions,
    sharding: ShardOptions,
    *,
    out: str,
    kinds: Sequence[str],
) -> list[dict[str, Any]]:
    """Predict the shards that a store lacks, and put all together; see `msefpn.commands.predict.predict`.

    Args:
        run: run folder, file or name.
        sources: images.
        options: how to detect.
        sharding: shards and what makes them.
        out: folder or address.
        kinds: of `SHARD_KINDS`.

    Returns:
        For each shard: file, images, objects, unreadable.

    Raises:
        UserError: the request cannot be met, or shards were left out; whole ones are kept.
    """
    check_shard_options(options)
    if sharding.ray:
        check_ray()
    inputs = ImageNames(sources)
    store = open_store(out)
    _check_shared(inputs, out, sharding)
    before = look_before(store)
    inputs.size = shard_size(len(inputs), options.batch, sharding.shard_size or before.shard_size)
    job = Job(
        run if is_named(run) else os.path.abspath(run),
        out if is_address(out) else os.path.abspath(out),
        options,
        inputs.size,
        len(inputs),
        inputs.digest(),
        mark_model(run),
        os.getcwd(),
        tuple(plugins.loaded()),
    )
    journal = Journal(store, job, inputs)
    journal.check_same(before)
    if before.there and before.values is None:
        say(f"{store.shown(JOB)} is damaged: written again")
    with store.working():
        return _work(journal, sharding, kinds)


def _check_shared(inputs: ImageNames, out: str, sharding: ShardOptions) -> None:
    """Refuse addresses in this process's memory if other processes need them. Raises UserError."""
    if not sharding.ray and sharding.jobs == 1:
        return
    inner = out if out.startswith(_IN_MEMORY) else inputs.first_with(_IN_MEMORY)
    if inner is not None:
        raise UserError(f"'{inner}' is in the memory of this process, which others do not see: give --jobs 1")


def _work(journal: Journal, sharding: ShardOptions, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Make the missing shards, and put all together."""
    inputs, store = journal.inputs, journal.store
    journal.begin()
    whole, wrong, made = list[int](), dict[int, str](), list[Report]()
    try:
        whole, wrong = journal.check()
        todo = sorted(set(range(inputs.shards)) - set(whole))
        say(*_told(journal, len(whole), wrong))
        lost, seconds = [], 0.0
        if todo:
            journal.forget_the_end()
            began = time.monotonic()
            lost = _make(journal, sharding, todo, made)
            seconds = time.monotonic() - began
        there = sorted({*whole, *(report.shard for report in made)})
        totals = put_together(journal, there, kinds if len(there) == inputs.shards else ())
    except KeyboardInterrupt:
        damaged = wrong.keys() - {report.shard for report in made}
        count = len(store.names(SHARDS)) - len(damaged)
        raise KeyboardInterrupt(
            f"interrupted: {count} of {inputs.shards} shards are whole in {store.shown()}: run the same "
            "command again to go on"
        ) from None
    finally:
        journal.undo()
    _summarise(journal, totals, made, seconds)
    if lost:
        raise _left_out(journal, lost)
    return totals.files


def _told(journal: Journal, whole: int, wrong: dict[int, str]) -> Iterator[str]:
    """Lines on the shards that are there."""
    if whole:
        yield f"{whole} of {journal.inputs.shards} shards are whole in {journal.store.shown()}: they are kept"
    for index, text in list(wrong.items())[:_MOST]:
        yield f"{journal.store.shown(shard_file(index))} {text}: made again"
    if len(wrong) > _MOST:
        yield f"and {len(wrong) - _MOST} more shards: made again"


def _make(journal: Journal, sharding: ShardOptions, todo: list[int], made: list[Report]) -> list[Report]:
    """Make shards, add their reports to `made`, and return those left out. Raises UserError."""
    job, inputs, lost = journal.job, journal.inputs, list[Report]()
    images = sum(min(inputs.size, len(inputs) - index * inputs.size) for index in todo)
    reports = _engine(job, ((index, inputs.shard(index)) for index in todo), sharding, len(todo))
    with Bar("predict", images) as bar:
        for report in reports:
            if report.wrong:
                raise UserError(report.wrong)
            if report.bug:
                raise RuntimeError(f"shard {report.shard}: {report.bug}")
            if report.lost:
                lost.append(report)
                if len(lost) >= _HOPELESS and not made:
                    raise _left_out(journal, lost)
                continue
            made.append(report)
            bar.seen(report.images + report.unreadable)
    return lost


def _engine(job: Job, shards: Shards, sharding: ShardOptions, count: int) -> Iterator[Report]:
    if sharding.ray:
        return on_ray(job, shards, sharding.jobs, sharding.ray_address)
    jobs = min(sharding.jobs or 1, count)
    return in_this_process(job, shards) if sharding.jobs == 1 else in_processes(job, shards, jobs)


def _summarise(journal: Journal, totals: Totals, made: list[Report], seconds: float) -> None:
    store = journal.store
    losses = sum(one.attempts - 1 for one in made)
    if losses:
        say(f"{losses} {'process was' if losses == 1 else 'processes were'} lost: others made their shards")
    show_dropped(totals.dropped)
    skipped = f", {totals.unreadable} cannot be read ({UNREADABLE})" if totals.unreadable else ""
    images = sum(one.images + one.unreadable for one in made)
    speed = f", {images / max(seconds, 1e-9):.1f} images/s" if made else ""
    say(f"{totals.objects} objects in {totals.images} images{skipped}{speed}: {store.shown()}")
    if not totals.images and totals.unreadable:
        raise UserError(
            f"none of the {totals.unreadable} images can be read ('{store.shown(UNREADABLE)}'): give others"
        )


def _left_out(journal: Journal, lost: list[Report]) -> UserError:
    return UserError(
        f"{len(lost)} of {journal.inputs.shards} shards were left out, first shard {lost[0].shard}: "
        f"{lost[0].lost}; give the processes more memory (fewer --jobs, a smaller --batch), or leave that "
        f"image out; {GO_ON}"
    )
