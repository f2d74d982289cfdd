"""The numpy rules of assignment against the heads and matchers that train."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msefpn.config import Config
from msefpn.data.advice import advise
from msefpn.data.anchors import (
    Chosen,
    Objects,
    advise_on_anchors,
    choose_anchors,
    match,
    measure_share,
    resized_objects,
    rule_for,
    with_choice,
)
from msefpn.data.anchors.match import meet
from msefpn.data.anchors.rules import ANCHORS
from msefpn.data.coco import CocoData
from msefpn.data.packed import PackedNames
from msefpn.errors import UserError
from msefpn.models import build
from msefpn.models.boxes import within
from msefpn.models.yolo import DEFAULT_SHAPES
from msefpn.structures import Targets

NARROW_NECK = {"out_channels": 16}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("faster_rcnn", {}),
    ("faster_rcnn", {"rpn": {"anchor_scale": 2.0, "ratios": [0.4, 1.1, 3.0]}}),
    ("faster_rcnn", {"preset": "torchvision"}),
    ("mask_rcnn", {"rpn": {"low_quality_iou": 0.1, "reassign": False}}),
    ("cascade_rcnn", {"rpn": {"anchor_scale": 4.0}}),
    ("retinanet", {}),
    ("retinanet", {"preset": "torchvision", "head": {"anchor_scale": 1.0}}),
    ("fcos", {}),
    ("fcos", {"preset": "conference", "head": {"inclusive": False}}),
    ("fcos", {"preset": "torchvision", "head": {"radius": 1.0}}),
    ("ssd", {}),
    ("ssd", {"head": {"smallest": 0.05, "largest": 0.5}}),
    ("yolov3", {}),
]


def some_objects(seed: int, sizes: list[list[int]], *, per_image: int = 25) -> Objects:
    """Objects of 3 to 150 px, many of them close together, on images of sizes (height, width)."""
    rng = np.random.default_rng(seed)
    count = per_image * len(sizes)
    image = np.repeat(np.arange(len(sizes)), per_image)
    limit = np.array(sizes)[image][:, ::-1]
    extent = np.exp(rng.uniform(np.log(3), np.log(150), (count, 2)))
    centre = rng.uniform(0.1, 0.9, (count, 2)) * limit
    centre[1::3] = centre[::3][: len(centre[1::3])] + rng.normal(0, 2, (len(centre[1::3]), 2))  # neighbours
    extent[1::3] = extent[::3][: len(extent[1::3])] * 1.1
    near, far = np.clip(centre - extent / 2, 0, limit - 2), np.clip(centre + extent / 2, 2, limit)
    boxes = np.concatenate([near, np.maximum(far, near + 1)], axis=1).astype(np.float32)
    boxes[::5] = np.round(boxes[::5])  # ties
    return Objects(boxes, image, np.zeros(count, dtype=np.int64), np.array(sizes), ("thing",), count)


def met_by_torch(
    detector: str, options: dict[str, Any], objects: Objects, image: int
) -> np.ndarray[Any, Any]:
    """Which objects of an image get a positive anchor from the detector's own head and matcher."""
    config = Config(
        detector=detector,
        detector_options=options,
        backbone="test_resnet",
        neck="fpn",
        neck_options=NARROW_NECK,
        init="none",
    )
    with torch.no_grad():
        built: Any = build(config, ["thing"])
    head = built.head if hasattr(built, "head") else built.rpn
    boxes = torch.from_numpy(objects.boxes[objects.image == image])
    height, width = (int(side) for side in objects.sizes[image])
    side = (height + 31) // 32 * 32, (width + 31) // 32 * 32
    maps = [torch.empty(1, 1, -(-side[0] // s), -(-side[1] // s)) for s in built.neck.out_strides]
    sizes = torch.tensor([[height, width]])
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    targets = Targets(boxes[None], torch.zeros(1, len(boxes), dtype=torch.int64), valid)
    if detector == "yolov3":
        match = head.assign([(x.shape[2], x.shape[3]) for x in maps], targets)
    elif detector == "fcos":
        match = head.matcher(head.anchors(maps, side), targets)
    elif detector == "ssd":
        anchors = torch.cat(head.boxes(maps, side))
        match = head.matcher(anchors, torch.ones(1, len(anchors), dtype=torch.bool), targets)
    else:
        anchors, usable = torch.cat(head.anchors(maps, side)), head.anchors.inside(maps, sizes)
        if getattr(head, "border", None) is not None:
            usable = usable & within(anchors, sizes, head.border)
        match = head.matcher(anchors, usable, targets)
    met = torch.zeros(len(boxes), dtype=torch.bool)
    met[match.ground_truth[match.positive]] = True
    return met.numpy()


@pytest.mark.parametrize(("detector", "options"), CASES)
def test_each_object_is_met_as_in_training(detector: str, options: dict[str, Any]) -> None:
    objects = some_objects(3, [[160, 224], [200, 150], [97, 321]])
    rule = rule_for(detector, options)
    assert rule is not None
    mine = meet(objects, rule).met
    theirs = [met_by_torch(detector, options, objects, image) for image in range(3)]
    np.testing.assert_array_equal(mine, np.concatenate(theirs))
    assert 0 < (~mine).sum() < len(objects)


def test_yolos_shapes_are_the_heads() -> None:
    shapes = ANCHORS["yolov3"]["anchors"]
    assert tuple(tuple(map(tuple, level)) for level in shapes) == DEFAULT_SHAPES


def test_chunks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = some_objects(5, [[160, 224]] * 6)
    rule = rule_for("faster_rcnn", {})
    assert rule is not None
    whole = meet(objects, rule)
    monkeypatch.setattr(match, "_CHUNK", 30)
    np.testing.assert_array_equal(whole.met, meet(objects, rule).met)


def squares(sides: list[float], *, labels: list[int] | None = None) -> CocoData:
    """Return an image of 400 x 400 for every eight squares, whose places do not repeat."""
    rng = np.random.default_rng(0)
    corner = rng.integers(10, 300, (len(sides), 2)).astype(np.float32)
    images = -(-len(sides) // 8)
    return CocoData(
        file=Path("x.json"),
        folder=Path("x"),
        names=PackedNames.pack([f"{at}.jpg" for at in range(images)]),
        ids=np.arange(images),
        sizes=np.full((images, 2), 400),
        offsets=np.minimum(np.arange(images + 1) * 8, len(sides)),
        boxes=np.concatenate([corner, corner + np.array(sides, dtype=np.float32)[:, None]], axis=1),
        areas=np.square(sides),
        labels=np.array(labels or [0] * len(sides), dtype=np.int64),
        crowd=np.zeros(len(sides), dtype=np.bool_),
        classes=("small", "large"),
        category_ids=(1, 2),
    )


def test_objects_of_8_to_14_px_meet_no_anchor_of_32_px() -> None:
    sides = [8.0 + at % 7 for at in range(88)] + [60.0] * 8
    data = squares(sides, labels=[0] * 88 + [1] * 8)
    found = advise_on_anchors(data, (400, 400), Chosen("faster_rcnn"))
    assert found.share is not None
    assert (found.share.missed, found.share.objects, found.share.taken) == (88, 96, 0)
    text = "\n".join(found.lines())
    assert "88 of 96 objects get no positive anchor (91.7 %): 88 overlap none enough" in text
    assert "by size: under 16 px 88 of 88" in text
    assert "by class: small 88 of 88" in text
    assert re.search(r"--anchors auto \(anchor_scale [\d.]+, ratios .*?\) leaves 0\.0 %", found.advice)
    assert re.search(r"--size 800 leaves \d+\.\d %", found.advice)
    assert "--detector fcos leaves" in found.advice
    chosen = advise_on_anchors(data, (400, 400), Chosen("faster_rcnn", auto=True))
    assert chosen.share is not None
    assert chosen.share.missed == 0
    assert not chosen.advice


def test_advice_is_measured_and_never_says_that_sizes_fit_where_objects_are_missed() -> None:
    data = squares([10.0] * 48)
    advice = advise_on_anchors(data, (400, 400), Chosen("faster_rcnn")).advice
    for size, share in re.findall(r"--size (\d+) leaves ([\d.]+) %", advice):
        rule = rule_for("faster_rcnn", {})
        assert rule is not None
        measured = measure_share(resized_objects(data, (int(size), int(size))), rule).share
        assert float(share) == pytest.approx(100 * measured, abs=0.05)
    assert not any("sizes fit" in line for line in advise(data, (400, 400), lambda _: True))
    assert any("sizes fit" in line for line in advise(data, (400, 400)))


@pytest.mark.parametrize(
    ("detector", "keys"),
    [
        ("faster_rcnn", {"anchor_scale", "ratios"}),
        ("retinanet", {"anchor_scale", "ratios"}),
        ("ssd", {"smallest", "largest"}),
        ("yolov3", {"anchors"}),
    ],
)
def test_chosen_anchors_miss_no_more_and_overlap_no_less(detector: str, keys: set[str]) -> None:
    objects = resized_objects(squares([9.0, 11.0, 13.0, 30.0] * 16), (400, 400))
    choice = choose_anchors(objects, detector, {})
    assert choice is not None
    assert set(choice.options) == keys
    assert choice.share.missed <= choice.before.missed
    assert choice.share.iou > choice.before.iou + 0.05
    rule = rule_for(detector, with_choice(detector, {}, choice))
    assert rule is not None
    assert measure_share(objects, rule) == choice.share
    assert choose_anchors(objects, detector, {}) == choice


def test_a_few_objects_do_not_outweigh_the_overlap_of_all_others() -> None:
    objects = resized_objects(squares([16.0] * 797 + [5.0] * 3), (400, 400))
    choice = choose_anchors(objects, "faster_rcnn", {})
    small = rule_for("faster_rcnn", {"rpn": {"anchor_scale": 2.0}})
    assert choice is not None
    assert small is not None
    other = measure_share(objects, small)
    assert choice.options["anchor_scale"] == 4.0
    assert other.missed < choice.share.missed == 3
    assert other.iou < choice.share.iou - 0.1


def test_small_objects_get_more_than_their_best_anchor() -> None:
    """RetinaNet's own scale has the larger mean, but the small ones, a tenth, under 0.5."""
    objects = resized_objects(squares([18.0] * 80 + [42.0] * 720), (400, 400))
    choice = choose_anchors(objects, "retinanet", {"head": {"ratios": [0.5, 1.0, 2.0]}})
    assert choice is not None
    assert choice.options == {"anchor_scale": 3.0}
    assert choice.share.missed == choice.before.missed == 0
    assert choice.before.weak == 80
    assert choice.share.weak <= 1
    assert choice.share.iou < choice.before.iou
    assert "0.1 % at best one of low IoU" in str(choice)
    assert "(its own anchors: 0.0 %, 10.0 %," in str(choice)


def test_what_is_set_stays_and_what_fits_already_is_written_down() -> None:
    objects = resized_objects(squares([10.0] * 32), (400, 400))
    choice = choose_anchors(objects, "faster_rcnn", {"rpn": {"anchor_scale": 4.0}})
    assert choice is not None
    assert set(choice.options) == {"ratios"}
    set_already = {"rpn": {"anchor_scale": 4.0, "ratios": [1.0]}}
    assert choose_anchors(objects, "faster_rcnn", set_already) is None
    assert choose_anchors(objects, "fcos", {}) is None
    fitting = resized_objects(squares([32.0, 64.0, 128.0, 45.0] * 8), (400, 400))
    own = choose_anchors(fitting, "faster_rcnn", {})
    assert own is not None
    assert own.options == {"anchor_scale": 8.0, "ratios": [0.5, 1.0, 2.0]}


def test_large_sets_are_measured_on_evenly_chosen_images() -> None:
    few = resized_objects(squares([10.0] * 400), (400, 400), most=100)
    assert (len(few), few.total) == (104, 400)  # 13 of 50 images
    rule = rule_for("faster_rcnn", {})
    assert rule is not None
    assert "104 of 104 objects (of 400)" in measure_share(few, rule).lines()[0]


def test_options_that_are_not_anchors() -> None:
    with pytest.raises(UserError, match=r"detector_options.rpn.anchor_scale is 'big'"):
        rule_for("faster_rcnn", {"rpn": {"anchor_scale": "big"}})
    with pytest.raises(UserError, match=r"ratios is 2: give a list"):
        rule_for("retinanet", {"head": {"ratios": 2}})
    with pytest.raises(UserError, match="give 3 lists, one a level"):
        rule_for("yolov3", {"head": {"anchors": [[10, 13]]}})
    assert rule_for("fast_rcnn", {}) is None
