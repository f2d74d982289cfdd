"""What a user is told where another process of a training is gone."""

from __future__ import annotations

from torch import distributed

from msefpn.data.loader import lost_worker
from msefpn.errors import UserError
from msefpn.runs.folder import is_first_process


def what_ended(error: BaseException) -> BaseException:
    """What a user is told where another process of the run is gone; otherwise the error itself."""
    if isinstance(error, RuntimeError):
        if _is_lost_connection(error):
            return _ended_by_another()
        return lost_worker(error) or error
    return error


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process is gone; gloo has no type for it."""
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, distributed.DistError) or any(text in str(error) for text in lost)


def _ended_by_another() -> BaseException:
    """What a process raises that stops because another one has; of all these only the first says so."""
    if is_first_process():
        return UserError("another process of this run stopped: its own line tells why")
    return SystemExit(2)
