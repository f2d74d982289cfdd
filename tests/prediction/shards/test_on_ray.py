"""Shards by Ray Data on this machine: two actors, one killed in the middle; what cannot be is one line."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from msefpn.prediction.shards import on_ray
from tests.prediction.shards.conftest import Given, Killer, entries, list_with_killers, places

Predict = Callable[..., tuple[int, str]]


def test_a_cluster_that_does_not_answer_is_one_line(predict: Predict, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code, said = predict(tmp_path / "out", "--ray", "--ray-address", "127.0.0.1:9")
    assert code == 2
    assert "no Ray cluster answers at 127.0.0.1:9 (Connection refused): check --ray-address" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray of this machine with two CPUs, as a command starts one; skip where it is not installed."""
    pytest.importorskip("ray")
    with on_ray.ray_at(on_ray.import_ray(), None, 2):
        yield


@pytest.mark.usefixtures("ray")
def test_a_killed_actor_is_replaced_and_nothing_is_lost(
    given: Given, killer: Killer, predict: Predict, tmp_path: Path
) -> None:
    photos = list_with_killers(given, killer, tmp_path, 1)
    killer.out, killer.kills = tmp_path / "out", {"1": 1}
    code, said = predict(killer.out, "--ray", "--jobs", 2, "--shard-size", 2, "--save", "json", sources=photos)
    assert code == 0, said
    assert len(killer.killed) == 1
    assert "1 process was lost: others made their shards" in said
    assert places(entries(killer.out)) == places(given.found)


@pytest.mark.usefixtures("ray")
def test_more_than_the_cluster_has_is_refused(predict: Predict, tmp_path: Path) -> None:
    code, said = predict(tmp_path / "out", "--ray", "--jobs", 3)
    assert code == 2
    assert "jobs 3: the Ray cluster has 2 CPUs, one for each detector: give fewer" in said
    assert not (tmp_path / "out").exists()
