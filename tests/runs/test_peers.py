"""Processes that meet, agree and leave: here threads, each with its own end of real connections."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.runs import peers as module
from msefpn.runs.meeting import meeting
from msefpn.runs.peers import Peers
from msefpn.runs.wire import interface_to
from msefpn.runs.world import World, launched
from tests import free_port

GONE = "is gone without a word"


def together(*bodies: Callable[[Peers], Any], size: int = 0, timeout: float = 20) -> list[Any]:
    """Run a body as each process; what each returned or raised."""
    port, results = free_port(), list[Any]([None] * len(bodies))

    def run(rank: int) -> None:
        world = World(rank, size or len(bodies), rank, "127.0.0.1", port, "test")
        peers = Peers(world, timeout)
        try:
            peers.open()
            results[rank] = bodies[rank](peers)
            peers.finish()
        except BaseException as error:
            results[rank] = told = peers.explain(error)
            peers.leave(told)
        finally:
            peers.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


def test_all_are_told_the_same() -> None:
    seen = list[int]()

    def body(peers: Peers) -> Any:
        told = peers.tell("where", "here" if peers.first else None)
        with peers.in_turn():
            seen.append(peers.world.rank)
            time.sleep(0.02)
        return told, peers.exchange("rank", peers.world.rank)

    assert together(body, body, body) == [("here", [0, 1, 2])] * 3
    assert seen[0] == 0
    alone = Peers(World(), 1)
    assert (body(alone), alone.exchange("x", 3)) == ((("here", [0])), [3])


def test_the_end_waits_for_what_the_first_process_has_left_to_do() -> None:
    def body(peers: Peers) -> str:
        if peers.first:
            peers._wait(lambda: len(peers._hosts) == 1, str, patient=True)
            time.sleep(1.5)
        return "done"

    assert together(body, body, timeout=0.5) == ["done", "done"]


def waits(peers: Peers) -> Any:
    return peers.exchange("never")


def waits_for_one(peers: Peers) -> Any:
    peers._wait(lambda: 1 in peers._hosts, str, patient=True)
    return waits(peers)


def fails(peers: Peers) -> None:
    raise UserError("a.jpg is broken")


def crashes(peers: Peers) -> None:
    raise ValueError("a bug")


def stops(peers: Peers) -> None:
    raise KeyboardInterrupt


def vanishes(peers: Peers) -> None:
    peers._finished = True  # so that it says nothing
    for link in peers._links.values():
        link.close()
    raise ValueError


@pytest.mark.parametrize(
    ("leaves", "text"),
    [(fails, ": a.jpg is broken"), (crashes, "ValueError (a bug): its own lines"), (vanishes, GONE)],
)
@pytest.mark.parametrize("rank", [0, 2])
def test_whoever_leaves_tells_the_others(leaves: Callable[[Peers], Any], text: str, rank: int) -> None:
    bodies: list[Callable[[Peers], Any]] = [waits, waits, waits]
    bodies[rank] = leaves
    found = together(*bodies)
    for other in {0, 1, 2} - {rank}:
        assert isinstance(found[other], UserError)
        assert str(found[other]).startswith(f"process {rank} (")
        assert text in str(found[other])


def test_an_interruption_is_one_for_all() -> None:
    assert all(isinstance(found, KeyboardInterrupt) for found in together(waits, stops, waits))


def test_a_broken_connection_of_torchs_is_explained() -> None:
    def breaks(peers: Peers) -> None:
        raise RuntimeError("Connection closed by peer")

    def fails_later(peers: Peers) -> None:
        time.sleep(0.3)
        fails(peers)

    first, second = together(breaks, fails_later)
    assert str(first).endswith(": a.jpg is broken")
    assert str(second) == "a.jpg is broken"


@pytest.mark.parametrize(
    ("bodies", "size", "said"),
    [
        ([waits], 3, "processes 1, 2 of 3 did not come within 1 s: start"),
        ([waits_for_one, lambda peers: time.sleep(1.5)], 2, "process 1 of 2 did not answer within 1 s"),
        ([lambda peers: time.sleep(1.5), lambda peers: peers.tell("x")], 2, None),
    ],
)
def test_nobody_is_waited_for_in_vain(bodies: list[Any], size: int, said: str | None) -> None:
    found = together(*bodies, size=size, timeout=1)
    assert (said or "the first process did not answer within 1 s") in str(found[0 if said else 1])


def test_processes_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    first = Peers(World(0, 2, 0, "127.0.0.1", port, "test"), 5)
    first.open()
    with pytest.raises(UserError, match=f"port {port} of this machine cannot be used"):
        Peers(World(0, 2, 0, "127.0.0.1", port, "test"), 5).open()
    worlds = [World(1, size, 1, "127.0.0.1", port) for size in (4, 2, 2)]
    others = [Peers(world, 5) for world in worlds]
    for world, other in zip(worlds[:2], others, strict=False):
        other.open()
        if world.size == 4:
            with pytest.raises(UserError, match="started as one of 4, but the first process as one of 2"):
                other.tell("x")
        else:
            first._wait(lambda: 1 in first._hosts, str)
    others[2].open()
    with pytest.raises(UserError, match="two processes were started as number 1"):
        first.exchange("x")
    for peers in (*others, first):  # one that has not noticed in time would end the tests
        peers.close()
    monkeypatch.setenv("RANK", "1")
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    said = f"cannot reach the first one at 127.0.0.1:{port} within 0.3 s"
    with pytest.raises(UserError, match=said), meeting(launched(os.environ), 0.3):
        pytest.fail("they have met")


def test_one_that_does_not_notice_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, closed = list[int](), list[bool]()
    monkeypatch.setattr(module, "NOTICE", 0.2)
    monkeypatch.setattr(os, "_exit", codes.append)

    def hangs(peers: Peers) -> None:
        peers.closers.append(lambda: closed.append(True))
        time.sleep(0.5)

    together(hangs, fails)
    assert (codes, closed) == ([2], [True])
    assert capsys.readouterr().err.endswith(": a.jpg is broken\n")


def test_the_interface_of_an_address() -> None:
    assert interface_to("127.0.0.1") in ("lo", "")
    assert interface_to("no such host") == ""
