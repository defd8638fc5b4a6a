"""``ifsq doctor``: what is broken ends in exit code 2, what is slow is said with its reason, and all of it soon."""

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from ifsq.cli import main
from ifsq.config import InputError
from ifsq.doctor import Finding, examine, machine, packages, places
from ifsq.doctor.record import STATES
from ifsq.pretrained.inception import INCEPTION
from ifsq.pretrained.lpips import VGG16
from ifsq.store.files import cache_folder

NEEDED = ("torch>=2.11,<2.14", "numpy>=1.26", "hypothetical>=2; extra == 'hub'")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IFSQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in packages.VARIABLES:
        if name not in ("IFSQ_CACHE", "PYTHONPATH"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def with_packages(monkeypatch):
    """Another installation: versions by package, and what each needs."""

    def change(versions, needs=()):
        table = {"ifsq": NEEDED, **dict(needs)}
        monkeypatch.setattr(packages.metadata, "requires", lambda name: list(table.get(name, ())))
        monkeypatch.setattr(packages, "installed", lambda name: versions.get(name))

    return change


def by_name(found) -> dict[str, Finding]:
    return {one.name: one for one in found}


def test_every_extra_is_told_with_its_purpose(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert packages.EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}
    own = {Requirement(line).name for line in project["dependencies"]}
    assert "packaging" in own


def test_the_published_weights_are_those_that_are_looked_for():
    assert places.WEIGHTS.keys() == {INCEPTION.name, VGG16.name}


def test_a_sound_installation_ends_with_0(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for part in ("packages", "extras", "devices", "memory", "disk", "weights"):
        assert f"\n{part}\n" in f"\n{told}"
    assert f"  torch: {torch.__version__}" in told
    assert str(Path.cwd()) in told


def test_json_says_the_same_on_one_line(capsys):
    assert main(["doctor", "--json"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    found = json.loads(line)
    assert found["broken"] == 0
    assert {one["name"] for one in found["found"]} >= {"python", "torch", "cpu", "memory", "here"}
    assert {one["state"] for one in found["found"]} <= STATES.keys()


@pytest.mark.parametrize(
    ("versions", "name", "told"),
    [
        ({"torch": "2.13.0+cpu"}, "numpy", "not installed"),
        ({"torch": "2.13.0+cpu", "numpy": "1.25.0"}, "numpy", "1.25.0, expected >=1.26"),
        ({"torch": "2.10.0", "numpy": "2.4.6"}, "torch", "2.10.0, expected <2.14,>=2.11"),
    ],
)
def test_a_package_that_is_missing_or_of_another_version_is_broken(versions, name, told, with_packages, capsys):
    with_packages(versions)
    assert main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert f"  {name}: BROKEN, {told} -> pip install '{name}" in out
    assert err == f"ifsq: {name}: {told}; pip install '{name}{Requirement(NEEDED[name == 'numpy']).specifier}'\n"


def test_a_torch_that_cannot_be_imported_is_broken_and_the_rest_is_looked_at(monkeypatch):
    monkeypatch.setattr(packages, "torch_fault", lambda: "libgomp.so.1: cannot open shared object file")
    found = by_name(examine())
    assert found["torch"].state == "broken"
    assert "libgomp.so.1" in found["torch"].found
    assert found["memory"].state == found["here"].state == "ok"
    assert "cpu" not in found


@pytest.mark.parametrize(("error", "told"), [(ImportError("no x"), "no x"), (OSError("lib y\nmore"), "lib y")])
def test_why_torch_cannot_be_imported_is_its_own_word(error, told, monkeypatch):
    def fails(name):
        raise error

    monkeypatch.setattr(packages.importlib, "import_module", fails)
    packages.torch_fault.cache_clear()
    assert packages.torch_fault() == told
    packages.torch_fault.cache_clear()


def test_an_extra_is_absent_incomplete_or_of_another_version(with_packages):
    needs = {"ifsq": ["a>=2; extra == 'log'", "b; extra == 'log'", "c>=2; extra == 'hub'"]}
    with_packages({}, needs)
    assert by_name(packages.extras())["log"].state == "absent"
    with_packages({"a": "2.1", "c": "1"}, needs)
    found = by_name(packages.extras())
    assert found["log"].found.endswith("; without b")
    assert found["log"].remedy == "pip install 'ifsq[log]'"
    assert found["hub"].state == "look"
    assert found["hub"].found.endswith("; c 1, expected >=2")
    assert "unknown" in found["ode"].found


def test_a_torchvision_of_another_torch_is_told(with_packages):
    versions = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "torchvision": "0.26.0"}
    with_packages(versions, {"torchvision": ["torch==2.12.0"]})
    found = by_name(packages.versions())["torchvision"]
    assert (found.state, "built for torch==2.12.0" in found.found) == ("look", True)
    with_packages(versions, {"torchvision": ["torch==2.13.0"]})
    assert "torchvision" not in by_name(packages.versions())


def test_limits_of_control_groups_of_both_versions(tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "a/b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert machine.container_memory(root, own) is None
    (root / "a/memory.max").write_text("1000\n")
    (root / "a/b/memory.max").write_text("max\n")
    (root / "a/b/cpu.max").write_text("150000 100000\n")
    assert machine.container_memory(root, own) == 1000
    assert machine.container_cpus(root, own) == 1.5
    (root / "memory/x").mkdir(parents=True)
    own.write_text("4:memory:/x\n2:cpu:/x\n")
    (root / "memory/x/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.container_memory(root, own) is None
    (root / "memory/memory.limit_in_bytes").write_text("2048\n")
    (root / "cpu").mkdir()
    (root / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.container_memory(root, own) == 2048
    assert machine.container_cpus(root, own) is None


def test_more_threads_than_a_container_may_use_are_slow(monkeypatch):
    monkeypatch.setattr(machine, "container_cpus", lambda: 2.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    found = by_name(machine.devices())["cpu quota"]
    assert (found.state, found.remedy) == ("slow", "OMP_NUM_THREADS=2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "cpu quota" not in by_name(machine.devices())


def test_little_memory_and_few_files_are_told(monkeypatch):
    monkeypatch.setattr(machine, "container_memory", lambda: 2**31)
    monkeypatch.setattr(machine, "_machine_memory", lambda: (2**36, 2**35))
    monkeypatch.setattr(machine, "_open_files", lambda: 256)
    found = by_name(machine.memory())
    assert found["memory"].state == found["open files"].state == "look"
    assert found["memory"].found == "64.0 GiB, 32.0 GiB of it free; this container may use 2.0 GiB"


def test_a_driver_beside_a_torch_without_cuda_is_slow(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(machine, "DRIVER", tmp_path)
    assert by_name(machine.devices())["cuda"].state == "slow"
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "none")
    assert by_name(machine.devices())["cuda"].state == "absent"


def test_threads_that_spin_are_slow(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert by_name(packages.settings())["OMP_WAIT_POLICY"].state == "slow"


def test_a_folder_that_is_full_or_cannot_be_written(monkeypatch, tmp_path):
    def refuses(dir):
        raise PermissionError(13, "Permission denied")

    usage = places.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    found = by_name(places.folders(tmp_path, torch_works=False))
    assert {one.state for one in found.values()} == {"look"}
    assert "1.0 GB free" in found["here"].found
    monkeypatch.setattr(places.tempfile, "TemporaryFile", refuses)
    found = by_name(places.folders(tmp_path, torch_works=False))["cache of ifsq"]
    assert (found.state, found.remedy) == ("look", "set IFSQ_CACHE to another folder")
    assert found.found == f"{tmp_path / 'cache'} cannot be written: Permission denied"


@pytest.fixture
def no_home(monkeypatch):
    """As of a number of a user that the system does not know, in a container."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_without_a_home_folder_the_rest_is_looked_at(no_home, monkeypatch, tmp_path):
    found = by_name(places.folders(tmp_path, torch_works=True))
    assert found["cache of the hub"].found == "~/.cache/huggingface: no home folder is known here"
    assert found["cache of the hub"].remedy == "set HOME or HF_HOME"
    assert found["weights of torch"].state == "look"
    assert found["cache of ifsq"].state == "ok"
    monkeypatch.delenv("IFSQ_CACHE")
    with pytest.raises(InputError, match="expected HOME or IFSQ_CACHE to name a folder"):
        cache_folder("shards")


CLOSED = """
import os, sys, tempfile
from pathlib import Path
from ifsq.doctor import examine
examine()  # imports what it needs, which may lie where others see nothing
for change, to in ((os.setgroups, []), (os.setgid, 65534), (os.setuid, 65534)):
    change(to)
os.environ["HF_HOME"] = os.environ["IFSQ_WEIGHTS"] = sys.argv[1]
print(*(one.found for one in examine() if one.name == "cache of the hub"))
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becomes another user, which takes root")
def test_a_folder_that_may_not_be_entered_is_one_that_cannot_be_written(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    inside = tmp_path / "closed" / "cache"
    done = subprocess.run([sys.executable, "-c", CLOSED, str(inside)], capture_output=True, text=True, check=False)
    assert done.stdout == f"{inside} cannot be written: Permission denied\n", done.stderr


def test_what_another_process_takes_away_is_not_counted(monkeypatch, tmp_path):
    (tmp_path / "kept").write_bytes(bytes(10**7))
    walked = [(str(tmp_path), [], ["kept", "gone"])]
    monkeypatch.setattr(places.os, "walk", lambda _: walked)
    assert places._kept(tmp_path) == "holds 0.01 GB"


def test_looking_leaves_nothing_behind(tmp_path):
    list(places.folders(tmp_path, torch_works=True))
    assert list(tmp_path.iterdir()) == []


def test_it_imports_torch_and_nothing_heavier():
    code = "import sys; from ifsq.cli import main; main(['doctor']); print(*sys.modules, sep=',', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "sklearn", "skimage", "torchmetrics", "pydantic", "transformers"} & set(
        done.stderr.split(",")
    )
    assert f"ifsq: {metadata.version('ifsq')}" in done.stdout
