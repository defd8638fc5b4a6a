"""``ifsq``: its verbs, and how each run of one ends.

Whatever a person got wrong ends in one line on stderr and exit code 2; a run that was asked to stop exits with 130.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ifsq.cli import analyze, bench, doctor, evaluate, features, generator, interop, studio, teacher, tokenizer
from ifsq.cli.parser import Parser, Version
from ifsq.cli.terminal import refuse, remarks, stopped
from ifsq.config import InputError, Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    # Threads that spin while they wait cost tenfold as soon as anything else needs a core (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has every letter of every name
            stream.reconfigure(errors="backslashreplace")
    command = parser()
    options, extra = command.parse_known_args(arguments)
    if not hasattr(options, "run"):
        if extra:
            return refuse(f"{extra[0]!r}: no such argument; see ifsq --help")
        command.print_help()
        return 0
    for word in extra:
        if not options.overrides or (word.startswith("--") and not word.startswith(options.overrides)):
            return refuse(f"{word!r}: no such argument of {options.verb}; see {options.verb} --help")
    options.extra = extra
    try:
        if options.alone and os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(f"{options.verb}: runs in one process; start it without torchrun")
        with remarks():
            options.run(options)
    except InputError as error:
        return refuse(str(error))
    except OSError as error:  # no room, no permission: the person's to mend
        if error.errno is None:
            raise
        return refuse(f"{error.filename or 'the system'}: {error.strerror}")
    except KeyboardInterrupt:
        return stopped("stopped; the same command starts again")
    except Interrupted as error:
        return stopped(str(error))
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    command = Parser(
        prog="ifsq", description="Image tokenizers with iFSQ, and generators of their codes.", allow_abbrev=False
    )
    command.add_argument("--version", action=Version)
    verbs = command.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    bench.add_demo(verbs)
    tokenizer.add_tokenizer(verbs)
    tokenizer.add_adapt(verbs)
    tokenizer.add_encode(verbs)
    teacher.add_teacher(verbs)
    features.add_features(verbs)
    generator.add_generator(verbs)
    generator.add_sample(verbs)
    evaluate.add_evaluate(verbs)
    evaluate.add_compare(verbs)
    tokenizer.add_reconstruct(verbs)
    bench.add_bench(verbs)
    bench.add_report(verbs)
    studio.add_studio(verbs)
    analyze.add_analyze(verbs)
    interop.add_import(verbs)
    interop.add_export(verbs)
    doctor.add_doctor(verbs)
    return command
