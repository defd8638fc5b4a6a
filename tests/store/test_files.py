"""Files and folders are written whole or not at all, and what the system refuses is one line that names the file."""

import copy
import errno
import hashlib
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ifsq.config import InputError
from ifsq.store import files
from ifsq.store.folders import whole_folder

FULL = "no space left on device"


@pytest.fixture
def short_files() -> Iterator[int]:
    """The system refuses files of more than these bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_checksum_is_taken_of_regular_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, told in ((tmp_path / "pipe", "no regular file"), (tmp_path, "no regular"), (tmp_path / "x", "no such")):
        with pytest.raises(InputError, match=told):
            files.sha256(path)


def test_a_text_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("one", "zwölf"):
        files.write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("good")
    with pytest.raises(FileNotFoundError), files.whole_file(tmp_path / "a") as partial:
        partial.write_text((tmp_path / "nothing").read_text())
    assert (tmp_path / "a").read_text() == "good"
    assert names(tmp_path) == ["a"]


def test_a_link_leads_where_it_led(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below/target")
    files.write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "below" / "target").read_text() == "text"


def test_files_of_safetensors_have_the_permissions_of_others(tmp_path: Path) -> None:
    with files.whole_file(tmp_path / "a.safetensors") as partial:
        save_file({"x": torch.zeros(3)}, partial)
    (tmp_path / "b").write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_does_not_become_one(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/null")
    else:
        place.mkdir()
    with pytest.raises(InputError, match=r"a: cannot be written: is (no regular file|a folder)"):
        files.write_text(place, "text")
    assert not place.is_file()


def test_two_writers_at_once_each_write_a_whole_file(tmp_path: Path) -> None:
    with files.whole_file(tmp_path / "a") as first, files.whole_file(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


def _write_all(place: Path) -> list[str]:
    """What each kind of writing says of a file that is too large for its disk."""
    big = {"x": torch.zeros(100_000)}
    told = []

    def torch_save() -> None:
        with files.whole_file(place / "file") as partial, partial.open("wb") as stream:
            torch.save(big, stream)

    def safetensors() -> None:
        with files.whole_file(place / "file") as partial:
            save_file(big, partial)

    def folder() -> None:
        with whole_folder(place / "file", "last") as partial:
            (partial / "model").write_text("x" * 100_000)

    for write in (torch_save, safetensors, folder, lambda: files.write_text(place / "file", "x" * 100_000)):
        with pytest.raises(InputError) as caught:
            write()
        told.append(str(caught.value))
        assert not names(place)
    return told


def test_a_full_disk_is_one_line(disk: Callable[[int], Path]) -> None:
    small = disk(64)
    assert set(_write_all(small)) == {f"{small / 'file'}: cannot be written: {FULL}"}


def test_a_file_beyond_the_limit_is_one_line(tmp_path: Path, short_files: int) -> None:
    assert set(_write_all(tmp_path)) == {f"{tmp_path / 'file'}: cannot be written: file too large"}


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, short_files: int) -> None:
    log = tmp_path / "log"
    for _ in range(40):
        files.append_text(log, "x" * 99 + "\n")
    with pytest.raises(InputError, match=r"log: cannot be written: file too large"):
        files.append_text(log, "x" * 199 + "\n")
    assert log.read_text() == ("x" * 99 + "\n") * 40


def test_no_room_at_the_flush_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems accept what they cannot keep, and say so when it is flushed."""
    (tmp_path / "a").write_text("good")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=f"a: cannot be written: {FULL}"):
        files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "good"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_flushed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems know no flush of a folder; of a file all do."""
    fsync = os.fsync

    def no_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    files.write_text(tmp_path / "a", "new")
    with whole_folder(tmp_path / "b", "last") as partial:
        (partial / "last").touch()
    assert names(tmp_path) == ["a", "b"]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, files.whole_file(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize("write", ["text", "folder"])
def test_bytes_are_on_the_disk_before_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """A power cut then leaves the old state or the new one: flush the file, rename it, flush the folder."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(handle: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name

    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(f"flush {name_of(handle)}"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"name {Path(b).name}"), replace(a, b)))
    if write == "text":
        files.write_text(tmp_path / "a", "x")
        assert [done[0].startswith("flush .partial_a"), *done[1:]] == [True, "name a", f"flush {tmp_path.name}"]
    else:
        with whole_folder(tmp_path / "new", "last") as partial:
            (partial / "a").write_text("x")
        assert done == ["flush a", "flush .partial_new", "name new", f"flush {tmp_path.name}"]


def test_a_new_volume_and_unfinished_files_leave_a_folder_free(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert files.is_free(out)
    (out / "lost+found").mkdir(parents=True)
    (out / ".partial_x").touch()
    assert files.is_free(out)
    (out / "a").touch()
    assert not files.is_free(out)
    assert not files.is_free(out / "a")


def test_an_error_goes_from_process_to_process() -> None:
    error = files.WriteError(Path("a"), FULL)
    assert str(copy.copy(error)) == str(error) == f"a: cannot be written: {FULL}"  # as pickle takes it apart


WRITES = re.compile(r"os\.(replace|fsync)|save_file|NamedTemporaryFile|\.write_(text|bytes)\(|open\([^)]*[\"'][wax]")


def test_nobody_else_writes(root: Path) -> None:
    """What is written elsewhere is not whole or not at all, and on a full disk a traceback."""
    for path in (root / "src" / "ifsq").rglob("*.py"):
        if path.parent.name != "store":
            found = [line for line in path.read_text().splitlines() if WRITES.search(line)]
            # of `whole_file`, and members of a zip that is one
            assert not [line for line in found if "partial.open(" not in line and "file.open(member" not in line], path
