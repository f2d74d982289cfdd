"""What an mmdetection checkpoint says of itself in words: class names, and the text of its configuration.

The text is Python; it is parsed, never run, see `msefpn.static`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msefpn.errors import UserError
from msefpn.models.importers.base import CAFFE, MEAN, PYTORCH, STD, STYLES, Style
from msefpn.static import Computed, read_static_text


@dataclass(frozen=True)
class Settings:
    """What decides the detections and cannot be told from shapes."""

    version: str = ""
    """mmdetection's, as far as the file says it."""
    classes: tuple[str, ...] | None = None
    style: Style = PYTORCH
    style_source: str = "assumed"
    """Where the style is from."""
    size: str = "1333x800"
    """Longest x shortest side that test images are resized to fit into, pixels."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The configuration's `model`."""
    test: Mapping[str, Any] = field(default_factory=dict)
    """Its `test_cfg`."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Its `train_cfg`."""

    @property
    def extra_convs(self) -> str | None:
        """Where the pyramid's extra levels read: on_input or on_output; None: not said."""
        neck = _first(_part(self.model, "neck"))
        value = neck.get("add_extra_convs")
        if value is True:  # as versions before 2.1 say it
            return "on_output" if neck.get("extra_convs_on_inputs") is False else "on_input"
        return value if isinstance(value, str) else None

    @property
    def extra_relu(self) -> bool | None:
        """Whether a ReLU is before the extra levels' second convolution; None: not said."""
        neck = _first(_part(self.model, "neck"))
        return bool(neck.get("relu_before_extra_convs")) if "add_extra_convs" in neck else None

    def rpn(self, anchors: int, proposals: int = 1000) -> dict[str, Any]:
        """Options of `RPN`.

        Args:
            anchors: of a cell.
            proposals: kept in training, where nothing is said.

        Raises:
            UserError: anchors that are not ours.
        """
        made = _as_dict(_as_dict(_part(self.model, "rpn_head")).get("anchor_generator"))
        options = _anchor_options(made, anchors, expected=3)
        test = _as_dict(self.test.get("rpn"))
        found = {"nms_iou": _nms(test), "min_size": test.get("min_bbox_size")}
        train = _as_dict(self.train.get("rpn_proposal"))
        if _is_number(test.get("nms_pre")):
            found["pre_nms_top_k"] = [train.get("nms_pre", 2000), test["nms_pre"]]
        if _is_number(most := _most(test)):
            found["proposals"] = [_most(train) or proposals, most]
        return options | _told(found)

    def region_head(self) -> dict[str, Any]:
        """Options of `RoIHead`."""
        test = _as_dict(self.test.get("rcnn"))
        found = _told({"score": test.get("score_thr"), "nms_iou": _nms(test), "max_per_image": _most(test)})
        head = _part(_as_dict(_part(self.model, "roi_head")), "bbox_head")
        coders = [_as_dict(one.get("bbox_coder")) for one in _several(head)]
        stds = [coder.get("target_stds") for coder in coders]
        if stds and all(isinstance(one, (list, tuple)) and len(one) == 4 for one in stds):
            found["stds"] = [list(one) for one in stds if one] if len(stds) > 1 else list(stds[0] or ())
        return found

    def dense_head(self) -> dict[str, Any]:
        """Options of a one-stage head."""
        test = self.test
        found = {"score": test.get("score_thr"), "nms_iou": _nms(test), "max_per_image": _most(test)}
        return _told(found | {"pre_nms_top_k": test.get("nms_pre")})

    def centre_head(self) -> dict[str, Any]:
        """Options of `FCOSHead`; where nothing is said, mmdetection's are those of the first paper."""
        head = _as_dict(_part(self.model, "bbox_head"))
        giou = _as_dict(head.get("loss_bbox")).get("type") == "GIoULoss"
        return {
            "relative": bool(head.get("norm_on_bbox", False)),
            "centreness_branch": "box" if head.get("centerness_on_reg") else "class",
            "radius": head.get("center_sample_radius", 1.5) if head.get("center_sampling") else None,
            "iou_loss": "giou" if giou else "iou",
        }

    @property
    def notes(self) -> list[str]:
        """What is not carried over, or assumed."""
        found = []
        if not self.model:
            found.append(
                "no configuration in the file: its settings are assumed to be mmdetection's defaults"
            )
        tests = [_as_dict(one) for one in (self.test, self.test.get("rpn"), self.test.get("rcnn"))]
        if any(_as_dict(test.get("nms")).get("type", "nms") != "nms" for test in tests):
            found.append("its test settings have soft-NMS: here boxes are dropped by hard NMS")
        return found

    def dense_anchors(self, anchors: int) -> dict[str, Any]:
        """Options of `RetinaHead`, whose cells have so many anchors. Raises UserError."""
        made = _as_dict(_as_dict(_part(self.model, "bbox_head")).get("anchor_generator"))
        octaves = made.get("scales_per_octave", 3)
        if octaves != 3:
            raise UserError(f"its anchors have {octaves} scales in an octave: only 3 are read")
        scale = _told({"anchor_scale": made.get("octave_base_scale")})
        return scale | _anchor_options({"ratios": made.get("ratios")}, anchors, expected=9)


def read_settings(meta: Mapping[Any, Any], style: str | None) -> Settings:
    """Read what is beside a state dict.

    Args:
        meta: the checkpoint without its state dict.
        style: name of the style, where the user gives it.

    Raises:
        UserError: an image order or normalisation that is not supported.
    """
    about = _as_dict(meta.get("meta"))
    dataset = _as_dict(about.get("dataset_meta"))
    names = dataset.get("classes", dataset.get("CLASSES", about.get("CLASSES")))
    text = about.get("cfg", about.get("config"))
    values = _values(text) if isinstance(text, str) else {}
    model = _as_dict(values.get("model"))
    chosen, source = _style(values, model)
    if style is not None:
        chosen, source = STYLES[style], "given"
    version = about.get("mmdet_version", "3.x" if "mmengine_version" in about else "")
    train, test = (_as_dict(model.get(key)) or _as_dict(values.get(key)) for key in ("train_cfg", "test_cfg"))
    return Settings(
        version=version if isinstance(version, str) else "",
        classes=_class_names(names),
        style=chosen,
        style_source=source,
        size=_size(values) or Settings.size,
        model=model,
        test=test,
        train=train,
    )


def _class_names(names: Any) -> tuple[str, ...] | None:
    given = (names,) if isinstance(names, str) else names
    if not isinstance(given, (list, tuple)) or not given:
        return None
    plain = all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= 256 for name in given)
    return tuple(given) if plain else None


def _values(text: str) -> dict[str, Any]:
    """The literals that a text of Python assigns; what is computed is None."""
    try:
        found: dict[str, Any] = _literal(read_static_text(text, Path("cfg")).values)
    except UserError:  # the shapes say the rest
        return {}
    return found


def _literal(value: Any) -> Any:
    """A value with lists for tuples, and None for what only running the text gives."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    return None if isinstance(value, Computed) else value


def _style(values: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[Style, str]:
    """The style that a configuration describes, and where that is said."""
    named = _as_dict(_part(model, "backbone")).get("style")
    before = _as_dict(_part(model, "data_preprocessor"))
    norm, rgb = before, bool(before.get("bgr_to_rgb", False))
    if not before:
        norm = _as_dict(values.get("img_norm_cfg")) or _find(values, "Normalize")
        rgb = bool(norm.get("to_rgb", True))
    chosen = STYLES.get(named, PYTORCH) if isinstance(named, str) else PYTORCH
    if not isinstance(named, str) and not norm:
        return PYTORCH, "assumed"
    if norm:
        mean, std = _three(norm.get("mean")), _three(norm.get("std"))
        if mean is None or std is None:
            raise UserError("its configuration does not say how images are normalised: give the style")
        order = 1 if rgb else -1
        chosen = Style(
            chosen.stride_in_1x1, not rgb, _near(mean[::order], MEAN), _near(std[::order], STD, CAFFE.std)
        )
    return chosen, "its configuration"


def _near(values: tuple[float, ...], *known: tuple[float, ...]) -> tuple[float, ...]:
    """The known values that these are up to rounding, or these."""
    return next(
        (one for one in known if all(abs(a - b) < 0.01 for a, b in zip(values, one, strict=True))), values
    )


def _three(values: Any) -> tuple[float, ...] | None:
    known = isinstance(values, list) and len(values) == 3 and all(_is_number(x) for x in values)
    return tuple(float(x) for x in values) if known else None


def _size(values: Mapping[str, Any]) -> str | None:
    """Longest x shortest side of test images, as the pipeline that resizes them last says."""
    for step in _steps(values.get("test_pipeline")):
        scale = step.get("img_scale", step.get("scale"))
        if (
            isinstance(scale, list)
            and len(scale) == 2
            and all(type(x) is int and 32 <= x <= 8192 for x in scale)
        ):
            return f"{max(scale)}x{min(scale)}"
    return None


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """Dictionaries in a value, from the outside to the inside."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _steps(one)


def _find(values: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The first dictionary of a type in the pipelines."""
    steps = (step for key in ("test_pipeline", "train_pipeline") for step in _steps(values.get(key)))
    return next((step for step in steps if step.get("type") == kind), {})


def _anchor_options(made: Mapping[str, Any], anchors: int, expected: int) -> dict[str, Any]:
    """Scale and ratios of anchors of which a cell has so many. Raises UserError."""
    ratios, scales = made.get("ratios"), made.get("scales")
    options: dict[str, Any] = {}
    if isinstance(scales, list) and scales:
        if len(scales) != 1:
            raise UserError(f"its anchors have {len(scales)} scales: only one is read")
        options = _told({"anchor_scale": scales[0]})
    per_ratio = expected // 3
    if isinstance(ratios, list) and ratios and all(_is_number(x) for x in ratios):
        if len(ratios) * per_ratio != anchors:
            raise UserError(
                f"its cells have {anchors} anchors, but its configuration names {len(ratios)} ratios"
            )
        return options | ({} if ratios == [0.5, 1.0, 2.0] else {"ratios": ratios})
    if anchors != expected:
        raise UserError(
            f"its cells have {anchors} anchors, and nothing says which: only {expected} are read so"
        )
    return options


def _nms(test: Mapping[str, Any]) -> Any:
    """IoU of a suppression. Raises UserError for one of another kind."""
    nms = test.get("nms")
    if isinstance(nms, dict):
        if nms.get("type", "nms") != "nms":
            return None  # soft: what overlaps is weighed down there; the threshold stays ours
        return nms.get("iou_threshold", nms.get("iou_thr"))
    return test.get("nms_thr")


def _most(test: Mapping[str, Any]) -> Any:
    """How many are kept, by the names that versions have for it."""
    return test.get("max_per_img", test.get("nms_post", test.get("max_num")))


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are numbers."""
    return {key: value for key, value in values.items() if _is_number(value) or isinstance(value, list)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _as_dict(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _several(value: Any) -> list[Mapping[Any, Any]]:
    return [_as_dict(one) for one in value] if isinstance(value, list) else [_as_dict(value)]


def _first(value: Any) -> Mapping[Any, Any]:
    return _several(value)[0] if value else {}


def _part(model: Mapping[Any, Any], name: str) -> Any:
    return model.get(name)
