"""Our loader beside torchvision's, one thread on one core: python benchmarks/loader.py [--images FOLDER]

From JPEG files on disk to a batch, sideways flips half the time, in two stages:

loader: ours decodes, resizes, flips and stacks: a padded uint8 batch. The reference decodes with Pillow,
flips, makes float tensors and leaves them a list, as its training scripts do: nothing is resized yet.
floats: the batch that a backbone takes. Ours is `Detector.normalise`; the reference's is torchvision's
GeneralizedRCNNTransform, the first part of its detectors: normalise, resize, stack. Both sides have done the
same work here, so that this is the stage to compare.

Rounds are interleaved, so that a drift of the machine's speed falls on both; the ratio of medians counts.
Photographs are taken from a folder, scaled to the size of the case, or made up of seeded noise with a
photograph's spectrum.
"""

import argparse
import datetime
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from benchmarks.full_size import noise
from msefpn.config import Config
from msefpn.data.coco import CocoData
from msefpn.data.loader import train_loader
from msefpn.data.reader import read_coco
from msefpn.models import build
from msefpn.runs.memory import keep_freed_memory

BOXES = 7
"""On each image; COCO's mean."""
JPEG = {"quality": 90, "subsampling": "4:2:0"}


class Case(NamedTuple):
    """Photographs of one size, and what they are resized to fit into."""

    name: str
    stored: tuple[int, int]
    """Width and height in the file, pixels."""
    size: tuple[int, int]
    """Longest and shortest side, pixels."""
    images: int


CASES = (
    Case("COCO", (640, 480), (1333, 800), 16),
    Case("COCO", (640, 480), (640, 384), 16),
    Case("camera", (4000, 3000), (1333, 800), 4),
)


class Row(NamedTuple):
    """What was measured: images per second of one core, medians."""

    case: Case
    bytes: float
    """Of a file, mean."""
    ours_loader: float
    theirs_loader: float
    ours_floats: float
    theirs_floats: float

    @property
    def ratio(self) -> float:
        """How many times faster ours gives the floats."""
        return self.ours_floats / self.theirs_floats


class Reference(Dataset[Any]):
    """Decodes and augments as torchvision's detection preset `hflip` does on its backends.

    Args:
        data: what to load.
        by_torchvision: decode with `decode_image`, not with Pillow.
    """

    def __init__(self, data: CocoData, *, by_torchvision: bool = False) -> None:
        self.data = data
        self.by_torchvision = by_torchvision
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.ToImage() if by_torchvision else v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        """An image (3, H, W) of floats and its target."""
        if self.by_torchvision:
            image: Any = decode_image(str(self.data.path_of(index)), mode=ImageReadMode.RGB)
            size = (image.shape[1], image.shape[2])
        else:
            with Image.open(self.data.path_of(index)) as file:
                image = file.convert("RGB")
            size = (image.height, image.width)
        boxes, labels, _ = self.data.boxes_of(index)
        corners = torch.from_numpy(boxes)
        target = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size),
            "labels": torch.from_numpy(labels),
        }
        return self.transform(image, target)


def make_set(folder: Path, case: Case, source: Path | None) -> CocoData:
    """Save a case's images, and boxes on them, as a data set."""
    found = sorted(source.rglob("*.jpg")) if source else []
    if source and not found:
        raise SystemExit(f"no .jpg file in {source}")
    width, height = case.stored
    images: list[Any] = []
    annotations: list[Any] = []
    places = random.Random(0)
    for index in range(case.images):
        name = f"{index}.jpg"
        if found:
            with Image.open(found[index % len(found)]) as file:
                picture = file.convert("RGB").resize(case.stored, Image.Resampling.BICUBIC)
        else:
            picture = noise(width, height, index)
        picture.save(folder / name, **JPEG)  # type: ignore[arg-type]  # a mapping of options
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for _ in range(BOXES):
            box = [places.random() * width / 2, places.random() * height / 2, width / 4, height / 4]
            place = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1}
            annotations.append(place | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "set.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(folder / "set.json", folder)[0]


Side = tuple[Callable[[int], Iterable[Any]], Callable[[Any], Tensor]]
"""An epoch's batches, and what makes floats of one."""


def ours(data: CocoData, size: tuple[int, int], batch: int) -> Side:
    """The loader of training with augmentation `paper`, in this process."""
    config = Config(backbone="mobilenetv2_100", neck="fpn", neck_options={"out_channels": 32}, init="none")
    detector = build(config, data.classes)

    def load(epoch: int) -> Iterable[Any]:
        return train_loader(data, size=size, augment="paper", batch=batch, workers=0, seed=0, epoch=epoch)

    return load, lambda item: detector.normalise(item.images, item.sizes)


def theirs(data: CocoData, size: tuple[int, int], batch: int) -> Side:
    """The reference scripts' loader and the first part of torchvision's detectors."""
    transform = GeneralizedRCNNTransform(size[1], size[0], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def together(samples: list[Any]) -> Any:
        return tuple(zip(*samples, strict=True))

    def load(epoch: int) -> Iterable[Any]:
        return DataLoader(Reference(data), batch, shuffle=True, collate_fn=together)

    def floats(item: Any) -> Tensor:
        images: Tensor = transform(list(item[0]), list(item[1]))[0].tensors
        return images

    return load, floats


def _epoch(side: Side, epoch: int) -> tuple[float, float]:
    """Seconds of one epoch until the loader's batches, and until the floats."""
    load, floats = side
    loading = normalising = 0.0
    start = time.perf_counter()
    batches: Iterator[Any] = iter(load(epoch))
    for item in batches:
        loaded = time.perf_counter()
        with torch.no_grad():
            floats(item)
        loading += loaded - start
        start = time.perf_counter()
        normalising += start - loaded
    return loading, loading + normalising


def measure(case: Case, *, source: Path | None = None, batch: int = 2, rounds: int = 5) -> Row:
    """Time both sides on one thread, after a round that does not count.

    Args:
        case: what to load; `images` must be a multiple of `batch`, as ours fills the last batch up.
        source: a folder of photographs (.jpg, at any depth); None: they are made up.
        batch: images of a batch.
        rounds: epochs of each side that count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            data = make_set(Path(name), case, source)
            size = statistics.mean(data.path_of(index).stat().st_size for index in range(len(data)))
            sides = [make(data, case.size, batch) for make in (ours, theirs)]
            seconds = [[_epoch(side, epoch) for side in sides] for epoch in range(rounds + 1)][1:]
    finally:
        torch.set_num_threads(threads)
    speeds = [
        case.images / statistics.median(round_[side][stage] for round_ in seconds)
        for stage in (0, 1)
        for side in (0, 1)
    ]
    return Row(case, size, *speeds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="photographs (.jpg); else they are made up")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (5)")
    parser.add_argument("--batch", type=int, default=2, help="images of a batch (2)")
    parser.add_argument(
        "--keep-memory", action="store_true", help="as the command msefpn does, for both sides"
    )
    args = parser.parse_args(arguments)
    if args.keep_memory:
        keep_freed_memory()
    print(
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, 1 thread, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}, "
        f"median of {args.rounds}, batch {args.batch}; images/s of a core, ours and torchvision's\n\n"
        "| photographs | fit into | file | loader: ours | its | floats: ours | its | ours / its |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        row = measure(case, source=args.images, batch=args.batch, rounds=args.rounds)
        print(
            f"| {case.name} {case.stored[0]}x{case.stored[1]} | {case.size[0]}x{case.size[1]} | "
            f"{row.bytes / 1e3:.0f} kB | {row.ours_loader:.1f} | {row.theirs_loader:.1f} | "
            f"{row.ours_floats:.1f} | {row.theirs_floats:.1f} | {row.ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
