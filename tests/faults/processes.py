"""Rows A4 and A5: readers and ranks that are killed, stopped or frozen, and errors while they are there."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.faults.cases import Found
from tests.faults.surroundings import disk, fill
from tests.faults.trial import ONE, Ended, Started, children, wait_until
from tests.faults.world import copy
from tests.ports import free_port

LONG = "--train.steps 100000 --train.save_every 100000 --train.log_every 1"
TRAIN = f"tokenizer train tok.toml --out long {LONG}"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "ifsq"]
LIMIT = 60.0
"""Seconds after which an end that did not come is a hang."""
FROZEN = 400.0
"""The same, for a process that neither works nor dies: others wait a while for it."""


def start(folder: Path, line: str, name: str = "said", how: list[str] | None = None, **environment: str) -> Started:
    """A command in ``folder``, by its words."""
    return Started([*(how or ONE), *line.split()], folder, name, environment)


def moving(folder: Path, run: str = "long", lines: int = 3) -> Callable[[], bool]:
    """Whether a run has logged some steps."""
    log = folder / run / "metrics.jsonl"
    return lambda: log.exists() and log.read_bytes().count(b"\n") >= lines


def readers_of(pid: int) -> list[int]:
    """Processes that read images for a process: not the ones that watch its resources."""
    return [child for child in children(pid) if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def found(row: str, name: str, ended: Ended, right: tuple[str, ...], limit: float = LIMIT) -> Found:
    """Right is one of the ``right`` kinds."""
    wrong = "" if ended.kind in right else f"{ended.kind}, expected {' or '.join(right)}"
    return Found(row, f"{name} ({ended.seconds:.0f} s)", ended.kind, wrong, ended.line)


def killed_readers(world: Path, place: Path, times: int = 6) -> Iterator[Found]:
    """Row A4: SIGKILL to a process that reads images, which the out-of-memory killer sends."""
    draw = random.Random(0)
    for number in range(times):
        folder, workers = copy(world, place), 1 + number % 3
        run = start(folder, f"{TRAIN} --train.engine.workers {workers}")
        wait_until(moving(folder), run)
        time.sleep(draw.random() * 0.3)
        yield _kill_a_reader("A4", f"train, {workers} readers", run, folder)
    for name, line in (
        ("encode", "encode readers images out"),
        ("eval", "tokenizer eval readers --no-judge"),
    )[: 2 * (times > 1)]:
        folder = copy(world, place)
        many(folder)
        made = start(folder, "tokenizer train tok.toml --out readers --train.steps 2 --train.engine.workers 2")
        made.end(LIMIT)
        run = start(folder, line)
        wait_until(lambda run=run: len(readers_of(run.pid)) == 2, run)
        yield _kill_a_reader("A4", name, run, folder)


def many(folder: Path, count: int = 4000) -> None:
    """So many more pictures that reading them takes a while."""
    content = (folder / "images/a/0.png").read_bytes()
    for number in range(count):
        (folder / "images/a" / f"more_{number}.png").write_bytes(content)


def _kill_a_reader(row: str, name: str, run: Started, folder: Path) -> Found:
    readers = readers_of(run.pid)
    if readers:
        os.kill(readers[0], signal.SIGKILL)
    ended = run.end(LIMIT)
    shutil.rmtree(folder)
    if not readers:
        return Found(row, name, "untidy", "there was no reader to kill", ended.line)
    return found(row, f"{name}: a reader killed", ended, ("refused",))


def other_errors(world: Path, place: Path, signals: int = 6) -> Iterator[Found]:
    """Row A4b: whatever else ends a run while two processes read for it."""
    workers = "--train.engine.workers 2"
    for room in (0, 4096, 24_576):
        with disk(place, "32m") as full:
            folder = copy_small(world, full)
            run = start(folder, f"{TRAIN} {workers} --train.save_every 2", OMP_WAIT_POLICY="PASSIVE")
            wait_until(moving(folder, lines=1), run)
            fill(full, room)
            yield found("A4b", f"full disk, {room} bytes left", run.end(LIMIT), ("refused",))
            run.kill()
    for number in range(3):
        folder = copy(world, place)
        for name in range(5 * number, 5 * number + 4):
            (folder / f"images/b/{name}.png").unlink()
            (folder / f"images/b/{name}.png").write_bytes(b"broken")
        ended = start(folder, f"{TRAIN} {workers} --data.broken refuse").end(LIMIT)
        shutil.rmtree(folder)
        yield found("A4b", "broken images", ended, ("refused",))
    for rate in ("1e30", "1e38"):
        folder = copy(world, place)
        ended = start(folder, f"{TRAIN} {workers} --train.optim.lr {rate}").end(LIMIT)
        shutil.rmtree(folder)
        yield found("A4b", f"divergence at lr {rate}", ended, ("refused",))
    for which in (signal.SIGTERM, signal.SIGINT):
        for number in range(signals):
            folder = copy(world, place)
            run = start(folder, f"{TRAIN} {workers}")
            wait_until(moving(folder, lines=1 + number), run)
            (os.killpg if number % 2 else os.kill)(run.pid, which)
            ended = run.end(LIMIT)
            shutil.rmtree(folder)
            yield found("A4b", f"{which.name} to the {'group' if number % 2 else 'process'}", ended, ("stopped",))
    folder = copy(world, place)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (11, 11))"
    limited += "; from ifsq.cli import main; raise SystemExit(main())"
    ended = Started([sys.executable, "-c", limited, *f"{TRAIN} {workers}".split()], folder, "said").end(LIMIT)
    shutil.rmtree(folder)
    yield found("A4b", "11 descriptors", ended, ("refused",))


def frozen_reader(world: Path, place: Path) -> Iterator[Found]:
    """Row A4c: SIGSTOP to a reader."""
    folder = copy(world, place)
    run = start(folder, f"{TRAIN} --train.engine.workers 2")
    wait_until(moving(folder), run)
    for reader in readers_of(run.pid):
        os.kill(reader, signal.SIGSTOP)
    ended = run.end(FROZEN)
    shutil.rmtree(folder)
    yield found("A4c", "readers frozen", ended, ("refused",))


def killed_samplings(world: Path, place: Path, times: int = 8) -> Iterator[Found]:
    """Row A8: SIGKILL at random moments while a set of samples is written; then the same command, to its end."""
    draw = random.Random(0)
    for name in ("set", "set.npz"):
        folder = copy(world, place)
        line = f"sample ar --count 600 --batch 8 --out {name}"
        (folder / "whole").mkdir()
        ended = start(folder, f"sample ar --count 600 --batch 8 --out whole/{name}").end(LIMIT)
        began = 0
        for _ in range(times):
            run = start(folder, line)
            hidden = folder / ("set/.partial_samples" if name == "set" else ".partial_set.npz")
            wait_until(lambda hidden=hidden, before=began: _count(hidden) > before, run)
            time.sleep(draw.random() * 0.2)
            run.kill()
            began = _count(hidden)
        ended = start(folder, line).end(LIMIT)
        same = _bytes(folder, name) == _bytes(folder / "whole", name)
        shutil.rmtree(folder)
        seen = found("A8", f"{name}, {times} kills", ended, ("accepted",))
        yield seen if same or seen.bad else Found("A8", seen.name, seen.kind, "other bytes than unbroken", seen.detail)


def _count(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _bytes(folder: Path, name: str) -> dict[str, bytes]:
    """The files of a set of samples: those of a folder, or an npz and its card."""
    files = (folder / name).iterdir() if (folder / name).is_dir() else folder.glob("set.*")
    return {path.name: path.read_bytes() for path in files}


def ranks(folder: Path, line: str) -> list[Started]:
    """Two processes of one command, started by hand."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [start(folder, line, f"rank{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in (0, 1)]


def killed_ranks(world: Path, place: Path, times: int = 6) -> Iterator[Found]:
    """Rows A5 and A5b: one of two ranks is killed; the other says so in a line."""
    two_readers = f"{TRAIN} --train.engine.workers 2"
    for row, name, line, count in (
        ("A5", "train", TRAIN, times),
        ("A5b", "train, two readers each", two_readers, 2),
        ("A5", "encode", "encode tok images out", 2),
    )[: 3 if times > 1 else 1]:
        for number in range(count):
            folder, dead = copy(world, place), number % 2
            if name == "encode":
                many(folder)
            both = ranks(folder, line)
            if name == "encode":
                wait_until(lambda folder=folder: (folder / "out").exists(), both[0])
            else:
                wait_until(moving(folder), both[0])
            with suppress(ProcessLookupError):  # it has ended: the other will not say what is expected of it
                os.kill(both[dead].pid, signal.SIGKILL)
            ended = both[1 - dead].end(LIMIT)
            both[dead].kill()
            shutil.rmtree(folder)
            yield found(row, f"{name}, rank {dead} killed", ended, ("refused",))


def torchruns(world: Path, place: Path, times: int = 6) -> Iterator[Found]:
    """Rows A5, A5b, A5c and A5e under torchrun, whose own words do not count."""
    for row, more, count in (("A5", "", times), ("A5b", " --train.engine.workers 2", 2)):
        for number in range(count):
            folder = copy(world, place)
            run = start(folder, f"{TRAIN}{more}", how=TORCHRUN)
            wait_until(moving(folder), run)
            workers = children(run.pid)
            os.kill(workers[number % 2], signal.SIGKILL)
            ended = run.end(LIMIT)
            shutil.rmtree(folder)
            yield _of_torchrun(row, f"torchrun, a rank killed{more}", ended)
    for which in (signal.SIGTERM, signal.SIGINT):
        folder = copy(world, place)
        run = start(folder, TRAIN, how=TORCHRUN)
        wait_until(moving(folder), run)
        os.kill(run.pid, which)
        ended = run.end(LIMIT)
        saved = list((folder / "long/checkpoints").glob("step_*"))
        shutil.rmtree(folder)
        seen = _of_torchrun("A5c", f"torchrun, {which.name}", ended)
        yield seen if saved or seen.bad else Found("A5c", seen.name, seen.kind, "nothing was saved", seen.detail)
    folder = copy(world, place)
    run = start(folder, TRAIN, how=TORCHRUN)
    wait_until(moving(folder), run)
    workers = children(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and any(_is_there(pid) for pid in workers):
        time.sleep(0.1)
    left = [pid for pid in workers if _is_there(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    ended = run.end(1)
    shutil.rmtree(folder)
    yield Found(
        "A5e",
        "torchrun killed",
        "hang" if left else "stopped",
        f"{len(left)} ranks train on" if left else "",
        ended.line,
    )


def _of_torchrun(row: str, name: str, ended: Ended) -> Found:
    """Torchrun tells of a dead rank by a traceback of its own; ours must not be there."""
    ours = [line for line in ended.err.splitlines() if "/ifsq/" in line and line.strip().startswith("File ")]
    kind = "hang" if ended.kind == "hang" else "traceback" if ours else "refused" if ended.code else "stopped"
    return Found(row, f"{name} ({ended.seconds:.0f} s)", kind, "", ours[-1].strip() if ours else ended.line)


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def errors_of_one_rank(world: Path, place: Path) -> Iterator[Found]:
    """Rows A5c and A5d: one rank is asked to stop, or meets what the other does not."""
    for number in range(4):
        folder = copy(world, place)
        both = ranks(folder, TRAIN)
        wait_until(moving(folder), both[0])
        os.kill(both[number % 2].pid, signal.SIGTERM)
        ended = [one.end(LIMIT) for one in both]
        shutil.rmtree(folder)
        for rank, end in enumerate(ended):
            yield found("A5c", f"SIGTERM to rank {number % 2}, rank {rank}", end, ("stopped",))
    for workers in ("", " --train.engine.workers 2"):
        with disk(place, "32m") as full:
            folder = copy_small(world, full)
            both = ranks(folder, f"{TRAIN} --train.save_every 2{workers}")
            wait_until(moving(folder, lines=1), both[0])
            fill(full, 0)
            for rank, one in enumerate(both):
                yield found("A5d", f"full disk{workers}, rank {rank}", one.end(LIMIT), ("refused",))
            for one in both:
                one.kill()
    for name, line, damage in (
        ("broken image", f"{TRAIN} --data.broken refuse", None),
        ("divergence", f"{TRAIN} --train.optim.lr 1e38", None),
        ("encode of a broken image", "encode tok picked.txt out --size 16", "list"),
    ):
        folder = copy(world, place)
        if damage:
            (folder / "picked.txt").write_text((folder / "list.txt").read_text() + "images/a/broken.png a\n")
        both = ranks(folder, line)
        ended = [one.end(LIMIT) for one in both]
        shutil.rmtree(folder)
        for rank, end in enumerate(ended):
            yield found("A5d", f"{name}, rank {rank}", end, ("refused",))


def frozen_rank(world: Path, place: Path) -> Iterator[Found]:
    """Row A5e: one of two ranks is frozen."""
    folder = copy(world, place)
    both = ranks(folder, TRAIN)
    wait_until(moving(folder), both[0])
    os.kill(both[1].pid, signal.SIGSTOP)
    ended = both[0].end(FROZEN)
    both[1].kill()
    shutil.rmtree(folder)
    yield found("A5e", "rank 1 frozen", ended, ("refused",))


def copy_small(world: Path, to: Path) -> Path:
    """What a training of the tokenizer needs, on another disk."""
    shutil.copytree(world / "images", to / "images")
    shutil.copy(world / "tok.toml", to)
    return to
