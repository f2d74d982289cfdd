"""The connections of a training's processes for tensors, and what they gather over them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from msefpn.inference.detect import Predictions
from msefpn.runs.peers import Peers
from msefpn.runs.wire import interface_to
from msefpn.training.position import Statistics


@dataclass(frozen=True)
class Group:
    """The processes of a training."""

    peers: Peers
    device: torch.device
    """Where this process trains."""
    arrays: Any = None
    """torch's group for tensors in main memory; None: its default group."""

    def check(self) -> None:
        """Raise UserError or KeyboardInterrupt where another process has left."""
        self.peers.check()

    def wait(self, key: str) -> None:
        """Wait until the first process has come here too, for as long as it lives.

        Not by torch: the first process may evaluate or upload for longer than the timeout of an operation.
        """
        self.peers.tell(key, patient=True)

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Which flags at least one process has set; called in all of them: one small exchange."""
        counts = torch.tensor([float(flag) for flag in flags], device=self.device)
        distributed.all_reduce(counts)
        wanted: list[bool] = (counts > 0).tolist()
        return wanted

    def every(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in each of them."""
        values: list[Any] = [None] * self.peers.world.size
        distributed.all_gather_object(values, value)
        return values

    def gather_statistics(self, weights: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Statistics:
        """Collect the statistics of all processes, each with its own; called in all of them.

        Args:
            weights: the detector's, and their averages where there are such.
            names: those that differ between processes.
        """
        own = [{name: tensors[name].cpu() for name in names} for tensors in weights]
        return self.every(own) if names else []

    def average_statistics(self, weights: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
        """Give all processes the mean of their statistics, in place; called in all of them."""
        for name in names:
            for tensors in weights:
                distributed.all_reduce(tensors[name])
                tensors[name].div_(self.peers.world.size)

    def gather(self, found: Predictions) -> Predictions | None:
        """Predictions of all processes, in the first one; None in the others.

        Each array is sent once, into its place in the first process, which holds no copy of it.
        """
        own = _columns(found)
        counts = torch.tensor([len(found.image_ids), found.num_dropped, *_text_and_flags(found)])
        every = [torch.zeros_like(counts) for _ in range(self.peers.world.size)]
        distributed.all_gather(every, counts, group=self.arrays)
        table = torch.stack(every).numpy()
        with_masks, with_strides = bool(table[:, 3].any()), bool(table[:, 4].any())
        kinds = dict(_KINDS)
        for name in [*_MASKS] * (not with_masks) + ["strides"] * (not with_strides):
            del kinds[name]
        columns = {
            name: self._column(own.get(name), table[:, 2 if name == "text" else 0], shape, kind)
            for name, (shape, kind) in kinds.items()
        }
        return _predictions(columns, int(table[:, 1].sum())) if self.peers.first else None

    def _column(
        self, own: NDArray[Any] | None, counts: NDArray[np.int64], shape: tuple[int, ...], kind: Any
    ) -> NDArray[Any]:
        """One array of all processes, in the first; an empty one in the others."""
        if own is None:  # a process without detections does not know whether they have masks
            own = np.zeros((0, *shape), kind)
        if not self.peers.first:
            if len(own):
                distributed.send(torch.from_numpy(np.ascontiguousarray(own)), 0, group=self.arrays)
            return own[:0]
        whole, ends = np.empty((counts.sum(), *shape), kind), np.cumsum(counts)
        whole[: ends[0]] = own
        for rank in range(1, len(counts)):
            if counts[rank]:
                part = torch.from_numpy(whole[ends[rank - 1] : ends[rank]])
                distributed.recv(part, rank, group=self.arrays)
        return whole


_MASKS = ("sizes", "lengths", "text")
_KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "image_ids": ((), np.int64),
    "boxes": ((4,), np.float32),
    "scores": ((), np.float32),
    "labels": ((), np.int64),
    "strides": ((), np.int64),
    "sizes": ((2,), np.int64),
    "lengths": ((), np.int64),
    "text": ((), np.uint8),
}
"""The arrays that predictions are sent as: shape of a row, and type. Masks as the sizes of their images, and
the lengths and characters of their run lengths, all in one."""


def _text_and_flags(found: Predictions) -> tuple[int, bool, bool]:
    """Characters of all masks, whether there are masks, and whether there are strides."""
    masks: Any = () if found.masks is None else found.masks
    return sum(len(mask["counts"]) for mask in masks), found.masks is not None, found.strides is not None


def _columns(found: Predictions) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {
        name: getattr(found, name) for name in ("image_ids", "boxes", "scores", "labels")
    }
    if found.strides is not None:
        columns["strides"] = found.strides
    if found.masks is not None:
        texts = [mask["counts"].encode() for mask in found.masks]
        columns["sizes"] = np.array([mask["size"] for mask in found.masks], np.int64).reshape(-1, 2)
        columns["lengths"] = np.array([len(text) for text in texts], np.int64)
        columns["text"] = np.frombuffer(b"".join(texts), np.uint8).copy()
    return columns


def _predictions(columns: dict[str, NDArray[Any]], num_dropped: int) -> Predictions:
    masks = None
    if "text" in columns:
        masks = np.empty(len(columns["lengths"]), dtype=object)
        text, end = columns["text"].tobytes(), 0
        for row, (size, length) in enumerate(zip(columns["sizes"], columns["lengths"], strict=True)):
            begin, end = end, end + int(length)
            masks[row] = {"size": size.tolist(), "counts": text[begin:end].decode()}
    return Predictions(
        columns["image_ids"],
        columns["boxes"],
        columns["scores"],
        columns["labels"],
        masks,
        num_dropped,
        columns.get("strides"),
    )


@contextlib.contextmanager
def opened(peers: Peers, device: torch.device, nodes: int) -> Iterator[Group]:
    """Connect the processes for tensors on `device` and in main memory, with the peers' timeout.

    Raises:
        UserError: another process has left.
    """
    world = peers.world
    if nodes > 1 and (name := interface_to(world.address)):
        # Else gloo takes the address of the host's name, which many systems set to 127.0.1.1.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    timeout = timedelta(seconds=peers.timeout)
    port, make = None, vars(distributed)["TCPStore"]
    if peers.first:
        store = make(world.address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        port = store.port
    port = peers.tell("store", port)
    if not peers.first:
        store = make(world.address, port, is_master=False, timeout=timeout)
    own = torch.device("cuda", world.local_rank) if device.type == "cuda" else device
    if device.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        device_id=own if device.type == "cuda" else None,
    )
    arrays = distributed.new_group(backend="gloo", timeout=timeout) if device.type == "cuda" else None
    try:
        yield Group(peers, own, arrays)
    finally:
        distributed.destroy_process_group()
