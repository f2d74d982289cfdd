"""A configuration of mmdetection 2.x or 3.x as a recipe; what has no place in one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msefpn.config import from_dict
from msefpn.errors import UserError
from msefpn.importing.mmdetection_model import read_model
from msefpn.importing.mmdetection_parts import Values, normalisation
from msefpn.importing.section import ConfigSection
from msefpn.static import StaticFile, read_static

GPUS = 8
"""mmdetection states learning rates for so many GPUs."""
_RUNTIME = (
    *("backend_args", "checkpoint_config", "classes", "cudnn_benchmark", "custom_imports", "data_root"),
    *("dataset_type", "default_hooks", "default_scope", "device", "dist_params", "env_cfg", "evaluation"),
    *("file_client_args", "find_unused_parameters", "gpu_ids", "img_norm_cfg", "launcher", "log_config"),
    *("log_level", "log_processor", "metainfo", "mp_start_method", "opencv_num_threads", "randomness"),
    *("resume", "resume_from", "seed", "test_cfg", "test_dataloader", "test_evaluator", "test_pipeline"),
    *("train_pipeline", "tta_model", "tta_pipeline", "val_cfg", "val_dataloader", "val_evaluator"),
    *("vis_backends", "visualizer", "work_dir", "workflow", "auto_resume", "val_pipeline"),
)
"""Names that say nothing that a recipe has, or that other values are made of."""
_PLAIN_STEPS = (
    *("LoadImageFromFile", "LoadAnnotations", "LoadProposals", "DefaultFormatBundle", "Collect", "Pad"),
    *("PackDetInputs", "ImageToTensor", "ToTensor", "Normalize"),
)
"""Steps of a pipeline that are done here for any data."""


def read_mmdetection_config(path: Path) -> tuple[Values, list[str]]:
    """Read a configuration, with its `_base_` files, without running it.

    Args:
        path: the .py file.

    Returns:
        Values of a recipe, and a line for each key that could not be carried over.

    Raises:
        UserError: it is not mmdetection's, its detector is not one of ours, or it computes values that are
            needed.
    """
    file = read_static(path)
    notes: list[str] = []
    whole = ConfigSection({key: value for key, value in file.values.items() if key != "model"}, "", notes)
    if "model" not in file.values:
        raise UserError(f"{path} has no model = dict(...): it is not a configuration of mmdetection")
    model = ConfigSection(file.values["model"], "model", notes)
    train, test = model.section("train_cfg"), model.section("test_cfg")
    if _is_of_model(file.values.get("train_cfg")) and not list(train.left()):
        train, test = whole.section("train_cfg"), whole.section("test_cfg")
    values = read_model(model, train, test)
    if not values["detector_options"]:
        del values["detector_options"]
    data = _data(whole)
    times = data.pop("times", 1)
    values |= data | _optimizer(whole) | _schedule(whole, times)
    batch = _batch(whole, data.pop("per_gpu", None))
    values.pop("per_gpu", None)
    values["batch"] = batch
    if "lr" in values:
        values["lr"] = round(values["lr"] * 16 / batch, 12)
    _rest(whole, file)
    from_dict(values, source=str(path))
    return values, notes


def _is_of_model(value: Any) -> bool:
    """Whether a `train_cfg` beside the model is the model's, as in early versions, not the loop's."""
    return isinstance(value, dict) and bool({"rcnn", "rpn", "assigner"} & value.keys())


def _data(whole: ConfigSection) -> Values:
    """Size, augmentation and batch of either version; `per_gpu` and `times` are for other functions."""
    data = whole.section("data", "train_dataloader")
    values: Values = {}
    if (count := data.number("samples_per_gpu", "imgs_per_gpu", "batch_size")) is not None:
        values["per_gpu"] = count
    dataset, times = data.section("train", "dataset"), 1
    while "dataset" in dataset:
        kind, count = dataset.take("type"), dataset.number("times", default=1)
        times *= count
        if kind != "RepeatDataset":
            dataset.note("type", kind, "its data set is taken as it is")
        dataset = dataset.section("dataset")
    values["times"] = times
    steps = dataset.sections("pipeline") or whole.sections("train_pipeline")
    values |= _pipeline(steps)
    filtered = dataset.section("filter_cfg")
    empty = dataset.take("filter_empty_gt", default=data.path == "data")
    if filtered.take("filter_empty_gt", default=empty):
        values["keep_empty"] = False
    filtered.expect("min_size", 32, why="images with a side under 32 pixels go with the empty ones here")
    filtered.close()
    values |= {"antialias": False, "precision": "fp32"}
    if "fp16" in whole:
        values["precision"] = "auto"
        whole.note("fp16", whole.take("fp16"), "precision is auto: bf16 on a GPU that can, else fp32")
    return values


def _pipeline(steps: list[ConfigSection]) -> Values:
    values: Values = {"augment": "none"}
    several = ""
    for step in steps:
        kind = step.take("type", default="")
        if kind in ("Resize", "RandomResize", "RandomChoiceResize", "RandomFlip", "Normalize"):
            if kind == "Normalize":
                normalisation(step)
            elif kind == "RandomFlip":
                values["augment"] = _flip(step)
            else:
                size, several = _resize(step, kind)
                values |= {"size": size} if size else {}
            step.close()
        elif kind not in _PLAIN_STEPS:
            step.notes.append(f"{step.path}: {kind}: not available here; see --augment")
    if several:
        values["augment"] = "multiscale"
        if several != "1333x480..800":
            steps[0].notes.append(
                f"the training sizes {several}: --augment multiscale draws a factor from 0.6 to 1"
            )
    return values


def _flip(step: ConfigSection) -> str:
    chance = step.take("prob", "flip_ratio", default=0.0)
    step.expect("direction", "horizontal", why="images are flipped horizontally here")
    if chance not in (0, 0.5, [0.5], (0.5,)):
        step.note("prob", chance, "images are flipped half the time here")
    return "paper" if chance else "none"


def _resize(step: ConfigSection, kind: str) -> tuple[str, str]:
    """The size, and in words the range where there are several."""
    step.expect("keep_ratio", True, why="the ratio of sides is kept here")
    step.ignore("multiscale_mode", "resize_type", "resize_cfg", "ratio_range", "backend")
    scale = step.take("img_scale", "scale", "scales")
    several = isinstance(scale, (list, tuple)) and bool(scale) and isinstance(scale[0], (list, tuple))
    sizes = [_size(step, one) for one in (scale if several else [scale]) if one is not None]
    if not sizes:
        return "", ""
    longest, shortest = max(sizes)
    least = min(short for _, short in sizes)
    text = "" if least == shortest else f"{longest}x{least}..{shortest}"
    return f"{longest}x{shortest}", text


def _size(step: ConfigSection, value: Any) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or not all(type(one) is int for one in sides):
        raise UserError(f"{step.name('scale')} is {value!r}, but must be two sides, pixels")
    return max(sides), min(sides)


def _batch(whole: ConfigSection, per_gpu: int | None) -> int:
    """Images of a step: those that the learning rate is stated for, else those of eight GPUs."""
    scaling = whole.section("auto_scale_lr")
    base = scaling.number("base_batch_size")
    scaling.ignore("enable")
    scaling.close()
    return int(base or GPUS * (per_gpu or 2))


def _optimizer(whole: ConfigSection) -> Values:
    wrapper = whole.section("optim_wrapper")
    kind = wrapper.take("type", default="OptimWrapper")
    values: Values = {}
    if kind == "AmpOptimWrapper":
        values["precision"] = "auto"
        wrapper.note("type", kind, "precision is auto: bf16 on a GPU that can, else fp32")
    wrapper.ignore("loss_scale", "dtype")
    outer = whole.section("optimizer_config")
    optimizer = wrapper.section("optimizer") if "optimizer" in wrapper else whole.section("optimizer")
    name = optimizer.take("type", default="SGD")
    if name in ("SGD", "AdamW"):
        values["optimizer"] = name.lower()
    else:
        optimizer.note("type", name, "choose sgd or adamw with --optimizer; sgd is kept")
    optimizer.expect("momentum", 0.9, why="the momentum is 0.9 here")
    optimizer.expect("betas", (0.9, 0.999), why="the betas are 0.9 and 0.999 here")
    for key in ("lr", "weight_decay"):
        if (value := optimizer.number(key)) is not None:
            values[key] = float(value)
    clip = wrapper.section("clip_grad") if "clip_grad" in wrapper else outer.section("grad_clip")
    values["grad_clip"] = float(clip.number("max_norm", default=0))
    clip.expect("norm_type", 2, why="the norm is the Euclidean one here")
    outer.ignore("type")
    for section in (clip, optimizer, outer, wrapper):
        section.close()
    return values


def _schedule(whole: ConfigSection, times: int) -> Values:
    """Epochs, milestones and warm-up; a data set that is repeated makes that many epochs of one."""
    values: Values = {"warmup": 0, "schedule": "step", "milestones": []}
    runner = whole.section("runner")
    loop = whole.section("train_cfg")
    kind = runner.take("type", default=loop.take("type", default="EpochBasedRunner"))
    epochs = whole.number(
        "total_epochs", default=runner.number("max_epochs", default=loop.number("max_epochs"))
    )
    if epochs is None:
        limit = runner.number("max_iters", default=loop.number("max_iters"))
        runner.note("max_iters", limit, f"{kind} counts steps: set the epochs with --epochs")
    else:
        values["epochs"] = int(epochs * times)
    loop.ignore("val_interval", "val_begin", "dynamic_intervals")
    for section in (runner, loop):
        section.close()
    old = whole.section("lr_config")
    steps = whole.sections("param_scheduler")
    if steps:
        for step in steps:
            values |= _scheduler(step)
    elif list(old.left()):
        values |= _lr_config(old)
    values["milestones"] = [int(epoch * times) for epoch in values["milestones"]]
    return values


def _lr_config(section: ConfigSection) -> Values:
    """The learning rate's course in version 2.x."""
    policy, values = section.take("policy", default="step"), Values()
    if policy == "step":
        step = section.take("step", default=[])
        values["milestones"] = list(step) if isinstance(step, (list, tuple)) else [step]
        section.expect("gamma", 0.1, why="the learning rate drops to a tenth here")
    elif policy == "CosineAnnealing":
        values["schedule"] = "cosine"
        section.expect("min_lr", 0, why="the cosine ends at 0 here")
        section.expect("min_lr_ratio", 0, why="the cosine ends at 0 here")
    else:
        section.note("policy", policy, "choose step or cosine with --schedule; step is kept")
    warmup = section.take("warmup")
    if warmup is not None:
        values["warmup"] = int(section.number("warmup_iters", default=0))
        if warmup != "linear":
            section.note("warmup", warmup, "the warm-up is linear here")
        section.expect("warmup_ratio", 0.001, why="the warm-up begins at 0.001 of the learning rate here")
    section.ignore("by_epoch", "warmup_by_epoch")
    section.close()
    return values


def _scheduler(section: ConfigSection) -> Values:
    """One of the learning rate's schedulers in version 3.x."""
    kind, by_epoch, values = section.take("type"), section.take("by_epoch", default=True), Values()
    begin, end = section.number("begin", default=0), section.number("end")
    if kind == "LinearLR" and begin == 0 and not by_epoch:
        values["warmup"] = int(end or 0)
        why = "the warm-up begins at 0.001 of the learning rate here"
        section.expect("start_factor", 0.001, why=why)
    elif kind == "MultiStepLR" and by_epoch:
        values["milestones"] = section.take("milestones", default=[])
        section.expect("gamma", 0.1, why="the learning rate drops to a tenth here")
    elif kind == "CosineAnnealingLR":
        values["schedule"] = "cosine"
        section.expect("eta_min", 0, why="the cosine ends at 0 here")
        section.ignore("T_max", "eta_min_ratio", "convert_to_iter_based")
    else:
        section.note("type", kind, "choose step or cosine with --schedule")
        section.ignore(*section.left())
    section.close()
    return values


def _rest(whole: ConfigSection, file: StaticFile) -> None:
    """Note what is left of the file, but for names that other values are made of."""
    for key in ("load_from", "init_from"):
        if (source := whole.take(key)) is not None:
            whole.note(key, source, "give the file with --init")
    for hook in whole.sections("custom_hooks"):
        kind = hook.take("type")
        if kind != "NumClassCheckHook":
            hook.note("type", kind, "recipes do not hold hooks; see --ema and --callback")
    whole.ignore(*_RUNTIME, *file.used)
    whole.close()
