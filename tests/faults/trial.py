"""One attempt: a command of ifsq in a process of its own, watched for time, memory and what it says.

``forked`` starts from this process, which has imported everything and computed nothing; ``started`` starts a fresh
interpreter, for what concerns workers, ranks and the end of a process.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MEMORY = 3 << 30  # bytes resident; a tiny run needs a tenth
LONGEST_LINE = 600
ONE = [sys.executable, "-m", "ifsq"]
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How an attempt ended.

    kind  ``accepted`` (exit code 0), ``refused`` (2, one line), ``stopped`` (130), ``traceback``, ``untidy`` (another
          code, or more than a line), ``hang``, ``memory`` or ``crash`` (a signal)
    """

    kind: str
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def line(self) -> str:
        """The last line that it said on stderr."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def forked(arguments: Sequence[str], cwd: Path, limit: float = 60, before: Callable[[], None] | None = None) -> Ended:
    """``ifsq ARGUMENTS`` in a child of this process, in the folder ``cwd``; ``before`` runs in the child first."""
    with TemporaryDirectory() as told:  # never on the disk that may be full
        out, err = Path(told) / "out", Path(told) / "err"
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_the_command(arguments, cwd, out, err, before)
        code, verdict = _watch(pid, began + limit)
        return _ended(code, verdict, out, err, time.monotonic() - began)


def _be_the_command(
    arguments: Sequence[str], cwd: Path, out: Path, err: Path, before: Callable[[], None] | None
) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if before is not None:
            before()
        from ifsq.cli import main

        code = main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, a person would see it
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _watch(pid: int, deadline: float) -> tuple[int | None, str]:
    """Wait for a child; its wait status, and ``hang`` or ``memory`` where it had to be killed."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), ""
        verdict = "memory" if resident(pid) > MEMORY else "hang" if time.monotonic() > deadline else ""
        if verdict:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, verdict
        time.sleep(0.004)


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _ended(code: int | None, verdict: str, out: Path, err: Path, seconds: float) -> Ended:
    said, told = (path.read_text(errors="replace") if path.exists() else "" for path in (out, err))
    return Ended(verdict or kind_of(code, told), code, said, told, seconds)


def kind_of(code: int | None, err: str) -> str:
    """What an exit code and what was said on stderr amount to."""
    if code is not None and code < 0:
        return "crash"
    if "Traceback (most recent call last)" in err:
        return "traceback"
    if code in (0, 130):
        return "accepted" if code == 0 else "stopped"
    lines = [line for line in err.splitlines() if line.startswith("ifsq")]
    tidy = len(lines) == 1 and len(lines[0]) <= LONGEST_LINE and not _CONTROL.search(lines[0])
    return "refused" if code == 2 and tidy else "untidy"


class Started:
    """A command in a fresh interpreter, in a process group of its own, with what it says in files."""

    def __init__(self, command: Sequence[str], cwd: Path, name: str, environment: dict[str, str] | None = None) -> None:
        self.out, self.err = cwd / f"{name}.out", cwd / f"{name}.err"
        self.began = time.monotonic()
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self.process.pid

    def end(self, limit: float) -> Ended:
        """How it ends within so many seconds; killed with all that came of it where it does not."""
        try:
            code: int | None = self.process.wait(limit)
            verdict = ""
        except subprocess.TimeoutExpired:
            code, verdict = None, "hang"
        self.kill()
        return _ended(code, verdict, self.out, self.err, time.monotonic() - self.began)

    def kill(self) -> None:
        """SIGKILL to it and to all that came of it."""
        for pid in family(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are there."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    with contextlib.suppress(OSError):
        return [int(word) for word in path.read_text().split()]
    return []


def family(pid: int) -> list[int]:
    """A process and all that came of it."""
    found = [pid]
    for one in found:
        found += children(one)
    return found


def wait_until(condition: Callable[[], Any], started: Started, limit: float = 60) -> bool:
    """Wait until a condition holds; False where the process ended or the time passed first."""
    deadline = time.monotonic() + limit
    while not condition():
        if started.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
