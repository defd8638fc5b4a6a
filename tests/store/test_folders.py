"""Folders appear whole or not at all, wherever they are asked for, and one process at a time."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ifsq.config import InputError
from ifsq.store.folders import whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep" / "new", "last") as partial:
        (partial / "last").write_text("x")
        (partial / "below").mkdir()
        assert not (tmp_path / "deep" / "new").exists()
    assert names(tmp_path / "deep") == ["new"]
    assert names(tmp_path / "deep" / "new") == ["below", "last"]


def test_a_folder_that_is_there_stays_and_is_never_of_two_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume cannot be renamed, and the folder in which somebody stands should not be."""
    out = tmp_path / "out"
    out.mkdir()
    number = out.stat().st_ino
    for text in ("old", "new"):
        with whole_folder(out, "last") as partial:
            for name in ("last", "a", "z"):
                (partial / name).write_text(text)
        assert names(out) == ["a", "last", "z"]
        assert (out / "z").read_text() == text
    assert out.stat().st_ino == number

    replace = os.replace

    def stopped(a: Path, b: Path) -> None:
        if b.name == "z":
            raise KeyboardInterrupt
        replace(a, b)

    def write() -> None:
        with whole_folder(out, "last") as partial:
            for name in ("last", "a", "z"):
                (partial / name).write_text("third")

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(out) == ["a", "z"]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("made")
    for name, target in (("link", "real"), ("dangling", "made")):
        with whole_folder(tmp_path / name, "last") as partial:
            (partial / "last").write_text("x")
        assert (tmp_path / name).is_symlink()
        assert names(tmp_path / target) == ["last"]


def test_a_second_process_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    for there in (False, True):
        out = tmp_path / str(there)
        if there:
            out.mkdir()
        with whole_folder(out, "last") as partial:
            (partial / "last").write_text("first")
            with pytest.raises(InputError, match=f"{there}: another process writes it"), whole_folder(out, "last"):
                pass
        assert (out / "last").read_text() == "first"
        assert names(out) == ["last"]
    assert names(tmp_path) == ["False", "True"]


def test_what_a_kill_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".partial_out").mkdir()
    (tmp_path / ".partial_out" / "half").touch()
    with whole_folder(tmp_path / "out", "last") as partial:
        (partial / "last").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["last"]


def test_a_volume_is_filled(disk: Callable[[int], Path]) -> None:
    volume = disk(64)
    with whole_folder(volume, "last") as partial:
        (partial / "last").touch()
    assert names(volume) == ["last"]


def test_a_volume_that_cannot_be_written_is_refused_before_the_work(disk: Callable[[int], Path]) -> None:
    volume = disk(64)
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    begun = False
    with pytest.raises(InputError, match="read-only file system"), whole_folder(volume, "last"):
        begun = True
    assert not begun
