"""Two machines for a moment: network namespaces of this host, and torchrun's rendezvous across them.

    sudo .venv/bin/python -m tests.two_nodes

makes two namespaces with a link between them and trains in both with the commands of docs/guides/gpus.md;
cuts the link in the middle of an epoch and looks how both ends stop; joins it, resumes both, and compares
the weights with those of a run that was not cut. The namespaces are removed, whatever happens. Linux, as
root, with iproute2; elsewhere it says why it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from msefpn.data import synthetic
from tests import ROOT, TINY

NODES = ("msefpn-a", "msefpn-b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
LIMIT = 60
"""Seconds within which both ends must stop."""
EPOCHS = 6


def reason_not_to() -> str:
    """Why there can be no namespaces here; empty: there can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "needs Linux with iproute2"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    done = subprocess.run(["ip", "netns", "add", "msefpn-probe"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces cannot be made here: {done.stderr.strip()}"
    ip("netns", "del", "msefpn-probe")
    return ""


def ip(*words: str) -> None:
    """Run iproute2."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def two_nodes() -> Iterator[None]:
    """Two namespaces, each with a loopback device and one end of a link."""
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("link", "add", "msefpn0", "netns", NODES[0], "type", "veth", "peer", "msefpn0", "netns", NODES[1])
        for node, address in zip(NODES, ADDRESSES, strict=True):
            ip("-n", node, "address", "add", f"{address}/24", "dev", "msefpn0")
            ip("-n", node, "link", "set", "lo", "up")
            ip("-n", node, "link", "set", "msefpn0", "up")
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "del", node], capture_output=True, check=False)


def start(node: int, folder: Path, port: int, *words: str) -> subprocess.Popen[str]:
    """torchrun with `msefpn train` on a node, as the guide has it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--node-rank", str(node), "--master-addr", ADDRESSES[0], "--master-port", str(port)]
    command = [*torchrun, *meeting, "-m", "msefpn", "train", *words]
    log = (folder / f"node-{node}.txt").open("w", encoding="utf-8")
    return subprocess.Popen(
        ["ip", "netns", "exec", NODES[node], *command],
        stdout=log,
        stderr=log,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@contextlib.contextmanager
def running(folder: Path, port: int, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Both nodes, ended at the latest with the body."""
    nodes = [start(node, folder, port, *words) for node in range(2)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def lines(folder: Path) -> list[list[str]]:
    """How each node says that it has stopped."""
    return [lines_with(folder, node, "error:", "interrupted") for node in range(2)]


def lines_with(folder: Path, node: int, *starts: str) -> list[str]:
    """The lines that a node printed with one of these starts."""
    text = (folder / f"node-{node}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith(starts)]


def trained(folder: Path, port: int, *words: str) -> None:
    """Train on both nodes to the end."""
    with running(folder, port, *words) as nodes:
        codes = [node.wait(600) for node in nodes]
        if any(codes):
            raise SystemExit(f"a node failed: {lines(folder)}: see {folder}")


def cut_within(folder: Path, port: int, step: int, *words: str) -> None:
    """Train on both nodes, cut the link after a step, and look how both ends stop."""
    log = folder / "broken" / "log.jsonl"
    with running(folder, port, *words) as nodes:
        while not log.exists() or f'"step", "step": {step},' not in log.read_text():
            if any(node.poll() is not None for node in nodes):
                raise SystemExit(f"a node failed: {lines(folder)}: see {folder}")
            time.sleep(0.01)
        ip("-n", NODES[1], "link", "set", "msefpn0", "down")
        began = time.monotonic()
        print(f"the link is cut after step {step}", flush=True)
        for number, process in enumerate(nodes):
            code = process.wait(300)
            print(f"node {number} has ended after {time.monotonic() - began:.0f} s with {code}", flush=True)
    took = time.monotonic() - began
    for node, printed in enumerate(lines(folder)):
        print(f"node {node}: {printed}")
        assert len(printed) == 1, f"node {node} printed {len(printed)} lines"
    assert took < LIMIT, f"both ends have ended after {took:.0f} s only"
    ip("-n", NODES[1], "link", "set", "msefpn0", "up")


def main() -> int:
    """Do what the text above says; raise AssertionError or SystemExit where it goes wrong."""
    if reason := reason_not_to():
        print(f"skipped: {reason}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="msefpn-nodes-"))
    synthetic.draw_builtin_set(folder / "set", train=12, val=5, seed=0, size=160)
    words = ["--data", str(folder / "set"), "--recipe", str(TINY), "--nodes", "2", "--epochs", str(EPOCHS)]
    words += ["--batch", "2", "--checkpoint-every", "1"]
    with two_nodes():
        trained(folder, 29701, *words, "--out", str(folder / "whole"))
        print(f"a run of {EPOCHS} epochs on two nodes has ended", flush=True)
        cut_within(folder, 29702, 10, *words, "--out", str(folder / "broken"))
        trained(folder, 29703, "--resume", "--out", str(folder / "broken"), "--nodes", "2")
    whole, broken = (load_file(folder / name / "last.safetensors") for name in ("whole", "broken"))
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []
    resumed = [line for node in range(2) for line in lines_with(folder, node, "resumed")]
    print(f"{' '.join(resumed)}: all {len(whole)} tensors equal those of the run that was not cut")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
