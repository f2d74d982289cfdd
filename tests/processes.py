"""Processes of Python that begin in a tenth of a second: torch and the rest are imported only once.

A nursery is a process that has imported them and has done nothing else: what has computed has threads and
locks that a fork breaks. It forks for its parent, to which it hands each child; that has a nursery again.
A process of pytest-xdist, which imports the same for its tests, forks one before it collects them.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tests import ROOT

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
NURSERY = b"nursery"
MODULES = ("ablation.worker", "cli", "reporting.report", "training.lightning", "training.loggers")
"""Of the package: together they import all that is heavy."""
_begin = subprocess.Popen
_nursery: socket.socket | None = None


class WarmPython(subprocess.Popen[Any]):
    """A `subprocess.Popen` that forks where the command is this Python with `-m MODULE` or a script.

    The child has pipes, variables, a working folder and signals of its own. Linux only. Another command is
    started as ever.
    """

    def _execute_child(self, args: Any, *more: Any) -> None:  # what Popen calls once its pipes are open
        cwd, env, shell = more[4], more[5], more[8]
        stdin, pipe_in, pipe_out, stdout, pipe_err, stderr = more[9:15]
        own_session = more[20]
        words = [args] if isinstance(args, str) else [os.fspath(word) for word in args]
        if words[0] != sys.executable or words[1] == "-c" or shell:
            super()._execute_child(args, *more)  # type: ignore[misc]  # private
            return
        ends = [own if own != -1 else place for place, own in enumerate((stdin, stdout, stderr))]
        where = str(cwd or os.getcwd())
        self.pid = _ask_nursery(words[1:], ends, where, os.environ if env is None else env, own_session)
        self._child_created = True
        devnull = getattr(self, "_devnull", -1)
        for end in {
            stdin if pipe_in != -1 else -1,
            stdout if pipe_out != -1 else -1,
            stderr if pipe_err != -1 else -1,
            devnull,
        }:
            if end != -1:
                os.close(end)


def _ask_nursery(
    words: Sequence[str], ends: Sequence[int], cwd: str, env: Mapping[str, str], own_session: bool
) -> int:
    """Have a process begin, which becomes a child of this one; return its id."""
    nursery = _nursery or _open_nursery()
    task = {"words": words, "cwd": cwd, "env": dict(env), "own_session": own_session, "parent": os.getpid()}
    content = json.dumps(task).encode()
    socket.send_fds(nursery, [len(content).to_bytes(8, "big")], list(ends))
    nursery.sendall(content)
    return int.from_bytes(_read(nursery, 8), "big")


def fork_nursery() -> None:
    """Import what is heavy, and fork this process's nursery: only for a process that has not computed yet."""
    _import_in_turn()
    # of pytest-xdist, which waits until nobody holds its pipes
    _fork_nursery([int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2])


def _import_in_turn() -> None:
    """Import what is heavy; where it is not compiled yet, in turn: the first process compiles it."""
    import fcntl  # noqa: PLC0415  not on Windows

    spec = importlib.util.find_spec("pytorch_lightning")  # which imports torch first
    compiled = spec is not None and spec.cached is not None and os.path.exists(spec.cached)
    turn = os.open(ROOT, os.O_RDONLY)
    try:
        if not compiled:
            fcntl.flock(turn, fcntl.LOCK_EX)
        _import()
    finally:
        os.close(turn)


def _import() -> None:
    for name in MODULES:
        importlib.import_module(f"msefpn.{name}")


def _fork_nursery(ends: Sequence[int]) -> None:
    """Fork this process's nursery, which ends with it and does not hold `ends`."""
    global _nursery
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    _nursery, other = socket.socketpair()
    if os.fork() == 0:
        _nursery.close()
        for end in ends:
            with contextlib.suppress(OSError):  # the folder of descriptors itself had one
                os.close(end)
        _serve(other)
    other.close()


def _open_nursery() -> socket.socket:
    """Start this process's nursery, which ends with it."""
    global _nursery
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    _nursery, other = socket.socketpair()
    words = [sys.executable, "-m", __name__, str(other.fileno())]
    _begin(words, cwd=ROOT, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)
    other.close()
    return _nursery


def _read(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            os._exit(0)
        content += part
    return content


def _serve(connection: socket.socket) -> NoReturn:
    """Fork on request, until the parent ends."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_NAME, NURSERY, 0, 0, 0)
    while True:
        length, ends, _, _ = socket.recv_fds(connection, 8, 3)
        if not length:
            os._exit(0)
        task = json.loads(_read(connection, int.from_bytes(length, "big")))
        here, there = os.pipe()
        between = os.fork()
        if between == 0:  # it ends at once: its child then falls to the nearest process that takes orphans
            child = os.fork()
            if child == 0:
                os.close(here)
                os.close(there)
                _become(task, ends, connection)
            os.write(there, child.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        connection.sendall(os.read(here, 8))
        os.close(here)
        os.close(there)
        for end in ends:
            os.close(end)


def _become(task: dict[str, Any], ends: Sequence[int], served: socket.socket) -> NoReturn:
    """Run Python's command line in this forked process, and end it."""
    while os.getppid() != task["parent"]:
        time.sleep(0.001)
    if task["own_session"]:
        os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"python", 0, 0, 0)
    served.close()
    _fork_nursery(ends)
    code = 1
    try:
        for place, end in enumerate(ends):
            os.dup2(end, place)
            os.close(end)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(task["cwd"])
        os.environ.clear()
        os.environ.update(task["env"])
        subprocess.Popen = WarmPython  # type: ignore[misc]
        words = task["words"]
        sys.argv = words[1:] if words[0] == "-m" else words
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _import()
    # by the module's name: what `__main__` holds is replaced in a child
    importlib.import_module("tests.processes")._serve(socket.socket(fileno=int(sys.argv[1])))
