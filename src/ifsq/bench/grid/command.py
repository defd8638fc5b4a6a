"""``ifsq bench``: a grid planned, run and its measurements written."""

from collections.abc import Sequence
from pathlib import Path

from ifsq.bench.demo import experiment_file
from ifsq.bench.grid.describe import rows_of_stages, summary, write_plan
from ifsq.bench.grid.engine import check_engine, run_on_engine
from ifsq.bench.grid.plan import Plan, plan_grid
from ifsq.bench.grid.results import taken, write_results
from ifsq.bench.grid.runner import FAILURES, check_jobs, own_folder, perform, run_stages
from ifsq.bench.grid.stages import folder_of
from ifsq.bench.measurement import append_measurement
from ifsq.config import InputError
from ifsq.store.files import LOCK, make_folder
from ifsq.store.lock import lock
from ifsq.training.log import Reporter


def grid_file(asked: Path) -> Path:
    """The file that is asked for: there, or shipped under this name. Raises InputError."""
    shipped = experiment_file(f"grids/{asked}")
    for place in (asked, shipped, shipped.with_suffix(".toml")):
        if place.is_file():
            return place
    raise InputError(f"{asked}: no such file, nor a shipped grid of this name")


def show_plan(file: Path, out: Path, overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """What a grid is, in sentences, and a row for each stage; nothing is written. Raises InputError."""
    plan = plan_grid(file, out, overrides)
    return summary(plan), rows_of_stages(plan)


def bench(
    file: Path,
    out: Path,
    overrides: Sequence[str],
    device: str,
    reporter: Reporter,
    *,
    jobs: int = 1,
    only: str = "",
    engine: str = "",
    options: Sequence[str] = (),
) -> Path:
    """Do what is left of a grid; returns the file of its measurements, or the folder of the stage ``only``.

    jobs     stages done at the same time
    only     name of a stage that is done alone, with what it needs
    engine   that runs the stages, see `ifsq.bench.grid.engine`; empty: this process, or as many as ``jobs``
    options  of the engine

    Raises InputError for whatever is wrong with the grid, and where stages failed, once the others are done.
    """
    own_folder(out)
    check_jobs(jobs)
    if engine:
        check_engine(engine)
    plan = plan_grid(file, out, overrides)
    if only:
        return _alone(plan, only, device, reporter)
    make_folder(out)
    with lock(out / LOCK, reporter.say):
        write_plan(plan)
        if not engine:
            return _whole(plan, device, reporter, jobs)
        try:
            run_on_engine(plan, engine, device, jobs, options)
        finally:
            path = write_results(plan)
        return path


def several_processes(
    file: Path, out: Path, overrides: Sequence[str], only: str, device: str, reporter: Reporter
) -> None:
    """The work of a stage in the processes that torchrun started; who started it marks the stage. Raises InputError."""
    if not only:
        raise InputError("bench: starts torchrun by itself, see [resources]; start it without torchrun")
    stage = plan_grid(file, out, overrides).only(only).stages[only]
    stage.work.run(folder_of(out, only), device, reporter)


def _whole(plan: Plan, device: str, reporter: Reporter, jobs: int) -> Path:
    path = write_results(plan)

    def add(name: str) -> None:
        for figures in plan.figures:
            if figures.stage == name:
                for one in taken(plan, figures):
                    append_measurement(path, one)

    outcome = run_stages(plan, device, reporter, jobs, add)
    write_results(plan)  # in the order of the plan
    if outcome.failed:
        raise InputError(
            f"{len(outcome.failed)} stages failed and {len(outcome.skipped)} that need them were skipped, see"
            f" {plan.out / FAILURES}; the same command tries again"
        )
    return path


def _alone(plan: Plan, name: str, device: str, reporter: Reporter) -> Path:
    for stage in plan.only(name).stages.values():
        if perform(stage, plan, device, reporter):
            reporter.say(f"{stage.name}: done")
    return folder_of(plan.out, name)
