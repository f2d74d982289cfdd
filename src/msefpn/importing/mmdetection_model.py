"""mmdetection's `model` as detector, backbone and neck of a recipe; keys of versions 2.x and 3.x."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msefpn.errors import unknown_name
from msefpn.importing.mmdetection_parts import (
    FIXED,
    LEVEL_STRIDES,
    NO_LOSS,
    Values,
    expect_class_loss,
    expect_coder_means,
    expect_fixed_coder,
    normalisation,
    present,
    read_anchors,
    read_backbone,
    read_box_loss,
    read_ious,
    read_neck,
    read_nms,
    read_pooling,
)
from msefpn.importing.section import ConfigSection


def read_model(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    """Read `model`.

    Args:
        model: the section.
        train: its `train_cfg`, which early versions keep beside it.
        test: its `test_cfg`.

    Raises:
        UserError: a detector that is not one of ours, or a value that is computed.
    """
    kind = model.take("type", default="")
    if kind not in _DETECTORS:
        raise unknown_name(f"detector of mmdetection in {model.name('type')}", str(kind), _DETECTORS)
    detector, read = _DETECTORS[kind]
    model.ignore("init_cfg")
    values: Values = {"detector": detector, "detector_options": {}}
    backbone = model.section("backbone")
    values |= read_backbone(backbone, model.take("pretrained"))
    values |= read_neck(model)
    values["detector_options"] = read(model, train, test)
    if detector == "fast_rcnn":
        values["neck_options"].pop("extra_levels", None)  # regions are not pooled from them
    normalisation(model.section("data_preprocessor"))
    for section in (model, train, test):
        section.close()
    return values


def _rpn(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    head = model.section("rpn_head")
    head.expect("type", "RPNHead", why=FIXED)
    head.ignore("in_channels", "feat_channels", "num_classes")
    made = head.section("anchor_generator")
    values = read_anchors(made, 0)
    scales = made.numbers("scales")
    if scales is not None:
        values["anchor_scale"] = scales[0]
        if len(scales) > 1:
            made.note("scales", scales, "a level has anchors of one scale here; the first is kept")
    made.close()
    expect_fixed_coder(head.section("bbox_coder"), (1.0, 1.0, 1.0, 1.0))
    expect_class_loss(head.section("loss_cls"), "CrossEntropyLoss")
    values |= read_box_loss(head.section("loss_bbox"))
    head.close()
    rpn = train.section("rpn")
    positive, negative, low = read_ious(rpn.section("assigner"))
    values |= present(positive_iou=positive, negative_iou=negative, low_quality_iou=low)
    sampler = rpn.section("sampler")
    sampler.expect("type", "RandomSampler", why="anchors are sampled at random here")
    sampler.expect("pos_fraction", 0.5, why=FIXED)
    sampler.expect("add_gt_as_proposals", False, why=FIXED)
    values |= present(samples=sampler.number("num"))
    if (bound := sampler.number("neg_pos_ub", default=-1)) > 0:
        values["negative_ratio"] = float(bound)
    sampler.close()
    if (border := rpn.number("allowed_border")) is not None:
        values["border"] = None if border < 0 else float(border)
    rpn.expect("pos_weight", -1, why=FIXED)
    rpn.ignore("debug")
    rpn.close()
    return values | _proposals(train.section("rpn_proposal"), test.section("rpn"))


def _proposals(train: ConfigSection, test: ConfigSection) -> Values:
    """Limits while training and in prediction."""
    found: dict[str, list[Any]] = {}
    for section in (train, test):
        found.setdefault("pre_nms_top_k", []).append(section.number("nms_pre"))
        found.setdefault("proposals", []).append(section.number("max_per_img", "max_num", "nms_post"))
        found.setdefault("nms_iou", []).append(read_nms(section))
        found.setdefault("min_size", []).append(section.number("min_bbox_size"))
        section.close()
    limits = ("pre_nms_top_k", "proposals")
    values: Values = {key: found[key] for key in limits if None not in found[key]}
    for key in ("nms_iou", "min_size"):
        before, after = found[key]
        if after is not None:
            values[key] = float(after)
        if None not in (before, after) and before != after:
            train.note(key, before, f"one value for training and prediction here: {after}")
    return values


def _box_head(head: ConfigSection) -> Values:
    """A box head; `num_classes` is left to the data."""
    head.expect("type", "Shared2FCBBoxHead", why="the box head has two fully connected layers here")
    head.ignore("in_channels", "num_classes")
    head.expect("roi_feat_size", 7, why=FIXED)
    values = present(hidden=head.number("fc_out_channels"))
    coder = head.section("bbox_coder")
    values |= present(stds=coder.numbers("target_stds"))
    expect_coder_means(coder)
    expect_class_loss(head.section("loss_cls"), "CrossEntropyLoss")
    values |= read_box_loss(head.section("loss_bbox"))
    values["class_agnostic"] = bool(head.take("reg_class_agnostic", default=False))
    head.close()
    return values


def _sampling(section: ConfigSection) -> Values:
    """The sampler of a region head."""
    values = present(samples=section.number("num"))
    section.expect("pos_fraction", 0.25, why=FIXED)
    section.expect("add_gt_as_proposals", True, why=FIXED)
    kind = section.take("type", default="RandomSampler")
    negatives = section.section("neg_sampler")
    positives = section.section("pos_sampler")
    pair = positives.take("type"), negatives.take("type")
    if kind == "CombinedSampler" and pair == ("InstanceBalancedPosSampler", "IoUBalancedNegSampler"):
        values["balanced_samples"] = True
        negatives.expect("floor_thr", -1, why=FIXED)
        negatives.expect("floor_fraction", 0, why=FIXED)
        negatives.expect("num_bins", 3, why=FIXED)
    elif kind != "RandomSampler":
        section.note("type", kind, "regions are sampled at random here, or as Libra R-CNN does")
    section.expect("neg_pos_ub", -1, why=FIXED)
    for one in (positives, negatives, section):
        one.close()
    return values


def _region_training(section: ConfigSection, *, mask: bool) -> Values:
    """Assigner and sampler of a region head."""
    positive, negative, low = read_ious(section.section("assigner"))
    values = present(positive_iou=positive) | _sampling(section.section("sampler"))
    if negative != positive:
        section.note("assigner.neg_iou_thr", negative, "regions below the positive IoU are negative here")
    if low is not None and not (mask and low == 0.5):
        values["low_quality_iou"] = low
    elif low is None and mask and positive is not None:
        values["low_quality_iou"] = None
    section.expect("mask_size", 28, why="masks have 28 x 28 cells here")
    section.expect("pos_weight", -1, why=FIXED)
    section.ignore("debug")
    section.close()
    return values


def _region_test(test: ConfigSection) -> Values:
    rcnn = test.section("rcnn")
    values = present(
        score=rcnn.number("score_thr"), nms_iou=read_nms(rcnn), max_per_image=rcnn.number("max_per_img")
    )
    rcnn.expect("mask_thr_binary", 0.5, why=FIXED)
    rcnn.close()
    return values


def _two_stage(
    model: ConfigSection, train: ConfigSection, test: ConfigSection, *, mask: bool = False
) -> Values:
    values: Values = {}
    if "rpn_head" in model or "rpn" in train:
        values["rpn"] = _rpn(model, train, test)
    roi = model.section("roi_head")
    roi.expect("type", "StandardRoIHead", why=FIXED)
    options = read_pooling(roi.section("bbox_roi_extractor"), 7)
    options |= _box_head(roi.section("bbox_head"))
    options |= _region_training(train.section("rcnn"), mask=mask)
    values["roi"] = options | _region_test(test)
    if mask:
        values["mask"] = _mask(roi)
    roi.close()
    return values


def _mask_rcnn(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    return _two_stage(model, train, test, mask=True)


def _mask(roi: ConfigSection) -> Values:
    values = read_pooling(roi.section("mask_roi_extractor"), 14)
    head = roi.section("mask_head")
    head.expect("type", "FCNMaskHead", why=FIXED)
    head.ignore("in_channels", "num_classes")
    values |= present(depth=head.number("num_convs"), hidden=head.number("conv_out_channels"))
    expect_class_loss(head.section("loss_mask"), "CrossEntropyLoss")
    head.close()
    return values


def _fast_rcnn(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    return {"roi": _two_stage(model, train, test)["roi"]}


def _cascade(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    values: Values = {"rpn": _rpn(model, train, test)}
    roi = model.section("roi_head")
    roi.expect("type", "CascadeRoIHead", why=FIXED)
    weights = roi.numbers("stage_loss_weights")
    options = read_pooling(roi.section("bbox_roi_extractor"), 7)
    heads = [_box_head(head) for head in roi.sections("bbox_head")]
    stages = [_region_training(stage, mask=False) for stage in train.sections("rcnn")]
    roi.expect("num_stages", len(weights or heads), why="each stage has its own numbers here")
    for key in ("hidden", "box_loss", "beta", "samples"):
        given = [part[key] for part in (*heads, *stages) if key in part]
        options |= {key: given[0]} if given else {}
        if len(set(given)) > 1:
            roi.note(f"bbox_head.{key}", given, "all stages have the same here; the first is kept")
    stds = [head["stds"] for head in heads if "stds" in head]
    ious = [stage["positive_iou"] for stage in stages if "positive_iou" in stage]
    options |= present(weights=weights, stds=stds or None, ious=ious or None)
    if any(not head["class_agnostic"] for head in heads):
        roi.note("bbox_head.reg_class_agnostic", False, "a cascade's boxes are class-agnostic here")
    for key in ("mask_head", "mask_roi_extractor"):
        if key in roi:
            roi.note(key, roi.take(key)["type"], "a cascade draws no masks here")
    if options.pop("aligned", True) is False:
        roi.note("bbox_roi_extractor.roi_layer.aligned", False, "a cascade's RoIAlign is aligned here")
    if any(stage.get("low_quality_iou") is not None for stage in stages):
        train.note("rcnn.assigner.match_low_quality", True, "a cascade matches no low-quality boxes here")
    values["roi"] = options | _region_test(test)
    roi.close()
    return values


def _dense_test(test: ConfigSection) -> Values:
    return present(
        pre_nms_top_k=test.number("nms_pre"),
        score=test.number("score_thr"),
        nms_iou=read_nms(test),
        max_per_image=test.number("max_per_img"),
        min_size=float(test.number("min_bbox_size", default=0)),
    )


def _tower(head: ConfigSection) -> Values:
    head.ignore("in_channels", "num_classes", "feat_channels")
    return present(depth=head.number("stacked_convs"))


def _retinanet(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    head = model.section("bbox_head")
    head.expect("type", "RetinaHead", why=FIXED)
    values = _tower(head)
    made = head.section("anchor_generator")
    values |= read_anchors(made, 1)
    values |= present(anchor_scale=made.number("octave_base_scale"))
    made.expect("scales_per_octave", 3, why=FIXED)
    made.close()
    expect_fixed_coder(head.section("bbox_coder"), (1.0, 1.0, 1.0, 1.0))
    expect_class_loss(head.section("loss_cls"), "FocalLoss")
    values |= read_box_loss(head.section("loss_bbox"))
    head.close()
    positive, negative, low = read_ious(train.section("assigner"))
    values |= present(positive_iou=positive, negative_iou=negative)
    if low not in (0, None):
        train.note("assigner.min_pos_iou", low, "each object has at least one positive anchor here")
    train.section("sampler").ignore("type")
    train.expect("allowed_border", -1, why="anchors may stand out of the image here")
    train.expect("pos_weight", -1, why=FIXED)
    train.ignore("debug")
    return {"head": values | _dense_test(test)}


def _fcos(model: ConfigSection, train: ConfigSection, test: ConfigSection) -> Values:
    head = model.section("bbox_head")
    head.expect("type", "FCOSHead", why=FIXED)
    values = _tower(head)
    head.expect("strides", LEVEL_STRIDES[1], why="points have the strides of the pyramid here")
    central = head.take("center_sampling", default=False)
    radius = head.number("center_sample_radius", default=1.5)
    values["radius"] = radius if central else None
    values["relative"] = bool(head.take("norm_on_bbox", default=False))
    values["centreness_branch"] = "box" if head.take("centerness_on_reg", default=False) else "class"
    norm = head.section("norm_cfg")
    norm.expect("type", "GN", why="the towers have group normalisation here")
    norm.expect("num_groups", 32, why=FIXED)
    norm.ignore("requires_grad")
    norm.close()
    expect_class_loss(head.section("loss_cls"), "FocalLoss")
    box, centre = head.section("loss_bbox"), head.section("loss_centerness")
    kind = box.take("type", default="IoULoss")
    values["iou_loss"] = {"IoULoss": "iou", "GIoULoss": "giou"}.get(kind, "giou")
    if kind not in ("IoULoss", "GIoULoss"):
        box.note("type", kind, NO_LOSS)
    box.expect("loss_weight", 1, why="losses of a head weigh 1 here")
    expect_class_loss(centre, "CrossEntropyLoss")
    head.expect("dcn_on_last_conv", False, why="there are no deformable convolutions here")
    head.expect("conv_bias", True, "auto", why="the towers' convolutions have a bias here")
    box.close()
    head.close()
    train.ignore("assigner", "allowed_border", "pos_weight", "debug")
    return {"head": values | _dense_test(test)}


_DETECTORS: Mapping[str, tuple[str, Callable[[ConfigSection, ConfigSection, ConfigSection], Values]]] = {
    "FasterRCNN": ("faster_rcnn", _two_stage),
    "MaskRCNN": ("mask_rcnn", _mask_rcnn),
    "FastRCNN": ("fast_rcnn", _fast_rcnn),
    "CascadeRCNN": ("cascade_rcnn", _cascade),
    "RetinaNet": ("retinanet", _retinanet),
    "FCOS": ("fcos", _fcos),
}
"""mmdetection's detectors that are here. Its SSD and YOLOv3 have backbones and necks that are not."""
