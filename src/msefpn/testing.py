"""Checks of your own neck, backbone, head or detector, to call in your tests.

    from msefpn.testing import check_neck

    def test_laterals():
        check_neck(Laterals)

They are the checks that the package's own parts pass; each raises an AssertionError that says what was
expected.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from msefpn.models import Detector, OneStage
from msefpn.models.backbone import Backbone, make_backbone, spec_of
from msefpn.models.contract import verify_backbone
from msefpn.models.detectors import MakeNeck
from msefpn.models.detectors.retinanet import retinanet
from msefpn.necks import FPN
from msefpn.structures import Detections, Proposals, Targets

_CLASSES = 3


def check_neck(
    neck: Callable[..., Any],
    *,
    in_channels: Sequence[int] = (16, 24, 40, 64),
    in_strides: Sequence[int] = (4, 8, 16, 32),
    out_channels: int = 32,
    invariant: Sequence[str] = (),
    **options: Any,
) -> None:
    """Check that a neck keeps the contract of `msefpn.necks.Neck`; it need not derive from it.

    Args:
        neck: the class, or a factory, called with in_channels, in_strides, out_channels and the options.
        in_channels: channels of the input maps that it is built for.
        in_strides: their strides, each twice the one before.
        out_channels: channels of the pyramid.
        invariant: ends of the names of parameters whose gradient may be zero, such as a softmax's bias.
        options: further arguments.

    Raises:
        AssertionError: it gives maps of other shapes than it promises, at some size; changes its inputs; has
            a parameter without a finite gradient; is far off in bfloat16; cannot be compiled as one graph or
            exported with a free batch, height and width, or differs there; loses weights when saved and
            loaded; or does not train inside torchvision's Faster R-CNN.
    """

    def make() -> Any:
        torch.manual_seed(0)
        return neck(list(in_channels), list(in_strides), out_channels, **options)

    inputs = _Inputs(tuple(in_channels), tuple(in_strides))
    evaluating = make().eval()
    _check_shapes(evaluating, inputs)
    _check_inputs_stay(evaluating, inputs)
    _check_bf16(evaluating, inputs)
    _check_state_dict(evaluating, make().eval(), inputs)
    _check_compile(evaluating, inputs)
    _check_export(evaluating, inputs)
    _check_gradients(make(), inputs, tuple(invariant))
    _check_inside_torchvision(make(), inputs)


class _Inputs(NamedTuple):
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def maps(self, height: int, width: int, batch: int = 2) -> list[Tensor]:
        """Maps as strided convolutions give them, sides rounded up."""
        torch.manual_seed(1)
        return [
            torch.randn(batch, channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]


def _check_shapes(neck: Any, inputs: _Inputs) -> None:
    for height, width, batch in ((64, 96, 2), (33, 97, 2), (100, 75, 2), (1, 1, 1)):
        image = f"a batch of {batch} x {height} x {width} pixels"
        pyramid = neck(inputs.maps(height, width, batch))
        assert isinstance(pyramid, list), f"forward must return a list, not a {type(pyramid).__name__}"
        strides = list(neck.out_strides)
        assert len(pyramid) == len(strides), f"{len(pyramid)} maps for {image}, but out_strides is {strides}"
        for x, stride in zip(pyramid, strides, strict=True):
            expected = (batch, neck.out_channels, -(-height // stride), -(-width // stride))
            assert x.shape == expected, (
                f"the map of stride {stride} must be {expected} for {image}, and is {tuple(x.shape)}"
            )


def _check_inputs_stay(neck: Any, inputs: _Inputs) -> None:
    features = inputs.maps(64, 96)
    before = [x.clone() for x in features]
    neck(features)
    assert len(features) == len(before), "forward must not change the list that it is given"
    for i, (x, kept) in enumerate(zip(features, before, strict=True)):
        assert torch.equal(x, kept), f"forward must not change its inputs, but changes input {i}"


def _check_gradients(neck: Any, inputs: _Inputs, invariant: tuple[str, ...]) -> None:
    for parameter in neck.parameters():
        if not parameter.any():  # what starts at zero, like BFP's last convolution, hides what lies before
            nn.init.normal_(parameter, std=0.1)
    torch.stack([x.square().sum() for x in neck(inputs.maps(64, 96))]).sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, f"parameter {name} gets no gradient: use it, or remove it"
        assert parameter.grad.isfinite().all(), f"the gradient of parameter {name} must be finite"
        zero = not parameter.grad.any() and not name.endswith(invariant)
        assert not zero, f"the gradient of parameter {name} is zero: use it, or name it in `invariant`"


@torch.no_grad()
def _check_bf16(neck: Any, inputs: _Inputs) -> None:
    features = inputs.maps(256, 320)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = neck(features)
    for i, (x, full) in enumerate(zip(half, neck(features), strict=True)):
        assert x.isfinite().all(), f"map {i} must be finite in bfloat16"
        error = float((x.float() - full).norm() / full.norm())
        assert error < 0.05, f"map {i} must be within 5 % of float32 in bfloat16, and is off by {error:.1%}"


def _check_compile(neck: Any, inputs: _Inputs) -> None:
    torch.compiler.reset()
    features = inputs.maps(33, 97)
    compiled: Any = torch.compile(neck, fullgraph=True, backend="eager")
    for x, y in zip(compiled(features), neck(features), strict=True):
        torch.testing.assert_close(x, y, msg=_in("torch.compile must not change the maps"))


def _check_export(neck: Any, inputs: _Inputs) -> None:
    names = (("batch", 1), ("height", 5), ("width", 5))
    batch, height, width = (torch.export.Dim(name, min=low, max=64) for name, low in names)
    coarsest = max(inputs.strides)
    shapes = [{0: batch, 2: height * (coarsest // s), 3: width * (coarsest // s)} for s in inputs.strides]
    given = (inputs.maps(6 * coarsest, 8 * coarsest),)
    program: Any = torch.export.export(neck, given, dynamic_shapes=(shapes,)).module()
    for rows, columns, count in ((5, 9, 1), (7, 5, 3)):
        features = inputs.maps(rows * coarsest, columns * coarsest, count)
        for x, y in zip(program(features), neck(features), strict=True):
            torch.testing.assert_close(
                x, y, atol=1e-5, rtol=1e-5, msg=_in("torch.export must not change the maps")
            )


def _check_state_dict(neck: Any, second: Any, inputs: _Inputs) -> None:
    for tensor in second.state_dict().values():
        tensor.fill_(7)
    second.load_state_dict(neck.state_dict())
    features = inputs.maps(64, 96)
    for i, (x, y) in enumerate(zip(neck(features), second(features), strict=True)):
        assert torch.equal(x, y), f"map {i} differs after state_dict and load_state_dict"


class _Body(nn.Module):
    """A backbone and a neck in the form that torchvision's detectors take."""

    def __init__(self, neck: Any, inputs: _Inputs) -> None:
        super().__init__()
        sizes = zip(inputs.channels, inputs.strides, strict=True)
        self.stages = nn.ModuleList(nn.Conv2d(3, channels, s, stride=s) for channels, s in sizes)
        self.neck = neck
        self.out_channels = neck.out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(i): x for i, x in enumerate(self.neck([stage(x) for stage in self.stages]))}


def _check_inside_torchvision(neck: Any, inputs: _Inputs) -> None:
    levels = len(neck.out_strides)
    model = FasterRCNN(
        _Body(neck, inputs),
        num_classes=3,
        min_size=128,
        max_size=160,
        rpn_anchor_generator=AnchorGenerator(((32,),) * levels, ((0.5, 1.0, 2.0),) * levels),
        rpn_post_nms_top_n_train=50,
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(levels)], 7, 2),
    )
    target = {"boxes": torch.tensor([[10.0, 10, 60, 80]]), "labels": torch.tensor([1])}
    torch.stack([*model([torch.rand(3, 128, 160)], [target]).values()]).sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, f"parameter {name} gets no gradient in torchvision's FasterRCNN"


def check_backbone(backbone: Callable[..., nn.Module], **options: Any) -> None:
    """Check that a backbone keeps the contract of `msefpn.models.backbone.Body`.

    Args:
        backbone: its factory, called with the options.
        options: arguments of the factory.

    Raises:
        UserError: it lacks its channels or strides, or gives other maps than these name.
        AssertionError: it gives maps of other shapes at another size; changes its input; has a parameter
            without a finite gradient; loses weights when saved and loaded; or does not train in a detector.
    """

    def make() -> Backbone:
        torch.manual_seed(0)
        return Backbone(spec_of("the backbone", backbone, options), "checked", frozen_stages=-1)

    made, second = make().eval(), make().eval()
    verify_backbone(made, "the backbone")
    side = max(made.strides)
    for rows, columns, batch in ((3, 5, 2), (4, 2, 1)):
        images = torch.randn(batch, 3, rows * side, columns * side)
        given = images.clone()
        for x, channels, stride in zip(made(images), made.channels, made.strides, strict=True):
            expected = (batch, channels, rows * side // stride, columns * side // stride)
            assert x.shape == expected, (
                f"the map of stride {stride} must be {expected}, and is {tuple(x.shape)}"
            )
        assert torch.equal(images, given), "forward must not change the images: copy them first"
    second.load_state_dict(made.state_dict())
    for x, y in zip(made(images), second(images), strict=True):
        assert torch.equal(x, y), "maps differ after state_dict and load_state_dict"
    neck = functools.partial(FPN, made.channels, made.strides, 16)
    _check_training(retinanet(make(), neck, _CLASSES, head={"depth": 1}), "in RetinaNet")


def check_head(head: Callable[..., nn.Module], *, extra_levels: str = "conv_p5_relu", **options: Any) -> None:
    """Check that a head of a one-stage detector keeps the contract of `msefpn.models.detectors.DenseHead`.

    Args:
        head: the class, or a factory, called with channels, strides, the number of classes and the options.
        extra_levels: coarser levels of the pyramid: `none`, `pool`, `conv_c5` or `conv_p5_relu`.
        options: further arguments.

    Raises:
        AssertionError: as `check_detector`.
    """

    def detector(backbone: Backbone, make_neck: MakeNeck, num_classes: int) -> Detector:
        neck = make_neck(start_level=1, extra_levels=extra_levels)
        made: Any = head(neck.out_channels, neck.out_strides, num_classes, **options)
        return OneStage(backbone, neck, made)

    check_detector(detector)


def check_detector(
    detector: Callable[..., Detector], *, backbone: str = "test_resnet", export: bool = True, **options: Any
) -> None:
    """Check that a detector trains, detects, is saved and loaded, and is exported.

    Args:
        detector: its factory, called with a backbone, a function that makes the neck, the number of classes
            and the options, see `msefpn.models.detectors.base`.
        backbone: name of its backbone.
        export: whether it must be exported by torch.export with a free batch, height and width.
        options: further arguments.

    Raises:
        AssertionError: a loss is not a finite scalar, or leaves a parameter without a finite gradient, with
            objects or without; detections have other shapes than `msefpn.structures.Detections` says, or
            values out of range; they differ after saving and loading; or in the exported graph.
    """

    def make() -> Detector:
        torch.manual_seed(0)
        body = make_backbone(backbone, frozen_stages=-1)
        neck = functools.partial(FPN, body.channels, body.strides, 16)
        return detector(body, neck, _CLASSES, **options)

    _check_training(make(), "")
    first, second = make().eval(), make().eval()
    given = _images(first, 2, 160, 192)
    with torch.no_grad():
        found = first(*given)
        _check_detections(found, 2, 160, 192)
        second.load_state_dict(first.state_dict())
        assert torch.equal(found.boxes, second(*given).boxes), (
            "boxes differ after state_dict and load_state_dict"
        )
        if export:
            _check_exported(first.double())


def _images(detector: Detector, batch: int, height: int, width: int) -> tuple[Any, ...]:
    """Images, their sizes and, for a detector that takes proposals, some."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    sizes = torch.tensor([[height, width - 5]] * batch)
    if not detector.takes_proposals:
        return images, sizes
    corner = torch.rand(batch, 20, 2) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(batch, 20, 2) * 60], dim=-1)
    return images, sizes, Proposals(boxes, torch.ones(batch, 20, dtype=torch.bool))


def _check_training(detector: Detector, where: str) -> None:
    detector.train()
    objects = torch.tensor([[[10.0, 10, 50, 60], [0, 0, 128, 96]], [[5, 5, 6, 6], [0, 0, 0, 0]]])
    for case, boxes in (("with objects", objects), ("without objects", torch.zeros(2, 1, 4))):
        images, sizes, *proposals = _images(detector, 2, 96, 128)
        masks = torch.ones(*boxes.shape[:2], 96, 128, dtype=torch.uint8)
        valid = boxes[..., 2] > 0
        targets = Targets(boxes, torch.zeros_like(valid, dtype=torch.long), valid, masks)
        losses = detector.losses(images, sizes, targets, *proposals)
        for name, loss in losses.items():
            assert loss.ndim == 0, f"the loss {name} must be a scalar, and is of shape {tuple(loss.shape)}"
            assert loss.isfinite(), f"the loss {name} must be finite {case}, and is {loss.item()}"
        detector.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        for name, parameter in detector.named_parameters():
            what = f"parameter {name} {case} {where}".rstrip()
            assert parameter.grad is not None, f"{what} gets no gradient: keep it in the graph"
            assert parameter.grad.isfinite().all(), f"the gradient of {what} must be finite"


def _check_detections(found: Detections, batch: int, height: int, width: int) -> None:
    count = found.scores.shape[1]
    shapes = {"boxes": (batch, count, 4), "scores": (batch, count), "labels": (batch, count)}
    for name, shape in (shapes | {"valid": (batch, count), "num_dropped": (batch,)}).items():
        got = tuple(getattr(found, name).shape)
        assert got == shape, f"detections' {name} must be of shape {shape}, and are {got}"
    boxes, limit = found.boxes[found.valid], torch.tensor([width, height, width, height])
    assert ((boxes >= 0) & (boxes <= limit)).all(), "boxes must be finite and clipped to their image"
    assert (boxes[:, 2:] >= boxes[:, :2]).all(), "boxes must be xyxy, with x2 >= x1 and y2 >= y1"
    assert ((found.scores >= 0) & (found.scores <= 1)).all(), "scores must be 0 to 1"
    assert (found.scores[~found.valid] == 0).all(), "scores must be 0 where not valid"
    assert ((found.labels >= 0) & (found.labels < _CLASSES)).all(), f"labels must be 0 to {_CLASSES - 1}"


def _check_exported(detector: Detector) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    height, width = (32 * torch.export.Dim(side, min=5, max=64) for side in ("rows", "columns"))
    shapes: tuple[Any, ...] = ({0: batch, 2: height, 3: width}, {0: batch})
    if detector.takes_proposals:
        regions = {0: batch, 1: torch.export.Dim("regions", min=2, max=4096)}
        shapes = (*shapes, Proposals(regions, regions))  # type: ignore[arg-type]  # of dimensions
    program = torch.export.export(detector, _images(detector, 2, 160, 192), dynamic_shapes=shapes).module()
    given = _images(detector, 3, 192, 224)
    found, expected = program(*given), detector(*given)
    counts = expected.valid.sum(dim=1).tolist()
    assert found.valid.sum(dim=1).tolist() == counts, "the exported graph must give as many detections"
    for i, count in enumerate(counts):
        for name in ("scores", "boxes"):
            x, y = getattr(found, name)[i, :count], getattr(expected, name)[i, :count]
            message = _in(f"torch.export must not change the {name}")
            torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3, msg=message)


def _in(expectation: str) -> Callable[[str], str]:
    return lambda text: f"{expectation}: {text}"
