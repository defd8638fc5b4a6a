"""``ifsq tokenizer train|eval``, ``ifsq adapt``, ``ifsq encode``, ``ifsq reconstruct``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import SIZE_HELP, add_reading, experiment_named, named, reading_of, size, verb
from ifsq.cli.terminal import Terminal, print_cards, say


def add_tokenizer(verbs: Any) -> None:
    """``tokenizer train`` and ``tokenizer eval``."""
    tokenizer = verbs.add_parser("tokenizer", help="train a tokenizer, or measure one").add_subparsers(
        metavar="VERB", required=True
    )
    train = verb(tokenizer, "train", "train a tokenizer", _tokenizer_train, overrides="--")
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml")
    evaluate = verb(tokenizer, "eval", "measure a tokenizer on held-out images", _tokenizer_eval)
    add_measured(evaluate)
    evaluate.add_argument("--lpips", **_network("LPIPS, with these VGG16 weights"))


def add_measured(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which tokenizer is measured, on which images and by which features."""
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument(
        "--data", type=named, metavar="SOURCE", help="images, as data.source of an experiment (default: the run's)"
    )
    parser.add_argument(
        "--split",
        type=named,
        metavar="NAME",
        help="val, train, another of the source, or all (default: val; of other images than the run's their val or"
        " test, or all where they have no splits)",
    )
    parser.add_argument("--size", type=size, default=0, metavar="PX", help=SIZE_HELP)
    parser.add_argument("--count", type=int, default=0, metavar="N", help="images, drawn over the split (default: all)")
    add_levels(parser)
    add_reading(parser)
    parser.add_argument("--no-judge", action="store_true", help="leave out rFD(judge) and the training of its judge")
    parser.add_argument("--fid", **_network("rFID, with these Inception weights"))


def add_levels(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says at which of its nested levels a tokenizer is used."""
    parser.add_argument(
        "--levels",
        type=_levels,
        default=0,
        metavar="L",
        help="of every dimension: one of tokenizer.quantizer.nested_levels (default: those it was saved with)",
    )


def measured_of(options: argparse.Namespace, lpips: str = "") -> Any:
    """The `TokenizerEvaluation` that these arguments ask for."""
    from ifsq.evaluation import TokenizerEvaluation

    return TokenizerEvaluation(
        source=options.data or "",
        split=options.split or "",
        size=options.size,
        count=options.count,
        judge=not options.no_judge,
        lpips=lpips,
        fid=options.fid,
        levels=options.levels,
        reading=reading_of(options),
    )


def _network(what: str) -> dict[str, Any]:
    text = f"{what} or, without PATH, the published ones: found on this machine or fetched"
    return {"nargs": "?", "const": "official", "default": "", "metavar": "PATH", "help": text}


def add_adapt(verbs: Any) -> None:
    """``adapt``."""
    adapt = verb(verbs, "adapt", "put another bottleneck into a trained or imported tokenizer", _adapt, overrides="--")
    adapt.add_argument("source", metavar="TOKENIZER", help="run, saved model, or owner/name on the hub")
    adapt.add_argument(
        "--to",
        default="ifsq",
        metavar="NAME",
        help="a bound of FSQ (ifsq, tanh, gaussian, clamp, standardized, quantile, learned) or a kind of bottleneck"
        " (fsq, residual, vq, lfq, bsq, kl, ae); default ifsq",
    )
    adapt.add_argument("--levels", type=int, nargs="+", default=(), metavar="L", help="of every dimension")
    adapt.add_argument(
        "--bits", type=int, nargs="+", default=(), metavar="K", help="of every dimension: 2^K + 1 levels"
    )
    adapt.add_argument("--data", type=named, metavar="SOURCE", help="as data.source (default: the source's)")
    adapt.add_argument("--size", type=size, default=None, metavar="PX", help=SIZE_HELP)
    adapt.add_argument("--steps", type=int, default=0, metavar="N", help="default: a quarter of the source's")
    adapt.add_argument("--train-encoder", action="store_true", help="train the encoder too, which is frozen else")
    adapt.add_argument("--out", type=named, metavar="DIR", help="default: beside the source, TOKENIZER-NAME")


def add_encode(verbs: Any) -> None:
    """``encode``."""
    encode = verb(verbs, "encode", "write the codes of images into a cache", _encode)
    encode.add_argument("folder", type=Path, metavar="RUN", help="tokenizer run")
    encode.add_argument(
        "data",
        metavar="DATA",
        help="as data.source: a folder, list, shards, hf:NAME, or bundled:photos, bundled:digits, bundled:shapes",
    )
    encode.add_argument("out", type=Path, metavar="OUT")
    encode.add_argument("--size", type=size, default=None, metavar="PX", help=SIZE_HELP)
    encode.add_argument("--flip", action="store_true", help="also the codes of the mirrored images")
    encode.add_argument(
        "--crops",
        type=_crops,
        default=None,
        metavar="ten|N",
        help="several crops of each training image: the middle and the corners, each mirrored too, or N random ones",
    )
    encode.add_argument(
        "--crop-range",
        type=float,
        nargs="+",
        default=None,
        metavar="R",
        help="pictures cover R times the size before crops are taken (default: ten 1.1, random up to 1.25)",
    )
    encode.add_argument("--seed", type=int, default=0, metavar="N", help="of random crops (default 0)")
    add_levels(encode)
    encode.add_argument("--batch", type=_batch, default=0, metavar="N", help="pictures that are encoded together")
    encode.add_argument(
        "--split",
        nargs="+",
        default=None,
        metavar="NAME",
        help="splits of the source, or all of one without splits (default: train val, which generators need)",
    )
    add_reading(encode)


def add_reconstruct(verbs: Any) -> None:
    """``reconstruct``."""
    reconstruct = verb(verbs, "reconstruct", "pass images through encoder and decoder", _reconstruct)
    reconstruct.add_argument("folder", type=Path, metavar="RUN", help="tokenizer run")
    reconstruct.add_argument("images", type=Path, nargs="+", metavar="PATH", help="images, and folders of them")
    reconstruct.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_levels(reconstruct)
    reconstruct.add_argument("--tile", type=int, default=None, metavar="PX", help="for large images: this much at once")
    reconstruct.add_argument("--alone", action="store_true", help="without the original beside it")


def _tokenizer_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.experiment import load_tokenizer_experiment

    experiment = load_tokenizer_experiment(experiment_named(options.experiment), options.extra)
    with Terminal() as terminal:
        say(f"run: {pipeline.train_tokenizer(experiment, options.device, terminal)}")


def _tokenizer_eval(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        cards = pipeline.evaluate_tokenizer(
            options.folder, options.device, terminal, measured_of(options, options.lpips)
        )
    print_cards(cards)


def _adapt(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.experiment import Adaptation

    asked = Adaptation(
        source=options.source,
        to=options.to,
        levels=tuple(options.levels),
        bits=tuple(options.bits),
        data=options.data or "",
        size=options.size,
        steps=options.steps,
        train_encoder=options.train_encoder,
        out=options.out or "",
    )
    with Terminal() as terminal:
        say(f"run: {pipeline.adapt(asked, options.extra, options.device, terminal)}")


def _encode(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        cache = pipeline.encode(
            options.folder,
            options.data,
            options.out,
            options.size,
            options.flip,
            options.device,
            terminal,
            options.split or ("train", "val"),
            reading_of(options),
            _several(options),
            options.batch,
            options.levels,
        )
    say(f"codes: {cache.folder}, {', '.join(f'{cache.count(split)} of {split}' for split in cache.splits)}")


def _crops(text: str) -> int:
    """Number of crops; 0 for ten."""
    if text == "ten":
        return 0
    return _positive(text, "expected ten, or a number of random crops")


def _batch(text: str) -> int:
    return _positive(text, "expected a number of pictures")


def _levels(text: str) -> int:
    return _positive(text, "expected a number of levels")


def _positive(text: str, expected: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}")
    return int(text)


def _several(options: argparse.Namespace) -> Any:
    """The `Crops` that are asked for."""
    from ifsq.config import InputError
    from ifsq.data.crops import Crops

    if options.crops is None:
        if options.crop_range or options.seed:
            raise InputError("--crop-range and --seed are of several crops; expected --crops with them")
        return None
    kind = "random" if options.crops else "ten"
    return Crops(kind, options.crops, tuple(options.crop_range or ()), options.seed)


def _reconstruct(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    for line in pipeline.reconstruct(
        options.folder, options.images, options.out, options.tile, options.alone, options.device, options.levels
    ):
        say(line, everyone=True)  # each process tells of its own images
