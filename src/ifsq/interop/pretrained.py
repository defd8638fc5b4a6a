"""A run's averaged weights as a model folder of their own, with a card."""

from pathlib import Path

from ifsq.config import InputError
from ifsq.generators.pretrained import load_generator, save_generator
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.folder import check_free, find_weights, new_folder, read_config
from ifsq.training.model_card import LICENSE, provenance


def export_pretrained(run: Path, out: Path, license: str = LICENSE) -> None:
    """Write the newest checkpoint's averaged weights of a tokenizer or generator run, and what is known of them.

    out      a new folder; it appears whole or not at all
    license  of the weights, an identifier of the hub

    Raises InputError when ``out`` is taken and when ``run`` is no training run of one of these.
    """
    check_free(out)
    config = read_config(run)
    found = find_weights(run)
    if found.step is None or "experiment" not in config:
        raise InputError(f"{run}: is not a training run; expected one, a saved model is such a folder already")
    made = provenance(run, config["experiment"], found.step, license)
    if config["kind"] not in ("tokenizer", "ar", "diffusion"):
        raise InputError(f"{run}: holds a {config['kind']} run; expected a tokenizer or a generator")
    with new_folder(out) as partial:
        if config["kind"] == "tokenizer":
            Tokenizer.from_pretrained(run).save_pretrained(partial, made)
        else:
            model, origin = load_generator(run)
            save_generator(model, origin, partial, made)
