"""A run's averaged weights as a model folder of their own, with a card."""

from pathlib import Path

from ifsq.config import InputError
from ifsq.generators import Generator
from ifsq.store.files import check_free
from ifsq.store.model import new_folder
from ifsq.store.model_card import LICENSE, provenance
from ifsq.store.run import Run
from ifsq.tokenizer.model import Tokenizer


def export_pretrained(source: Path, out: Path, license: str = LICENSE) -> None:
    """Write the newest checkpoint's averaged weights of a tokenizer or generator run, and what is known of them.

    source   folder of the run
    out      a new folder; it appears whole or not at all
    license  of the weights, an identifier of the hub

    Raises InputError when ``out`` is taken and when ``source`` is no training run of one of these.
    """
    check_free(out)
    run = Run.open(source)
    step = run.weights().step
    if step is None or not run.trained:
        raise InputError(f"{source}: is not a training run; expected one, a saved model is such a folder already")
    made = provenance(run, step, license)
    if run.kind not in ("tokenizer", *Generator.kinds):
        raise InputError(f"{source}: holds a {run.kind} run; expected a tokenizer or a generator")
    with new_folder(out) as partial:
        if run.kind == "tokenizer":
            Tokenizer.from_run(run).save_pretrained(partial, made)
        else:
            Generator.from_run(run).save_pretrained(partial, made)
