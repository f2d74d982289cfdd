"""The meeting of a run's processes, from before its configuration is read until the last one is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from msefpn.config import Config
from msefpn.runs.peers import Peers
from msefpn.runs.world import enter, launched


@contextlib.contextmanager
def meeting(timeout: float | None = None) -> Iterator[Peers]:
    """Meet the other processes where a launcher has started them, and tell them where the body fails.

    Args:
        timeout: seconds to wait for them; None: the default of a configuration.

    Raises:
        UserError: they cannot be met, or one of them has left during the body.
        KeyboardInterrupt: one of them was interrupted.
    """
    peers = Peers(launched(os.environ), Config.timeout if timeout is None else timeout)
    enter(peers.world)
    try:
        with explained(peers):
            if peers.world.size > 1:
                peers.open()
            yield peers
            peers.finish()
    except BaseException as error:
        peers.leave(error)
        raise
    finally:
        peers.close()


@contextlib.contextmanager
def explained(peers: Peers) -> Iterator[None]:
    """Raise, for an error of the body that comes from another process's end, why that has ended."""
    try:
        yield
    except BaseException as error:
        told = peers.explain(error)
        if told is error:
            raise
        raise told from None
