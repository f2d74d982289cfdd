"""How open GCG's gates are, at the start of runs and at their end, on eight images of their validation data.

python benchmarks/gates.py RUN ...

|x| is the mean absolute value of the map that a gate reads, |z| of what its sigmoid reads; shut and open
are the shares of gates under 0.01 and over 0.99.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.config import parse_size
from msefpn.data.loader import eval_loader
from msefpn.data.reader import read_coco
from msefpn.models import Detector, build, init_weights, load
from msefpn.necks import GCG, MSEFPN
from msefpn.necks.layers import strip_means
from msefpn.runs.folder import LAST, read_run

IMAGES = 8


def gates_of(detector: Detector, images: Tensor, sizes: Tensor) -> list[dict[str, float]]:
    """What the gates of each level do, finest level first."""
    assert isinstance(detector.neck, MSEFPN)
    found: list[dict[str, float]] = []

    def look(gate: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        over_width, over_height = strip_means(inputs[0])
        z: Tensor = gate.rows(over_width) * gate.columns(over_height)
        opened = z.sigmoid()
        values = {"|x|": inputs[0].abs(), "|z|": z.abs(), "gate": opened}
        values |= {"shut": (opened < 0.01).float(), "open": (opened > 0.99).float()}
        found.insert(0, {name: value.mean().item() for name, value in values.items()})  # coarsest is first

    hooks = [gate.register_forward_hook(look) for gate in detector.neck.gates if isinstance(gate, GCG)]
    with torch.no_grad():
        detector.eval().pyramid(images, sizes)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    """Print one line for each level of each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    print(
        "| run | when | stride | \\|x\\| | \\|z\\| | gate | shut | open |\n|---|---|---|---|---|---|---|---|"
    )
    for run in parser.parse_args().runs:
        config, sources = read_run(run)
        data, _ = read_coco(sources.val_json, sources.val_images)
        loader = eval_loader(data, size=parse_size(config.size), batch=IMAGES, workers=0)
        batch = next(iter(loader))
        torch.manual_seed(config.seed)
        fresh = build(config, data.classes)
        init_weights(fresh, config.init)
        for when, detector in (("start", fresh), ("end", load(run / LAST))):
            found = gates_of(detector, batch.images, batch.sizes)
            for stride, values in zip(detector.backbone.strides[-len(found) :], found, strict=True):
                cells = " | ".join(f"{value:.2f}" for value in values.values())
                print(f"| {run} | {when} | {stride} | {cells} |")


if __name__ == "__main__":
    main()
