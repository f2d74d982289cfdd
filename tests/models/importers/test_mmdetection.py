"""mmdetection's checkpoints: real lists of names, our weights in its layout and back, and its settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from msefpn.errors import UserError
from msefpn.models import Foreign, importers, load
from msefpn.models.importers.base import PYTORCH, Carried, Names
from msefpn.models.importers.files import Checkpoint
from msefpn.models.importers.mmdetection import convert_mmdetection, describe_mmdetection
from msefpn.models.importers.mmdetection_settings import Settings, read_settings
from msefpn.models.importers.resnet import resnet_name
from tests.models.importers.layouts import CLASSES, as_mmdetection, detections, make

REFERENCE = {
    "faster_r18": ("faster_rcnn", "resnet18", 64, {"rpn": {}, "roi": {"hidden": 128}}),
    "mask_r18": (
        "mask_rcnn",
        "resnet18",
        64,
        {"rpn": {}, "roi": {"hidden": 128}, "mask": {"hidden": 64, "depth": 4}},
    ),
    "retina_r18": ("retinanet", "resnet18", 64, {"head": {"depth": 4}}),
    "cascade_r18": ("cascade_rcnn", "resnet18", 64, {"rpn": {}, "roi": {"hidden": 128}}),
    "faster_r50": ("faster_rcnn", "resnet50", 256, {"rpn": {}, "roi": {"hidden": 1024}}),
}
"""Real checkpoints of mmdetection 3.3, of three classes, and what they are."""
CAFFE_TEXT = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
model = dict(
    type='FasterRCNN',
    backbone=dict(type='ResNet', depth=50, style='caffe'),
    rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0])),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]))),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=300, nms=dict(type='nms', iou_threshold=0.6), min_bbox_size=0),
        rcnn=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.4), max_per_img=50)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(640, 480), transforms=[dict(type='Resize', keep_ratio=True)])]
train_cfg = dict(rpn_proposal=dict(nms_pre=1500, nms_post=800))
work_dir = computed('x')
"""
NEWER_TEXT = """
model = dict(
    backbone=dict(type='ResNet', style='pytorch'),
    data_preprocessor=dict(
        bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], pad_size_divisor=32))
test_pipeline = [dict(type='Resize', scale=(1000, 600), keep_ratio=True)]
"""


def write(file: Path, state: Any, *, legacy: bool = False, **meta: Any) -> Path:
    content = {"meta": meta, "state_dict": state}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


@pytest.mark.parametrize("name", REFERENCE)
def test_real_lists_have_no_remainder(name: str, shared: Path) -> None:
    entry = json.loads((shared / "reference" / "mmdet_checkpoints.json").read_text())[name]
    with torch.device("meta"):
        state = {
            k: torch.empty(shape, dtype=getattr(torch, kind))
            for k, (kind, *shape) in entry["state_dict"].items()
        }
    foreign = foreign_of(state)
    kind, backbone, width, options = REFERENCE[name]
    assert foreign.problem == ""
    assert foreign.description is not None
    assert foreign.left == ()
    assert {item.theirs for item in foreign.carried} == set(state)
    assert len({item.ours for item in foreign.carried}) == len(state)
    assert foreign.description.num_classes == 3
    config = foreign.description.config
    assert (config.detector, config.backbone, config.detector_options) == (kind, backbone, options)
    assert config.neck_options["out_channels"] == width
    with torch.device("meta"):
        assert foreign.detector(CLASSES).classes == CLASSES  # names and shapes are the detector's


def foreign_of(state: dict[str, Any], **meta: Any) -> Foreign:
    """What a state dict without a file is taken for."""
    return importers._convert(Checkpoint(Path("x.pth"), state, {"meta": meta}, ()), None)


CASES: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"kind": "faster_rcnn"},
    "faster_rcnn pafpn": {"kind": "faster_rcnn", "neck": "pafpn"},
    "libra": {
        "kind": "faster_rcnn",
        "neck": "fpn+bfp",
        "detector_options": {"roi": {"hidden": 48, "class_agnostic": True}},
    },
    "mask_rcnn": {"kind": "mask_rcnn"},
    "cascade_rcnn": {"kind": "cascade_rcnn"},
    "retinanet": {"kind": "retinanet"},
}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    ours = make(**CASES[name])
    file = write(tmp_path / "theirs.pth", as_mmdetection(ours), legacy="libra" in name, CLASSES=CLASSES)
    theirs = load(file)
    assert (theirs.classes, theirs.category_ids) == (CLASSES, (1, 2, 3))
    expected = ours.state_dict()
    assert theirs.state_dict().keys() == expected.keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert ours.config.neck == theirs.config.neck
    found = detections(theirs)
    for key, value in detections(ours).items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "resnext101_32x4d",
        "resnext101_64x4d",
        "resnext101_32x8d",
    ],
)
def test_backbone_from_shapes(name: str) -> None:
    with torch.device("meta"):
        assert resnet_name(timm.create_model(name).state_dict()) == name
    config = timm.get_pretrained_cfg(name)
    assert config is None or config.mean == (0.485, 0.456, 0.406)  # pytorch style needs no option


def test_another_backbone_is_named() -> None:
    with torch.device("meta"):
        state = timm.create_model("mobilenetv2_100").state_dict()
    with pytest.raises(UserError, match="not a ResNet or ResNeXt"):
        resnet_name(state)


def test_older_configuration_of_caffe_style() -> None:
    settings = read_settings(
        {"meta": {"config": CAFFE_TEXT, "mmdet_version": "2.28.1", "CLASSES": ("a", "b")}}, None
    )
    assert (settings.version, settings.classes, settings.size) == ("2.28.1", ("a", "b"), "640x480")
    assert (settings.style.stride_in_1x1, settings.style.bgr) == (True, True)
    assert settings.style.options == {"stride_in_1x1": True, "std": [1.0, 1.0, 1.0]}
    assert settings.rpn(3) == {
        "anchor_scale": 4,
        "nms_iou": 0.6,
        "min_size": 0,
        "pre_nms_top_k": [1500, 500],
        "proposals": [800, 300],
    }
    assert settings.region_head() == {
        "score": 0.01,
        "nms_iou": 0.4,
        "max_per_image": 50,
        "stds": [0.1, 0.1, 0.2, 0.2],
    }
    assert read_settings({"meta": {"config": CAFFE_TEXT}}, "pytorch").style.options == {}


def test_newer_configuration() -> None:
    meta = {"cfg": NEWER_TEXT, "mmengine_version": "0.10.4", "dataset_meta": {"classes": ("a",)}}
    settings = read_settings({"meta": meta}, None)
    assert (settings.version, settings.classes, settings.size) == ("3.x", ("a",), "1000x600")
    assert settings.style.options == {}
    assert not settings.style.bgr
    assert settings.style_source == "its configuration"


@pytest.mark.parametrize(
    "text", ["x = (", "import os\nmodel = os.system('false')", "model = [" * 5000, "\0", "model = 3"]
)
def test_text_that_is_no_configuration_says_nothing(text: str) -> None:
    assert read_settings({"meta": {"cfg": text}}, None).model == {}


def test_caffe_style_has_its_strides_first() -> None:
    options = {"stride_in_1x1": True, "std": [1.0, 1.0, 1.0]}
    text = "model = dict(backbone=dict(style='caffe'))\nimg_norm_cfg = dict(mean=[103.53, 116.28, 123.675], "
    text += "std=[1.0, 1.0, 1.0], to_rgb=False)"
    with torch.device("meta"):
        ours = make("faster_rcnn", backbone="resnet50", backbone_options=options)
        foreign = foreign_of(as_mmdetection(ours), config=text, CLASSES=CLASSES)
        theirs = foreign.detector()
    assert theirs.config.backbone_options == options
    assert theirs.backbone.body.layer2[0].conv1.stride == (2, 2)
    assert theirs.backbone.body.layer2[0].conv2.stride == (1, 1)
    changed = [item.theirs for item in foreign.carried if item.kind == "changed"]
    assert changed == ["backbone.conv1.weight"]  # BGR to RGB
    assert foreign.left == ()


def test_unknown_parts_are_errors() -> None:
    with torch.device("meta"):
        state = as_mmdetection(make("faster_rcnn"))
    extra = state | {"roi_head.track_head.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"x\.pth .* no place .* roi_head\.track_head\.weight: it is another"):
        foreign_of(extra).detector(CLASSES)
    less = {name: x for name, x in state.items() if "rpn_reg" not in name}
    with pytest.raises(UserError, match=r"rpn\.deltas\.weight, rpn\.deltas\.bias missing"):
        foreign_of(less).detector(CLASSES)
    other = state | {"rpn_head.rpn_conv.weight": torch.zeros(8, 32, 3, 3)}
    with pytest.raises(UserError, match=r"rpn\.conv\.weight .* would be \(32, 32, 3, 3\), but is \(8, 32"):
        foreign_of(other).detector(CLASSES)
    heads = {name: x for name, x in state.items() if not name.startswith("roi_head")}
    with pytest.raises(UserError, match=r"its head is none of ours: it has rpn_head\.rpn_cls"):
        foreign_of(heads).detector(CLASSES)
    with pytest.raises(UserError, match="has 3 classes, but 2 are named in it"):
        foreign_of(state, CLASSES=("a", "b")).detector()
    with pytest.raises(UserError, match="has 3 classes, but 1 were given"):
        foreign_of(state, CLASSES=CLASSES).detector(["a"])
    with pytest.raises(UserError, match="two classes have the same name"):
        foreign_of(state).detector(["a", "a", "b"])
    with pytest.raises(UserError, match=r"does not name its 3 classes: .*--classes"):
        foreign_of(state).detector()
    with pytest.raises(UserError, match=r"version 1\.2\.0, whose classes and anchors are others"):
        foreign_of(state, mmdet_version="1.2.0").detector(CLASSES)
    anchors = "model = dict(rpn_head=dict(anchor_generator=dict(scales=[2, 4, 8])))"
    with pytest.raises(UserError, match="its anchors have 3 scales"):
        foreign_of(state, cfg=anchors).detector(CLASSES)


def test_the_other_half_of_an_average_is_ignored() -> None:
    with torch.device("meta"):
        state = as_mmdetection(make("faster_rcnn"))
        state |= {f"ema_{name.replace('.', '_')}": x for name, x in list(state.items())[:3]}
        foreign = foreign_of(state, CLASSES=CLASSES)
        assert [item.kind for item in foreign.carried].count("ignored") == 3
        assert any("the other half of an average" in line for line in foreign.lines())
        foreign.detector()


def test_names_in_a_table_stay_in_their_cells() -> None:
    taken = Carried("=1+1", "neck.x")
    foreign = Foreign(Path(), "", {}, (taken,), ("a\tb\n=2",), (), PYTORCH, "", None)
    rows = [line.split("\t") for line in foreign.table().splitlines()]
    assert rows == [
        ["what", "theirs", "ours", "note"],
        ["renamed", "'=1+1", "neck.x", ""],
        ["left", "a b =2", "", ""],
    ]


def test_what_is_not_carried_is_said() -> None:
    with torch.device("meta"):
        state = as_mmdetection(make("faster_rcnn"))
    assert any("no configuration" in note for note in foreign_of(state).notes)
    soft = "model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', iou_threshold=0.5))))"
    assert any("soft-NMS" in line for line in foreign_of(state, cfg=soft).lines())


def fcos_state(width: int = 32) -> dict[str, torch.Tensor]:
    """A head and pyramid of mmdetection's FCOS, without its backbone."""
    state = {
        f"neck.lateral_convs.{i}.conv.weight": torch.zeros(width, c, 1, 1)
        for i, c in enumerate((128, 256, 512))
    }
    state |= {f"neck.fpn_convs.{i}.conv.weight": torch.zeros(width, width, 3, 3) for i in range(5)}
    for branch in ("cls", "reg"):
        state[f"bbox_head.{branch}_convs.0.conv.weight"] = torch.zeros(width, width, 3, 3)
        state[f"bbox_head.{branch}_convs.0.gn.weight"] = torch.zeros(width)
        state[f"bbox_head.{branch}_convs.1.conv.weight"] = torch.zeros(width, width, 3, 3)
        state[f"bbox_head.{branch}_convs.1.gn.bias"] = torch.zeros(width)
    state |= {f"bbox_head.scales.{i}.scale": torch.tensor(float(i)) for i in range(5)}
    state |= {
        f"bbox_head.conv_{x}.weight": torch.zeros(n, width, 3, 3)
        for x, n in (("cls", 3), ("reg", 4), ("centerness", 1))
    }
    return state


@pytest.mark.parametrize("tricks", [False, True])
def test_fcos_there_and_back(tricks: bool, tmp_path: Path) -> None:
    plain = {
        "relative": False,
        "centreness_branch": "class",
        "radius": None,
        "iou_loss": "iou",
        "nms_iou": 0.5,
    }
    head = {"depth": 2, **({} if tricks else plain)}
    ours: Any = make("fcos", detector_options={"head": head})
    ours.head.scales.data.uniform_(0.5, 1.5)
    text = "model = dict(bbox_head=dict(norm_on_bbox=True, centerness_on_reg=True, center_sampling=True, "
    text += "loss_bbox=dict(type='GIoULoss')), test_cfg=dict(nms=dict(type='nms', iou_threshold=0.6)))"
    text = text if tricks else "model = dict(bbox_head=dict(type='FCOSHead'))"
    theirs = load(write(tmp_path / "theirs.pth", as_mmdetection(ours), CLASSES=CLASSES, config=text))
    for key, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], tensor), key
    found = detections(theirs)
    for key, value in detections(ours).items():
        assert torch.equal(found[key], value), key


def test_fcos_by_name() -> None:
    names = Names(fcos_state())
    convert_mmdetection(names)
    assert not names.left
    assert names.own["head.scales"].tolist() == [0, 1, 2, 3, 4]
    assert {"head.class_tower.0.weight", "head.class_tower.1.weight", "head.box_tower.4.bias"} <= set(
        names.own
    )
    assert not names.own["head.class_tower.3.bias"].any()  # theirs has none
    assert {"head.classes.weight", "head.distances.weight", "head.centreness.weight"} <= set(names.own)
    assert {"neck.extra.p6.weight", "neck.extra.p7.weight"} <= set(names.own)


def test_fcos_settings() -> None:
    with torch.device("meta"):
        body = {f"backbone.{name}": x for name, x in timm.create_model("resnet18").state_dict().items()}
    plain = describe_mmdetection(body | fcos_state(), Settings())
    assert plain.num_classes == 3
    assert plain.config.neck_options["extra_levels"] == "conv_p5_relu"
    head = plain.config.detector_options["head"]
    assert head == {
        "depth": 2,
        "nms_iou": 0.5,
        "relative": False,
        "centreness_branch": "class",
        "radius": None,
        "iou_loss": "iou",
    }
    text = "model = dict(bbox_head=dict(norm_on_bbox=True, centerness_on_reg=True, center_sampling=True, "
    text += "loss_bbox=dict(type='GIoULoss')), test_cfg=dict(nms=dict(type='nms', iou_threshold=0.6)))"
    tricks = describe_mmdetection(body | fcos_state(), read_settings({"meta": {"cfg": text}}, None))
    head = tricks.config.detector_options["head"]
    assert (head["relative"], head["centreness_branch"], head["radius"]) == (True, "box", 1.5)
    assert (head["iou_loss"], head["nms_iou"]) == ("giou", 0.6)
