"""Data at full size, each measurement in a process of its own: python -m benchmarks data [--folder FOLDER]

parsers: the annotations of a train2017-sized json, as a whole and in pieces of a MiB; starts: the first
reading and the next one, with all images' headers, beside pycocotools; check: `msefpn check --headers`;
workers: memory that the loader's processes have for themselves; loader: ours beside torchvision's reference,
one worker. Processor seconds are beside the clock's, which other work on the machine changes.
"""

# ruff: noqa: PLC0415  (a process imports only what it measures)

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, table
from benchmarks.full_size import OBJECTS365, TRAIN2017, Size, make
from msefpn.runs.memory import peak_memory

SIDES = ("ours", "ours, not resized", "torchvision, Pillow", "torchvision, decode_image")
_PIECE = 1 << 20
Place = tuple[Path, Path]
"""The json and the folder of the images."""


def _peak() -> float:
    """Peak memory of this process, MB."""
    return peak_memory() / 2**20


def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    """What something takes: seconds of the clock and of the processor, and the process's peak, MB."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    seconds, own = time.perf_counter() - start, time.process_time() - used
    return {"seconds": seconds, "processor": own, "peak": _peak(), "result": result}


def parsers() -> dict[str, Callable[[bytes], Any]]:
    """Name -> parser of a json list, of those that are installed."""
    found: dict[str, Callable[[bytes], Any]] = {"json": json.loads}
    try:
        import orjson

        found["orjson"] = orjson.loads
    except ImportError:
        pass
    try:
        import simdjson

        found["simdjson"] = lambda text: simdjson.Parser().parse(text, True)
    except ImportError:
        pass
    import msgspec

    from msefpn.data.columns import NoteReader

    whole = msgspec.defstruct("Whole", [*NoteReader.fields[:-1], ("segmentation", Any, None)], gc=False)
    raw = msgspec.defstruct("Raw", NoteReader.fields, gc=False)
    found["msgspec, any"] = msgspec.json.Decoder().decode
    found["msgspec, typed"] = msgspec.json.Decoder(list[whole]).decode  # type: ignore[valid-type]  # made here
    found["msgspec, typed, outlines as text"] = msgspec.json.Decoder(list[raw]).decode  # type: ignore[valid-type]  # likewise
    return found


def pieces(file: Path) -> Iterator[bytes]:
    """The annotations of a drawn json as lists of whole records."""
    with file.open("rb") as opened:
        rest, begun = b"", False
        while text := opened.read(_PIECE):
            rest += text
            if not begun:
                at = rest.find(b'"annotations": [')
                if at < 0:
                    rest = rest[-20:]
                    continue
                rest, begun = rest[at + 16 :], True
            end = rest.find(b'],"categories"')
            cut = end if end >= 0 else rest.rfind(b"},{") + 1
            yield b"[" + rest[:cut] + b"]"
            if end >= 0:
                return
            rest = rest[cut + 1 :]


def parse(name: str, whole: bool, file: Path) -> dict[str, Any]:
    """Parse the annotations."""
    parser = parsers()[name]
    if whole:
        return _timed(lambda: bool(parser(file.read_bytes())))
    return _timed(lambda: sum(len(parser(piece)) for piece in pieces(file)))


def start(what: str, file: Path, folder: Path) -> dict[str, Any]:
    """Read a set in one way."""
    from msefpn.data import quick, reader

    imported = _peak()
    if what == "columns":
        found = _timed(lambda: quick._read(file)[1].count)
    elif what == "pycocotools":
        from pycocotools.coco import COCO

        found = _timed(lambda: len(COCO(str(file)).anns))
    else:
        found = _timed(lambda: len(reader.read_coco(file, folder)[0].boxes))
    return found | {"imported": imported}


def check(file: Path, folder: Path) -> dict[str, Any]:
    """Check the set as one that is not divided."""
    from msefpn.data.check import inspect_splits

    return _timed(lambda: inspect_splits(train_json=file, train_images=folder, headers=True).splits[0].images)


def private(pid: int) -> float:
    """MB that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def workers(count: int, images: int, file: Path, folder: Path) -> dict[str, Any]:
    """Load images with some processes; `images`: of the set, of which batches are taken."""
    from torch.utils.data import DataLoader

    from msefpn.data.loader import train_loader
    from msefpn.data.reader import read_coco

    data, _ = read_coco(file, folder)
    data = data if images >= len(data) else data.subset(np.arange(images))
    loader: Any = train_loader(
        data, size=(640, 384), augment="paper", batch=2, workers=count, seed=0, epoch=0
    )
    batches: Any = DataLoader.__iter__(loader)
    own = []
    for wanted in (4, min(160, len(loader) - 4 * count)):
        while batches._rcvd_idx < wanted:
            next(batches)
        own.append([private(worker.pid) for worker in batches._workers])
    arrays = sum(value.nbytes for value in vars(data).values() if isinstance(value, np.ndarray))
    return {"first": own[0], "last": own[1], "arrays": arrays / 2**20, "main": _peak()}


def load(side: str, images: int, file: Path, folder: Path) -> dict[str, Any]:
    """Load images with one worker: seconds to the first batch, images per second of clock and processor."""
    from torch.utils.data import DataLoader

    from benchmarks.loader import Reference
    from msefpn.data.loader import eval_loader, train_loader
    from msefpn.data.reader import read_coco

    data, _ = read_coco(file, folder)
    if side == "ours":
        loader: Any = train_loader(
            data, size=(1333, 800), augment="paper", batch=2, workers=1, seed=0, epoch=0
        )
    elif side == "ours, not resized":
        loader = eval_loader(data, size=None, batch=2, workers=1)
    else:
        reference = Reference(data, by_torchvision=side.endswith("decode_image"))
        loader = DataLoader(reference, 2, shuffle=True, num_workers=1, collate_fn=_pairs)
    start = time.perf_counter()
    batches: Any = DataLoader.__iter__(loader)
    next(batches)
    begun = time.perf_counter()
    (worker,) = batches._workers
    used, seen = _used(worker.pid), 0
    for _ in range(images // 2):
        next(batches)
        seen += 2
    seconds = time.perf_counter() - begun
    return {"startup": begun - start, "speed": seen / seconds, "core": seen / (_used(worker.pid) - used)}


def _pairs(samples: list[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


def _used(pid: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_ALONE: dict[str, Callable[..., dict[str, Any]]] = {
    "parse": lambda name, whole, file, _: parse(name, whole == "1", Path(file)),
    "start": lambda what, file, folder: start(what, Path(file), Path(folder)),
    "check": lambda file, folder: check(Path(file), Path(folder)),
    "workers": lambda count, images, file, folder: workers(int(count), int(images), Path(file), Path(folder)),
    "load": lambda side, images, file, folder: load(side, int(images), Path(file), Path(folder)),
}


def alone(what: str, *words: Any, cache: Path) -> dict[str, Any]:
    """Measure something in a process of its own, on one thread; its error is raised."""
    command = [sys.executable, "-m", "benchmarks.data", "--alone", what, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MSEFPN_CACHE": str(cache)}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _cells(found: dict[str, Any]) -> list[str]:
    return [f"{found['processor']:.1f} s", f"{found['seconds']:.1f} s", f"{found['peak']:.0f} MB"]


def _show_parsers(_: Size, place: Place, cache: Path, __: int) -> None:
    rows = []
    for name in parsers():
        in_pieces = alone("parse", name, 0, *place, cache=cache)
        whole = [] if "typed" in name else _cells(alone("parse", name, 1, *place, cache=cache))
        rows.append([name, *_cells(in_pieces), *(whole or ["-"] * 3)])
    heads = ["processor", "clock", "peak"]
    table(["parser", *(f"{how}: {head}" for how in ("pieces", "whole") for head in heads)], rows)


def _show_starts(size: Size, place: Place, cache: Path, _: int) -> None:
    names = {"columns": "annotations alone", "split": "first start", "again": "second start"}
    names |= {"pycocotools": "pycocotools"} if size.corners else {}
    rows = []
    for what, name in names.items():
        found = alone("start", what, *place, cache=cache)
        rows.append([name, *_cells(found), f"{found['imported']:.0f} MB"])
    table(["start", "processor", "clock", "peak", "of it imports"], rows)
    kept = sum(file.stat().st_size for file in cache.glob("data-*"))
    print(f"The cache has {kept / 2**20:.0f} MB.\n")


def _show_check(_: Size, place: Place, cache: Path, __: int) -> None:
    rows = [[which, *_cells(alone("check", *place, cache=cache))] for which in ("first", "second")]
    table(["check --headers", "processor", "clock", "peak"], rows)


def _show_workers(size: Size, place: Place, cache: Path, _: int) -> None:
    rows = []
    for count in (size.images, 400):
        found = alone("workers", 2, count, *place, cache=cache)
        own = [f"{max(found[key]):.0f} MB" for key in ("first", "last")]
        rows.append([str(count), f"{found['arrays']:.0f} MB", *own])
    table(
        ["images of the set", "shared arrays", "a worker's own memory: after 4 batches of 2", "after 160"],
        rows,
    )


def _show_loader(_: Size, place: Place, cache: Path, images: int) -> None:
    rows = []
    for side in SIDES:
        found = alone("load", side, images, *place, cache=cache)
        rows.append([side, f"{found['startup']:.2f} s", f"{found['speed']:.1f}", f"{found['core']:.1f}"])
    table(["loader", "first batch after", "images/s", "images/s of a core"], rows)


PARTS: dict[str, Callable[[Size, Place, Path, int], None]] = {
    "parsers": _show_parsers,
    "starts": _show_starts,
    "check": _show_check,
    "workers": _show_workers,
    "loader": _show_loader,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the sets, measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the sets are made and stay; else they are removed")
    parser.add_argument("--sets", nargs="+", choices=["train2017", "objects365"], default=["train2017"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--load", type=int, default=400, help="images that each loader loads (400)")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.alone:
        what, *words = args.alone
        return print(json.dumps(_ALONE[what](*words)))
    sizes = [size for size in (TRAIN2017, OBJECTS365) if size.name in args.sets]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for size in sizes:
            place = make(folder, size)
            print(f"{size.images} images, {size.boxes} boxes, json {place[0].stat().st_size / 1e6:.0f} MB\n")
            cache = Path(temporary) / "cache"
            for part in args.parts if size.corners else ["starts"]:
                print(f"#### {size.name}: {part}\n", flush=True)
                PARTS[part](size, place, cache, args.load)
            shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
