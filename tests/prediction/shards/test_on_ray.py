"""Shards by Ray Data on this machine: two actors, one killed in the middle; what cannot be is one line."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.prediction.shards import on_ray, pipes, run
from tests.prediction.shards.conftest import Given, Killer, assert_same, entries, list_with_killers

Predict = Callable[..., tuple[int, str]]


class Cluster:
    """The resources of a Ray."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


def test_actors_that_the_cluster_has_no_room_for_are_refused() -> None:
    assert on_ray._pool_size(Cluster(CPU=8.0, GPU=2.0), None, 2) == 2
    assert on_ray._pool_size(Cluster(CPU=8.0), 3, 0) == 3
    with pytest.raises(UserError, match="jobs 9: the Ray cluster has 8 CPUs, one for each detector"):
        on_ray._pool_size(Cluster(CPU=8.0), 9, 0)
    with pytest.raises(UserError, match="jobs 3: the Ray cluster has 2 GPUs and 8 CPUs"):
        on_ray._pool_size(Cluster(CPU=8.0, GPU=2.0), 3, 2)
    with pytest.raises(UserError, match="jobs 1: the Ray cluster has 0 CPUs"):
        on_ray._pool_size(Cluster(), None, 0)


def test_a_ray_that_ends_is_one_line(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(module: str, *words: str, **more: Any) -> pipes.Asked:
        return pipes.start("platform", variables={})  # it answers with something else, and ends

    monkeypatch.setattr(run, "check_ray", lambda: None)
    monkeypatch.setattr(on_ray, "start", start)
    monkeypatch.setattr(on_ray, "answer", lambda process: pipes.answer(process) if process.wait() else None)
    code, said = predict(tmp_path / "out", "--ray")
    assert (code, said.count("\n")) == (2, 1)
    assert "Ray has ended before all shards were made (code 0)" in said
    assert not (tmp_path / "out").exists()


def test_sockets_have_short_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, own in (("/tmp", {}), ("/tmp/" + 40 * "x", {"_temp_dir": "/tmp/ray"})):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert on_ray._short_folder() == own


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(UserError, match=r"answers at ray://127.0.0.1:9 \(Connection refused\)"):
        on_ray._check_reachable("ray://127.0.0.1:9")
    on_ray._check_reachable("auto")


def test_a_killed_actor_is_replaced_and_nothing_is_lost(
    given: Given, killer: Killer, predict: Predict, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--whole-grid"):
        pytest.skip("Ray takes long to start: --whole-grid")
    pytest.importorskip("ray")
    photos = list_with_killers(given, killer, tmp_path, 1)
    killer.out, killer.kills = tmp_path / "out", {"1": 1}
    words = ("--ray", "--jobs", 2, "--shard-size", 2, "--save", "json")
    code, said = predict(killer.out, *words, sources=photos)
    assert code == 0, said
    assert len(killer.killed) == 1
    assert "1 process was lost: others made their shards" in said
    assert_same(entries(killer.out), given.found)
