"""Where ifsq writes and keeps things: room, permission, kind of file system, and which published weights are here."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ifsq.doctor.record import Finding

GB = 10**9
LITTLE_ROOM = 2 * GB
"""Below it a run of the demo's size still fits, three checkpoints of a large tokenizer (83 million weights) do not."""
REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "lustre", "beegfs", "gpfs", "ceph")
PATIENCE = 0.1  # seconds for the sizes of what is kept in one folder
WEIGHTS = {"pt_inception-2015-12-05-6726825d.pth": "FID and rFID", "vgg16-397923af.pth": "LPIPS"}
"""Published files and what needs them; `ifsq.pretrained`, whose import takes a second, says more."""


def folders(here: Path, *, torch_works: bool) -> Iterator[Finding]:
    """The folder that runs are written in, that of temporary files, and those of caches.

    torch_works  whether torch can be imported, which says where it keeps weights
    """
    yield _writable("here", here, "runs go to ./runs unless --out says otherwise", "another folder, or --out")
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:  # FileNotFoundError: none of its candidates can be written
        yield Finding("disk", "temporary files", "look", "no folder for them can be written", "set TMPDIR")
    else:
        yield _writable("temporary files", temporary, "", "set TMPDIR to another folder")
    home = os.path.expanduser("~")  # which stays so where the system knows of none
    caches = [
        ("cache of ifsq", os.environ.get("IFSQ_CACHE") or f"{home}/.cache/ifsq", "IFSQ_CACHE"),
        ("cache of the hub", os.environ.get("HF_HOME") or f"{home}/.cache/huggingface", "HF_HOME"),
    ]
    if torch_works:
        import torch

        caches.append(("weights of torch", torch.hub.get_dir(), "TORCH_HOME"))
    for name, place, variable in caches:
        if home == "~" and place.startswith("~/"):
            yield Finding("disk", name, "look", f"{place}: no home folder is known here", f"set HOME or {variable}")
        else:
            yield _writable(name, Path(place), _kept(Path(place)), f"set {variable} to another folder")


def weights() -> Iterator[Finding]:
    """Which published weights lie on this machine; they are not read, which would take seconds."""
    import torch

    given = [Path(os.environ["IFSQ_WEIGHTS"])] if os.environ.get("IFSQ_WEIGHTS") else []
    looked = [*given, Path(torch.hub.get_dir()) / "checkpoints"]
    for name, what in WEIGHTS.items():
        found = next((folder / name for folder in looked if os.path.isfile(folder / name)), None)
        if found is not None:
            yield Finding("weights", name, "ok", f"for {what}: {found}")
        else:
            remedy = f"fetched when it is first needed; or put it into {looked[0]}"
            yield Finding("weights", name, "absent", f"needed for {what}", remedy)


def _writable(name: str, folder: Path, note: str, remedy: str) -> Finding:
    """A folder, or the next one above it that is there: whether it can be written, and its room."""
    # os.path's own questions are answered with no where Path's raise, below a folder that may not be entered.
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(one))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        room = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("disk", name, "look", f"{folder.absolute()} cannot be written: {error.strerror}", remedy)
    kind = _file_system(there)
    found = ", ".join(part for part in (str(folder.absolute()), f"{room / GB:.1f} GB free", kind, note) if part)
    if room < LITTLE_ROOM:
        return Finding("disk", name, "look", found, f"make room, or {remedy}")
    if kind.partition(" ")[0] in REMOTE:
        found = f"{found}: over the network, where many small images are slow"
        return Finding("disk", name, "slow", found, "images in tar shards, codes on a disk of this machine")
    return Finding("disk", name, "ok", found)


def _file_system(folder: Path) -> str:
    """Its kind, as the system mounted it; empty where that is not known."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = folder.resolve()
    above = [(len(path), kind) for _, path, kind, *_ in mounts if place.is_relative_to(path.replace("\\040", " "))]
    return max(above, default=(0, ""))[1]


def _kept(folder: Path) -> str:
    """How much lies in a cache, as far as it can be counted soon."""
    if not os.path.isdir(folder):
        return "empty"
    size, until, sign = 0, time.monotonic() + PATIENCE, ""
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another process has taken it away
                size += os.lstat(os.path.join(path, name)).st_size
        if time.monotonic() > until:
            sign = "at least "
            break
    return f"holds {sign}{size / GB:.2f} GB"
