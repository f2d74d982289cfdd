"""Configurations of mmdetection as recipes."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from msefpn.cli import main
from msefpn.config import from_dict, load_recipe
from msefpn.errors import UserError
from msefpn.importing.mmdetection import read_mmdetection_config
from msefpn.models import Detector, probe
from tests.importing.configs import write_config, write_configs

SHIPPED = {"model": "faster_rcnn_r50_fpn_1x", "retina": "retinanet_r50_fpn_1x"}
"""Our recipe of the same setting, by the base."""
SAME = (
    *("detector", "backbone", "neck", "size", "augment", "epochs", "batch", "optimizer", "weight_decay"),
    *("schedule", "milestones", "warmup", "grad_clip", "keep_empty", "precision", "init"),
)


def numbers_of(detector: Detector) -> dict[str, Any]:
    """All plain values that the parts of a detector were given, by their place."""
    plain = (bool, int, float, str, list, tuple, type(None))
    found: dict[str, Any] = {}
    for place, module in detector.named_modules():
        inner = {"": module} | {
            key: value for key, value in vars(module).items() if type(value).__module__.startswith("msefpn.")
        }
        for part, value in inner.items():
            values = value._asdict() if hasattr(value, "_asdict") else getattr(value, "__dict__", {})
            for key, item in values.items():
                if (
                    isinstance(item, plain)
                    and not key.startswith("_")
                    and key not in ("training", "init_seed")
                ):
                    with contextlib.suppress(TypeError):  # a list of modules
                        value = float(item) if type(item) is int else item  # 500 steps may be 500.0
                        found[f"{place}.{part}.{key}"] = json.dumps(value)
    return found


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("model", SHIPPED)
def test_a_published_configuration_is_our_recipe_of_it(version: int, model: str, tmp_path: Path) -> None:
    write_configs(tmp_path, version)
    optimizer = "optimizer=dict(lr=0.01)"
    text = f"optim_wrapper = dict({optimizer})" if version == 3 else optimizer.replace("=", " = ", 1)
    path = write_config(tmp_path, "own.py", text if model == "retina" else "", model)
    values, notes = read_mmdetection_config(path)
    assert notes == []
    ours, shipped = from_dict(values, source="test"), load_recipe(SHIPPED[model])
    assert {key: getattr(ours, key) for key in SAME} == {key: getattr(shipped, key) for key in SAME}
    assert ours.scaled_lr == pytest.approx(shipped.scaled_lr)
    if version == 3:
        numbers = numbers_of(probe(ours))
        assert numbers == numbers_of(probe(shipped))
        assert len(numbers) > 60
        write_configs(tmp_path / "2", 2)
        older, _ = read_mmdetection_config(write_config(tmp_path / "2", "own.py", "", model))
        assert older["detector_options"] == values["detector_options"]


CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("model = dict(backbone=dict(depth=101))", "backbone", {"": "resnet101.tv_in1k"}),
    (
        "model = dict(backbone=dict(type='ResNeXt', depth=101, groups=64, base_width=4))",
        "backbone",
        {"": "resnext101_64x4d.gluon_in1k"},
    ),
    (
        "model = dict(backbone=dict(frozen_stages=-1, norm_eval=False))",
        "backbone_options",
        {"train_norm": True},
    ),
    ("model = dict(neck=dict(type='PAFPN', out_channels=128))", "neck_options", {"out_channels": 128}),
    (
        "model = dict(rpn_head=dict(anchor_generator=dict(scales=[4], ratios=[1.0])))",
        "detector_options",
        {"rpn.anchor_scale": 4, "rpn.ratios": [1.0]},
    ),
    (
        "model = dict(train_cfg=dict(rpn=dict(allowed_border=0, sampler=dict(neg_pos_ub=5))))",
        "detector_options",
        {"rpn.border": 0.0, "rpn.negative_ratio": 5.0},
    ),
    (
        "model = dict(train_cfg=dict(rcnn=dict(sampler=dict(_delete_=True, type='CombinedSampler', num=512,"
        " pos_fraction=0.25, add_gt_as_proposals=True, pos_sampler=dict(type='InstanceBalancedPosSampler'),"
        " neg_sampler=dict(type='IoUBalancedNegSampler', floor_thr=-1, floor_fraction=0, num_bins=3)))),"
        " roi_head=dict(bbox_head=dict(loss_bbox=dict(_delete_=True, type='BalancedL1Loss', alpha=0.5,"
        " gamma=1.5, beta=1.0, loss_weight=1.0))))",
        "detector_options",
        {"roi.balanced_samples": True, "roi.box_loss": "balanced_l1", "roi.beta": 1.0},
    ),
    (
        "model = dict(roi_head=dict(bbox_head=dict(num_classes=3, reg_class_agnostic=True,"
        " loss_bbox=dict(type='SmoothL1Loss', beta=0.5))), test_cfg=dict(rcnn=dict(score_thr=0.01,"
        " nms=dict(iou_threshold=0.6), max_per_img=300)))",
        "detector_options",
        {
            **{"roi.class_agnostic": True, "roi.beta": 0.5, "roi.score": 0.01, "roi.nms_iou": 0.6},
            "roi.max_per_image": 300,
        },
    ),
]


@pytest.mark.parametrize(("text", "key", "expected"), CHANGES)
def test_a_change_of_the_model(text: str, key: str, expected: dict[str, Any], tmp_path: Path) -> None:
    write_configs(tmp_path, 3)
    values, notes = read_mmdetection_config(write_config(tmp_path, "own.py", text))
    assert notes == []
    for path, wanted in expected.items():
        found = values[key]
        for part in path.split(".") if path else ():
            found = found[part]
        assert found == wanted, path
    if key != "backbone":
        probe(from_dict(values, source="test"))


def test_libra_has_two_necks(tmp_path: Path) -> None:
    write_configs(tmp_path, 2)
    text = (
        "model = dict(neck=[dict(type='FPN', in_channels=[256, 512, 1024, 2048], num_outs=5),"
        " dict(type='BFP', in_channels=256, num_levels=5, refine_level=2, refine_type='non_local')])"
    )
    values, notes = read_mmdetection_config(write_config(tmp_path, "own.py", text))
    assert (values["neck"], notes) == ("fpn+bfp", [])


def test_mask_and_cascade(tmp_path: Path) -> None:
    write_configs(tmp_path, 2)
    mask = (
        "model = dict(type='MaskRCNN', roi_head=dict(mask_roi_extractor=dict(type='SingleRoIExtractor',"
        " roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0), out_channels=256,"
        " featmap_strides=[4, 8, 16, 32]), mask_head=dict(type='FCNMaskHead', num_convs=2, in_channels=256,"
        " conv_out_channels=128, num_classes=80, loss_mask=dict(type='CrossEntropyLoss', use_mask=True,"
        " loss_weight=1.0))), train_cfg=dict(rcnn=dict(mask_size=28, assigner=dict(match_low_quality=True))),"
        " test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)))"
    )
    values, notes = read_mmdetection_config(write_config(tmp_path, "mask.py", mask))
    assert notes == []
    assert values["detector_options"]["mask"] == {"sampling_ratio": 0, "depth": 2, "hidden": 128}
    assert "low_quality_iou" not in values["detector_options"]["roi"]
    head = (
        "dict(type='Shared2FCBBoxHead', fc_out_channels=1024, num_classes=80, reg_class_agnostic=True,"
        " bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds={}), loss_cls=dict(type='CrossEntropyLoss'),"
        " loss_bbox=dict(type='SmoothL1Loss', beta=1.0))"
    )
    stage = (
        "dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr={0}, neg_iou_thr={0}, min_pos_iou={0},"
        " match_low_quality=False), sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25))"
    )
    stds, ious = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1]), (0.5, 0.6)
    cascade = (
        "model = dict(type='CascadeRCNN', roi_head=dict(type='CascadeRoIHead', num_stages=2,"
        f" stage_loss_weights=[1, 0.5], bbox_head=[{', '.join(map(head.format, stds))}]),"
        f" train_cfg=dict(rcnn=[{', '.join(map(stage.format, ious))}]))"
    )
    values, notes = read_mmdetection_config(write_config(tmp_path, "cascade.py", cascade))
    assert notes == []
    roi = values["detector_options"]["roi"]
    assert (roi["stds"], roi["ious"], roi["weights"], roi["beta"]) == (list(stds), [0.5, 0.6], [1, 0.5], 1.0)
    probe(from_dict(values, source="test"))


FCOS = (
    "model = dict(_delete_=True, type='FCOS', backbone=dict(type='ResNet', depth=50, frozen_stages=1),"
    " neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1,"
    " add_extra_convs='on_output', num_outs=5, relu_before_extra_convs=True),"
    " bbox_head=dict(type='FCOSHead', num_classes=80, in_channels=256, stacked_convs=4, feat_channels=256,"
    " strides=[8, 16, 32, 64, 128], {} loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0,"
    " alpha=0.25, loss_weight=1.0), loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True)),"
    " test_cfg=dict(nms_pre=1000, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100))"
)


def test_fcos_of_both_papers(tmp_path: Path) -> None:
    write_configs(tmp_path, 3)
    central = (
        "norm_on_bbox=True, centerness_on_reg=True, center_sampling=True, conv_bias=True,"
        " dcn_on_last_conv=False, loss_bbox=dict(type='GIoULoss', loss_weight=1.0),"
    )
    values, notes = read_mmdetection_config(write_config(tmp_path, "own.py", FCOS.format(central)))
    assert notes == []
    assert values["neck_options"]["extra_levels"] == "conv_p5_relu"
    expected = {"radius": 1.5, "relative": True, "centreness_branch": "box", "iou_loss": "giou"}
    head = values["detector_options"]["head"]
    assert {key: head[key] for key in expected} == expected
    plain = "loss_bbox=dict(type='IoULoss', loss_weight=1.0),"
    values, _ = read_mmdetection_config(write_config(tmp_path, "own.py", FCOS.format(plain)))
    expected = {"radius": None, "relative": False, "centreness_branch": "class", "iou_loss": "iou"}
    head = values["detector_options"]["head"]
    assert {key: head[key] for key in expected} == expected


SCHEDULES: list[tuple[int, str, dict[str, Any]]] = [
    (2, "data = dict(samples_per_gpu=4)", {"batch": 32, "lr": 0.01}),
    (3, "auto_scale_lr = dict(base_batch_size=8)", {"batch": 8, "lr": 0.04}),
    (
        2,
        "lr_config = dict(step=[16, 22])\nrunner = dict(max_epochs=24)",
        {"epochs": 24, "milestones": [16, 22]},
    ),
    (
        2,
        "data = dict(train=dict(_delete_=True, type='RepeatDataset', times=3, dataset=dict("
        "pipeline=[dict(type='Resize', img_scale=[(1333, 480), (1333, 800)], multiscale_mode='range',"
        " keep_ratio=True), dict(type='RandomFlip', flip_ratio=0.5)])))",
        {"epochs": 36, "milestones": [24, 33], "augment": "multiscale", "size": "1333x800"},
    ),
    (
        2,
        "lr_config = dict(_delete_=True, policy='CosineAnnealing', warmup=None, min_lr=0)",
        {"schedule": "cosine", "warmup": 0, "milestones": []},
    ),
    (2, "optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))", {"grad_clip": 35.0}),
    (
        3,
        "optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2), optimizer=dict(_delete_=True,"
        " type='AdamW', lr=0.0001, weight_decay=0.05))",
        {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "grad_clip": 1.0},
    ),
    (
        3,
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),"
        " dict(type='CosineAnnealingLR', eta_min=0, begin=0, end=12, T_max=12, by_epoch=True)]",
        {"schedule": "cosine", "warmup": 1000},
    ),
    (
        3,
        "train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))",
        {"keep_empty": True},
    ),
    (
        3,
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(640, 640),"
        " keep_ratio=True)]))",
        {"size": "640x640", "augment": "none"},
    ),
]


@pytest.mark.parametrize(("version", "text", "expected"), SCHEDULES)
def test_data_and_schedule(version: int, text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    write_configs(tmp_path, version)
    values, notes = read_mmdetection_config(write_config(tmp_path, "own.py", text))
    assert notes == []
    config = from_dict(values, source="test")
    found = {key: getattr(config, key) for key in expected}
    assert found.pop("lr", None) == pytest.approx(expected.get("lr"))
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
    assert found == {key: value for key, value in expected.items() if key != "lr"}


NOTED: list[tuple[str, str]] = [
    ("model = dict(backbone=dict(style='caffe'))", "model.backbone.style = 'caffe'"),
    ("model = dict(backbone=dict(_delete_=True, type='SwinTransformer', embed_dims=96))", "SwinTransformer"),
    (
        "model = dict(backbone=dict(dcn=dict(type='DCN')))",
        "model.backbone.dcn = {'type': 'DCN'}: there is no such",
    ),
    ("model = dict(neck=dict(type='NASFPN', stack_times=7))", "model.neck.stack_times = 7"),
    ("model = dict(rpn_head=dict(loss_bbox=dict(type='GIoULoss')))", "model.rpn_head.loss_bbox.type"),
    ("model = dict(roi_head=dict(bbox_head=dict(type='DoubleConvFCBBoxHead')))", "roi_head.bbox_head.type"),
    (
        "model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))",
        "test_cfg.rcnn.nms.type = 'soft_nms'",
    ),
    ("model = dict(train_cfg=dict(rcnn=dict(sampler=dict(type='OHEMSampler'))))", "rcnn.sampler.type"),
    ("optim_wrapper = dict(paramwise_cfg=dict(bias_lr_mult=2.))", "optim_wrapper.paramwise_cfg"),
    ("optim_wrapper = dict(type='AmpOptimWrapper')", "precision is auto"),
    ("load_from = 'faster.pth'", "load_from = 'faster.pth': give the file with --init"),
    ("custom_hooks = [dict(type='EMAHook')]", "custom_hooks[0].type = 'EMAHook'"),
    ("my_option = 3", "my_option = 3"),
    (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='Mosaic', img_scale=(640, 640))]))",
        "pipeline[0]: Mosaic",
    ),
]


@pytest.mark.parametrize(("text", "noted"), NOTED)
def test_what_has_no_place_is_named(text: str, noted: str, tmp_path: Path) -> None:
    write_configs(tmp_path, 3)
    values, notes = read_mmdetection_config(write_config(tmp_path, "own.py", text))
    assert any(noted in note for note in notes), notes
    from_dict(values, source="test")


REFUSED: list[tuple[str, str]] = [
    (
        "model = dict(backbone=dict(depth=len('x' * 50)))",
        "own.py, line 2: model.backbone.depth is computed (len(",
    ),
    ("model = dict(backbone=dict(depth=max(50, 101)))", "resolved file that mmdetection writes"),
    ("import os\nmodel = dict(test_cfg=os.environ)", "model.test_cfg is computed"),
    ("model = dict(type='FasterRCN')", "did you mean 'FasterRCNN'"),
    ("model = dict(type='YOLOV3')", "unknown detector of mmdetection in model.type 'YOLOV3'"),
    ("model = dict(type='EncoderDecoder')", "unknown detector of mmdetection"),
    ("model = 3", "model is 3, but must be a dictionary"),
    ("optim_wrapper = dict(optimizer=dict(lr='high'))", "optim_wrapper.optimizer.lr is 'high'"),
    ("train_dataloader = dict(batch_size=True)", "train_dataloader.batch_size is True"),
    ("train_cfg = dict(max_epochs=0)", "epochs is 0"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_cannot_be_read_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configs(tmp_path, 3)
    out = tmp_path / "recipe.yaml"
    assert main(["import", str(write_config(tmp_path, "own.py", text)), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        "from detectron2.config import LazyCall as L\nlr = 0.1", encoding="utf-8"
    )
    with pytest.raises(UserError, match="not a configuration of mmdetection"):
        read_mmdetection_config(tmp_path / "lazy.py")


def test_the_command_writes_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_configs(tmp_path, 2)
    path.write_text(path.read_text(encoding="utf-8") + "load_from = 'a.pth'\n", encoding="utf-8")
    out = tmp_path / "new" / "recipe.yaml"
    assert main(["import", str(path), "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not carried over: load_from = 'a.pth': give the file with --init" in printed
    assert f"--recipe {out}" in printed.replace("\n", "")
    assert yaml.safe_load(out.read_text(encoding="utf-8"))["detector"] == "faster_rcnn"
    assert load_recipe(str(out)).milestones == (8, 11)
    before = out.read_bytes()
    assert main(["import", str(path), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["import", str(path), "--out", str(tmp_path / "recipe.json")]) == 2
    assert main(["import", str(tmp_path / "missing.py")]) == 2
