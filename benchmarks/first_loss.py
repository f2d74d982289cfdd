"""How large a backbone's maps are, and the first class loss: python -m benchmarks.first_loss DATA NAME=FILE

Each backbone under each neck, with the heads of the recipe `small_data`, on the first batch of each seed,
before any step. Standard deviations are over all cells and channels, of the maps and of the pyramid from
the finest level on; `uniform` is the loss of equal scores, the logarithm of the number of classes plus one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import neck_settings
from msefpn.config import Config, load_recipe, parse_size
from msefpn.data.coco import CocoData
from msefpn.data.loader import train_loader
from msefpn.data.locate import find_split
from msefpn.data.reader import read_coco
from msefpn.models import build, init_weights


def first_losses(config: Config, data: CocoData, seeds: int) -> tuple[list[list[float]], list[float]]:
    """Deviations of maps, pyramid and class scores with the last seed, and the class loss of each seed."""
    losses: list[float] = []
    deviations: list[list[float]] = []
    for seed in range(seeds):
        loader = train_loader(
            data,
            size=parse_size(config.size),
            augment=config.augment,
            batch=config.batch,
            workers=0,
            seed=seed,
            epoch=0,
        )
        batch = next(iter(loader))
        torch.manual_seed(seed)
        detector = build(config, data.classes)
        init_weights(detector, config.init)
        scores: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], found: Tensor, to: list[Tensor] = scores) -> None:
            to.append(found)

        for name, module in detector.get_submodule("roi").named_modules():
            if name.endswith("classes") and isinstance(module, nn.Linear):
                module.register_forward_hook(keep)
        with torch.no_grad():
            detector.train()
            maps = detector.backbone(detector.normalise(batch.images, batch.sizes))
            pyramid = detector.neck(maps)
            found = detector.losses(batch.images, batch.sizes, batch.targets)
        losses.append(float(found["roi_class"]))
        deviations = [[float(x.std()) for x in tensors] for tensors in (maps, pyramid, scores)]
    return deviations, losses


def main(words: Sequence[str] | None = None) -> None:
    """Print a row for each backbone and neck."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train.json and train/")
    parser.add_argument(
        "backbones", nargs="+", help="timm's name, = and a file of its ImageNet weights; else random"
    )
    parser.add_argument("--necks", nargs="+", default=["fpn norm=none", "fpn norm=gn", "mse_fpn"])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--size", default="320")
    parser.add_argument(
        "--train-norm", action="store_true", help="let batch normalisation take the batch's statistics"
    )
    args = parser.parse_args(words)
    data, _ = read_coco(*find_split(args.data, "train"))
    print(f"uniform: {math.log(len(data.classes) + 1):.2f}\n")
    print("| backbone | neck | maps | pyramid | class scores | first class loss |\n|---|---|---|---|---|---|")
    for given in args.backbones:
        name, _, weights = given.partition("=")
        for neck in args.necks:
            changed = {"backbone": name, "init": weights or "none", "size": args.size}
            config = load_recipe("small_data", **changed, **neck_settings(neck))
            config = replace(config, backbone_options={"train_norm": args.train_norm})
            deviations, losses = first_losses(config, data, args.seeds)
            cells = [" ".join(f"{value:.2g}" for value in values) for values in deviations]
            print(
                f"| {name} | {neck} | {' | '.join(cells)} | {min(losses):.2f} to {max(losses):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
