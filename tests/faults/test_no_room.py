"""A full disk, a read-only folder, memory that runs out: one line that says what to do, and no work lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import killable
import pytest
from jobs import JOBS, content, write_data

for package in ("pandas", "pyarrow", "matplotlib", "rich", "safetensors", "jsonargparse"):
    pytest.importorskip(package)

_QUICK = [job for job in JOBS if job.name in ("simulate", "simulate-official", "prepare")]
_LONG = [job for job in JOBS if job.name in ("train", "pretrain", "evaluate")]
_TRAIN = next(job for job in JOBS if job.name == "train")
ROOM = 128 << 20
Mount = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def mount(tmp_path) -> Iterator[Mount]:
    """Mounts an empty file system in memory, and skips the test if that is not allowed."""
    mounted: list[Path] = []

    def mount(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"mounting is refused: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def used(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*"))


def fill(disk: Path, count: int) -> None:
    """Fill some bytes of a disk with another file."""
    with (disk / "other").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(count, 1))


def line(log: Path) -> str:
    """Return the only line that a command printed."""
    text = log.read_text()
    log.unlink()
    assert re.fullmatch(r"simmst: [^\n]+\n", text), text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("job", _QUICK, ids=lambda job: job.name)
def test_a_full_disk_loses_nothing_that_was_finished(job, data, tmp_path, mount):
    log = tmp_path / "log"
    assert killable.finish(job.arguments(data, tmp_path / "whole"), log) == 0
    wanted = content(tmp_path / "whole")
    size = 90 << 20 if job.name == "prepare" else used(tmp_path / "whole")  # finished days cover the whole grid
    disk = mount("disk", f"size={ROOM}")
    full = 0
    for part in (0.05, 0.4, 0.8, 0.99, None):
        (disk / "other").unlink(missing_ok=True)
        if part is not None:
            fill(disk, ROOM - used(disk) - int(part * size) // 4096 * 4096)
        log.unlink(missing_ok=True)
        status = killable.finish(job.arguments(data, disk / "out"), log)
        assert status == (0 if part is None else status), log.read_text()
        if status:
            full += 1
            assert status == 2
            assert re.match(r"simmst: the disk is full \(.*\); make room; run the same command again", line(log))
            content(disk / "out")
    assert full >= 2
    assert content(disk / "out") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("job", _LONG, ids=lambda job: job.name)
def test_long_work_whose_disk_is_full_resumes_when_there_is_room(job, data, tmp_path, mount):
    disk = mount("disk", f"size={ROOM}")
    log = tmp_path / "log"
    assert killable.finish(job.arguments(data, tmp_path / "whole"), log) == 0, log.read_text()
    log.unlink()
    for part in (0.1, 0.6):
        fill(disk, ROOM - used(disk) - int(part * used(tmp_path / "whole")) // 4096 * 4096)
        assert killable.finish(job.arguments(data, disk / "out"), log) == 2, log.read_text()
        assert re.match(r"simmst: the disk is full \(.*\); make room; run the same command again", line(log))
        content(disk / "out")
        (disk / "other").unlink()
    assert killable.finish(job.arguments(data, disk / "out"), log) == 0, log.read_text()
    assert content(disk / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("job", [job for job in JOBS if job.ranks == 1], ids=lambda job: job.name)
def test_a_read_only_folder_is_named_in_a_line(job, data, tmp_path, mount):
    out = mount("locked", "ro") / "out"
    assert killable.finish(job.arguments(data, out), tmp_path / "log") == 2
    said = line(tmp_path / "log")
    assert "Read-only file system" in said
    assert str(out.parent) in said


def test_memory_that_ends_within_a_batch_names_the_setting(data, tmp_path):
    larger = {"network.width": 512, "network.feedforward": 2048, "training.batch_size": 512}
    flags = [word for name, value in larger.items() for word in (f"--forecaster.{name}", str(value))]
    arguments = [*_TRAIN.arguments(data, tmp_path / "run"), "--forecaster.training.samples_per_epoch", "512", *flags]
    assert killable.finish(arguments, tmp_path / "log", memory=1 << 29) == 2
    said = line(tmp_path / "log")
    assert said.startswith("simmst: out of memory")
    assert "take a smaller batch_size" in said
