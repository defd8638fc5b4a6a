"""What is known to fail before anything is trained: refused when a grid is planned, not hours later in a stage."""

from collections.abc import Iterable
from dataclasses import replace

from ifsq.bench.grid.config import Grid
from ifsq.codes import CodeSpec
from ifsq.codes.spec import LatentSpec
from ifsq.config import InputError
from ifsq.evaluation import TokenizerEvaluation
from ifsq.evaluation.options import chosen_images
from ifsq.experiment import GeneratorExperiment, TokenizerExperiment
from ifsq.generators import Generator
from ifsq.generators.repa.config import AlignmentConfig
from ifsq.pretrained.teachers import check_teacher
from ifsq.pretraining import TeacherExperiment
from ifsq.training.preparing import check_shares


def check_measures(grid: Grid) -> None:
    """Raise InputError for figures that are compared and not measured, and a best scale taken in several processes."""
    if (processes := grid.resource("guidance").processes) > 1:
        raise InputError(f"resources.guidance.processes={processes}: expected 1, in which the best is taken")
    wanted = grid.evaluation.metrics
    for asked in grid.compare:
        if wanted and asked.metric not in wanted:
            raise InputError(
                f"compare: metric {asked.metric!r}: is not measured; expected one of evaluation.metrics,"
                f" {', '.join(wanted)}"
            )


def check_training(
    experiment: TokenizerExperiment | TeacherExperiment | GeneratorExperiment, kind: str, processes: int
) -> None:
    """Raise InputError where so many processes cannot share a batch."""
    try:
        check_shares(experiment.train, processes)
        if isinstance(experiment, TeacherExperiment):
            experiment.check_parts(processes)
    except InputError as error:
        raise InputError(f"{kind}: {error}") from error


def check_timed(
    experiment: TokenizerExperiment | TeacherExperiment | GeneratorExperiment, kind: str, processes: int
) -> None:
    """Raise InputError for a training whose steps are not timed, which a budget in minutes takes."""
    why = ""
    if processes > 1:
        why = f"steps are timed in one process, and resources.{kind} has {processes}"
    elif isinstance(experiment, GeneratorExperiment) and experiment.data is not None:
        why = "a generator that encodes its images in training is not timed, nothing being encoded yet"
    elif isinstance(experiment, GeneratorExperiment) and experiment.alignment and experiment.alignment.weight:
        why = "a generator that is aligned is not timed, its teacher's features not being there yet"
    if why:
        raise InputError(f"budget in minutes of {kind}: {why}; expected flops or images")


def looked_at(behind: TokenizerExperiment, options: TokenizerEvaluation, where: str) -> str:
    """Fingerprint of the images that a tokenizer is measured on.

    Raises InputError where it cannot be: levels that it has not, and images that are not there or do not fit.
    """
    try:
        if options.levels:
            behind.tokenizer.quantizer.at(options.levels)
        conv = behind.tokenizer.conv
        return chosen_images(behind.data, options, conv.factor, conv.in_channels)[2].fingerprint
    except InputError as error:
        raise InputError(f"evaluation of {where}: {error}") from error


def check_scales(experiment: GeneratorExperiment, model: Generator, scales: Iterable[float], where: str) -> None:
    """Raise InputError for a scale of the search of guidance at which a generator cannot be sampled."""
    for scale in scales:
        try:
            model.check_sampling(replace(experiment.sampling, guidance=scale))
        except ValueError as error:
            raise InputError(f"protocol.guidance of {where}: {error}") from error


def check_bits(layout: CodeSpec | LatentSpec, where: str) -> None:
    """Raise InputError for codes of a codebook: nothing bounds the bits of a diffusion generator of them."""
    if isinstance(layout, CodeSpec) and not layout.on_lattice:
        raise InputError(
            f"evaluation.likelihood of {where}: codes of a codebook have no cells that noise could fill; expected 0, or"
            " the cell in left_out"
        )


def check_teachers(asked: AlignmentConfig, own: str) -> None:
    """Raise InputError for a teacher that is nowhere.

    own  the source that is the grid's own teacher
    """
    for teacher in asked.seeing:
        if teacher.source != own:
            check_teacher(teacher.source)
