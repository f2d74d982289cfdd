"""A tiny detector with random weights, ten tiny pictures, and what is found on them without shards."""

import http.server
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import msefpn
from msefpn.cli import main
from msefpn.config import load_recipe
from msefpn.models import build, save
from tests import TINY

SCORE = "0.05"


class Given(NamedTuple):
    weights: Path
    photos: Path
    """a.png to j.png."""
    found: list[dict[str, Any]]
    """Entries of predictions.json without shards, of all photos at `SCORE`."""


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("shards")
    torch.manual_seed(0)
    weights = folder / "tiny.safetensors"
    save(build(load_recipe(str(TINY)), ["thing", "other"]), weights)
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0)
    for place, name in enumerate("abcdefghij"):
        pixels = noise.integers(0, 255, (40 + place, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{name}.png")
    found = msefpn.predict(
        weights, folder / "photos", out=folder / "plain", score=float(SCORE), device="cpu", save=["json"]
    )
    assert len(found) > 20
    return Given(weights, folder / "photos", found)


@pytest.fixture
def predict(given: Given, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command: its exit code, and what it printed, errors last."""

    def run(out: object, *words: object, sources: object = None, score: str = SCORE) -> tuple[int, str]:
        first = ["predict", given.weights, *([given.photos] if sources is None else [sources])]
        more = [*words, "--score", score, "--device", "cpu", "--out", out]
        code = main([str(word) for word in (*first, *more)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def entries(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "predictions.json").read_text())
    return found


def images(out: Path) -> list[str]:
    """The images that the shards of a folder have rows for."""
    names: list[str] = pq.read_table(out / "shards").column("image").to_pylist()
    return [Path(name).name for name in names]


class Killer(http.server.ThreadingHTTPServer):
    """A server on this machine of pictures, /SHARD.png, that ends the process which asks for one.

    It finds that process by the mark in the folder of the job.
    """

    def __init__(self, pictures: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.pictures = pictures
        self.out = Path()
        """Folder of the job."""
        self.kills: dict[str, int] = {}
        """By shard, how many askers are still to be killed."""
        self.killed: list[int] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def kill(self, shard: str) -> None:
        self.kills[shard] -= 1
        self.killed.append(self.process_of(shard))
        os.kill(self.killed[-1], signal.SIGKILL)

    def process_of(self, shard: str) -> int:
        return int(json.loads((self.out / "begun" / f"{shard}.json").read_bytes())["process"])

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: who asked is dead."""


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Killer

    def do_GET(self) -> None:
        shard = self.path.removeprefix("/").removesuffix(".png")
        if self.server.kills.get(shard):
            self.server.kill(shard)
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(self.server.pictures[shard])))
        self.end_headers()
        self.wfile.write(self.server.pictures[shard])

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def killer(given: Given) -> Iterator[Killer]:
    second = ((str(shard), f"{'abcdefghij'[2 * shard + 1]}.png") for shard in range(5))
    server = Killer({shard: (given.photos / name).read_bytes() for shard, name in second})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def list_with_killers(given: Given, killer: Killer, folder: Path, *shards: int) -> Path:
    """A list of the photos, in shards of two; the second image of some shards is the killer's."""
    names = sorted(map(str, given.photos.iterdir()))
    for shard in shards:
        names[2 * shard + 1] = f"{killer.address}/{shard}.png"
    (folder / "list.txt").write_text("\n".join(names))
    return folder / "list.txt"


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal entries but for the names of files, and for what another number of threads rounds."""
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        box = pytest.approx(other["bbox"], abs=0.02)
        score = pytest.approx(other["score"], abs=2e-5)
        assert own == {**other, "file_name": own["file_name"], "bbox": box, "score": score}
