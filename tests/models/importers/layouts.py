"""Our weights, named and ordered as by mmdetection and detectron2: the inverse of the importers, by hand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.models import Detector, build

CLASSES = ("cat", "dog", "eel")
WIDTH = 32
HIDDEN = 48
KINDS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"roi": {"hidden": HIDDEN}},
    "mask_rcnn": {"roi": {"hidden": HIDDEN}, "mask": {"hidden": 24, "depth": 2}},
    "cascade_rcnn": {"roi": {"hidden": HIDDEN}},
    "retinanet": {"head": {"depth": 2}},
}
"""Options that make the heads small, and others than the defaults."""
IMAGES = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
SIZES = torch.tensor([[96, 120]])


def make(
    kind: str,
    neck: str = "fpn",
    backbone: str = "resnet18",
    classes: Sequence[str] = CLASSES,
    **values: Any,
) -> Detector:
    """A small detector that detects something with random weights."""
    torch.manual_seed(5)
    options = {"out_channels": WIDTH} | values.pop("neck_options", {})
    config = Config(
        detector=kind,
        detector_options=values.pop("detector_options", KINDS.get(kind, {"head": {"depth": 2}})),
        backbone=backbone,
        neck=neck,
        neck_options=options,
        **values,
    )
    detector = build(config, classes).eval()
    with torch.no_grad():
        for name, tensor in detector.state_dict().items():
            if re.search(r"head\.classes\.bias", name):
                tensor.fill_(-1.0)
            elif tensor.is_floating_point() and "running_var" not in name:
                tensor.add_(0.01 * torch.randn_like(tensor))
    return detector


def detections(detector: Detector) -> dict[str, Tensor]:
    """What it detects on the images."""
    with torch.no_grad():
        found = detector(IMAGES, SIZES)
    assert found.valid.sum() >= 5
    named = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    return named | ({} if found.masks is None else {"masks": found.masks})


def renamed(state: Mapping[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Each tensor under the name beside the first pattern that its name begins with."""
    found = {}
    for name, tensor in state.items():
        pattern, theirs = next((p, t) for p, t in table if re.match(p, name))
        found[re.sub(pattern, theirs, name, count=1)] = tensor
    return found


def as_mmdetection(detector: Detector) -> dict[str, Tensor]:
    """The state dict that mmdetection would have."""
    state = dict(detector.state_dict())
    scales = state.pop("head.scales", None)
    stacked = any(name.startswith("neck.members.1.") for name in state)
    ours, theirs = (r"neck\.members\.0\.", "neck.0.") if stacked else (r"neck\.", "neck.")
    levels = sum(bool(re.match(ours + r"laterals\.\d\.weight", name)) for name in state)
    normed = any(re.match(r"head\.class_tower\.\d+\.running|head\.class_tower\.1\.", name) for name in state)
    table = [
        (r"backbone\.body\.", "backbone."),
        (ours + r"laterals\.(\d)\.", theirs + r"lateral_convs.\1.conv."),
        (ours + r"outputs\.(\d)\.", theirs + r"fpn_convs.\1.conv."),
        (ours + r"extra\.p6\.", f"{theirs}fpn_convs.{levels}.conv."),
        (ours + r"extra\.p7\.", f"{theirs}fpn_convs.{levels + 1}.conv."),
        (ours + r"downs\.(\d)\.", theirs + r"downsample_convs.\1.conv."),
        (ours + r"smooths\.(\d)\.", theirs + r"pafpn_convs.\1.conv."),
        (r"neck\.members\.1\.refine\.out\.", "neck.1.refine.conv_out.conv."),
        (r"neck\.members\.1\.refine\.(\w+)\.", r"neck.1.refine.\1.conv."),
        (r"rpn\.conv\.", "rpn_head.rpn_conv."),
        (r"rpn\.objectness\.", "rpn_head.rpn_cls."),
        (r"rpn\.deltas\.", "rpn_head.rpn_reg."),
        (r"mask\.convs\.(\d)\.", r"roi_head.mask_head.convs.\1.conv."),
        (r"mask\.enlarge\.", "roi_head.mask_head.upsample."),
        (r"mask\.masks\.", "roi_head.mask_head.conv_logits."),
    ]
    for own, prefix in ((r"roi\.box\.", ""), (r"roi\.stages\.(\d)\.box\.", r"\1.")):
        table += [
            (own + r"fc1\.", f"roi_head.bbox_head.{prefix}shared_fcs.0."),
            (own + r"fc2\.", f"roi_head.bbox_head.{prefix}shared_fcs.1."),
            (own + r"classes\.", f"roi_head.bbox_head.{prefix}fc_cls."),
            (own + r"deltas\.", f"roi_head.bbox_head.{prefix}fc_reg."),
        ]
    for index in range(4):
        for branch, short in (("class", "cls"), ("box", "reg")):
            step = 3 if normed else 2
            table.append(
                (rf"head\.{branch}_tower\.{step * index}\.", f"bbox_head.{short}_convs.{index}.conv.")
            )
            if normed:
                table.append(
                    (rf"head\.{branch}_tower\.{3 * index + 1}\.", f"bbox_head.{short}_convs.{index}.gn.")
                )
    if "head.centreness.weight" in state:
        table += [
            (r"head\.classes\.", "bbox_head.conv_cls."),
            (r"head\.distances\.", "bbox_head.conv_reg."),
            (r"head\.centreness\.", "bbox_head.conv_centerness."),
        ]
    table += [(r"head\.classes\.", "bbox_head.retina_cls."), (r"head\.deltas\.", "bbox_head.retina_reg.")]
    found = renamed(state, table)
    if scales is not None:
        found |= {f"bbox_head.scales.{i}.scale": factor for i, factor in enumerate(scales)}
    return found


def as_detectron2(detector: Detector) -> dict[str, Tensor]:
    """The state dict that detectron2 would have; the network is one that reads BGR images."""
    state = {name: x for name, x in detector.state_dict().items() if not name.endswith("num_batches_tracked")}
    first = detector.neck.start_level + 2
    table = [
        (r"backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
        (r"backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    ]
    for stage in (1, 2, 3, 4):
        prefix, res = rf"backbone\.body\.layer{stage}\.(\d+)\.", rf"backbone.bottom_up.res{stage + 1}.\1."
        table += [
            (prefix + r"conv(\d)\.", res + r"conv\2."),
            (prefix + r"bn(\d)\.", res + r"conv\2.norm."),
            (prefix + r"downsample\.0\.", res + "shortcut."),
            (prefix + r"downsample\.1\.", res + "shortcut.norm."),
        ]
    for level in range(4):
        table += [
            (rf"neck\.laterals\.{level}\.", f"backbone.fpn_lateral{level + first}."),
            (rf"neck\.outputs\.{level}\.", f"backbone.fpn_output{level + first}."),
            (rf"mask\.convs\.{level}\.", f"roi_heads.mask_head.mask_fcn{level + 1}."),
        ]
    table += [
        (r"neck\.extra\.(p\d)\.", r"backbone.top_block.\1."),
        (r"rpn\.conv\.", "proposal_generator.rpn_head.conv."),
        (r"rpn\.objectness\.", "proposal_generator.rpn_head.objectness_logits."),
        (r"rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
        (r"roi\.box\.(fc\d)\.", r"roi_heads.box_head.\1."),
        (r"roi\.box\.classes\.", "roi_heads.box_predictor.cls_score."),
        (r"roi\.box\.deltas\.", "roi_heads.box_predictor.bbox_pred."),
        (r"roi\.stages\.(\d)\.box\.(fc\d)\.", r"roi_heads.box_head.\1.\2."),
        (r"roi\.stages\.(\d)\.box\.classes\.", r"roi_heads.box_predictor.\1.cls_score."),
        (r"roi\.stages\.(\d)\.box\.deltas\.", r"roi_heads.box_predictor.\1.bbox_pred."),
        (r"mask\.enlarge\.", "roi_heads.mask_head.deconv."),
        (r"mask\.masks\.", "roi_heads.mask_head.predictor."),
        (r"head\.class_tower\.", "head.cls_subnet."),
        (r"head\.box_tower\.", "head.bbox_subnet."),
        (r"head\.classes\.", "head.cls_score."),
        (r"head\.deltas\.", "head.bbox_pred."),
    ]
    found = renamed(state, table)
    weight = "backbone.bottom_up.stem.conv1.weight"
    found[weight] = found[weight][:, [2, 1, 0]]
    for name in [name for name in found if name.startswith(("head.cls_score.", "head.bbox_pred."))]:
        values = len(found[name]) // 9
        ours = [found[name][i * values : (i + 1) * values] for i in range(9)]  # ratio by ratio
        found[name] = torch.cat([ours[ratio * 3 + size] for size in range(3) for ratio in range(3)])
    generator = "" if "head.cls_score.weight" in found else "proposal_generator."
    anchors: Any = detector.get_submodule("head" if not generator else "rpn").anchors
    for level in range(len(anchors.strides)):
        cells = getattr(anchors, f"cell_{level}")
        order = (
            [ratio * 3 + size for size in range(3) for ratio in range(3)] if len(cells) == 9 else [0, 1, 2]
        )
        found[f"{generator}anchor_generator.cell_anchors.{level}"] = cells[order]
    return found
