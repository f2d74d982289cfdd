"""Prediction in shards: what one without finds, what is there is kept, what is not whole is made again."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import msefpn
from msefpn import remote
from msefpn.errors import UserError
from msefpn.prediction.shards import work
from msefpn.prediction.shards.table import decode_shard
from msefpn.runs.console import Bar
from tests.faults.disk import FullDisk, watching
from tests.prediction.shards.conftest import SCORE, Given, entries, images

Predict = Callable[..., tuple[int, str]]
JOBS = ("--jobs", 1, "--shard-size", 4)


def test_finds_what_a_prediction_without_shards_does(given: Given, predict: Predict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = predict(out, *JOBS, "--save", "json", "parquet")
    assert code == 0, said
    assert f"{len(given.found)} objects in 10 images" in said
    assert "images/s" in said
    assert entries(out) == given.found
    assert sorted(path.name for path in out.iterdir()) == ["job.json", "predictions.json", "shards"]
    shards = sorted(path.name for path in (out / "shards").iterdir())
    assert shards == ["shard-000000.parquet", "shard-000001.parquet", "shard-000002.parquet"]
    table = pq.read_table(out / "shards")
    assert table.column("image").to_pylist() == [str(given.photos / f"{name}.png") for name in "abcdefghij"]
    row = table.to_pylist()[3]
    own = [entry for entry in given.found if entry["image_id"] == 3]
    assert (row["height"], row["width"]) == (43, 64)
    np.testing.assert_allclose(row["scores"], [entry["score"] for entry in own], atol=1e-5)
    sides = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)]
    np.testing.assert_allclose(row["boxes"], sides, atol=0.02)
    assert [label + 1 for label in row["labels"]] == [entry["category_id"] for entry in own]


@pytest.fixture(scope="module")
def done(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of three shards; tests copy what they change."""
    out = tmp_path_factory.mktemp("done") / "out"
    files = msefpn.predict(
        given.weights, given.photos, out=out, score=float(SCORE), device="cpu", jobs=1, shard_size=4
    )
    assert [(one["images"], one["unreadable"]) for one in files] == [(4, 0), (4, 0), (2, 0)]
    assert sum(one["objects"] for one in files) == len(given.found)
    return out


def copied(done: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    for path in (done / "job.json", *(done / "shards").iterdir()):
        (out / path.relative_to(done)).write_bytes(path.read_bytes())
    return out


def test_whole_shards_are_kept_and_damaged_ones_made_again(
    done: Path, given: Given, predict: Predict, tmp_path: Path
) -> None:
    out = copied(done, tmp_path)
    shards = sorted((out / "shards").iterdir())
    damaged = bytearray(shards[0].read_bytes())
    damaged[60] ^= 255  # inside a page: the footer is whole
    shards[0].write_bytes(damaged)
    shards[2].write_bytes(shards[2].read_bytes()[:-9])
    (out / "shards" / ".shard-000001.parquet.12ab.part").write_bytes(b"of a writer that died")
    kept = shards[1].stat().st_mtime_ns
    code, said = predict(out, "--jobs", 1, "--save", "json")
    assert code == 0, said
    assert "1 of 3 shards are whole" in said
    assert said.count(": made again") == 2
    assert shards[1].stat().st_mtime_ns == kept
    assert entries(out) == given.found
    assert not list((out / "shards").glob(".*"))
    code, said = predict(out, "--jobs", 1, "--save", "json")
    assert (code, "3 of 3 shards are whole" in said, "images/s" in said) == (0, True, False)


def test_a_job_that_is_interrupted_goes_on(
    done: Path, given: Given, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(bar: Bar, count: int) -> None:
        raise KeyboardInterrupt

    out = copied(done, tmp_path)
    for path in sorted((out / "shards").iterdir())[1:]:
        path.write_bytes(path.read_bytes()[:-9])
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "seen", interrupt)
        code, said = predict(out, *JOBS, "--save", "json")
    assert code == 130
    assert "interrupted: 2 of 3 shards are whole" in said  # one found whole, one made
    code, said = predict(out, "--jobs", 1, "--save", "json")
    assert "2 of 3 shards are whole" in said
    assert entries(out) == given.found


def test_another_model_or_other_options_are_refused(
    done: Path, given: Given, predict: Predict, tmp_path: Path
) -> None:
    out = copied(done, tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tmp_path / "other.safetensors"
    content = bytearray(given.weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    for words, options, message in (
        (["--jobs", 1], {"score": "0.2"}, "with other options (score 0.05, now 0.2)"),
        (["--jobs", 1, "--flip"], {}, "with other options (flip False, now True)"),
        (["--jobs", 1], {"sources": given.photos / "a.png"}, "of other images (10, now 1)"),
        (["--jobs", 1, "--shard-size", 5], {}, "has shards of 4 images, now 5"),
        ([], {}, "is not empty"),
    ):
        code, said = predict(out, *words, **options)
        assert (code, said.count("\n")) == (2, 1)
        assert message in said
    with pytest.raises(UserError, match="other weights than"):
        msefpn.predict(other, given.photos, out=out, score=float(SCORE), device="cpu", jobs=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    (out / "job.json").write_text("{")
    shard = out / "shards" / "shard-000001.parquet"
    shard.write_bytes((out / "shards" / "shard-000002.parquet").read_bytes())
    code, said = predict(out, *JOBS)
    assert code == 2
    assert "job.json is damaged: written again" in said
    assert "shard-000001.parquet' was made with other weights, options or images" in said
    shard.rename(out / "shards" / "mine.parquet")
    code, said = predict(out, *JOBS)
    assert "mine.parquet' is not a shard of this job" in said


def test_unreadable_images_are_listed_and_a_fixed_one_is_read(
    given: Given, predict: Predict, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in "abc":
        (photos / f"{name}.png").write_bytes((given.photos / f"{name}.png").read_bytes())
    (photos / "=d.png").write_bytes(b"no image")
    Image.new("I;16", (9, 9)).save(photos / "e.png")
    names = [*(f"{name}.png" for name in "ab"), "=d.png", "", "gone.png", "c.png", "e.png", "a.png"]
    (photos / "list.txt").write_text("\n".join(names))
    words = ("--jobs", 1, "--shard-size", 2, "--save", "json", "parquet")
    code, said = predict(out, *words, sources=photos / "list.txt")
    assert code == 0, said
    assert "in 4 images, 2 cannot be read (unreadable.csv)" in said
    rows = (out / "unreadable.csv").read_text().splitlines()
    assert rows == [
        "image,reason",
        f"{photos / '=d.png'},no image format that can be read",
        f"{photos / 'gone.png'},No such file or directory",
    ]
    assert "16-bit values" in (out / "notes.csv").read_text()
    assert images(out) == ["a.png", "b.png", "c.png", "e.png"]
    assert {entry["image_id"] for entry in entries(out)} <= {0, 1, 4, 5}

    (photos / "gone.png").write_bytes((given.photos / "d.png").read_bytes())
    code, said = predict(out, *words, sources=photos / "list.txt")
    assert "shard-000001.parquet has images that have changed since: made again" in said
    assert images(out) == ["a.png", "b.png", "gone.png", "c.png", "e.png"]

    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no")
    code, said = predict(tmp_path / "none", "--jobs", 1, sources=tmp_path / "bad")
    assert code == 2
    assert "none of the 1 images can be read" in said


def test_a_full_disk_or_a_folder_that_is_gone_is_one_line(
    given: Given, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    seen = FullDisk(1_000)
    with watching(whole, seen):
        assert predict(whole, *JOBS)[0] == 0
    for number in (0, seen.seen // 2, seen.seen - 2):
        out = tmp_path / str(number)
        with watching(out, FullDisk(number)):
            code, said = predict(out, *JOBS)
        assert code == 2
        assert "No space left on device: free some space, " in said.splitlines()[-1]
        assert not out.exists() or any((out / "shards").iterdir()), "what is kept is whole"
    assert not list(out.rglob("*.part"))
    code, said = predict(out, *JOBS, "--save", "json")
    assert "shards are whole" in said
    assert entries(out) == given.found

    def vanish(sources: object) -> int:
        out.rename(tmp_path / "moved")
        return 0

    (out / "shards" / "shard-000001.parquet").unlink()
    monkeypatch.setattr(work, "mark_states", vanish)
    code, said = predict(out, *JOBS)
    assert code == 2
    assert "is gone" in said.splitlines()[-1]


def test_addresses_hold_images_and_results(given: Given, predict: Predict, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe({f"/in/{path.name}": path.read_bytes() for path in sorted(given.photos.iterdir())[:3]})
        memory.pipe("/in/notes.md", b"-")
        code, said = predict("memory://out", *JOBS, "--save", "json", sources="memory://in")
        assert code == 0, said
        found = json.loads(memory.cat("/out/predictions.json"))
        moved = str(given.photos), "memory:///in"
        first = [entry for entry in given.found if entry["image_id"] < 3]
        assert found == [{**entry, "file_name": entry["file_name"].replace(*moved)} for entry in first]
        table, footer = decode_shard(memory.cat("/out/shards/shard-000000.parquet"))
        assert (table.num_rows, footer.unreadable) == (3, ())
        code, said = predict("memory://out", *JOBS, sources="memory://in")
        assert "1 of 1 shards are whole" in said
        code, said = predict("memory://out", *JOBS, sources="memory://in/*a.png")
        assert "of other images (3, now 1)" in said
        code, said = predict("memory://out", "--jobs", 2, sources="memory://in")
        assert "is in the memory of this process" in said
    finally:
        memory.rm("/in", recursive=True)
        memory.rm("/out", recursive=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "jobs is 0: it must be finite and at least 1"),
        (["--jobs", "1", "--save", "pictures"], "pictures cannot be written of shards"),
        (["--save", "parquet"], "parquet is written in shards: add --jobs or --ray"),
        (["--jobs", "1", "--frames", "3"], "frames is for videos and cameras"),
        (["--jobs", "1", "--proposals", "p.json"], "proposals are read for all images at once"),
        (["--jobs", "1", "--shard-size", "3", "--batch", "2"], "shard-size 3 is not a multiple of batch 2"),
        (["--shard-size", "3"], "shard-size 3 without shards"),
        (["--jobs", "1", "--ray-address", "auto"], "ray-address auto without --ray"),
        (["--jobs", "1", "--classes", "thin"], "unknown class 'thin'"),
        (["--jobs", "1", "--out", "webhdfs://host/x"], "cannot be used"),
        (["--jobs", "1", "--out", "file:///x::http://host/y"], "has '::' in it"),
        (["--out", "s3://bucket/x"], "only shards are written to an address"),
    ],
)
def test_what_shards_cannot_do_is_refused_and_nothing_written(
    words: list[str], message: str, predict: Predict, tmp_path: Path
) -> None:
    code, said = predict(tmp_path / "out", *words) if "--out" not in words else _without_out(predict, words)
    assert (code, said.count("\n")) == (2, 1), said
    assert message in said
    assert not (tmp_path / "out").exists()


def _without_out(predict: Predict, words: list[str]) -> tuple[int, str]:
    place = words.index("--out")
    return predict(words[place + 1], *words[:place])


def test_videos_and_loaded_detectors_are_refused(given: Given, predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").touch()
    code, said = predict(tmp_path / "out", "--jobs", 1, sources=tmp_path / "film.mp4")
    assert (code, "film.mp4' has frames, and shards hold images" in said) == (2, True)
    detector = msefpn.load(given.weights, device="cpu")
    with pytest.raises(UserError, match="each process loads its own"):
        msefpn.predict(detector, given.photos, out=tmp_path / "out", jobs=2)


def test_a_missing_package_is_named(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, said = predict(tmp_path / "out", "--jobs", 1)
    assert (code, said) == (
        2,
        'error: predicting in shards needs the extra: pip install "msefpn[parquet]"\n',
    )
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    code, said = predict(tmp_path / "out", "--ray")
    assert (code, said) == (2, 'error: --ray needs the extra: pip install "msefpn[ray]"\n')
    assert not (tmp_path / "out").exists()


def test_a_file_system_that_does_not_answer_stops_the_job(
    given: Given, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image there is not listed as unreadable: the job would never look at it again."""
    place = f"file://{given.photos}"
    kind_at, asked = remote.kind_at, list[str]()

    def fail(address: str) -> str | None:
        asked.append(address)
        raise UserError(f"'{address}' cannot be read: no route to host: check the network")

    def lost(address: str) -> str | None:
        return None if address in asked else kind_at(address)

    def silent(address: str) -> str | None:
        return fail(address) if address in asked else kind_at(address)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "open_address", fail)
        patch.setattr(remote, "kind_at", lost)
        code, said = predict(tmp_path / "lost", "--jobs", 1, sources=place)
        assert "none of the 10 images can be read" in said
        patch.setattr(remote, "kind_at", silent)
        code, said = predict(tmp_path / "out", "--jobs", 1, sources=place)
    assert code == 2
    assert "no route to host: check the network; then run the same command again" in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert predict(tmp_path / "out", "--jobs", 1, sources=place)[0] == 0


def test_a_full_address_stops_the_job_and_keeps_what_is_whole(
    given: Given, predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"file://{tmp_path}/out"
    copy_to, copied_to = remote.copy_to, list[str]()

    def fill_up(path: Path, address: str) -> None:
        copied_to.append(address)
        if address.endswith("shard-000001.parquet"):
            raise UserError(f"'{address}' cannot be written: No space left on device: free some space there")
        copy_to(path, address)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "copy_to", fill_up)
        code, said = predict(out, *JOBS, "--save", "json")
    assert code == 2
    assert "free some space there; then run the same command again: whole shards are kept" in said
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["shard-000000.parquet"]
    code, said = predict(out, "--jobs", 1, "--save", "json")
    assert "1 of 3 shards are whole" in said
    assert entries(tmp_path / "out") == given.found
