"""Images and boxes into batches, the same for a seed whatever the number of workers.

All random state is derived from (seed, epoch, image), never carried, so that a resumed run sees what an
unbroken one would have seen.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from msefpn.data.checked import Transform
from msefpn.data.coco import CocoData
from msefpn.data.images import ImageFault, fitted_size, read_reduced
from msefpn.data.mixing import Example
from msefpn.data.transforms import (
    PROPOSAL,
    decoded_fit,
    eval_transform,
    reduced_fit,
    train_transform,
)
from msefpn.data.worker import begin_worker, trim_memory
from msefpn.errors import UserError
from msefpn.structures import Batch, Proposals, Targets

_LEAST = 32
"""Shortest side, pixels, of an image that mmdetection trains on."""
ImageKey = tuple[int, int]
"""Epoch and index of an image."""


class ImageSample(NamedTuple):
    """One image after its transform. G: its boxes."""

    image: Tensor
    """(3, H, W) uint8, RGB."""
    boxes: Tensor
    """(G, 4) float32, xyxy, pixels of `image`."""
    labels: Tensor
    """(G,) int64."""
    original_size: tuple[int, int]
    """Height and width of the upright file, pixels."""
    id: int
    masks: Tensor | None = None
    """(G, H, W) uint8, 1 on the object; None where they were not read."""
    proposals: Tensor | None = None
    """(R, 4) float32, given regions, best first, pixels of `image`; None where there are none."""


class DetectionDataset(Dataset[ImageSample]):
    """Decodes, augments and resizes images; crowd regions are left out of the targets.

    Args:
        data: what to load.
        transform: takes and returns (image, {"boxes", "labels"}), as `msefpn.data.transforms` builds it.
        seed: of the augmentation.
        fit: longest and shortest side, pixels; an image is decoded reduced where it still fills them so
            (`decoded_fit`). None: at full size.
        others: indices of the images that a transform with `other_images` may be given beside its own; None:
            all.
    """

    def __init__(
        self,
        data: CocoData,
        transform: Transform,
        *,
        seed: int,
        fit: tuple[int, int] | None = None,
        others: NDArray[np.int64] | None = None,
    ) -> None:
        self.data = data
        self.transform = transform
        self.seed = seed
        self.fit = fit
        self.others = np.arange(len(data)) if others is None else others

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: ImageKey) -> ImageSample:
        """Load the image at index `key[1]` as epoch `key[0]` sees it. Raises UserError with the file."""
        epoch, index = key
        image, target = self.example(index)
        others = [_Others(self, chosen)] if len(chosen := self._drawn(epoch, index)) else []
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would reseed the GPU as well.
            torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, index))
            image, target = self.transform(image, target, *others)
        height, width = (int(side) for side in self.data.sizes[index])
        boxes, labels = target["boxes"].as_subclass(Tensor), target["labels"]
        real = labels != PROPOSAL
        if len(labels) and not PROPOSAL <= int(labels.min()) <= int(labels.max()) < len(self.data.classes):
            raise UserError(
                f"the augmentation gave a box of {self.data.path_of(index)} a label that is not "
                f"0..{len(self.data.classes) - 1}: keep the labels"
            )
        return ImageSample(
            image.as_subclass(Tensor),
            boxes[real],
            labels[real],
            (height, width),
            int(self.data.ids[index]),
            target["masks"].as_subclass(Tensor) if "masks" in target else None,
            None if self.data.proposals is None else boxes[~real],
        )

    def example(self, index: int) -> Example:
        """An image and what is on it, before its transform. Raises UserError with the file."""
        height, width = (int(side) for side in self.data.sizes[index])
        image = tv_tensors.Image(torch.from_numpy(self._decode(index, (height, width))).permute(2, 0, 1))
        target = self._target(index, (height, width))
        if image.shape[-2:] != (height, width):
            for name in target.keys() - {"labels"}:
                target[name] = functional.resize(target[name], list(image.shape[-2:]))
        return image, target

    def _drawn(self, epoch: int, index: int) -> list[int]:
        """Indices of the images that the transform is given beside its own."""
        count = getattr(self.transform, "other_images", 0)
        if not count:
            return []
        rng = np.random.default_rng(mixed_seed(self.seed, epoch, index, 2))
        return [int(one) for one in rng.choice(self.others, count)]

    def _target(self, index: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """What is transformed with the image; given regions are boxes of no class."""
        boxes, labels, crowd = self.data.boxes_of(index)
        target = {}
        if self.data.masks is not None:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(self.data.masks_of(index)[~crowd]))
        boxes, labels = boxes[~crowd], labels[~crowd]
        if self.data.proposals is not None:
            regions = self.data.proposals.of(index)
            boxes = np.concatenate([boxes, regions])
            labels = np.concatenate([labels, np.full(len(regions), PROPOSAL)])
        corners = torch.from_numpy(boxes)
        target["boxes"] = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)
        target["labels"] = torch.from_numpy(labels)
        return target

    def _decode(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        path, id = self.data.path_of(index), self.data.ids[index]
        least = None if self.fit is None else fitted_size(*size, *self.fit)
        try:
            pixels, whole = read_reduced(path, size, least)
        except (OSError, ImageFault) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"image {path} (id {id}) cannot be read: {reason}: run 'msefpn check'") from None
        if whole != size:
            raise UserError(f"image {path} (id {id}) has another size than when the run began: start again")
        return pixels


class _Others(Sequence[Example]):
    """Examples that are read when they are asked for: a transform does not mix every time."""

    def __init__(self, dataset: DetectionDataset, chosen: Sequence[int]) -> None:
        self.dataset = dataset
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self.dataset.example(index) for index in self.chosen[at]]
        return self.dataset.example(self.chosen[at])


def collate(samples: Sequence[ImageSample]) -> Batch:
    """Stack samples, padded with zeros to multiples of 32 pixels and to the same number of boxes."""
    sizes = torch.tensor([sample.image.shape[-2:] for sample in samples])
    height, width = ((sizes.amax(0) + 31) // 32 * 32).tolist()
    # Pixel by pixel (channels_last), as files are decoded and as convolutions like it.
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for row, sample in enumerate(samples):
        images[row, :, : sizes[row, 0], : sizes[row, 1]] = sample.image
    boxes, valid = _padded([sample.boxes for sample in samples])
    labels, _ = _padded([sample.labels for sample in samples])
    masks = proposals = None
    if samples[0].masks is not None:
        masks = torch.zeros(*valid.shape, height, width, dtype=torch.uint8)
        for row, sample in enumerate(samples):
            assert sample.masks is not None
            masks[row, : len(sample.masks), : sizes[row, 0], : sizes[row, 1]] = sample.masks
    if samples[0].proposals is not None:
        regions = [sample.proposals for sample in samples if sample.proposals is not None]
        proposals = Proposals(*_padded(regions))
    return Batch(
        images,
        sizes,
        torch.tensor([sample.original_size for sample in samples]),
        torch.tensor([sample.id for sample in samples]),
        Targets(boxes, labels, valid, masks),
        proposals,
    )


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors (n_i, ...) as one (B, n, ...), n at least 1, and which of its places are taken: (B, n) bool."""
    most = max([1, *map(len, rows)])
    padded = rows[0].new_zeros(len(rows), most, *rows[0].shape[1:])
    valid = torch.zeros(len(rows), most, dtype=torch.bool)
    for place, row in enumerate(rows):
        padded[place, : len(row)], valid[place, : len(row)] = row, True
    return padded, valid


class BatchKeys(Sampler[list[ImageKey]]):
    """A fixed list of batches of keys."""

    def __init__(self, epoch: int, batches: list[list[int]]) -> None:
        self.epoch = epoch
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[ImageKey]]:
        return ([(self.epoch, index) for index in batch] for batch in self.batches)


def train_loader(
    data: CocoData,
    *,
    size: tuple[int, int],
    augment: str,
    batch: int,
    workers: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    keep_empty: bool = True,
    antialias: bool = True,
    skip: int = 0,
) -> "DataLoader[Any]":
    """Build the loader of one epoch for one of `world` processes, each with the same number of batches.

    The first `skip` batches are left out, and their images are not read.

    Landscape images and the others come in batches of their own, and the last batches of a group are filled
    up with images of the group, as mmdetection's GroupSampler does. Its data set also leaves out images that
    have no annotation, be it of a crowd, or a side under 32 pixels: `keep_empty=False`. Yields Batch. A
    broken image raises UserError naming the file.
    """
    chosen = np.arange(len(data))
    if not keep_empty:
        annotated = np.diff(data.offsets) > 0 if data.annotated is None else data.annotated
        chosen = np.flatnonzero(annotated & (data.sizes.min(axis=1) >= _LEAST))
        if not len(chosen):
            raise UserError(
                f"{data.file} has no image with an annotation and sides of {_LEAST} pixels or more: set "
                "keep_empty: true"
            )
    batches = _grouped(data.sizes, chosen, batch, mixed_seed(seed, epoch, 0, 1), world)[rank::world][skip:]
    transform = train_transform(augment, size, antialias=antialias)
    fit = decoded_fit(augment, size) if antialias else None
    dataset = DetectionDataset(data, transform, seed=seed, fit=fit, others=chosen)
    return _loader(dataset, BatchKeys(epoch, batches), workers)


def eval_loader(
    data: CocoData,
    *,
    size: tuple[int, int] | None,
    batch: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    antialias: bool = True,
) -> "DataLoader[Any]":
    """Build a loader that gives each image once over all `world` processes, alike sizes together.

    With `size` None the images are not resized. See `FitResize` for `antialias`.
    """
    fitted = data.sizes if size is None else _fitted(data, size)
    order = np.lexsort((fitted[:, 1], fitted[:, 0]))[rank::world].tolist()
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    maskless = replace(data, masks=None)  # masks are not used here, and take time to decode
    transform = _unchanged if size is None else eval_transform(size, antialias=antialias)
    fit = reduced_fit(size) if size is not None and antialias else None
    dataset = DetectionDataset(maskless, transform, seed=0, fit=fit)
    return _loader(dataset, BatchKeys(0, batches), workers)


def _fitted(data: CocoData, size: tuple[int, int]) -> NDArray[np.int64]:
    """Height and width (N, 2) of the resized images."""
    return np.array([fitted_size(int(height), int(width), *size) for height, width in data.sizes])


def _unchanged(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return image, target


def _grouped(
    sizes: NDArray[np.int64],
    chosen: NDArray[np.int64],
    batch: int,
    seed: int,
    world: int,
) -> list[list[int]]:
    """Shuffled batches of indices, a multiple of `world` of them, each of one aspect group."""
    rng = np.random.default_rng(seed)
    wide = sizes[chosen, 1] > sizes[chosen, 0]
    batches: list[list[int]] = []
    for group in (chosen[wide], chosen[~wide]):
        if len(group):
            steps = -(-len(group) // (batch * world)) * world
            batches += np.resize(rng.permutation(group), (steps, batch)).tolist()
    return [batches[index] for index in rng.permutation(len(batches))]


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well spread."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Guarded:
    """Passes a UserError on as a value: a worker's exception would arrive inside a long traceback."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: list[ImageKey]) -> list[ImageSample] | UserError:
        try:
            return [self.dataset[key] for key in keys]
        except UserError as error:
            return error


def _collate_guarded(samples: list[ImageSample] | UserError) -> Batch | UserError:
    if isinstance(samples, UserError):
        return samples
    batch = collate(samples)
    if get_worker_info() is not None:
        trim_memory()
    return batch


def lost_worker(error: BaseException) -> UserError | None:
    """What a user is told where a process that loads images has died; None: it is another error."""
    if not re.match(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
        return None
    signal_name = re.search(r"killed by signal: ([\w ]+)", str(error))
    reason = f" ({signal_name[1].strip()})" if signal_name else ""
    return UserError(
        f"a process that loads images was killed{reason}: the memory may have been full: use fewer --workers"
    )


class _Loader(DataLoader[Any]):
    """A DataLoader that raises the UserError that a worker passed on."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch types its own iterator
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _loader(dataset: DetectionDataset, keys: BatchKeys, workers: int) -> "DataLoader[Any]":
    # Not Python 3.14's default, forkserver: it pickles what the workers get, which copies the annotations for
    # each of them and fails for a plug-in's transform from a file or a notebook.
    context = "fork" if workers and sys.platform == "linux" else None
    return _Loader(
        _Guarded(dataset),  # type: ignore[arg-type]  # its keys are pairs, not integers
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate_guarded,
        worker_init_fn=begin_worker,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise each epoch draws from the global random state
    )
