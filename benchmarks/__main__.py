"""How fast our detectors are beside their peers, as ratios: python -m benchmarks [SECTION ...]

predict, train: torchvision and ours with the same weights, each side in a process of its own, called in turn;
necks: each neck in FPN's place; roofline: how far each part is from the machine's peak; startup; coco:
the evaluation; loader: from files to batches; data: sets of the size of COCO's and
Objects365; scale: how cost grows with boxes, classes, GPUs and images. Ratios of medians are what counts.
"""

import argparse
import datetime
import platform
import subprocess
from typing import Any

import torch
import torchvision

from benchmarks import coco, data, loader, roofline, scale, startup
from benchmarks.common import ROOT, table
from benchmarks.interleave import Outcome, interleaved
from benchmarks.sides import SIDES, Case, agreement, sides_on
from msefpn.config import parse_size
from msefpn.necks import NECKS

SECTIONS = ("predict", "train", "necks", "roofline", "startup", "coco", "loader", "scale", "data")
LARGE = "data"
"""It needs minutes and gigabytes, and is measured where it is named."""


def compare(detector: str, args: Any, *, train: bool) -> None:
    """Print times and memory of all sides as ratios to the first one, a column for each size and batch."""
    sides = args.sides or sides_on(args.device, train=train)
    columns = []
    for batch in args.train_batches if train else args.batches:
        for height, width in args.train_sizes if train else args.sizes:
            cases = [
                Case(side, detector, height, width, batch, train, args.device, processor=args.processor)
                for side in sides
            ]
            columns.append(interleaved(cases, args.rounds))
    titles = [f"{case.batch} x {case.height} x {case.width}" for case in (next(iter(c)) for c in columns)]
    what = "train step" if train else "predict"
    found = [] if train else ["of its detections"]
    head = ["side", *titles, *(f"peak {title}" for title in titles), *found]
    print(f"\n### {detector}, {what}: times faster than {sides[0]}, and peak memory over its\n")
    rows = []
    for side in sides:
        pairs = [_with_first(column, side) for column in columns]
        row = [f"{side}: {SIDES[side]}", *map(_faster, pairs), *map(_larger, pairs)]
        seen = [agreement(first.found, own.found) for first, own in pairs if isinstance(own, Outcome)]
        rows.append(row if train else [*row, f"{100 * min(seen):.0f} %" if seen else "-"])
    table(head, rows)
    for column in columns:
        for case, reason in column.items():
            if isinstance(reason, str):
                print(f"{case.side}, {case}: not run: {reason}\n", flush=True)


def _with_first(column: dict[Case, Outcome | str], side: str) -> tuple[Any, Outcome | str]:
    """The first side's outcome and that of `side`."""
    return next(iter(column.values())), next(x for case, x in column.items() if case.side == side)


def _faster(pair: tuple[Any, Outcome | str]) -> str:
    first, own = pair
    if isinstance(own, str):
        return "-"
    return f"{own.seconds:.3f} s" if own is first else f"{first.seconds / own.seconds:.2f}"


def _larger(pair: tuple[Any, Outcome | str]) -> str:
    first, own = pair
    if isinstance(own, str):
        return "-"
    return f"{own.peak:.0f} MB" if own is first else f"{own.peak / first.peak:.2f}"


def necks(args: Any) -> None:
    """Print what each neck costs in FPN's place, of the whole prediction, eager and compiled."""
    names = ["fpn", *(f"fpn+{name}" if neck.on_top else name for name, neck in NECKS.items())]
    names += ["fpn norm=gn", "mse_fpn preset=lean"]
    names = list(dict.fromkeys(names)) if args.necks is None else ["fpn", *args.necks]
    sides = args.sides or ("ours", "ours+compiled")
    columns, titles = [], []
    for side in sides:
        for height, width in args.sizes:
            cases = [
                Case(side, "faster_rcnn", height, width, 1, False, args.device, name, args.processor)
                for name in names
            ]
            columns.append(list(interleaved(cases, args.rounds).values()))
            titles.append(f"{side.replace('+', ', ')} 1 x {height} x {width}")
    print("\n### faster_rcnn, predict: each neck in FPN's place\n")
    rows = []
    for place, name in enumerate(names):
        cells = []
        for column in columns:
            first, own = column[0], column[place]
            if isinstance(first, str) or isinstance(own, str):
                cells.append("-")
            else:
                cells.append(
                    f"{100 * (own.seconds / first.seconds - 1):+.1f} %" if place else f"{own.seconds:.3f} s"
                )
        rows.append([name, *cells])
    table(["neck", *titles], rows)


def show_roofline(args: Any) -> None:
    """Print what the machine can do and how near each part comes."""
    for side in ("ours", "ours+bf16"):
        for height, width in args.sizes:
            case = Case(side, "faster_rcnn", height, width, args.batches[-1], False, args.device)
            found, parts = roofline.measure(case, args.rounds, args.matrix)
            print(
                f"\n### {case}, {side}: measured peak {found.flops / 1e9:.0f} GFLOP/s, "
                f"{found.bytes / 1e9:.1f} GB/s\n"
            )
            rows = []
            for name, part in parts.items():
                speed = 2 * part.work.macs / part.seconds
                rows.append(
                    [
                        name,
                        f"{part.seconds:.3f} s",
                        f"{part.work.macs / 1e9:.1f} G",
                        f"{part.work.moved / 1e9:.2f} GB",
                        f"{100 * speed / found.flops:.0f} %",
                        f"{100 * part.least / part.seconds:.0f} %",
                    ]
                )
            head = ["part", "time", "multiply-accumulates", "moved", "of peak FLOP/s", "of the roofline"]
            table(head, rows)


def show_startup(args: Any) -> None:
    """Print the seconds of whole processes."""
    print("\n### From nothing\n")
    found = startup.measure(args.rounds, args.sizes[0])
    table(["command", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in found.items()])


def sizes_of(text: str) -> tuple[int, int]:
    """Height and width from HEIGHTxWIDTH."""
    width, height = parse_size("x".join(reversed(text.split("x"))))
    return height, width


def main() -> None:
    """Measure and print the sections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = f"{', '.join(SECTIONS)}; none: all but {LARGE}"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=known)
    parser.add_argument("--rounds", type=int, default=5, help="counted calls of each side (5)")
    parser.add_argument("--processor", action="store_true", help="count its seconds, not the clock's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--detectors", nargs="+", default=["faster_rcnn", "retinanet"])
    parser.add_argument("--sizes", nargs="+", type=sizes_of, default=[(480, 640), (800, 1344)])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--train-sizes", nargs="+", type=sizes_of, default=[(480, 640)])
    parser.add_argument("--train-batches", nargs="+", type=int, default=[2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="the first is what the others are held to")
    parser.add_argument("--necks", nargs="+", help="beside fpn, such as 'fpn norm=gn'; none: all")
    parser.add_argument("--matrix", type=int, default=4096, help="side of the matrices of the peak (4096)")
    parser.add_argument("--images", help="photographs for the loader (.jpg); else they are made up")
    parser.add_argument("--folder", help="where data's sets are made and stay; else they are removed")
    parser.add_argument("--sets", nargs="+", default=["train2017"], help="of data: train2017, objects365")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    processor = f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    print(
        f"{datetime.date.today()}, {processor}, {torch.get_num_threads()} threads, "
        f"{torch.cuda.get_device_name() if args.device == 'cuda' else args.device}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"commit {commit.stdout.strip() or 'unknown'}, medians of {args.rounds}",
        flush=True,
    )
    for section in args.sections or [name for name in SECTIONS if name != LARGE]:
        if section in ("predict", "train"):
            for detector in args.detectors:
                compare(detector, args, train=section == "train")
        elif section == "coco":
            print("\n### COCO's evaluation\n")
            coco.main(["--rounds", str(args.rounds)])
        elif section == LARGE:
            print("\n### Data at full size\n")
            data.main(["--sets", *args.sets, *(["--folder", args.folder] if args.folder else [])])
        elif section == "loader":
            print("\n### Loader\n")
            loader.main(["--rounds", str(args.rounds), *(["--images", args.images] if args.images else [])])
        elif section == "scale":
            print("\n### Scale\n")
            scale.main(["--rounds", str(args.rounds)])
        else:
            {"necks": necks, "roofline": show_roofline, "startup": show_startup}[section](args)


if __name__ == "__main__":
    main()
