"""The meeting of a run's processes, from before its configuration is read until the last one is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msefpn.config import Config
from msefpn.runs.peers import Peers
from msefpn.runs.world import World, enter


@contextlib.contextmanager
def meeting(world: World, timeout: float | None = None) -> Iterator[Peers]:
    """Meet the other processes that a launcher has started, and tell them where the body fails.

    Args:
        world: the processes; without others yet, the body starts them, see `Peers.start`.
        timeout: seconds to wait for them; None: the default of a configuration.

    Raises:
        UserError: they cannot be met, or one of them has left during the body.
        KeyboardInterrupt: one of them was interrupted.
    """
    peers = Peers(world, Config.timeout if timeout is None else timeout)
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
