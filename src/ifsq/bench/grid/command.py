"""``ifsq bench``: a grid planned, run and its measurements written."""

from collections.abc import Sequence
from pathlib import Path

from ifsq.bench.grid.cells import cells, told
from ifsq.bench.grid.describe import rows_of_stages, summary, write_plan
from ifsq.bench.grid.engine import check_engine, run_on_engine
from ifsq.bench.grid.plan import Plan, plan_grid
from ifsq.bench.grid.results import check_measured, measurements, taken, write_results
from ifsq.bench.grid.runner import StagesError, check_jobs, own_folder, perform, run_stages
from ifsq.bench.grid.stages import STAGES, folder_of
from ifsq.bench.grid.timing import TIMES, time_trainings
from ifsq.bench.grid.verdicts import more_seeds, pairs_of, verdicts_of
from ifsq.bench.measurement import MEASUREMENTS, append_measurement
from ifsq.bench.shipped import experiment_file
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


def show_plan(
    file: Path, out: Path, overrides: Sequence[str], device: str = "auto"
) -> tuple[list[str], list[list[str]]]:
    """What a grid is, in sentences, and a row for each stage; nothing is written. Raises InputError."""
    plan = plan_grid(file, out, overrides, device=device)
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
    if only:
        return _alone(plan_all(file, out, overrides, device), only, device, reporter)
    plan = plan_grid(file, out, overrides, device=device)
    make_folder(out / STAGES)  # first: by it a folder that is left at any moment is a grid's
    with lock(out / LOCK, reporter.say):
        if plan.untimed:
            time_trainings(plan.untimed, out, device, reporter, jobs)
            plan = plan_grid(file, out, overrides, device=device)
        lost: dict[str, str] = {}  # what failed, which is not tried again when more seeds are
        while True:
            write_plan(plan)
            failure: StagesError | None = None
            try:
                if engine:
                    _run_there(plan, engine, device, jobs, options)
                else:
                    _run_here(plan, device, reporter, jobs, lost)
            except StagesError as error:
                failure = error  # the rest is done, and other cells are compared
            if failure is None:
                check_measured(plan)
            if plan.grid.protocol is None:
                break
            larger = plan_grid(file, out, overrides, more_seeds(plan.grid, measurements(plan)), device)
            if larger.stages.keys() <= plan.stages.keys():
                break
            plan = larger
        for pair, verdict in zip(pairs_of(plan.grid), verdicts_of(plan.grid, measurements(plan)), strict=True):
            reporter.say(f"{pair.asked.metric}: {verdict.renamed(pair.a.shown, pair.b.shown).sentence}")
    if failure is not None:
        raise failure
    return out / MEASUREMENTS


def plan_all(file: Path, out: Path, overrides: Sequence[str], device: str = "auto") -> Plan:
    """The plan of a grid with every seed that its protocol may come to. Raises InputError."""
    plan = plan_grid(file, out, overrides, device=device)
    if plan.untimed:
        raise InputError(
            f"{out}: has no {TIMES} for the budgets in minutes, from which steps and names of stages follow; run the"
            " whole grid there first, or copy that of another folder"
        )
    if plan.grid.protocol is None:
        return plan
    return plan_grid(file, out, overrides, {told(cell): plan.grid.protocol.cap for cell in cells(plan.grid)}, device)


def several_processes(
    file: Path, out: Path, overrides: Sequence[str], only: str, device: str, reporter: Reporter
) -> None:
    """The work of a stage in the processes that torchrun started; who started it marks the stage. Raises InputError."""
    if not only:
        raise InputError("bench: starts torchrun by itself, see [resources]; start it without torchrun")
    stage = plan_all(file, out, overrides, device).only(only).stages[only]
    stage.work.run(folder_of(out, only), device, reporter)


def _run_here(plan: Plan, device: str, reporter: Reporter, jobs: int, lost: dict[str, str]) -> None:
    path = write_results(plan)

    def add(name: str) -> None:
        for figures in plan.figures:
            if figures.stage == name:
                for one in taken(plan, figures):
                    append_measurement(path, one)

    outcome = run_stages(plan, device, reporter, jobs, add, lost)
    write_results(plan)  # in the order of the plan
    lost.update(outcome.failed)
    if lost:
        raise StagesError(plan.out, len(lost), len(outcome.skipped))


def _run_there(plan: Plan, engine: str, device: str, jobs: int, options: Sequence[str]) -> None:
    try:
        run_on_engine(plan, engine, device, jobs, options)
    finally:
        write_results(plan)


def _alone(plan: Plan, name: str, device: str, reporter: Reporter) -> Path:
    for stage in plan.only(name).stages.values():
        if perform(stage, plan, device, reporter):
            reporter.say(f"{stage.name}: done")
    return folder_of(plan.out, name)
