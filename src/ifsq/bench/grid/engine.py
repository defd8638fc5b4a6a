"""A grid on Snakemake: over the processes of a machine, or the machines of a cluster (``pip install ifsq[engine]``).

Each stage is a rule: its output is the stage's marker, its input the markers that it needs, its job ``ifsq bench GRID
--only STAGE``. Order, retries, locks on the folder, dead jobs and where a job runs are Snakemake's; addresses, what a
stage does and the measurements are ours. Why Snakemake: ``docs/bench.md``.
"""

import importlib.util
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ifsq.bench.grid.plan import Plan
from ifsq.bench.grid.runner import FAILURES, StagesError, code_of
from ifsq.bench.grid.stages import STAGES, Stage, is_complete
from ifsq.config import InputError
from ifsq.store.files import append_text, make_folder, write_text

ENGINES = ("snakemake",)
WORKFLOW = "Snakefile"
LOGS = "logs"
"""Folder of what each stage said."""


def run_on_engine(plan: Plan, name: str, device: str, jobs: int, options: Sequence[str]) -> None:
    """Do what is left of a plan; returns when the engine has ended.

    jobs     stages at the same time
    options  of the engine, as ``--executor slurm``

    What failed is in ``failures.jsonl``. Raises StagesError then, InputError where the engine is not there, and
    KeyboardInterrupt where it was asked to stop.
    """
    check_engine(name)
    workflow = write_workflow(plan, device)
    (plan.out / FAILURES).unlink(missing_ok=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(workflow.absolute()), "--directory", str(plan.out)]
    # The caller holds the folder, with a lock that ends with it; Snakemake's own would outlive a kill.
    command += ["--nolock", "--keep-going", "--rerun-incomplete", "--rerun-triggers", "input", "--quiet", "rules"]
    command += [*options] if "--jobs" in options or "-j" in options else ["--jobs", str(jobs), *options]
    said = {stage: _size(plan.out / LOGS / f"{stage}.log") for stage in plan.stages}  # before: of earlier attempts
    # A group of its own: whoever asks it to stop, it and its jobs are told once, as by a terminal, and waited for.
    code = code_of(command, lambda engine: os.killpg(engine.pid, signal.SIGINT), alone=True)
    if code < 0 or code == 130:
        raise KeyboardInterrupt
    failed, skipped = _left(plan)
    for stage in failed:
        log = plan.out / LOGS / f"{stage}.log"
        told = _last_line(log, said[stage]) or f"did not begin: {name} ended with exit code {code}"
        append_text(plan.out / FAILURES, json.dumps({"stage": stage, "cells": plan.users[stage], "error": told}) + "\n")
    if failed:
        raise StagesError(plan.out, len(failed), len(skipped))


def check_engine(name: str) -> None:
    """Raise InputError unless this engine is known and there."""
    if name not in ENGINES:
        raise InputError(f"--engine {name}: expected {', '.join(ENGINES)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(f"--engine {name}: is not installed; expected pip install ifsq[engine]")


def write_workflow(plan: Plan, device: str) -> Path:
    """Write the plan as a Snakefile into the grid's folder; returns it. Raises InputError."""
    make_folder(plan.out / LOGS)
    path = plan.out / WORKFLOW
    rules = "\n".join(_rule(plan, stage, device) for stage in plan.stages.values())
    every = json.dumps([_marker(name) for name in plan.stages])
    write_text(path, f"# Written by ifsq bench; a stage a rule.\nrule all:\n    input: {every}\n\n{rules}")
    return path


def _rule(plan: Plan, stage: Stage, device: str) -> str:
    """A stage as a rule. Inputs are ``ancient``: the address says whether they changed, not their time."""
    takes = plan.grid.resource(stage.kind)
    given = {"mem_mb": takes.memory_mb, "runtime": takes.minutes, "gpu": takes.gpus}
    resources = ", ".join(f"{key}={value}" for key, value in given.items() if value)
    inputs = ", ".join(f"ancient({_marker(name)!r})" for name in stage.needs)
    work = [sys.executable, "-m", "ifsq", *plan.command, "--only", stage.name, "--device", device]
    log = str(plan.out / LOGS / f"{stage.name}.log")
    command = f"cd {shlex.quote(os.getcwd())} && {shlex.join(work)} >> {shlex.quote(log)} 2>&1".replace(
        "{", "{{"
    ).replace("}", "}}")
    lines = [
        f"rule {stage.name.replace('-', '_')}:",
        f"    input: {inputs}" if inputs else "",
        f"    output: {_marker(stage.name)!r}",
        f"    threads: {takes.processes}",
        f"    resources: {resources}" if resources else "",
        "    retries: 1",
        f"    shell: {command!r}",
        "",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _marker(name: str) -> str:
    """Seen from the grid's folder, where Snakemake works."""
    return f"{STAGES}/{name}.json"


def _left(plan: Plan) -> tuple[list[str], list[str]]:
    """Stages that are not complete: those that could have been done, and those that need one of them."""
    left = [name for name in plan.stages if not is_complete(plan.out, name)]
    failed = [name for name in left if not any(need in left for need in plan.stages[name].needs)]
    return failed, [name for name in left if name not in failed]


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def _last_line(log: Path, since: int) -> str:
    """What a stage said at its end, in what its log holds from a byte on."""
    if not log.is_file():
        return ""
    text = log.read_bytes()[since:].decode(errors="backslashreplace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ifsq: ")[:500] if lines else ""
