"""READ FIRST. The whole road, one function a stage, in flow order:

    train_tokenizer, adapt -> encode -> (train_teacher, cache_features) -> train_generator -> (fit_times) -> sample
    evaluate_tokenizer, evaluate_generator (with a judge), likelihood, evaluate (anybody's images), reconstruct,
    export (as graphs that run without this package),
    analyze_alignment, score_teachers, forecast

Every stage joins the processes that torchrun started (or stands alone), opens the run it is of once, checks what it is
given before it writes anything, and can be run again after an interruption.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ifsq.codes.cache import CodeCache
from ifsq.codes.features import FeatureCache
from ifsq.config import InputError, check_seed, to_dict
from ifsq.data import Reading, describe_counts, describe_images, open_images, split_called
from ifsq.data.crops import Crops
from ifsq.data.image_sets import set_kind
from ifsq.data.images import SPLITS, Size
from ifsq.evaluation import (
    GeneratorEvaluation,
    ImageEvaluation,
    TokenizerEvaluation,
    asked_for,
    check_cards,
    draw_picture,
    held_out_figures,
    hold,
    images_to_measure,
    load_networks,
    measure_bits,
    measure_images,
    measure_steps,
    measure_tokenizer,
    observe_generator,
    observe_tokenizer,
    shown_pairs,
    suffix_of,
    write_cards,
    write_evaluation,
    write_pairs,
    write_samples,
)
from ifsq.evaluation.alignment.analyze import analyze_layers
from ifsq.evaluation.alignment.record import AlignmentAnalysis, LayerAlignment
from ifsq.evaluation.forecast import forecast_tokenizer
from ifsq.evaluation.reconstruct import check_tile, distinct_targets, reconstruct_image
from ifsq.evaluation.record import Evaluation
from ifsq.evaluation.samples import Classes, image_shape, samples_card
from ifsq.evaluation.score import Scored, TeacherScoring, measure_teachers
from ifsq.evaluation.teacher import network_figures
from ifsq.experiment import Adaptation, GeneratorExperiment, TokenizerExperiment, adapted_experiment
from ifsq.generators import Generator, Origin
from ifsq.generators.diffusion.grids import FittedTimes, fit_generator_times, save_with_times
from ifsq.generators.repa.encode import features_beside, named, write_features
from ifsq.generators.repa.kept import begin_with_projectors
from ifsq.generators.repa.teaching import taught
from ifsq.generators.train import GeneratorTask
from ifsq.interop.graphs.write import export_graphs
from ifsq.metrics import ProtocolCard
from ifsq.nn.memory import within_memory
from ifsq.pretrained.teachers import TeacherConfig, open_teacher
from ifsq.pretraining import KIND, Student, TeacherExperiment, TeacherTask
from ifsq.sources import codes_of, data_to_encode, load_pair, load_tokenizer, open_codes, workers_of
from ifsq.store.files import check_free
from ifsq.store.model_card import UNKNOWN, provenance
from ifsq.store.run import Run
from ifsq.tokenizer.adapt import adapted_start
from ifsq.tokenizer.encode import write_codes
from ifsq.tokenizer.losses import load_perceptual
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.train import TokenizerTask
from ifsq.training.claim import Claim
from ifsq.training.distributed import from_first, in_turn, join
from ifsq.training.log import Reporter, Silent
from ifsq.training.loop import fit
from ifsq.training.preparing import prepared
from ifsq.training.warm_start import warm_start


def train_tokenizer(
    experiment: TokenizerExperiment, device: str = "auto", reporter: Reporter | None = None, *, adapts: bool = False
) -> Path:
    """Train, or go on training, the tokenizer of an experiment; returns its folder.

    adapts  fit its bottleneck to the encoder and the decoder of ``train.init`` before it is trained, see `adapt`
    """
    folder, reporter = Path(experiment.out), reporter or Silent()
    with join(device) as world:
        channels = experiment.tokenizer.conv.in_channels
        train, val = (
            open_images(experiment.data, split, labels=False, channels=channels) for split in ("train", "val")
        )
        experiment, said = prepared(experiment, world)
        perceptual = load_perceptual(experiment.loss, world)
        torch.manual_seed(experiment.train.seed)
        with within_memory("tokenizer"):
            model = Tokenizer(experiment.tokenizer)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        task = TokenizerTask(
            model, train, experiment.loss, experiment.train, perceptual, lambda net, at: held_out_figures(net, at, val)
        )
        task.observer = observe_tokenizer(experiment.train, val, world)
        if adapts:
            start = adapted_start(model, train, experiment.train, folder, world)
        else:
            start = warm_start(model, model.describe(), experiment.train, folder, world)
        claim = Claim(folder, "tokenizer", experiment, train.fingerprint, start.record)
        notes = [f"data: {describe_images(train, val)}", *said, *start.notes]
        fit(task, experiment.train, claim, world, reporter, notes=notes)
    return folder


def adapt(
    asked: Adaptation, overrides: Sequence[str] = (), device: str = "auto", reporter: Reporter | None = None
) -> Path:
    """Put another bottleneck into a trained or imported tokenizer, fit it and train; returns the run's folder.

    The run is an ordinary one, which began with the source's encoder and decoder.

    asked      source and bottleneck, see `adapted_experiment`
    overrides  ``--section.key value`` of the run's experiment
    """
    return train_tokenizer(adapted_experiment(asked, overrides), device, reporter, adapts=True)


def encode(
    folder: Path,
    source: str,
    out: Path,
    size: Size | None = None,
    flip: bool = False,
    device: str = "auto",
    reporter: Reporter | None = None,
    splits: Sequence[str] = SPLITS,
    reading: Reading | None = None,
    crops: Crops | None = None,
    batch: int = 0,
    levels: int = 0,
) -> CodeCache:
    """Write the codes of splits of a data source as a cache; a cache that already says the same is returned.

    Digits, see `Tokenizer.spec`; float16 latents of kinds ``ae`` and ``kl`` (the mean). Killed and started again it
    goes on.

    folder   of a tokenizer
    source   images, as ``data.source`` of an experiment
    size     pixels a side, or height and width; default: what the tokenizer was trained on
    flip     store the codes of the mirrored images too
    splits   names of splits; ``all`` for the whole of a source without any. Generators need ``train`` and ``val``
    reading  how the images are read; where the source is the run's own, default as there
    crops    several crops of each training image in place of its middle
    batch    pictures that pass through the tokenizer together; 0: as many as are usual at their size
    levels   one of the tokenizer's nested levels; 0: those that it was saved with
    """
    reporter, reading = reporter or Silent(), reading or Reading()
    with join(device) as world:
        run = Run.open(folder)
        tokenizer = load_tokenizer(run, world.device, levels)
        data = data_to_encode(run, source, size, tokenizer.factor, reading)
        names = dict.fromkeys(split_called(data, name) for name in splits)
        sources = {name: open_images(data, name, channels=tokenizer.channels) for name in names}
        workers = workers_of(run, reading)
        return write_codes(
            tokenizer, sources, data, out, world, reporter, flip=flip, workers=workers, crops=crops, batch=batch
        )


def train_teacher(experiment: TeacherExperiment, device: str = "auto", reporter: Reporter | None = None) -> Path:
    """Train, or go on training, a teacher on images without their labels; returns its folder."""
    folder, reporter = Path(experiment.out), reporter or Silent()
    with join(device) as world:
        train, val = (open_images(experiment.data, split, labels=False) for split in ("train", "val"))
        experiment, said = prepared(experiment, world)
        experiment.check_parts(world.size)
        torch.manual_seed(experiment.train.seed)
        with within_memory("network"):
            model = Student(experiment.network, experiment.objective.expansion)
        task = TeacherTask(
            model, train, experiment.objective, experiment.train, lambda net, at: network_figures(net, val, at)
        )
        start = warm_start(model, task.describe(), experiment.train, folder, world)
        claim = Claim(folder, KIND, experiment, train.fingerprint, start.record)
        notes = [f"data: {describe_images(train, val)}", *said, *start.notes]
        fit(task, experiment.train, claim, world, reporter, notes=notes)
    return folder


def cache_features(
    codes: Path,
    teacher: TeacherConfig,
    out: Path | None = None,
    grid: tuple[int, int] | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    workers: int = 0,
    batch: int = 0,
) -> FeatureCache:
    """Write what a teacher sees in the training pictures of a cache of codes; a cache that says the same is returned.

    With crops and mirrored pictures as the codes have them. Killed and started again it goes on.

    out      default: beside the codes, where training looks for it
    grid     rows and columns of the features; default: those of the codes
    workers  processes that read images
    batch    pictures that pass through the teacher together; 0: as many as are usual at their size
    """
    with join(device) as world:
        cache = CodeCache.open(codes)
        looks = in_turn(world, lambda: open_teacher(teacher)).to(world.device)
        out, grid = out or features_beside(codes, teacher), grid or cache.layout.grid
        reporter = reporter or Silent()
        return write_features(looks, named(teacher), cache, out, grid, world, reporter, workers=workers, batch=batch)


def train_generator(experiment: GeneratorExperiment, device: str = "auto", reporter: Reporter | None = None) -> Path:
    """Train, or go on training, the generator of an experiment, on cached codes or on images; returns its folder."""
    folder, reporter = Path(experiment.out), reporter or Silent()
    with join(device) as world:
        cache, tokenizer = codes_of(experiment, world.device)
        experiment, said = prepared(experiment, world)
        torch.manual_seed(experiment.train.seed)
        codebook = None if tokenizer is None else tokenizer.codebook()
        code_dim = None if codebook is None else codebook.shape[1]
        model = experiment.make(cache.layout, len(cache.classes), code_dim)
        model.origin = Origin(
            classes=cache.classes,
            tokenizer=experiment.tokenizer,
            tokenizer_digest="" if tokenizer is None else tokenizer.digest(),
            codes_digest=cache.digest,
            sampling=to_dict(experiment.sampling),
        )
        # What the first process finds good the others need not read again.
        train = in_turn(world, lambda: cache.read("train", codebook))
        lacks = not cache.about["tokenizer"] and "val" not in cache.splits  # as latents of another project may
        val = None if lacks else in_turn(world, lambda: cache.read("val", codebook))
        in_turn(world, lambda: model.observe(train))
        seen = taught(experiment.alignment, model, train, cache, world)
        task = GeneratorTask(model, seen.train, val, experiment.train, seen.companion)
        task.observer = observe_generator(experiment.train, tokenizer, cache, train.labels, task.validate, world)
        counts = describe_counts(len(train), train.labels.unique().tolist(), cache.classes, len(val or ()))
        # The vectors that the digits number are this tokenizer's, whatever the source was trained behind.
        start = warm_start(model, model.describe(), experiment.train, folder, world, own=("codebook",))
        start = begin_with_projectors(start, seen.companion, experiment.train, world)
        if start.record is not None:
            in_turn(world, lambda: model.check_codes(train, f"train.init={experiment.train.init}"))
        claim = Claim(folder, experiment.kind, experiment, seen.data, start.record)
        fit(task, experiment.train, claim, world, reporter, notes=[f"codes: {counts}", *said, *start.notes])
    return folder


def sample(
    folder: Path,
    labels: Sequence[str | int],
    seed: int,
    out: Path,
    device: str = "auto",
    sampling: Mapping[str, Any] | None = None,
    *,
    count: int = 0,
    classes: Classes = "balanced",
    step: int | None = None,
    average: bool = True,
    batch: int | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Draw one image for every label, a class's number or name, or ``count`` images; returns ``out``.

    out       ``.png``: one picture of all. Else a set with a card, which all processes draw and which goes on where it
              was killed, see `ifsq.data.image_sets`: ``.npz`` in ADM's layout, or a folder of PNGs
    sampling  options of the kind's sampling class in place of the run's own
    classes   of ``count`` images: ``balanced``, ``random``, or as in ``training``; see `asked_for`
    step      of a checkpoint that is kept; None: the newest
    average   the averaged weights, else the raw ones
    batch     images at once in each process; None: as many as suits their size
    """
    kind = set_kind(out)
    check_seed(seed)
    with join(device) as world:
        run = Run.open(folder)
        pair = load_pair(run, world.device, step, average)
        asked = asked_for(run, pair.generator, labels, count, classes, seed)
        options = pair.generator.sampling(sampling)
        if kind is None:
            from_first(world, lambda: draw_picture(pair, asked.labels, seed, options, out, reporter))
        else:
            place = kind(out, len(asked.labels), image_shape(pair.generator, pair.tokenizer))
            card = samples_card(pair, asked, options, seed, place.kind, run.step if step is None else step, average)
            write_samples(pair, asked.labels, options, card, place, world, reporter or Silent(), batch)
    return out


def fit_times(
    folder: Path,
    device: str = "auto",
    sampling: Mapping[str, Any] | None = None,
    *,
    step: int | None = None,
    average: bool = True,
    images: int = 16,
    iterations: int = 40,
    out: Path | None = None,
    reporter: Reporter | None = None,
) -> FittedTimes:
    """Times of a diffusion generator's steps at which they end nearest to a fine solution, for ``sampling.times``.

    sampling    options in place of the run's own: the times are for its solver, steps and guidance
    step        of a checkpoint that is kept; None: the newest
    average     the averaged weights, else the raw ones
    images      whose noise they are fitted to; no sampling draws these
    iterations  of the fit
    out         a new folder for the generator as a saved model, whose usual sampling takes these times
    """
    with join(device) as world:
        if out is not None:
            check_free(out)
        run = Run.open(folder)
        model = Generator.from_run(run, step, average).to(world.device)
        options = model.sampling(sampling)
        found = fit_generator_times(model, options, images, iterations, reporter)
        if out is not None:
            taken = run.weights(step, average).step
            made = provenance(run, taken) if run.trained and taken is not None else UNKNOWN
            from_first(world, lambda: save_with_times(model, options, found.times, out, made))
    return found


def reconstruct(
    folder: Path,
    paths: Sequence[Path],
    out: Path,
    tile: int | None = None,
    alone: bool = False,
    device: str = "auto",
    levels: int = 0,
) -> Iterator[str]:
    """Write every image beside its reconstruction as a PNG below ``out``; yields a line about each.

    Images keep their size; up to ``factor - 1`` pixels at the right and the bottom are cut off. Processes share them.

    folder  of a tokenizer
    paths   images, and folders of them, whose layout is kept
    tile    pixels a side of what passes through at once, for large images; see `Tokenizer.encode`
    alone   write the reconstruction without the original
    levels  one of the tokenizer's nested levels; 0: those that it was saved with
    """
    with join(device) as world:
        tokenizer = load_tokenizer(Run.open(folder), world.device, levels)
        if tile is not None:
            check_tile(tile, tokenizer.factor)
        targets = distinct_targets(paths, out, tokenizer.factor)
        world.barrier()  # every process has seen the targets free
        for path, target in list(targets.items())[world.rank :: world.size]:
            yield reconstruct_image(tokenizer, path, target, tile, alone)


def export(
    folder: Path,
    out: Path,
    format: str = "onnx",
    *,
    levels: int = 0,
    half: bool = False,
    reporter: Reporter | None = None,
) -> list[str]:
    """Write a tokenizer as graphs that run without this package; returns lines about them. One process alone.

    They are compared with it before the folder gets its name, see `export_graphs`.

    folder  of a tokenizer
    out     a new folder
    format  ``onnx``, or ``torch`` for programs of `torch.export`
    levels  one of the tokenizer's nested levels; 0: those that it was saved with
    half    weights in float16, computed in float32
    """
    with join("cpu") as world:
        if world.size > 1:
            raise InputError(f"{world.size} processes: graphs are written by one; start it without torchrun")
        run = Run.open(folder)
        tokenizer = load_tokenizer(run, world.device, levels)
        return export_graphs(tokenizer, out, format, {"steps": run.step}, half, reporter)


def evaluate_tokenizer(
    folder: Path,
    device: str = "auto",
    reporter: Reporter | None = None,
    options: TokenizerEvaluation | None = None,
) -> list[ProtocolCard]:
    """Measure a tokenizer, by default on the held-out images of its run. All processes share the images.

    Writes ``evaluation.json``, ``samples/reconstructions.png`` and ``samples/differences_xN.png``, N being how much
    larger the differences are drawn. Other images than the run's held-out ones add ``_SPLIT_FINGERPRINT`` to the names.
    Of a source that somebody names and that has no splits, all images are measured; see `TokenizerEvaluation`.
    """
    reporter, options = reporter or Silent(), options or TokenizerEvaluation()
    with join(device) as world:
        run = Run.open(folder)
        tokenizer = load_tokenizer(run, world.device, options.levels)
        on = images_to_measure(run, options, tokenizer)
        networks = load_networks(options, run.folder.absolute().parent, on, tokenizer.channels, world, reporter)
        workers = workers_of(run, options.reading)
        measured = measure_tokenizer(tokenizer, on, networks, world, reporter, workers=workers)
        measured = replace(measured, step=run.step, left_out=(*measured.left_out, *networks.left_out))
        for line in measured.lacks:
            reporter.say(line)
        if world.first:
            write_pairs(run.folder / "samples", on.suffix, shown_pairs(tokenizer, on.images, world.device, on.indices))
            write_evaluation(run, measured, on.suffix)
        world.barrier()
    return list(measured.cards)


def evaluate_generator(
    folder: Path,
    asked: GeneratorEvaluation | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    sampling: Mapping[str, Any] | None = None,
    steps: Sequence[int] | None = None,
    average: bool = True,
    out: Path | None = None,
) -> dict[int | None, Evaluation]:
    """Measure steps of a generator run against the real images that it learned from; returns what was found, by step.

    sampling  options of the kind's sampling class in place of the run's own
    steps     of checkpoints that are kept; empty: all of them; None: the newest
    average   the averaged weights, else the raw ones
    out       folder for what is written; None: that of the run

    Writes ``evaluations/step_N.json``, and of the newest step ``evaluation.json``, ``samples/classes.png`` (one class a
    row), ``real.png`` and ``neighbours.png`` beside it; options that are not the run's own are added to the names, as
    ``evaluation_guidance_3.0.json``. The judge, a classifier of the same images, is trained beside the run when it is
    not there yet. All processes share the images.
    """
    asked, reporter = asked or GeneratorEvaluation(), reporter or Silent()
    with join(device) as world:
        run = Run.open(folder)
        # The first process says which: another may be saved meanwhile, and one of None is refused.
        measured = from_first(world, lambda: ((run.step,) if steps is None else tuple(steps) or run.kept) or (None,))
        for step in measured if steps else ():
            run.weights(step, average)  # before anything is computed: each of them is there
        pair = load_pair(run, world.device, measured[-1], average)
        options = pair.generator.sampling(sampling)
        suffix = suffix_of(options, pair.generator.sampling(), average)
        held = hold(run, pair, open_codes(run, pair.generator), asked, options, world, reporter)
        return measure_steps(replace(held, out=out), measured, average, suffix, world, reporter)


def likelihood(
    folder: Path,
    images: int = 64,
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    step: int | None = None,
    average: bool = True,
    reporter: Reporter | None = None,
) -> ProtocolCard:
    """Bits that held-out images take by a generator run: exact of an autoregressive one, else a bound.

    options  of the kind's own, see `measure_bits`
    seed     of its random numbers
    step     of a checkpoint that is kept; None: the newest
    average  the averaged weights, else the raw ones

    Writes ``evaluations/step_N_likelihood.json``, of a saved model ``evaluation_likelihood.json``. All processes share
    the images.
    """
    check_seed(seed)
    with join(device) as world:
        run = Run.open(folder)
        pair = load_pair(run, world.device, step, average)
        cache = in_turn(world, lambda: open_codes(run, pair.generator))
        card = measure_bits(pair, cache, images, options, seed, world, reporter)
        of, suffix = run.step if step is None else step, "_likelihood" if average else "_likelihood_raw"
        found = Evaluation((card,), of, weights="average" if average else "raw")
        from_first(world, lambda: write_evaluation(run, found, suffix, of))
    return card


def evaluate(
    asked: ImageEvaluation, out: Path | None = None, device: str = "auto", reporter: Reporter | None = None
) -> list[ProtocolCard]:
    """Measure anybody's images against a reference: FID and its relatives, over Inception's or other features.

    out  file for the cards, in JSON; None: they are returned alone

    All processes share the images. Statistics of the reference are kept in a cache folder.
    """
    reporter = reporter or Silent()
    if out is not None:
        check_cards(out)
    with join(device) as world:
        measured = measure_images(asked, world, reporter)
        for line in measured.lacks:
            reporter.say(line)
        if out is not None:
            from_first(world, lambda: write_cards(out, measured))
    return list(measured.cards)


def analyze_alignment(
    folder: Path,
    asked: AlignmentAnalysis | None = None,
    out: Path | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    steps: Sequence[int] | None = None,
    average: bool = True,
) -> tuple[Path, LayerAlignment]:
    """Hold the layers of a tokenizer or a generator against a teacher's features; returns the file and what is in it.

    out    file of the figures, ``.json``; the curves lie beside it as ``.png``. None: ``alignment_TEACHER.json`` in the
           run, with more in its name for other images than the run's held-out ones
    steps  of checkpoints that are kept; empty: all of them; None: the newest

    Steps that the file holds by the same protocol are not measured again. One process alone.
    """
    asked, reporter = asked or AlignmentAnalysis(), reporter or Silent()
    check_seed(asked.seed)
    with join(device) as world:
        if world.size > 1:
            raise InputError(f"{world.size} processes: layers are measured in one; start it without torchrun")
        return analyze_layers(Run.open(folder), asked, out, steps, average, world.device, reporter)


def score_teachers(
    asked: TeacherScoring, out: Path | None = None, device: str = "auto", reporter: Reporter | None = None
) -> list[Scored]:
    """Rank teachers by the spatial structure of their features, without a generator; the best comes first.

    out  file for the cards, in JSON; None: they are returned alone

    All processes share the images.
    """
    reporter = reporter or Silent()
    if out is not None:
        check_cards(out)
    with join(device) as world:
        scored, measured = measure_teachers(asked, world, reporter)
        for line in measured.lacks:
            reporter.say(line)
        if out is not None:
            from_first(world, lambda: write_cards(out, measured))
    return scored


def forecast(
    folder: Path,
    codes: Path | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
    options: TokenizerEvaluation | None = None,
) -> list[ProtocolCard]:
    """What a tokenizer's codes and decoder say beforehand of how well its codes can be generated.

    codes    a cache of its codes, with splits ``train`` and ``val``; None: nothing is said of tokens
    options  images and networks, as of an evaluation; LPIPS is not taken

    Writes ``evaluation_forecast.json`` into the run, with more in its name for other images than the held-out ones. One
    process alone.
    """
    reporter, options = reporter or Silent(), options or TokenizerEvaluation()
    with join(device) as world:
        if world.size > 1:
            raise InputError(f"{world.size} processes: a forecast is made in one; start it without torchrun")
        run = Run.open(folder)
        measured, suffix = forecast_tokenizer(run, codes, replace(options, lpips=""), world, reporter)
        for line in measured.lacks:
            reporter.say(line)
        write_evaluation(run, measured, f"_forecast{suffix}")
        reporter.say(f"forecast: {run.folder / f'evaluation_forecast{suffix}.json'}")
    return list(measured.cards)
