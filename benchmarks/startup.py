"""How long it takes from nothing to the first answer: whole processes, in turn."""

import statistics
import subprocess
import sys
import time

from benchmarks.common import ROOT

FIRST = "from benchmarks.sides import Case, prepare; prepare(Case({side!r}, 'faster_rcnn', {size}, 1))[0]()"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import msefpn": [sys.executable, "-c", "import msefpn"],
    "msefpn --help": [sys.executable, "-m", "msefpn", "--help"],
    "msefpn train --help": [sys.executable, "-m", "msefpn", "train", "--help"],
    "import torchvision": [sys.executable, "-c", "import torchvision"],
}


def measure(rounds: int, size: tuple[int, int]) -> dict[str, float]:
    """Median seconds of each command, after a round that does not count.

    The last two build a Faster R-CNN with random weights and predict an image of `size`, (height, width).
    """
    commands = dict(COMMANDS)
    for side in ("ours", "torchvision"):
        code = FIRST.format(side=side, size=f"{size[0]}, {size[1]}")
        commands[f"first image, {side}"] = [sys.executable, "-c", code]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
