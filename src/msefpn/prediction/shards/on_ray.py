"""Shards by Ray Data: a pool of actors, each with a detector, on this machine or on a cluster.

Ray restarts a lost actor and gives its shard to another; `ShardWorker` counts how often. Ray runs in a
process of its own, because it silently ends a process that has lost its cluster.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from msefpn.errors import UserError, missing_extra
from msefpn.prediction.shards.job import Job
from msefpn.prediction.shards.pipes import TIME_TO_END, answer, end, send, serve, start
from msefpn.prediction.shards.processes import Shards
from msefpn.prediction.shards.store import GO_ON
from msefpn.prediction.shards.work import Report, ShardWorker

_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0"}  # otherwise it sends usage statistics over the network
_END = {"end": True}
_SHORT, _LONGEST_FOLDER = "/tmp", 36
"""Folder for sockets where another path is longer than this: Ray adds 70 characters, and 107 are allowed."""
_NO_TOKEN = "Unauthenticated"
"""Ray prints this instead of raising an error when the cluster needs a token."""


class _Actor:
    """A worker in an actor of Ray Data; a batch is a shard."""

    def __init__(self, task: str, home: str) -> None:
        with contextlib.suppress(OSError):  # if the machine lacks it, only relative names are not found
            os.chdir(home)
        self.worker = ShardWorker(task)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        index, names = int(batch["shard"][0]), [str(name) for name in batch["names"][0]]
        return {name: [value] for name, value in self.worker(index, names)._asdict().items()}


def check_ray() -> None:
    """Raise UserError where Ray is not installed; it is not imported."""
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("--ray", "ray")


def on_ray(job: Job, shards: Shards, jobs: int | None, address: str | None) -> Iterator[Report]:
    """Predict shards in actors of Ray. A Ray that this program has started is used as it is.

    Args:
        job: what to do.
        shards: the shards.
        jobs: number of actors; None: one for each GPU, or for each CPU where there are no GPUs.
        address: of the cluster; None: a Ray on this machine, which ends with the last shard.

    Raises:
        UserError: Ray cannot be reached, lacks the CPUs or GPUs, or is lost.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        if address is not None:
            raise UserError(f"ray-address {address}: this program uses a Ray already: leave the address out")
        yield from _by_actors(ray, job, list(shards), jobs)
        return
    with tempfile.TemporaryFile() as errors:
        process = start(__name__, variables=_VARIABLES, errors=errors)
        try:
            send(process, [job.task(), jobs, address])
            for shard in shards:
                send(process, shard)
            send(process, None)
            while (found := answer(process)) != _END:
                if found is None:
                    raise UserError(
                        f"Ray has ended before all shards were made (code {process.wait()}): look at its "
                        f"logs, {GO_ON}"
                    )
                if found["wrong"] and _NO_TOKEN in _text(errors):
                    raise UserError(f"{found['wrong']}: its token is missing or wrong: set RAY_AUTH_TOKEN")
                yield Report(**found)
        finally:
            end(process, TIME_TO_END)


def _text(errors: Any) -> str:
    errors.seek(0)
    return str(errors.read().decode(errors="replace"))


def _by_actors(ray: Any, job: Job, shards: list[tuple[int, list[str]]], jobs: int | None) -> Iterator[Report]:
    """Predict shards in a Ray that is connected. Raises UserError."""
    gpus = _gpus(ray, job)
    count = _pool_size(ray, jobs, gpus)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    items = [{"shard": index, "names": names} for index, names in shards]
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(count, len(items))),
        fn_constructor_args=(job.task(), job.home),
        num_cpus=1,
        num_gpus=1 if gpus else None,
    )
    try:
        for batch in found.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pandas"):
            for values in batch.to_dict("records"):
                yield Report(**values)
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise UserError(f"Ray cannot go on ({_last_line(error)}): look at its logs, then run again") from None
    finally:
        context.enable_progress_bars = bars


def _gpus(ray: Any, job: Job) -> int:
    """GPUs of the cluster that the job may use. Raises UserError where it needs one and there are none."""
    count = int(ray.cluster_resources().get("GPU", 0))
    if job.options.device == "gpu" and not count:
        raise UserError("device gpu: the Ray cluster has no GPU: give --device cpu")
    return 0 if job.options.device == "cpu" else count


def _pool_size(ray: Any, jobs: int | None, gpus: int) -> int:
    """The number of actors. Raises UserError for more than can run: Ray would wait for the others forever."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    most, what = (min(cpus, gpus), f"{gpus} GPUs and {cpus} CPUs") if gpus else (cpus, f"{cpus} CPUs")
    if not most or (jobs or 0) > most:
        raise UserError(f"jobs {jobs or 1}: the Ray cluster has {what}, one for each detector: give fewer")
    return jobs or most


@contextlib.contextmanager
def _connected(ray: Any, address: str | None, jobs: int | None) -> Iterator[None]:
    """Connect to the cluster of an address, or start a Ray of this machine with room for the actors.

    Raises UserError.
    """
    own: dict[str, Any] = {}
    if address is None:
        own = {"include_dashboard": False, "num_cpus": jobs, **_short_folder()}
    else:
        _check_reachable(address)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:  # of many kinds: no cluster, other versions, no room for its memory
        where = f"a Ray cluster at {address}" if address else "Ray on this machine"
        raise UserError(
            f"{where} cannot be used ({_last_line(error)}): check --ray-address and 'ray status'"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _short_folder() -> dict[str, str]:
    """Ray's option for the folder of its sockets, if their paths would be longer than the system allows."""
    long = len(tempfile.gettempdir()) > _LONGEST_FOLDER and not os.environ.get("RAY_TMPDIR")
    return {"_temp_dir": f"{_SHORT}/ray"} if long and os.access(_SHORT, os.W_OK) else {}


def _check_reachable(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"no Ray cluster answers at {address} ({reason}): check --ray-address") from None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def main() -> None:
    """Run Ray for the parent process, which sends a task, its shards and None, and receives reports."""
    ask, reply = serve()
    task, jobs, address = ask()
    shards = list(iter(ask, None))
    ray = importlib.import_module("ray")
    importlib.import_module("ray.data")
    try:
        with _connected(ray, address, jobs):
            for report in _by_actors(ray, Job.read(task), shards, jobs):
                reply(report._asdict())
    except UserError as error:
        reply(Report(-1, wrong=str(error))._asdict())
    reply(_END)


if __name__ == "__main__":
    main()
