"""Shards by Ray Data: a pool of actors, each with a detector, on this machine or on a cluster.

Ray starts a lost actor again and gives its shard to another; `ShardWorker` counts how often.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from msefpn.errors import UserError, missing_extra
from msefpn.prediction.shards.job import Job
from msefpn.prediction.shards.processes import Shards
from msefpn.prediction.shards.work import Report, ShardWorker

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # else it sends what it counts over the network
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


class _Actor:
    """A worker in an actor of Ray Data; a batch is a shard."""

    def __init__(self, task: str, home: str) -> None:
        with contextlib.suppress(OSError):  # where the machine lacks it, relative names are not found
            os.chdir(home)
        self.worker = ShardWorker(task)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        index, names = int(batch["shard"][0]), [str(name) for name in batch["names"][0]]
        return {name: [value] for name, value in self.worker(index, names)._asdict().items()}


def import_ray() -> Any:
    """Ray, with its Data. Raises UserError: it is not installed."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError:
        raise missing_extra("--ray", "ray") from None


def on_ray(job: Job, shards: Shards, jobs: int | None, address: str | None) -> Iterator[Report]:
    """Predict shards in as many actors; None: as there are GPUs, or else CPUs.

    Args:
        job: what to do.
        shards: the shards.
        jobs: see above.
        address: of the cluster; None: a Ray of this machine, which ends with this; one that the program has
            started is used as it is.

    Raises:
        UserError: Ray is not installed, cannot be reached, or has not the CPUs or GPUs.
    """
    ray = import_ray()
    items = [{"shard": index, "names": names} for index, names in shards]
    with ray_at(ray, address, jobs):
        gpus = _gpus(ray, job)
        count = _pool_size(ray, jobs, gpus)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
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
            raise UserError(
                f"Ray cannot go on ({_last_line(error)}): look at its logs, then run again"
            ) from None


def _gpus(ray: Any, job: Job) -> int:
    """GPUs that the cluster has and the job may use. Raises UserError where it must, and there is none."""
    count = int(ray.cluster_resources().get("GPU", 0))
    if job.options.device == "gpu" and not count:
        raise UserError("device gpu: the Ray cluster has no GPU: give --device cpu")
    return 0 if job.options.device == "cpu" else count


def _pool_size(ray: Any, jobs: int | None, gpus: int) -> int:
    """Raises UserError for more actors than can run: Ray would wait for ever for the others."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    most, what = (min(cpus, gpus), f"{gpus} GPUs and {cpus} CPUs") if gpus else (cpus, f"{cpus} CPUs")
    if not most or (jobs or 0) > most:
        raise UserError(f"jobs {jobs or 1}: the Ray cluster has {what}, one for each detector: give fewer")
    return jobs or most


@contextlib.contextmanager
def ray_at(ray: Any, address: str | None, jobs: int | None) -> Iterator[None]:
    """Ray, connected; it ends with the body where it was not there before.

    Args:
        ray: the package.
        address: of the cluster; None: a Ray of this machine.
        jobs: actors that the latter is to have room for; None: as many as CPUs.

    Raises:
        UserError: it cannot be reached or started.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        if address is not None:
            raise UserError(f"ray-address {address}: this program uses a Ray already: leave the address out")
        yield
        return
    handlers = _handlers()
    try:
        if address is not None:
            _check_reachable(address)
        own = {"include_dashboard": False, "num_cpus": jobs} if address is None else {}
        with _silent():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no cluster, other versions, no room for its memory
        where = f"a Ray cluster at {address}" if address else "Ray on this machine"
        raise UserError(
            f"{where} cannot be used: {_last_line(error)}: check --ray-address and 'ray status'"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what other code writes to the standard error: what matters is raised too."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _handlers() -> dict[int, Any]:
    """Handlers of signals, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _check_reachable(address: str) -> None:
    """Raise UserError where nobody listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check --ray-address"
        ) from None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
