"""Parts that mmdetection's detectors share, as options of ours; keys of versions 2.x and 3.x."""

from __future__ import annotations

from typing import Any

from msefpn.importing.section import ConfigSection

Values = dict[str, Any]

_RESNETS = {18: "resnet18", 34: "resnet34", 50: "resnet50", 101: "resnet101", 152: "resnet152"}
_RESNEXTS = {
    (50, 32, 4): "resnext50_32x4d",
    (101, 32, 4): "resnext101_32x4d.gluon_in1k",
    (101, 64, 4): "resnext101_64x4d.gluon_in1k",
}
"""timm's name by depth, groups and width; the weights are those of our recipes."""
_EXTRA = {True: "conv_c5", "on_input": "conv_c5", "on_output": "conv_p5_relu", False: "pool"}
"""Extra levels by `add_extra_convs`."""
LEVEL_STRIDES = {0: [4, 8, 16, 32, 64], 1: [8, 16, 32, 64, 128]}
"""Of a pyramid of five levels, by its start level."""
FIXED = "it is fixed here"
NO_LOSS = "not available here; the default loss is kept"


def read_backbone(backbone: ConfigSection, pretrained: Any) -> Values:
    """Name and options of the backbone, and `init`; `pretrained` is where 2.x names the weights."""
    kind, depth = backbone.take("type", default="ResNet"), backbone.take("depth", default=50)
    groups, width = backbone.take("groups", default=1), backbone.take("base_width", default=4)
    if kind == "ResNet":
        name, step = _RESNETS.get(depth), ".tv_in1k" if depth in (50, 101) else ""
    else:
        name, step = _RESNEXTS.get((depth, groups, width)) if kind == "ResNeXt" else None, ""
    values: Values = {}
    if name is None:
        backbone.note("type", f"{kind}-{depth}", "choose a timm model with --backbone; resnet50 is kept")
        name, step = "resnet50", ".tv_in1k"
    values["backbone"] = f"{name}{step}"
    options: Values = {"frozen_stages": backbone.number("frozen_stages", default=-1)}
    if backbone.take("norm_eval", default=True) is False:
        options["train_norm"] = True
    values["backbone_options"] = options
    norm = backbone.section("norm_cfg")
    norm.expect("type", "BN", why="normalisation is BN with fixed statistics here")
    norm.expect("requires_grad", True, why="scale and shift are trained outside the frozen stages here")
    norm.close()
    backbone.expect("style", "pytorch", why="timm's ImageNet weights are of pytorch style, which is kept")
    backbone.expect("num_stages", 4, why="all four levels are used here")
    backbone.expect("out_indices", (0, 1, 2, 3), why="all four levels are used here")
    init = backbone.section("init_cfg")
    source = init.take("checkpoint", default=pretrained)
    init.ignore("type")
    init.close()
    if source is None:
        values["init"] = "none"
    elif not str(source).startswith(("torchvision://", "open-mmlab://")):
        backbone.note("init_cfg.checkpoint", source, "ImageNet weights of timm are kept; see --init FILE")
    backbone.close()
    return values


def normalisation(section: ConfigSection) -> None:
    """Mean and deviation, of a data preprocessor or a step of a pipeline."""
    why = "images are normalised as the backbone's weights need it, RGB"
    section.expect("mean", (123.675, 116.28, 103.53), why=why)
    section.expect("std", (58.395, 57.12, 57.375), why=why)
    section.expect("bgr_to_rgb", True, why=why)
    section.expect("to_rgb", True, why=why)
    section.expect("pad_size_divisor", 32, why="images are padded to multiples of 32 here")
    section.ignore("type", "pad_mask", "mask_pad_value")
    section.close()


def read_neck(model: ConfigSection) -> Values:
    """Name and options of the neck, or stack of necks."""
    first, *others = model.sections("neck") or [ConfigSection({}, model.name("neck"), model.notes)]
    kind, names = first.take("type", default="FPN"), {"FPN": "fpn", "PAFPN": "pafpn"}
    if kind not in names:
        first.note("type", kind, "choose a neck with --neck; fpn is kept")
    options: Values = {"out_channels": first.number("out_channels", default=256)}
    start = first.number("start_level", default=0)
    extra = _EXTRA.get(first.take("add_extra_convs", default=False), "pool")
    if first.take("extra_convs_on_inputs", default=True) is False and extra == "conv_c5":
        extra = "conv_p5_relu"
    relu = first.take("relu_before_extra_convs", default=False)
    if extra == "conv_p5_relu" and not relu:
        first.note("relu_before_extra_convs", relu, "there is a ReLU before the last extra level here")
    if extra == "conv_c5" and relu:
        first.note("relu_before_extra_convs", relu, "there is no ReLU between extra levels on C5 here")
    if kind in names:
        options |= {"start_level": start, "extra_levels": extra}
    levels = 5 if 4 - start + (1 if extra == "pool" else 2) == 5 else 4 - start
    first.expect("num_outs", levels, why=f"the pyramid has {levels} levels with these extra ones here")
    first.expect("end_level", -1, why=FIXED)
    first.ignore("in_channels")
    first.close()
    name = names.get(kind, "fpn")
    for other in others:
        other_kind = other.take("type", default="")
        if other_kind == "BFP":
            name += "+bfp"
            other.expect("refine_level", 2 - start, why="the level of stride 16 is refined here")
            other.expect("refine_type", "non_local", why=FIXED)
            other.ignore("in_channels", "num_levels")
            other.close()
        else:
            other.note("type", other_kind, "choose a neck with --neck; this stage is left out")
    return {"neck": name, "neck_options": options}


def read_anchors(section: ConfigSection, start: int) -> Values:
    """Ratios, and a check of the strides."""
    section.expect("strides", LEVEL_STRIDES[start], why="anchors have the strides of the pyramid here")
    section.ignore("type")
    ratios = section.numbers("ratios")
    return {} if ratios is None else {"ratios": ratios}


def expect_fixed_coder(section: ConfigSection, stds: tuple[float, ...]) -> None:
    """Note a box coder with other deviations than these."""
    section.expect("target_stds", stds, why=FIXED)
    expect_coder_means(section)


def expect_coder_means(section: ConfigSection) -> None:
    """Note a box coder that is not ours but for its deviations."""
    section.expect("target_means", (0.0, 0.0, 0.0, 0.0), why=FIXED)
    section.ignore("type")
    section.expect("clip_border", True, why="boxes are clipped to the image here")
    section.close()


def read_box_loss(section: ConfigSection) -> Values:
    """Options of a head for the loss of its boxes."""
    kind, weight = section.take("type", default="L1Loss"), section.take("loss_weight", default=1.0)
    values: Values = {}
    if kind == "L1Loss":
        values = {"box_loss": "smooth_l1", "beta": 0.0}
    elif kind == "SmoothL1Loss":
        values = {"box_loss": "smooth_l1", "beta": section.number("beta", default=1.0)}
    elif kind == "BalancedL1Loss":
        values = {"box_loss": "balanced_l1", "beta": section.number("beta", default=1.0)}
        section.expect("alpha", 0.5, why=FIXED)
        section.expect("gamma", 1.5, why=FIXED)
    else:
        section.note("type", kind, NO_LOSS)
    if weight != 1:
        section.note("loss_weight", weight, "losses of a head weigh 1 here")
    section.ignore("reduction")
    section.close()
    return values


def expect_class_loss(section: ConfigSection, kind: str) -> None:
    """Note another loss of classes than this kind with mmdetection's usual numbers."""
    section.expect("type", kind, why=NO_LOSS)
    section.expect("loss_weight", 1, why="losses of a head weigh 1 here")
    section.expect("gamma", 2.0, why=FIXED)
    section.expect("alpha", 0.25, why=FIXED)
    section.ignore("use_sigmoid", "use_mask", "reduction")
    section.close()


def read_ious(section: ConfigSection) -> tuple[Any, Any, Any]:
    """Thresholds of an assigner: positive, negative, and of a low-quality match, None where there is none."""
    section.expect("type", "MaxIoUAssigner", why="boxes are assigned by the largest IoU here")
    section.expect("ignore_iof_thr", -1, why="crowds take no part here")
    section.ignore("iou_calculator", "gpu_assign_thr")
    positive, negative = section.number("pos_iou_thr"), section.number("neg_iou_thr")
    least, low = section.number("min_pos_iou"), section.take("match_low_quality", default=True)
    section.close()
    return positive, negative, least if low else None


def present(**values: Any) -> Values:
    """The values that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def read_nms(section: ConfigSection) -> Any:
    """The threshold of suppression, in its section or, in early versions, beside it."""
    if "nms" not in section:
        section.ignore("nms_across_levels")
        return section.number("nms_thr")
    nms = section.section("nms")
    nms.expect("type", "nms", why="suppression is by hard NMS in a recipe")
    threshold = nms.number("iou_threshold", "iou_thr")
    nms.close()
    return threshold


def read_pooling(section: ConfigSection, size: int) -> Values:
    """Options of `RoIAlign` from a region extractor; `size` is the side that is fixed here, cells."""
    section.expect("type", "SingleRoIExtractor", why="a region is pooled from the level of its size here")
    section.expect("featmap_strides", (4, 8, 16, 32), why="regions are pooled from strides 4 to 32 here")
    section.ignore("out_channels")
    layer = section.section("roi_layer")
    layer.expect("type", "RoIAlign", why=FIXED)
    layer.expect("output_size", size, (size, size), why=FIXED)
    layer.expect("out_size", size, why=FIXED)
    values = present(sampling_ratio=layer.number("sampling_ratio", "sample_num"))
    if layer.take("aligned", default=True) is False:
        values["aligned"] = False
    layer.close()
    section.close()
    return values
