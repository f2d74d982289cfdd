"""How the processes of a run meet, agree, and learn that one of them has left.

The first process listens; each other one is connected to it. Whoever leaves says why, or the system tells
that its connection is gone. The tensors have connections of their own, which torch makes: one that waits in
an operation of torch's cannot be called back, so a process that does not notice is ended from here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msefpn.errors import UserError
from msefpn.plain import one_line
from msefpn.runs.wire import Link, connect, is_lost_connection, open_port, share_port
from msefpn.runs.world import World, enter

NOTICE = 15.0
"""Seconds that a process has to end on its own once another has left; then it is ended."""
LINGER = 30.0
"""Seconds for which a first process that fails at once waits for the others, to tell them."""
_MOMENT = 5.0
"""Seconds in which it becomes known why a connection of torch's has broken."""
_END = "end"
_LATE = "look at its own lines, or raise --timeout"


@dataclass(frozen=True)
class Ended:
    """Why the run cannot go on: what another process said, or that it is gone."""

    rank: int
    host: str
    text: str
    """Its mistake; empty: it was interrupted."""

    def error(self, alone: bool) -> BaseException:
        """What this process raises; `alone`: all are on one machine."""
        if not self.text:
            return KeyboardInterrupt()
        return UserError(f"process {self.rank}{'' if alone else f' ({self.host})'}: {self.text}")


class Peers:
    """The other processes of a run; without any, nothing here waits.

    Args:
        world: which process this is.
        timeout: seconds that are waited for the others.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self.world = world
        self.timeout = timeout
        self.ended: Ended | None = None
        self.closers: list[Callable[[], None]] = []
        """Called where the process is ended from another thread, such as for files to be closed."""
        self.host = socket.gethostname()
        self._links: dict[int, Link] = {}
        self._hosts: dict[int, str] = {}
        self._words: dict[str, Any] = {}
        self._given: dict[str, dict[int, Any]] = {}
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self._server: socket.socket | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._began = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.world.first

    def open(self) -> int:
        """Begin to listen, in the first process, or connect to it; return the port.

        Raises:
            UserError: the port is taken, or the first process cannot be reached.
        """
        world, port = self.world, self.world.port
        if self.first:
            try:
                self._server = open_port(world.address, 0 if world.shared_store else port)
            except OSError as error:
                raise UserError(
                    f"port {port} of this machine cannot be used ({error.strerror}): set MASTER_PORT, or "
                    "torchrun's --rdzv-endpoint, to a free one"
                ) from None
            port = int(self._server.getsockname()[1])
            if world.shared_store:
                share_port(world.address, world.port, self.timeout, port)
            self._start(self._accept, self._server)
            return port
        if world.shared_store:
            port = share_port(world.address, world.port, self.timeout)
        patience = 1.0 if world.parent else self.timeout  # a parent that does not listen is gone
        try:
            link = connect(world.address, port, patience)
        except OSError as error:
            raise UserError(
                f"process {world.rank} cannot reach the first one at {world.address}:{port} within "
                f"{patience:g} s ({error.strerror or error}): start the same command on every node, see that "
                "the address and port are open from this one, or raise --timeout"
            ) from None
        self._links[0] = link
        if world.parent:
            self._start(self._end_with, world.parent)
        link.send(rank=world.rank, size=world.size, host=self.host)
        self._start(self._follow, link)
        return port

    def tell(self, key: str, value: Any = None, *, patient: bool = False) -> Any:
        """Give the first process's value to all; returns it in each. Plain values only.

        The first process may tell before the others are there. The others wait for `timeout`, or if `patient`
        for as long as the first process lives.

        Raises:
            UserError, KeyboardInterrupt: another process has left, or the time is over.
        """
        if self.first:
            with self._changed:
                self._words[key] = value
                for link in self._links.values():
                    link.send(word=key, value=value)
            return value
        self._wait(
            lambda: key in self._words,
            lambda: f"the first process did not answer within {self.timeout:g} s: {_LATE}",
            patient=patient,
        )
        return self._words[key]

    def exchange(self, key: str, value: Any = None, *, patient: bool = False) -> list[Any]:
        """Give each process's value to all; returns them by rank. Waits for all; `patient` as in `tell`."""
        if self.world.size == 1:
            return [value]
        if not self.first:
            self._links[0].send(give=key, value=value)
            whole: list[Any] = self.tell(key, patient=patient)
            return whole
        others = range(1, self.world.size)
        self._wait(lambda: len(self._given.get(key, {})) == len(others), lambda: self._missing(key))
        given = self._given.pop(key)
        whole = self.tell(key, [value, *(given[rank] for rank in others)])
        return whole

    def start(self, world: World, begin: Callable[[int], Sequence[subprocess.Popen[bytes]]]) -> None:
        """Start the other processes of this machine, in the first one.

        Args:
            world: with all of them.
            begin: starts them, given the port of the first process.
        """
        self.world = world
        enter(world)
        self._children = list(begin(self.open()))
        for rank, child in enumerate(self._children, 1):
            self._start(self._heed_child, rank, child)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process of all do the body first, then that of each node, then the others.

        So what a process writes for all is written once, whether or not the nodes share the file system.
        """
        if self.world.size == 1 or self.world.parent:  # the first process has done it before it started these
            yield
            return
        turn = 0 if self.first else 1 if self.world.local_rank == 0 else 2
        for number in range(turn):
            self.exchange(f"turn {number}")
        yield
        for number in range(turn, 2):
            self.exchange(f"turn {number}")

    def check(self) -> None:
        """Raise UserError or KeyboardInterrupt where another process has left."""
        if self.ended is not None:
            raise self.ended.error(self._on_one_machine())

    def explain(self, error: BaseException) -> BaseException:
        """The error to raise instead of `error`: why another process has left, where that is the reason."""
        if self.world.size == 1 or isinstance(error, (UserError, KeyboardInterrupt)):
            return error
        if is_lost_connection(error):
            with self._changed:
                self._changed.wait_for(lambda: self.ended is not None, _MOMENT)
            if self.ended is None:
                return UserError(
                    f"an exchange between the processes did not end within {self.timeout:g} s, or lost its "
                    "connections: look for a process that hangs, or raise --timeout"
                )
        return error if self.ended is None else self.ended.error(self._on_one_machine())

    def leave(self, error: BaseException) -> None:
        """Tell the others why this process stops; where one of them has left before, they know already."""
        with self._changed:
            if self.ended is None and not self._finished:
                self._ends(Ended(self.world.rank, self.host, _reason(error)), tell=True)
        if self.first and self._server is not None and self.world.launcher:
            patience = min(LINGER, self.timeout - (time.monotonic() - self._began))
            with self._changed:
                self._changed.wait_for(lambda: len(self._hosts) == self.world.size - 1, max(0.0, patience))
        until = time.monotonic() + _MOMENT
        while any(child.poll() is None for child in self._children) and time.monotonic() < until:
            time.sleep(0.05)
        for child in self._children:
            child.kill()

    def finish(self) -> None:
        """Wait until all are done, the first one's report and upload included; then anyone may go."""
        if self.world.size > 1:
            self.exchange(_END, patient=True)
            self._finished = True

    def close(self) -> None:
        """End the connections."""
        self._closed = self._finished = True
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)  # else it listens for as long as a thread accepts
            self._server.close()
        for link in list(self._links.values()):
            link.close()

    def _start(self, function: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=function, args=arguments, daemon=True, name="msefpn-peers").start()

    def _wait(
        self, condition: Callable[[], bool], missing: Callable[[], str], *, patient: bool = False
    ) -> None:
        """Wait for what another process does. Raises as `tell`."""
        limit = None if patient else self.timeout
        with self._changed:
            there = self._changed.wait_for(lambda: condition() or self.ended is not None, limit)
            if condition():
                return
        self.check()
        if not there:
            raise UserError(missing())

    def _missing(self, key: str) -> str:
        others, limit = set(range(1, self.world.size)), f"within {self.timeout:g} s"
        if absent := sorted(others - self._hosts.keys()):
            return (
                f"{_processes(absent)} of {self.world.size} did not come {limit}: start the same command on "
                "every node, see that the nodes reach each other, or raise --timeout"
            )
        late = sorted(others - self._given.get(key, {}).keys())
        return f"{_processes(late)} of {self.world.size} did not answer {limit}: {_LATE}"

    def _on_one_machine(self) -> bool:
        return bool(self.world.parent) or self.world.launcher == ""

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                connection, _ = server.accept()
                self._start(self._serve, Link(connection))

    def _serve(self, link: Link) -> None:
        """Heed one of the others, in the first process."""
        messages = link.received()
        hello = next(messages, {})
        rank, size, host = hello.get("rank"), hello.get("size"), str(hello.get("host"))
        if not isinstance(rank, int) or not 0 < rank < self.world.size or size != self.world.size:
            if rank is not None:
                link.send(left=vars(Ended(0, self.host, self._stranger(rank, size))))
            link.close()
            return
        with self._changed:
            if rank in self._hosts:
                text = f"two processes were started as number {rank}: give each its own RANK"
                self._ends(Ended(rank, host, text), tell=True)
                return
            self._links[rank], self._hosts[rank] = link, host
            for key, value in self._words.items():
                link.send(word=key, value=value)
            if self.ended is not None:
                link.send(left=vars(self.ended))
            self._changed.notify_all()
        for message in messages:
            with self._changed:
                if "give" in message:
                    self._given.setdefault(message["give"], {})[rank] = message.get("value")
                elif "left" in message:
                    self._ends(Ended(**message["left"]), tell=True)
                self._changed.notify_all()
        self._gone(rank, host)

    def _stranger(self, rank: Any, size: Any) -> str:
        return (
            f"process {rank} was started as one of {size}, but the first process as one of "
            f"{self.world.size}: start the same command on every node, with the same number of processes"
        )

    def _heed_child(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        """Notice where a process that this one has started ends before it has come."""
        if child.wait() and rank not in self._hosts:
            self._gone(rank, self.host)

    def _end_with(self, parent: int) -> None:
        """End this process with the one that has started it, also where that is killed before they meet."""
        while os.getppid() == parent:
            if self._closed:
                return
            time.sleep(0.5)
        time.sleep(NOTICE)
        if not self._closed:
            os._exit(2)

    def _follow(self, link: Link) -> None:
        """Heed the first process, in the others."""
        for message in link.received():
            with self._changed:
                if "word" in message:
                    self._words[message["word"]] = message.get("value")
                    self._finished |= message["word"] == _END
                elif "left" in message:
                    self._ends(Ended(**message["left"]), tell=False)
                self._changed.notify_all()
        self._gone(0, self.world.address)

    def _gone(self, rank: int, host: str) -> None:
        """A connection has ended without a word."""
        with self._changed:
            if not self._finished:
                text = (
                    "it is gone without a word: it was killed (out of memory?), or its machine or the "
                    "network has failed; resume with --resume"
                )
                self._ends(Ended(rank, host, text), tell=True)
            self._changed.notify_all()

    def _ends(self, ended: Ended, *, tell: bool) -> None:
        """Note why the run ends, and tell it; the lock is held."""
        if self.ended is not None:
            return
        self.ended = ended
        if tell:
            for link in self._links.values():
                link.send(left=vars(ended))
        if ended.rank != self.world.rank:
            self._start(self._end_main)
        self._changed.notify_all()

    def _end_main(self) -> None:
        """End this process if it does not notice in time that the run is over."""
        until = time.monotonic() + NOTICE
        while time.monotonic() < until:
            if self._closed:
                return
            time.sleep(0.1)
        assert self.ended is not None
        for close in self.closers:
            with contextlib.suppress(Exception):
                close()
        if self.world.local_rank == 0:
            error = self.ended.error(self._on_one_machine())
            line = f"error: {one_line(str(error))}" if isinstance(error, UserError) else "interrupted"
            from msefpn.runs.console import say_end  # noqa: PLC0415  a process that meets others may end early

            say_end(line)
        os._exit(2 if self.ended.text else 130)


def _reason(error: BaseException) -> str:
    """What the others are told of an error."""
    if isinstance(error, KeyboardInterrupt):
        return ""
    if isinstance(error, UserError):
        return str(error)
    return f"it stopped with {type(error).__name__} ({one_line(str(error))[:200]}): its own lines tell more"


def _processes(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"process {shown}" if len(ranks) == 1 else f"processes {shown}"
