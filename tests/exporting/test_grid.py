"""ONNX keeps no size that was traced: every neck and every detector, with `pytest --whole-grid`.

The necks' maps are compared themselves, as detections hide small differences; torch.export may well be right
where its translation to ONNX is not.
"""

import unittest.mock
from collections import namedtuple
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msefpn.config import Config
from msefpn.inference.exported import load_exported
from msefpn.inference.formats import EXPORTERS
from msefpn.inference.formats.base import describe
from msefpn.models import graph
from msefpn.models.graph import trace_onnx
from msefpn.necks import BFP, FPN, GATES, NECKS, Neck, Stack
from msefpn.plugins import known
from msefpn.structures import Proposals
from tests.exporting.test_export import copied
from tests.models.test_graph import ROWS, batch, make

openvino = pytest.importorskip("openvino")
onnxruntime = pytest.importorskip("onnxruntime")

CHANNELS, STRIDES, WIDTH = [8, 16, 16, 32], [4, 8, 16, 32], 16
UNSEEN = ((3, 192, 224, 190, 221), (1, 288, 416, 270, 401), (1, 160, 160, 131, 140))
"""Batch, padded height and width, image height and width; the traced ones are 2 x 160 x 192."""
TWO_STAGE: dict[str, Any] = {"start_level": 0, "extra_levels": "pool"}
ONE_STAGE: dict[str, Any] = {"start_level": 1, "extra_levels": "conv_c5"}
MSE_FPN: tuple[dict[str, Any], ...] = (
    *({"gate": gate} for gate in GATES),
    {"preset": "split", "combine": "cascade"},
    {"preset": "lean", "score_norm": "after"},
    {"sem": "channel", "gate_at": "lateral"},
    {"sem": "spatial", "sim": "wide"},
    {"sem": "conv", "sim": "add"},
    {"attention": "mix", "gate_at": "after"},
    {"attention": "sigmoid", "gate_at": "above"},
)
UPSAMPLE = ("bilinear", "carafe", "dysample_plus", "dysample_s_plus")
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((row, levels) for row in ROWS for levels in (TWO_STAGE, ONE_STAGE)),
    ("ac_fpn", ONE_STAGE | {"deformable": True}),
    *(("mse_fpn", TWO_STAGE | options) for options in MSE_FPN),
    *(("fpn", TWO_STAGE | {"norm": "gn", "upsample": name}) for name in UPSAMPLE),
)


@pytest.fixture(autouse=True)
def whole_grid(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--whole-grid"):
        pytest.skip("takes long: run with --whole-grid")


Maps = namedtuple("Maps", "p0 p1 p2 p3 p4")
"""A pyramid in the place of detections."""


class Pyramid(nn.Module):
    """Four strided convolutions and a neck, in the place of a detector: the graph's outputs are the maps."""

    takes_proposals = False

    def __init__(self, neck: Neck) -> None:
        super().__init__()
        self.config, self.neck = Config(), neck
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=4 if a == 3 else 2, padding=1) for a, b in pairwise([3, *CHANNELS])
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # the zero ones, too

    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Maps:
        x = images / 128 - 1
        x = x * (torch.arange(images.shape[2]) < sizes[:, :1])[:, None, :, None]
        features = []
        for conv in self.convs:
            x = conv(x).relu()
            features.append(x)
        return Maps(*self.neck(features))


def make_neck(row: str, options: dict[str, Any]) -> Neck:
    names = row.split("+")
    neck: Neck = NECKS[names[0]](CHANNELS, STRIDES, WIDTH, **options)
    if len(names) == 1:
        return neck
    assert isinstance(neck, FPN)
    return Stack([neck, BFP([WIDTH] * len(neck.out_strides), neck.out_strides, WIDTH)])


@pytest.mark.parametrize(("row", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "")
@torch.no_grad()
def test_maps_of_a_neck_are_eager(row: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(make_neck(row, options)).eval()
    file = tmp_path / "maps.onnx"
    file.write_bytes(trace_onnx(pyramid).SerializeToString())  # type: ignore[arg-type]  # in its place
    session = onnxruntime.InferenceSession(file)
    engines: list[Callable[[Any], Any]] = [lambda feed: session.run(None, feed)]
    if "deformable" not in options:  # OpenVINO has none
        compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        engines.append(lambda feed: list(compiled(feed).values()))
    for size in UNSEEN:
        images, sizes, *_ = batch("", *size)
        expected = pyramid(images, sizes)
        feed = {"images": images.numpy(), "sizes": sizes.numpy()}
        for maps in (engine(feed) for engine in engines):
            assert len(maps) == len(expected)
            for got, wanted in zip(maps, expected, strict=True):
                assert wanted.std() > 1e-3
                torch.testing.assert_close(torch.tensor(got), wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in known("detector")), ("faster_rcnn", {"roi": {"pooling": "soft"}})],
)
@torch.no_grad()
def test_detections_are_eager(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    detector, file = make(name, "fpn", **options), tmp_path / "x.onnx"
    model = trace_onnx(detector)
    with unittest.mock.patch.object(graph, "trace_onnx", side_effect=lambda _: copied(model)):
        for exporter in (EXPORTERS["openvino"], EXPORTERS["onnx"]):
            info = describe(detector, "192", "fp32", exporter.packages)
            exporter.write(detector, info, file.with_suffix(exporter.suffix), "fp32", [])
    for exported in (load_exported(file), load_exported(file.with_suffix(".xml"))):
        assert exported.takes_proposals == (name == "fast_rcnn")
        assert exported.learns_masks == (name == "mask_rcnn")
        for size in UNSEEN:
            images, sizes, *regions = batch(name, *size)
            given = [Proposals(x.boxes.float(), x.valid) for x in regions]
            found, expected = exported(images, sizes, *given), detector(images, sizes, *given)
            for i, valid in enumerate(expected.valid):
                count = int(valid.sum())
                assert count >= 5
                assert abs(int(found.valid[i].sum()) - count) <= 1
                both = slice(min(count, int(found.valid[i].sum())))
                torch.testing.assert_close(found.scores[i, both], expected.scores[i, both], atol=1e-3, rtol=0)
                same = (found.boxes[i, both] - expected.boxes[i, both]).abs().amax(dim=1) < 0.05
                assert same.float().mean() > 0.9  # two of one score may change places
                assert torch.equal(found.labels[i, both][same], expected.labels[i, both][same])
                if expected.strides is not None:  # soft pooling has none
                    assert found.strides is not None
                    assert torch.equal(found.strides[i, both][same], expected.strides[i, both][same])
                if expected.masks is not None:
                    assert found.masks is not None
                    pair = found.masks[i, both][same], expected.masks[i, both][same]
                    torch.testing.assert_close(*pair, atol=1e-3, rtol=0)
            assert torch.equal(found.num_dropped, expected.num_dropped)
