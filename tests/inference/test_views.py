"""Test-time augmentation and soft-NMS: what is merged, by hand; and what is refused in a line."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msefpn.checkpoint import DetectorInfo
from msefpn.cli import main
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.inference.exported import Exported
from msefpn.inference.formats.base import Graph
from msefpn.inference.options import DetectionOptions, View
from msefpn.inference.predictor import Predictor
from msefpn.inference.views import MergedViews, apply_options
from msefpn.models import OneStage, TwoStage, build
from msefpn.models.graph import OUTPUT_NAMES
from msefpn.models.select import Selection
from msefpn.structures import Detections

CPU = torch.device("cpu")


class Bright(nn.Module):
    """A head that finds the bright rectangle of an image; its score is what `scores` holds for the side."""

    def __init__(self, scores: dict[int, float]) -> None:
        super().__init__()
        self.scores = scores
        self.selection = Selection(0.05, 0.5, 10, 100, 0.0)

    def __call__(self, images: Tensor, sizes: Tensor, proposals: Any = None) -> Detections:
        """Detect as a whole detector does, each time a box and its copy of another class."""
        boxes, scores = torch.zeros(len(images), 2, 4), torch.zeros(len(images), 2)
        for row, (image, size) in enumerate(zip(images, sizes.tolist(), strict=True)):
            y, x = (image[0] > 127).nonzero().unbind(1)
            boxes[row] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            scores[row] = self.scores[size[1]]
        return self.selection(boxes, scores, torch.tensor([[0, 1]] * len(images)))


def scene(width: int = 128) -> NDArray[np.uint8]:
    pixels = np.zeros((64, width, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    return pixels


def merging(scores: dict[int, float], views: list[View], **changes: Any) -> MergedViews:
    detector: Any = Bright(scores)
    detector.config, detector.classes, detector.category_ids = Config(), ("a", "b"), (1, 2)
    detector.learns_masks = detector.takes_proposals = False
    chosen = detector.selection
    detector.selection = Selection(0.05, 0.5, 10, 100, 0.0, "none")
    return MergedViews(detector, views, Selection(**vars(chosen) | changes))


def detect(merged: MergedViews, images: list[NDArray[np.uint8]], score: float = 0.0) -> Any:
    return Predictor(merged.detector, (128, 64), CPU, merged)(images, score=score)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_is_brought_back(mirrored: bool) -> None:
    """Off the middle, an image of half the size, and mirrored: the box is the image's all the same."""
    for size in ((128, 64), (64, 32)):
        merged = merging({128: 0.9, 64: 0.9}, [View(size, mirrored)])
        (found,) = detect(merged, [scene()])
        np.testing.assert_allclose(found.boxes, [[16, 16, 48, 48]] * 2)
        assert sorted(found.labels.tolist()) == [0, 1]


def test_views_are_merged_within_each_class() -> None:
    """Sides of 128, 64 and 256 give the same box: NMS keeps the best of each class, 0.8."""
    views = [View((128, 64), mirrored=False), View((64, 32), mirrored=True), View((256, 128), mirrored=False)]
    found = detect(merging({128: 0.7, 64: 0.8, 256: 0.6}, views), [scene()])[0]
    np.testing.assert_allclose(found.scores, [0.8, 0.8])
    np.testing.assert_allclose(found.boxes, [[16, 16, 48, 48]] * 2, atol=0.5)
    # soft-NMS instead: the equal boxes keep nothing of their scores but for those of IoU below 1
    all_kept = detect(
        merging({128: 0.7, 64: 0.8, 256: 0.6}, views, suppression="gaussian", sigma=1.0), [scene()]
    )[0]
    assert len(all_kept.scores) == 6
    second = 0.7 * np.exp(-1.0)  # IoU 1 with the first, sigma 1
    np.testing.assert_allclose(np.sort(all_kept.scores)[::-1][:4], [0.8, 0.8, second, second], rtol=1e-3)


def test_images_of_a_batch_keep_apart() -> None:
    merged = merging({128: 0.7, 96: 0.6}, [View((128, 64), mirrored=True)])
    found = detect(merged, [scene(), scene(96)], score=0.65)
    assert [one.image_ids.tolist() for one in found] == [[0, 0], []]
    np.testing.assert_allclose(found[0].boxes[0], [16, 16, 48, 48])


def tiny(detector: str) -> Config:
    small = {"roi": {"hidden": 16}} if detector.endswith("rcnn") else {}
    small |= {"mask": {"hidden": 8}} if detector == "mask_rcnn" else {}
    options = {"neck_options": {"out_channels": 16}, "detector_options": small}
    return Config(detector, backbone="test_resnet", size="128x64", neck="fpn", **options)  # type: ignore[arg-type]


def made(detector: str) -> Any:
    torch.manual_seed(0)
    return build(tiny(detector), ["a", "b"]).eval()


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_rcnn", "retinanet"])
def test_one_view_is_the_plain_detection(name: str) -> None:
    """The image has the detector's size, so that suppression sees the same boxes."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    detector = made(name)
    if isinstance(detector, OneStage):
        head: Any = detector.head
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.1)  # so that scores differ
        nn.init.zeros_(head.classes.bias)
    plain = Predictor(detector, (128, 64), CPU)([pixels])[0]
    assert len(plain.scores) > 20
    merged = apply_options(detector, DetectionOptions(scales=("128x64",)), Path("run"), (96, 96))
    assert merged is not None
    assert merged.views == (View((128, 64), mirrored=False),)
    found = Predictor(detector, (96, 96), CPU, merged)([pixels])[0]
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, plain.boxes, atol=1e-3)
    assert found.labels.tolist() == plain.labels.tolist()
    assert (found.masks is None) == (name != "mask_rcnn")
    if plain.masks is not None and found.masks is not None:
        assert [mask["counts"] for mask in found.masks] == [mask["counts"] for mask in plain.masks]


def test_masks_are_averaged() -> None:
    """A view says 0.8 on the left half of each box; mirrored, 0.9 there, which is on the right of the image.

    The mean is (0.8 + 0) / 2 on the left and (0 + 0.9) / 2 on the right: under 0.5; with 0.15 more, over it.
    """
    seen: list[Tensor] = []
    for base, filled in ((0.0, False), (0.15, True)):
        seen.clear()
        detector = made("mask_rcnn")
        detector.roi.selection = Selection(0.05, 0.5, 5, 100, 0.0)
        merged = apply_options(detector, DetectionOptions(flip=True), Path("run"), (128, 64))

        def drawn(images: Tensor, sizes: Tensor, boxes: Tensor, labels: Tensor, base: float = base) -> Tensor:
            seen.append(boxes)
            masks = torch.full((*labels.shape, 4, 4), base)
            masks[..., :2] += 0.8 if len(seen) == 1 else 0.9
            return masks

        detector.masks_of = drawn
        pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
        found = Predictor(detector, (128, 64), CPU, merged)([pixels])[0]
        count = len(found.scores)
        assert count > 0
        np.testing.assert_allclose(seen[0][0, :count], found.boxes, atol=1e-4)
        np.testing.assert_allclose(seen[1][0, :count, 0], 128 - found.boxes[:, 2], atol=1e-4)
        masks = found.decoded_masks((64, 128))
        assert masks is not None
        assert masks.any() == filled


def test_soft_nms_of_a_detector() -> None:
    detector = made("cascade_rcnn")
    options = DetectionOptions(soft_nms="gaussian", sigma=0.3)
    assert apply_options(detector, options, Path("run"), (128, 64)) is None
    last = detector.roi.stages[-1].selection
    assert (last.suppression, last.sigma, last.max_per_image) == ("gaussian", 0.3, 100)


def test_what_a_detector_cannot() -> None:
    both = DetectionOptions(flip=True, soft_nms="linear")
    with pytest.raises(
        UserError, match=r"the run r is a fast_rcnn, whose proposals .*: leave out --soft-nms and"
    ):
        apply_options(made("fast_rcnn"), both, Path("r"), (128, 64))
    assert apply_options(made("fast_rcnn"), DetectionOptions(soft_nms="linear"), Path("r"), (1, 1)) is None
    graph = Graph(("images",), OUTPUT_NAMES[:5], lambda feed: {})
    exported = Exported(DetectorInfo(Config(), ("a",), (1,)), graph, Path("r"))
    for options, flags in ((both, "--soft-nms and --flip"), (DetectionOptions(scales=("96",)), "--scales")):
        with pytest.raises(UserError, match=f"r is an exported file, .*: leave out {flags}, or give the run"):
            apply_options(exported, options, Path("r"), (128, 64))
    plain = made("retinanet")
    cast(Any, plain).head.selection = None
    with pytest.raises(UserError, match=r"a retinanet, which has no msefpn\.models\.select\.Selection"):
        apply_options(plain, both, Path("r"), (128, 64))
    assert isinstance(made("mask_rcnn"), TwoStage)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"soft_nms": "hard"}, "unknown soft_nms 'hard': known: gaussian, linear"),
        ({"soft_nms": "gaussian", "sigma": 0}, "sigma is 0: it must be finite and above 0"),
        ({"sigma": 0.5}, r"sigma 0\.5 without --soft-nms gaussian"),
        ({"soft_nms": "linear", "sigma": 0.5}, r"sigma 0\.5 without --soft-nms gaussian"),
        ({"scales": ["big"]}, "size 'big' is not understood"),
        ({"scales": [320, "320x320"]}, "scales 320 320x320: give each size once"),
    ],
)
def test_options_that_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        DetectionOptions.given(**given)
    assert "\n" not in str(caught.value)


def test_views_of_the_options() -> None:
    assert DetectionOptions.given().views((9, 8)) == (View((9, 8), mirrored=False),)
    both = DetectionOptions.given(flip=True, scales=["100x50", 64]).views((9, 8))
    sides = [(100, 50), (100, 50), (64, 64), (64, 64)]
    assert both == tuple(map(View, sides, (False, True) * 2))


def test_views_are_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several views cannot be compiled: leave out --compile, or --flip"):
        Predictor.open(tmp_path, compile=True, options=DetectionOptions(flip=True))


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_commands_refuse_in_a_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [command, str(tmp_path)] + ["x.jpg"] * (command == "predict")
    assert main([*given, "--scales", "320", "640", "--size", "320"]) == 2
    first = capsys.readouterr().err
    assert first.startswith("error: ")
    assert first.count("\n") == 1
    assert main([*given, "--soft-nms", "gaussian", "--sigma", "-1"]) == 2
    assert capsys.readouterr().err == "error: sigma is -1.0: it must be finite and above 0\n"
