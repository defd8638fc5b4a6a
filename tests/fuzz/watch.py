"""Cases of a parser by their numbers, in a child process that is watched for time, memory and death.

Case n is what the parser's strategy makes of bytes that follow from n alone, so that any case can be made again, and a
run that was cut short goes on where it was.
"""

import mmap
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from tests.fuzz.made import Parser

from ifsq.config import InputError

SLOWEST = 6.0
"""Seconds of a processor from which a case hangs; or ten times as long by the clock, for one that waits."""
MEMORY = 3 << 30
"""Bytes above those of the idle process that a case may take."""
LONGEST = 600
BUFFER = 512
"""Bytes that a case is made of."""
KINDS = ("accepted", "refused", "untidy", "traceback", "memory")
_STATE = struct.Struct("<QddQQQQQQ")
"""Number of the case in progress, when it began by the clock and by the processor, cases behind, those of each kind."""


@dataclass
class Tally:
    """What became of the cases of a parser so far.

    next    number of the first case that was not tried yet
    kinds   how many were ``accepted``, ``refused`` in one line, ``untidy`` (refused in a message of control codes or of
            over `LONGEST` characters), ``traceback``, ``memory``, ``hang`` and ``crash``
    places  line of ifsq, error and first case of each defect
    """

    next: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, "hang", "crash"), 0))
    places: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0

    @property
    def bad(self) -> int:
        """Cases that are a defect."""
        return sum(self.kinds[kind] for kind in ("untidy", "traceback", "memory", "hang", "crash"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fuzz(parser: Parser, tally: Tally, cases: int, seconds: float) -> Iterator[Tally]:
    """Try cases until so many are behind, or for so long; the tally, about once a second."""
    deadline = time.monotonic() + seconds
    while tally.next < cases and time.monotonic() < deadline:
        yield from _one_child(parser, tally, cases, deadline)


def buffer_of(parser: Parser, number: int) -> bytes:
    """The bytes that a case is made of."""
    return random.Random(f"{parser.name} {number}").randbytes(BUFFER)


def _one_child(parser: Parser, tally: Tally, cases: int, deadline: float) -> Iterator[Tally]:
    """Cases in a child, until it is done, dies, hangs or takes too much memory."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    first, began = tally.next, time.monotonic()
    told = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    pid = os.fork()
    if pid == 0:
        _child(parser, first, cases, shared, told)
    before = Tally(**{**tally.to_dict(), "kinds": dict(tally.kinds), "places": dict(tally.places)})
    shown, ended = began, False
    try:
        while not ended:
            time.sleep(0.02)
            done, status = os.waitpid(pid, os.WNOHANG)
            number, since, spent, *counts = _STATE.unpack_from(shared)
            now = time.monotonic()
            verdict = ""
            if done:
                if (ended_with := os.waitstatus_to_exitcode(status)) > 0:
                    raise RuntimeError(f"{parser.name}: case {number}: the harness failed, see above")
                verdict, ended = "crash" if ended_with else "", True
            elif since and max(_spent(pid) - spent, (now - since) / 10) > SLOWEST:
                verdict = "hang"
            elif _resident(pid) > MEMORY + _base(shared):
                verdict = "memory"
            elif now > deadline:
                os.kill(pid, signal.SIGUSR1)  # it ends after the case in progress
            if verdict and not done:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                number, since, spent, *counts = _STATE.unpack_from(shared)
                ended = True
            if ended or now - shown > 1:
                shown = now
                _take(tally, before, counts, told, number if verdict else None, verdict)
                tally.seconds = before.seconds + now - began
                yield tally
    finally:
        shutil.rmtree(told, ignore_errors=True)


def _take(tally: Tally, before: Tally, counts: list[int], told: Path, number: int | None, verdict: str) -> None:
    """Bring what the child has said into the tally."""
    behind, *kinds = counts
    tally.next = before.next + behind
    tally.kinds.update({kind: before.kinds[kind] + count for kind, count in zip(KINDS, kinds, strict=True)})
    for path in told.glob("*.place"):
        place, _, text = path.read_text(errors="replace").partition("\n")
        tally.places.setdefault(place, text)
    if number is not None:
        tally.kinds[verdict] += 1
        tally.places.setdefault(f"{verdict} of case {number}", "")
        tally.next = number + 1


def _child(parser: Parser, first: int, cases: int, shared: mmap.mmap, told: Path) -> None:
    """Never returns."""
    stop = False

    def ask(*_: Any) -> None:
        nonlocal stop
        stop = True

    code, said = 1, os.dup(2)
    try:
        signal.signal(signal.SIGUSR1, ask)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there whatever it finds
        warnings.simplefilter("ignore")
        place = told / "files"
        place.mkdir()
        os.chdir(place)
        outcome: list[str] = []
        one = _tried(parser, place, told, outcome)
        _limit_memory()
        struct.pack_into("<Q", shared, _STATE.size, _resident(os.getpid()))
        counts = dict.fromkeys(KINDS, 0)
        for number in range(first, cases):
            if stop:
                break
            _STATE.pack_into(shared, 0, number, time.monotonic(), time.process_time(), number - first, *counts.values())
            outcome[:] = [str(number)]
            one(buffer_of(parser, number))
            if len(outcome) != 2:
                raise RuntimeError(f"case {number}: Hypothesis made no case of its bytes, or several")
            counts[outcome[1]] += 1
            _STATE.pack_into(shared, 0, number, 0.0, 0.0, number + 1 - first, *counts.values())
        code = 0
    except BaseException:  # noqa: BLE001 - of the harness itself
        os.dup2(said, 2)
        traceback.print_exc()
    finally:
        os._exit(code)


def _tried(parser: Parser, place: Path, told: Path, outcome: list[str]) -> Any:
    """A function of bytes that tries the case they make; ``outcome`` gets its kind behind its number."""
    strategy, parse, valid = parser.make(place)
    for case in valid:
        parse(case)  # or cases say nothing

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def tried(case: Any) -> None:
        try:
            parse(case)
            outcome.append("accepted")
        except InputError as error:
            text = str(error)
            tidy = len(text) <= LONGEST and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
            outcome.append("refused" if tidy else "untidy")
            if not tidy:
                _note(told, f"untidy: {_place(error)}", f"case {outcome[0]}: {ascii(text)[:300]}")
        except Exception as error:  # noqa: BLE001 - each is a defect
            memory = isinstance(error, MemoryError) or "allocate" in str(error)
            outcome.append("memory" if memory else "traceback")
            place = f"{_place(error)}: {type(error).__name__}"
            _note(told, place, f"case {outcome[0]}: {ascii(str(error))[:300]}")

    return tried.hypothesis.fuzz_one_input  # type: ignore[attr-defined]


def _place(error: Exception) -> str:
    """The last line of ifsq that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/src/ifsq/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/src/')[2]}:{frames[-1].lineno}" if frames else "no line of ifsq"


def _note(told: Path, place: str, text: str) -> None:
    path = told / f"{abs(hash(place))}.place"
    if not path.exists():
        path.write_text(f"{ascii(place)[1:-1]}\n{text}")


def _limit_memory() -> None:
    """Refuse what a machine of little memory would."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def _base(shared: mmap.mmap) -> int:
    return int(struct.unpack_from("<Q", shared, _STATE.size)[0])


def _spent(pid: int) -> float:
    """Seconds that a process has had a processor."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
