"""What detectors cost."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import msefpn
from msefpn.ablation.cost import Workload, counts
from msefpn.ablation.rows import row_configs
from msefpn.config import parse_size
from msefpn.errors import UserError
from msefpn.metrics.cost import count_parameters, count_work
from msefpn.necks import NECKS
from tests import TINY


def counted(names: list[str], size: str) -> list[dict[str, Any]]:
    """Count alone, without times and memory: one prediction of each row."""
    workload = Workload(classes=80, batch=1, size=parse_size(size), device="cpu")
    rows = row_configs(names, None, "faster_rcnn_r50_mse_fpn_1x")
    return [counts(workload.prepare(config)) for config in rows.values()]


def test_published_cost_of_faster_rcnn() -> None:
    (fpn,) = counted(["fpn"], "1280x800")
    assert fpn["macs"]["all"] / 1e9 == pytest.approx(206.3, abs=0.1)
    assert fpn["trainable"] / 1e6 == pytest.approx(41.53, abs=0.01)
    channels, strides, sides = [256, 512, 1024, 2048], [4, 8, 16, 32], (800, 1280)
    with torch.device("meta"):  # to count takes shapes alone
        necks = torch.nn.ModuleDict(
            {name: NECKS[name](channels, strides, 256, extra_levels="pool") for name in ("fpn", "mse_fpn")}
        )
        maps = [torch.empty(1, c, *(x // s for x in sides)) for c, s in zip(channels, strides, strict=True)]
    macs = {
        name: work.macs for name, work in count_work(necks, lambda: [x(maps) for x in necks.values()]).items()
    }
    assert macs["fpn"] == fpn["macs"]["neck"]
    assert (macs["mse_fpn"] - macs["fpn"]) / 1e9 == pytest.approx(64.18 - 58.0, abs=0.01)
    parameters = {name: count_parameters(neck)[0] for name, neck in necks.items()}
    assert parameters == {"fpn": 3_344_384, "mse_fpn": 28_885_088}


@pytest.mark.usefixtures("warm_processes")
def test_a_table_holds_counts_times_and_peaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, wide = tmp_path / "cost.json", tmp_path / "wide.yaml"
    wide.write_text(
        f"parent: {TINY}\ndetector_options: {{roi: {{hidden: 1024}}}}\nneck_options: {{out_channels: 256}}\n"
    )
    names = [str(TINY), str(wide)]
    tiny, large = msefpn.cost(names, size="160x96", rounds=1, out=out)
    for row, own in zip((tiny, large), counted(names, "160x96"), strict=True):
        assert own == {key: row[key] for key in own}
    assert [tiny["row"], large["row"]] == names
    assert tiny["ratio"] == 1 < large["ratio"]
    weights = 4 * (large["parameters"] - tiny["parameters"])
    assert weights > 50e6
    assert 0 < tiny["peak_bytes"] < large["peak_bytes"] - weights  # alone
    assert json.loads(out.read_text(encoding="utf-8")) == [tiny, large]
    told = capsys.readouterr().out
    assert "medians of 1" in told
    assert re.search(r"load \d+\.\d on \d+ cores", told)


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        (["fpm"], {}, "unknown neck or recipe 'fpm': did you mean 'fpn'"),
        (["bfp"], {}, "write fpn\\+bfp"),
        (["fpn"], {"rounds": 0}, "rounds is 0"),
        (["fpn"], {"classes": 0}, "classes is 0"),
        (["fpn"], {"out": TINY}, "is there already"),
        (["fpn"], {"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_mistakes(names: list[str], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        msefpn.cost(names, recipe=TINY, size=64, **options)


def test_a_measuring_process_that_dies_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no more\n")

    monkeypatch.setattr(subprocess, "run", died)
    with pytest.raises(UserError, match="measures peak memory failed: MemoryError: no more; free some"):
        msefpn.cost([str(TINY)], size="64x64", rounds=1)


def test_a_row_keeps_what_the_recipe_says() -> None:
    rows = row_configs(["pafpn", "small_data"], "small_data", "quickstart", backbone="resnet18")
    assert [(row.neck, row.backbone) for row in rows.values()] == [
        ("pafpn", "resnet18"),
        ("fpn", "resnet18"),
    ]
    assert rows["pafpn"].neck_options == {"out_channels": 128}
