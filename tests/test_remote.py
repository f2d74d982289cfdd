"""Files at addresses: on a server of S3's protocol on the loopback, in memory and in a folder."""

import contextlib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import msefpn
from msefpn import remote
from msefpn.cli import main
from msefpn.errors import UserError
from msefpn.places import as_address, is_address
from msefpn.training import lightning as lit
from tests.faults import runs

SECRET = "a-secret"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a server that lives as long as this module."""
    server = importlib.import_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    _, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(b"new")
    return tmp_path / "source"


def check_files(base: str, source: Path) -> None:
    """Write, list, read, replace, rename and remove."""
    file = remote.below(base, "run", "best.bin")
    assert remote.kind_at(file) is None
    remote.copy_to(source, file)
    with remote.writing_to(remote.below(base, "run", "sub", "other.txt")) as path:
        path.write_text("other")
    entries = remote.files_below(f"{base}/run/")
    assert [remote.address_name(entry.address) for entry in entries] == ["best.bin", "other.txt"]
    assert [entry.size for entry in entries] == [3, 5]
    assert remote.read_address(entries[1].address, 5) == b"other"
    assert [one.size for one in remote.files_matching(f"{base}/run/*.bin")] == [3]
    source.write_bytes(b"newer")
    remote.copy_to(source, file)
    remote.copy_from(file, source.with_name("copy"))
    assert source.with_name("copy").read_bytes() == b"newer"
    remote.rename_at(file, remote.below(base, "run", "moved.bin"))
    assert (remote.kind_at(file), remote.kind_at(f"{base}/run")) == (None, "directory")
    remote.remove_at(remote.below(base, "run", "moved.bin"))
    remote.remove_at(remote.below(base, "run", "moved.bin"))
    assert len(remote.files_below(f"{base}/run")) == 1
    for missing, act in (
        (file, remote.read_address),
        (f"{base}/none", lambda place, _: remote.files_below(place)),
    ):
        with pytest.raises(UserError, match=r"^'\S+' cannot be read: it does not exist: check the address$"):
            act(missing, 9)
    with pytest.raises(UserError, match="has more than 0 MB"):
        remote.read_address(entries[1].address, 3)


def test_files_on_a_server(bucket: str, source: Path) -> None:
    check_files(bucket, source)
    for act in (
        lambda: remote.copy_to(source, "s3://none/run/x"),
        lambda: remote.files_below("s3://none/run"),
    ):
        with pytest.raises(UserError, match=r"^'s3://none/\S+' cannot be \w+: \D+ does not exist: check"):
            act()


def test_files_in_memory_and_in_a_folder(source: Path, tmp_path: Path) -> None:
    check_files("memory://remote", source)
    source.write_bytes(b"new")
    check_files(f"file://{tmp_path}/remote", source)
    with pytest.raises(UserError, match="it is not a regular file"):
        remote.copy_to(source, f"file://{tmp_path}/remote/run")


def test_an_upload_that_fails_leaves_what_was_there(
    source: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base, fail in (("memory://cut", _fill_memory), (f"{bucket}/cut", _cut_upload_in_parts)):
        file = f"{base}/run/x"
        source.write_bytes(b"new")
        remote.copy_to(source, file)
        with contextlib.suppress(RuntimeError), remote.writing_to(file) as path:
            path.write_bytes(b"half")
            raise RuntimeError
        source.write_bytes(bytes(11 << 20))
        fail(monkeypatch)
        with pytest.raises(UserError, match="No space left on device: free some space there, or name"):
            remote.copy_to(source, file)
        assert [entry.size for entry in remote.files_below(f"{base}/run")] == [3]


def _fill_memory(patch: pytest.MonkeyPatch) -> None:
    def put(system: MemoryFileSystem, local: str, path: str) -> None:
        system.pipe_file(path, b"h")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(MemoryFileSystem, "put_file", put)


def _cut_upload_in_parts(patch: pytest.MonkeyPatch) -> None:
    """Let the second part of an upload in parts of 5 MB fail."""
    core = importlib.import_module("s3fs.core")
    call = core.S3FileSystem._call_s3

    async def failing(system: Any, method: str, *args: Any, **options: Any) -> Any:
        if method == "upload_part" and options["PartNumber"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await call(system, method, *args, **options)

    patch.setattr(core.S3FileSystem, "_call_s3", failing)
    patch.setattr(core, "calculate_chunksize", lambda *_, **__: 5 << 20)


def test_a_training_on_a_server(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.script_aps(monkeypatch)
    data, out = runs.draw_data(tmp_path / "data"), f"{bucket}/trained"
    command = [*runs.command(data, Path("run"))[:-1], out]
    assert main([*command, "--steps", "1"]) == 0
    assert main(["train", "--resume", "--out", out, "--epochs", "2"]) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out
    assert main(["predict", out, str(data / "val"), "--out", "found", "--save", "json"]) == 0
    assert (tmp_path / "found" / "predictions.json").is_file()
    assert msefpn.evaluate(Path(out), workers=0, device="cpu")["AP"] >= 0
    assert (tmp_path / "evaluate-1" / "predictions.json").is_file()
    assert not (tmp_path / "runs").exists()

    def gone(*_: Any) -> None:
        fsspec.filesystem("s3").rm(bucket, recursive=True)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(lit.Training, "on_train_epoch_start", gone)
        assert main(["train", "--resume", "--out", out, "--epochs", "3"]) == 2
    (copy,) = (tmp_path / "runs").iterdir()
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert (
        "cannot be written: bucket or folder does not exist: check the address; the run is whole in" in line
    )
    assert line.endswith(f"'runs/{copy.name}': resume it there")
    assert (copy / "best.safetensors").is_file()


def test_what_is_an_address() -> None:
    assert as_address(Path("s3://a/b")) == "s3://a/b"
    assert as_address(Path("file:///a/b")) == "file:///a/b"
    assert (as_address(Path("runs/a")), as_address(None)) == (None, None)
    assert all(map(is_address, ("s3://a/b", "gs://a", "memory://", "file:///a", "s4://a/b")))
    others = ("http://a/b", "hf://a/b", "rtsp://a", "C:/a", "runs/a", Path("s3://a"), 0, None)
    assert not any(map(is_address, others))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s4://bucket/run", r"'s4://bucket/run' is of an unknown kind: known are s3://, gs://"),
        ("oss://bucket/run", "'oss://bucket/run' needs another package: .*ossfs"),
        ("gs://bucket/run", r"'gs://bucket/run' needs the extra: pip install \"msefpn\[remote\]\""),
        ("sftp://me:hidden@host/run", r"'sftp://me:\*\*\*@host/run' needs another package"),
    ],
)
def test_addresses_that_cannot_be_used(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gcsfs", "ossfs", "paramiko"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"^{says}"):
        remote.check_address(address)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("Access Denied"), "Access Denied: check the rights, and the credentials"),
        (type("NoCredentialsError", (Exception,), {})("none found"), "none found: check the rights"),
        (TimeoutError(), "TimeoutError: check the network and the endpoint, then try again"),
        (
            OSError(errno.EIO, "https://h?sig=hidden is\nbroken"),
            r"\[Errno 5\] https://h\?\*\*\* is broken",
        ),
    ],
)
def test_what_file_systems_raise_is_told_in_a_line(
    error: Exception, says: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    monkeypatch.setattr(MemoryFileSystem, "get_file", fail)
    with pytest.raises(UserError, match=f"^'memory://told/x' cannot be written: {says}"):
        remote.copy_to(source, "memory://told/x")
    with pytest.raises(UserError, match=f"^'memory://told/x' cannot be read: {says}"):
        remote.copy_from("memory://told/x", source)
    assert not source.exists()
