"""What several benchmarks need. Imports no torch: some measure the memory of a process without it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msefpn.config import parse_settings

ROOT = Path(__file__).resolve().parents[1]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(*(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)), sep="\n")
    print(flush=True)


def neck_settings(text: str) -> dict[str, Any]:
    """The settings of a neck that is given with options, such as `fpn norm=gn`."""
    neck, *options = text.split()
    return {"neck": neck} | parse_settings([f"neck_options.{option}" for option in options])


def in_two(module: str, arguments: Sequence[str]) -> Any:
    """Run a benchmark as two processes that torch.distributed can connect; the json that the first prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    usual = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | usual | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed: see its lines above")
    return json.loads(printed[0].strip().splitlines()[-1])
