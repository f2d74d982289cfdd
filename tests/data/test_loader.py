"""Batches: the same for a seed, whoever loads them; no image lost or doubled where it matters."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

from msefpn import plugins
from msefpn.data.boxes import Regions
from msefpn.data.coco import CocoData
from msefpn.data.loader import DetectionDataset, ImageSample, collate, eval_loader, train_loader
from msefpn.data.locate import find_split
from msefpn.data.masks import Masks, encode_mask
from msefpn.data.packed import PackedNames
from msefpn.data.reader import read_coco
from msefpn.data.transforms import decoded_fit, eval_transform, train_transform
from msefpn.errors import UserError

OPTIONS: dict[str, Any] = {"size": (128, 128), "augment": "strong", "batch": 2}


@pytest.fixture(scope="module")
def data(tiny_set: Path) -> CocoData:
    return read_coco(*find_split(tiny_set, "train"))[0]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if one is None or isinstance(one, int):
        return bool(one == other)
    return all(_same(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("size", [(128, 128), (32, 24)], ids=["whole", "decoded reduced"])
def test_same_batches_with_and_without_workers(data: CocoData, size: tuple[int, int]) -> None:
    options = OPTIONS | {"size": size}
    torch.manual_seed(1)
    alone = list(train_loader(data, **options, workers=0, seed=5, epoch=2))
    torch.manual_seed(2)
    helped = list(train_loader(data, **options, workers=2, seed=5, epoch=2))
    assert _same(alone, helped)


def test_batches_that_are_skipped_are_not_read(data: CocoData, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OPTIONS | {"workers": 0, "seed": 5, "epoch": 2, "augment": "paper"}
    whole, read = list(train_loader(data, **options)), list[int]()
    load = DetectionDataset.example

    def loaded(dataset: DetectionDataset, index: int) -> Any:
        read.append(int(data.ids[index]))
        return load(dataset, index)

    monkeypatch.setattr(DetectionDataset, "example", loaded)
    rest = train_loader(data, **options, skip=4)
    assert len(rest) == len(whole) - 4
    assert _same(list(rest), whole[4:])
    assert read == [id for batch in whole[4:] for id in batch.ids.tolist()]


def test_seed_and_epoch_change_the_batches(data: CocoData) -> None:
    first, other_epoch, other_seed = (
        list(train_loader(data, **OPTIONS, workers=0, seed=seed, epoch=epoch))
        for seed, epoch in ((5, 2), (5, 3), (6, 2))
    )
    orders = [[batch.ids.tolist() for batch in batches] for batches in (first, other_epoch, other_seed)]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_global_random_state_is_left_alone(data: CocoData) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(iter(train_loader(data, **OPTIONS, workers=workers, seed=0, epoch=0)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_covers_each_image_in_groups(data: CocoData, world: int) -> None:
    loaders = [
        train_loader(data, **OPTIONS, workers=0, seed=0, epoch=0, rank=rank, world=world)
        for rank in range(world)
    ]
    batches = [[[index for _, index in keys] for keys in loader.batch_sampler] for loader in loaders]  # type: ignore[union-attr]
    assert len({len(part) for part in batches}) == 1
    flat = [batch for part in batches for batch in part]
    assert all(len(batch) == 2 for batch in flat)
    wide = data.sizes[:, 1] > data.sizes[:, 0]
    assert all(len(set(wide[batch])) == 1 for batch in flat)
    seen = Counter(index for batch in flat for index in batch)
    assert set(seen) == set(range(len(data)))
    assert sum(seen.values()) - len(data) < 2 * 2 * world


@pytest.mark.parametrize(("world", "batch"), [(1, 2), (2, 2), (3, 4), (7, 1)])
def test_evaluation_gives_each_image_once(tiny_set: Path, world: int, batch: int) -> None:
    data, _ = read_coco(*find_split(tiny_set, "val"))
    ids = [
        id
        for rank in range(world)
        for item in eval_loader(data, size=(96, 64), batch=batch, workers=0, rank=rank, world=world)
        for id in item.ids.tolist()
    ]
    assert sorted(ids) == sorted(data.ids.tolist())


def test_keep_empty(tmp_path: Path) -> None:
    """mmdetection trains on an image with an object, with a crowd alone, or whose only box has no width; not
    on one without annotations, or 31 pixels high. 32 pixels are enough.
    """
    sizes = [(40, 40), (40, 40), (40, 40), (40, 40), (31, 90), (32, 90)]
    images, notes = [], []
    for id, (height, width) in enumerate(sizes, 1):
        Image.new("RGB", (width, height)).save(tmp_path / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "height": height, "width": width})
    for image, side, crowd in ((1, 9, 0), (2, 9, 1), (3, 0, 0), (5, 9, 0), (6, 9, 0)):
        note = {"id": image, "image_id": image, "category_id": 1, "bbox": [1, 1, side, 9], "iscrowd": crowd}
        notes.append(note)
    content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "some.json").write_text(json.dumps(content))
    data, _ = read_coco(tmp_path / "some.json", tmp_path)

    def seen(data: CocoData, *, keep_empty: bool) -> set[int]:
        loader = train_loader(data, **OPTIONS, workers=0, seed=0, epoch=0, keep_empty=keep_empty)
        batches: Any = loader.batch_sampler
        return {int(data.ids[index]) for keys in batches for _, index in keys}

    assert seen(data, keep_empty=True) == {1, 2, 3, 4, 5, 6}
    assert seen(data, keep_empty=False) == {1, 2, 3, 6}
    assert seen(data.subset([5, 3, 1]), keep_empty=False) == {2, 6}
    with pytest.raises(UserError, match=r"some\.json has no image with an annotation and sides of 32 pixels"):
        seen(data.subset([3, 4]), keep_empty=False)


def test_batch_is_padded(data: CocoData) -> None:
    samples = [
        ImageSample(
            torch.full((3, 40, 70), 9, dtype=torch.uint8),
            torch.ones(2, 4),
            torch.tensor([1, 2]),
            (80, 140),
            5,
        ),
        ImageSample(
            torch.full((3, 64, 20), 7, dtype=torch.uint8),
            torch.zeros(0, 4),
            torch.zeros(0).long(),
            (64, 20),
            6,
        ),
    ]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.images[0, :, :40, :70].eq(9).all()
    assert batch.images[0].long().sum() == 9 * 3 * 40 * 70
    assert batch.sizes.tolist() == [[40, 70], [64, 20]]
    assert batch.original_sizes.tolist() == [[80, 140], [64, 20]]
    assert batch.ids.tolist() == [5, 6]
    assert batch.targets.valid.tolist() == [[True, True], [False, False]]
    assert batch.targets.labels.tolist() == [[1, 2], [0, 0]]
    assert collate(samples[1:]).targets.boxes.shape == (1, 1, 4)


def test_crowd_regions_are_no_targets(data: CocoData) -> None:
    index = int(np.diff(data.offsets).argmax())
    crowd = data.crowd.copy()
    crowd[data.offsets[index]] = True
    marked = CocoData(**(vars(data) | {"crowd": crowd}))
    whole, part = (
        DetectionDataset(item, eval_transform((99, 99)), seed=0)[0, index] for item in (data, marked)
    )
    assert part.boxes.tolist() == whole.boxes[1:].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_stops_with_one_line(tiny_set: Path, tmp_path: Path, workers: int) -> None:
    data, _ = read_coco(*find_split(tiny_set, "val"))
    for name in data.names:
        content = (data.folder / name).read_bytes()
        (tmp_path / name).write_bytes(content[:200] if name == data.names[2] else content)
    moved = CocoData(**(vars(data) | {"folder": tmp_path}))
    with pytest.raises(UserError) as error:
        list(eval_loader(moved, size=(96, 96), batch=2, workers=workers))
    assert str(tmp_path / data.names[2]) in str(error.value)
    assert f"id {data.ids[2]}" in str(error.value)
    assert "\n" not in str(error.value)


def test_boxes_surround_the_same_pixels_after_loading(tiny_set: Path, data: CocoData) -> None:
    batch = next(iter(eval_loader(data, size=(96, 96), batch=4, workers=0)))
    position = {int(id): index for index, id in enumerate(data.ids)}
    for row, id in enumerate(batch.ids.tolist()):
        boxes, _, _ = data.boxes_of(position[id])
        height, width = batch.original_sizes[row].tolist()
        scale = batch.sizes[row].flip(0).repeat(2) / torch.tensor([width, height, width, height])
        found = batch.targets.boxes[row][batch.targets.valid[row]]
        assert torch.allclose(found, torch.from_numpy(boxes) * scale, atol=1e-3)


@pytest.fixture
def photograph(tmp_path: Path) -> CocoData:
    """A photograph of 512 x 600 pixels, with two boxes and two given regions."""
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as image:
        image.crop((0, 0, 512, 600)).save(tmp_path / "0.jpg", quality=90)
    corners = np.array([[100, 60, 400, 500], [0, 0, 512, 600]], np.float32)
    return CocoData(
        file=tmp_path / "x.json",
        folder=tmp_path,
        names=PackedNames.pack(["0.jpg"]),
        ids=np.array([1]),
        sizes=np.array([[600, 512]]),
        offsets=np.array([0, 2]),
        boxes=corners,
        areas=np.array([132000.0, 307200.0]),
        labels=np.array([0, 0]),
        crowd=np.zeros(2, np.bool_),
        classes=("thing",),
        category_ids=(1,),
        masks=Masks.pack([encode_mask(np.tri(600, 512, dtype=np.bool_)), encode_mask(np.eye(600, 512) > 2)]),
        proposals=Regions(np.array([0, 2]), corners[::-1].copy()),
    )


@pytest.mark.parametrize(("augment", "times"), [("none", 3), ("paper", 3), ("paper", 6), ("multiscale", 4)])
def test_decoding_reduced_is_nearly_the_same(photograph: CocoData, augment: str, times: int) -> None:
    size = (600 // times, 512 // times)
    transform = train_transform(augment, size)
    for seed in range(4):
        whole, reduced = (
            DetectionDataset(photograph, transform, seed=seed, fit=fit)[0, 0]
            for fit in (None, decoded_fit(augment, size))
        )
        assert whole.masks is not None
        assert reduced.masks is not None
        assert whole.proposals is not None
        assert reduced.proposals is not None
        assert reduced.original_size == whole.original_size == (600, 512)
        assert torch.allclose(reduced.boxes, whole.boxes, atol=1e-3)
        assert torch.allclose(reduced.proposals, whole.proposals, atol=1e-3)
        difference = reduced.image.float() - whole.image.float()
        assert 0.1 < difference.abs().mean() < 2  # of 255; not decoded reduced, it would be zero
        assert difference.mean().abs() < 0.5
        assert reduced.masks.shape == whole.masks.shape
        assert (reduced.masks != whole.masks).float().mean() < 0.02


@pytest.mark.parametrize(
    ("augment", "times"), [("none", 2.9), ("paper", 1), ("multiscale", 2.9), ("strong", 5.9)]
)
def test_decoding_is_whole_where_the_target_is_near(photograph: CocoData, augment: str, times: float) -> None:
    size = (int(600 / times), int(512 / times))
    whole, found = (
        DetectionDataset(photograph, train_transform(augment, size), seed=3, fit=fit)[0, 0]
        for fit in (None, decoded_fit(augment, size))
    )
    assert _same(whole, found)


def test_crops_of_reduced_images_are_not_enlarged(photograph: CocoData) -> None:
    size = (100, 85)
    seen: set[tuple[int, ...]] = set()

    def look(image: Any, target: Any) -> Any:
        seen.add(tuple(image.shape[-2:]))
        return image, target

    DetectionDataset(photograph, look, seed=0, fit=decoded_fit("strong", size))[0, 0]
    assert seen == {(300, 256)}  # half of each side, a crop's least, fills the size


def test_file_that_changed_its_size_is_refused(photograph: CocoData) -> None:
    Image.new("RGB", (256, 300)).save(photograph.path_of(0))
    with pytest.raises(UserError, match="has another size"):
        DetectionDataset(photograph, eval_transform((100, 85)), seed=0, fit=(150, 128))[0, 0]


def test_batch_lies_pixel_by_pixel(data: CocoData) -> None:
    for workers in (0, 1):
        batch = next(iter(train_loader(data, **OPTIONS, workers=workers, seed=0, epoch=0)))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_of_a_user_reaches_the_workers(data: CocoData, workers: int) -> None:
    plugins.register("augmentation", "black")(lambda image, target: (image * 0, target))  # cannot be pickled
    options = OPTIONS | {"augment": "black"}
    assert not any(
        int(batch.images.sum()) for batch in train_loader(data, **options, workers=workers, seed=0, epoch=0)
    )
    plugins.register("augmentation", "wrong")(lambda image, target: (image / 255, target))
    options = OPTIONS | {"augment": "wrong"}
    with pytest.raises(UserError, match="augmentation 'wrong' returned a tensor"):
        list(train_loader(data, **options, workers=workers, seed=0, epoch=0))
    plugins.register("augmentation", "other")(
        lambda image, target: (image, target | {"labels": target["labels"] + 99})
    )
    options = OPTIONS | {"augment": "other"}
    with pytest.raises(UserError, match=r"a label that is not 0\.\.6"):
        list(train_loader(data, **options, workers=workers, seed=0, epoch=0))
