"""Processors, accelerators and memory, within the limits that a container sets, and what of them is slow."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ifsq.doctor.record import Finding

GIB = 2**30
LITTLE_MEMORY = 4 * GIB
"""Below it the demo still trains; a tokenizer of 256 pixels does not."""
FEW_FILES = 512  # open files of a process
DRIVER = Path("/proc/driver/nvidia/version")


def devices() -> Iterator[Finding]:
    """The CPU, each CUDA device and MPS; torch must be importable."""
    yield from _cpu()
    yield from _cuda()
    yield from _mps()


def memory() -> Iterator[Finding]:
    """Memory of the machine and of the container, and the number of files that a process may hold open."""
    total, free = _machine_memory()
    limit = container_memory()
    if total is None:
        yield Finding("memory", "memory", "ok", "the system does not say how much there is")
    else:
        known = min(total, limit or total)
        said = f"{_gib(total)} GiB" + ("" if free is None else f", {_gib(free)} GiB of it free")
        if limit is not None and limit < total:
            said += f"; this container may use {_gib(limit)} GiB"
        if known < LITTLE_MEMORY:
            remedy = "smaller train.batch with train.engine.accumulate, or train.engine.recompute = true"
            yield Finding("memory", "memory", "look", said, remedy)
        else:
            yield Finding("memory", "memory", "ok", said)
    if (files := _open_files()) is not None:
        few = files < FEW_FILES
        remedy = "ulimit -n 4096" if few else ""
        yield Finding("memory", "open files", "look" if few else "ok", f"{files} at most for a process", remedy)


def container_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes that the control groups of this process allow; None without a limit."""
    limits = [*_limits(root, own, "", "memory.max"), *_limits(root, own, "memory", "memory.limit_in_bytes")]
    found = [int(text) for text in limits if text.isdecimal()]
    return min((limit for limit in found if limit < 2**60), default=None)  # version 1 says "none" as a huge number


def container_cpus(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs' worth of time that the control groups of this process allow; None without a limit."""
    quotas = [text.split() for text in _limits(root, own, "", "cpu.max")]
    first = zip(
        _limits(root, own, "cpu", "cpu.cfs_quota_us"), _limits(root, own, "cpu", "cpu.cfs_period_us"), strict=False
    )
    quotas += [[quota, period] for quota, period in first]
    found = [int(pair[0]) / int(pair[1]) for pair in quotas if len(pair) == 2 and all(map(str.isdecimal, pair))]
    return min(found, default=None)


def _limits(root: Path, own: Path, controller: str, name: str) -> list[str]:
    """What a file says in each group from this process's own up to the root, as far as they are to be seen here."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    paths = [path for _, names, path in (line.split(":", 2) for line in lines) if controller in names.split(",")]
    found = []
    for path in paths:
        group = root / controller / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root / controller):
                break
            with suppress(OSError):  # not there, or not to be seen
                found.append((folder / name).read_text().strip())
    return found


def _cpu() -> Iterator[Finding]:
    import torch

    from ifsq.nn.linear import multiplies_faster_by_onednn
    from ifsq.training.precision import computes_bfloat16

    threads, cores, allowed = torch.get_num_threads(), _cores(), container_cpus()
    capability = torch.backends.cpu.get_cpu_capability()
    half = "bfloat16 in hardware" if computes_bfloat16("cpu") else "no bfloat16"
    text = f"{_processor()}, {cores} threads, torch uses {threads} of them, {capability}, {half}"
    yield Finding("devices", "cpu", "ok", text)
    if allowed is not None and threads > max(1, round(allowed)):
        found = (
            f"torch starts {threads} threads where this container has the time of {allowed:g}: they wait for each other"
        )
        yield Finding("devices", "cpu quota", "slow", found, f"OMP_NUM_THREADS={max(1, int(allowed))}")
    if capability == "DEFAULT":
        found = "torch finds neither AVX2 nor AVX-512 here, which most of its routines are several times as fast with"
        yield Finding("devices", "vector instructions", "slow", found, "another machine, or another build of torch")
    if not computes_bfloat16("cpu"):
        found = "bfloat16 is computed by detours on this processor"
        yield Finding(
            "devices", "bfloat16 on the cpu", "slow", found, 'train.precision = "auto", which is fp32 here, or "fp32"'
        )
    if multiplies_faster_by_onednn():
        found = (
            "torch's float32 matrices go to MKL, which takes AVX2 on AMD, at half the rate of AVX-512"
            " (findings/torch_float32_matmul_amd.sh); the large linear layers of ifsq go to oneDNN, your own do not"
        )
        yield Finding("devices", "float32 on AMD", "slow", found, 'train.precision = "bf16" where it suits')
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 1.5 * cores:
        found = f"{load:.0f} processes want the {cores} threads of this machine: all that runs here is slow now"
        yield Finding("devices", "load", "slow", found)


def _cuda() -> Iterator[Finding]:
    import torch

    driver = os.path.exists(DRIVER)
    if not torch.cuda.is_available():
        if torch.version.cuda is None and driver:
            found = f"an NVIDIA driver is here, but torch {torch.__version__} was built without CUDA"
            yield Finding("devices", "cuda", "slow", found, "install the torch with CUDA: https://pytorch.org")
        elif torch.version.cuda is not None:
            found = f"torch was built for CUDA {torch.version.cuda} and finds no device"
            remedy = "a newer NVIDIA driver, or a torch of an older CUDA" if driver else ""
            yield Finding("devices", "cuda", "slow" if driver else "absent", found, remedy)
        else:
            found = "the demo and experiments/bundled train on a CPU in minutes, experiments/imagenet does not"
            yield Finding("devices", "cuda", "absent", found)
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free = torch.cuda.mem_get_info(number)[0]
        half = "bfloat16" if about.major >= 8 else "no bfloat16"
        found = f"{about.name}, {_gib(about.total_memory)} GiB, {_gib(free)} GiB of it free, {half}"
        arch = f"sm_{about.major}{about.minor}"
        known = [name for name in torch.cuda.get_arch_list() if name.startswith(f"sm_{about.major}")]
        if not known:
            remedy = "install a torch that was built for it"
            yield Finding("devices", f"cuda:{number}", "look", f"{found}; this torch was not built for {arch}", remedy)
        else:
            yield Finding("devices", f"cuda:{number}", "ok", found)


def _mps() -> Iterator[Finding]:
    import torch

    if torch.backends.mps.is_available():
        gib = _gib(torch.mps.recommended_max_memory())
        yield Finding("devices", "mps", "ok", f"Apple's, {gib} GiB at most; what needs float64 is computed on the CPU")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _cores() -> int:
    """Threads of the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine_memory() -> tuple[int | None, int | None]:
    """Bytes of memory, and of those that are free or could be."""
    told = Path("/proc/meminfo")
    if told.exists():
        table = dict(line.split(":", 1) for line in told.read_text().splitlines())
        total, free = (int(table[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return total, free
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):  # macOS
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    return None, None


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
