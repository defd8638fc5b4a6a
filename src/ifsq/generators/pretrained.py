"""A generator on disk: its description in JSON, and the way back."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError, build, to_dict
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.base import Generator
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.store.model import save_model
from ifsq.store.model_card import UNKNOWN, Provenance, model_card
from ifsq.store.run import Run
from ifsq.store.weights import build_with, weights_digest


@dataclass(frozen=True)
class Origin:
    """What a generator was trained on, kept with its weights.

    classes           class names; a label is a position in them
    tokenizer         folder of the tokenizer, as the experiment gave it
    tokenizer_digest  its weights' SHA-256
    codes_digest      SHA-256 of the code cache's manifest
    sampling          how it is sampled where nothing else is said: keyword arguments of ``sample``
    """

    classes: tuple[str, ...]
    tokenizer: str
    tokenizer_digest: str
    codes_digest: str
    sampling: dict[str, Any]

    def labels(self, wanted: Sequence[str | int]) -> list[int]:
        """Labels of classes given by number or by name. Raises InputError naming the first that is neither, or both.

        A text that is the number of one class and the name of another is refused; ``number:3`` and ``name:3`` say
        which is meant.
        """
        return [_label_of(given, self.classes) for given in wanted]


def describe(model: ARGenerator | DiffusionGenerator, origin: Origin) -> dict[str, Any]:
    """JSON from which `from_description` builds the same architecture."""
    return {
        "kind": model.kind,
        "config": to_dict(model.config),
        "spec": model.spec.to_dict(),
        "origin": to_dict(origin),
    }


def from_description(described: dict[str, Any], where: str) -> tuple[ARGenerator | DiffusionGenerator, Origin]:
    """Inverse of `describe`, with fresh weights. Raises InputError when it describes something else."""
    make, origin = _read(described, where)
    try:
        return make(), origin
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _read(described: dict[str, Any], where: str) -> tuple[Callable[[], ARGenerator | DiffusionGenerator], Origin]:
    """How the generator is made, and what it was trained on. Raises InputError."""
    kind = described.get("kind")
    if kind not in ("ar", "diffusion"):
        raise InputError(f"{where}: holds a {kind} model; expected a generator")
    for name in ("config", "spec", "origin"):
        if not isinstance(described.get(name), dict):
            raise InputError(f"{where}: its description is damaged: {name}: expected a table")
    spec = build(CodeSpec, described["spec"], f"{where}: spec")
    origin = build(Origin, described["origin"], f"{where}: origin")
    cls: type[ARGenerator] | type[DiffusionGenerator]
    make: Callable[..., ARGenerator | DiffusionGenerator]
    if kind == "ar":
        cls, make = ARGenerator, partial(ARGenerator, build(ARConfig, described["config"], where))
    else:
        cls, make = DiffusionGenerator, partial(DiffusionGenerator, build(DiTConfig, described["config"], where))
    _check_sampling(origin.sampling, cls, where)
    return partial(make, spec, len(origin.classes)), origin


def _check_sampling(options: dict[str, Any], cls: type[Generator], where: str) -> None:
    """Raise InputError for what is no option of the kind's ``sample``, or of another type."""
    parameters = inspect.signature(cls.sample).parameters.values()
    known = {
        of.name: of.default for of in parameters if of.kind == of.KEYWORD_ONLY and of.name not in ("seed", "first")
    }
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{where}: origin.sampling: {name}: unknown option; known: {', '.join(known)}")
        usual = known[name]
        like = (int, float) if isinstance(usual, float) else (type(usual),)
        if usual is not None and type(value) not in like:
            raise InputError(f"{where}: origin.sampling: {name}: {value!r}, expected as {usual!r}")


def load_generator(run: Run) -> tuple[ARGenerator | DiffusionGenerator, Origin]:
    """The generator of a run (averaged weights of its newest checkpoint) or of a saved model, in eval mode."""
    found = run.weights()
    make, origin = _read(found.described, run.name)
    model = build_with(make, found.load(), run.name, halves=found.step is None)
    return model.eval(), origin


def save_generator(
    model: ARGenerator | DiffusionGenerator, origin: Origin, folder: str | Path, made: Provenance = UNKNOWN
) -> None:
    """Write ``config.json``, ``model.safetensors`` and the model card ``README.md``, whole or not at all.

    made  what the card says of data, steps, evaluation and licence
    """
    save_model(Path(folder), describe(model, origin), model.state_dict(), generator_card(model, origin, made))


def generator_card(model: ARGenerator | DiffusionGenerator, origin: Origin, made: Provenance) -> str:
    """The text of ``README.md``: sizes, classes, use, and what is known of the training."""
    spec = model.spec
    facts = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "kind": model.kind,
        "code grid": " x ".join(map(str, spec.grid)),
        "levels": " x ".join(map(str, spec.levels)),
        "index groups": " + ".join(map(str, spec.groups)),
        "classes": str(len(origin.classes)),
        "SHA-256 of the tokenizer's weights": origin.tokenizer_digest,
        "SHA-256 of the weights": weights_digest(model),
    }
    use = (
        "import ifsq, torch",
        'generator = ifsq.Generator.from_pretrained(".")  # this folder, or owner/name on the hub',
        "codes = generator.sample(torch.tensor([0]), seed=0).codes  # for the tokenizer's decode",
    )
    return model_card(f"Generator of image codes ({model.kind})", ("image-generation", model.kind), facts, use, made)


def _label_of(given: str | int, classes: Sequence[str]) -> int:
    kind, colon, text = str(given).partition(":")
    if not colon or kind not in ("number", "name") or given in classes:
        kind, text = "either", str(given)
    found = set()
    if kind != "name" and text.isascii() and text.isdigit() and len(text) < 20 and int(text) < len(classes):
        found.add(int(text))
    if kind != "number" and not isinstance(given, int) and text in classes:
        found.add(classes.index(text))
    if len(found) == 1:
        return found.pop()
    if found:
        raise InputError(
            f"label {text}: is the number of the class {classes[int(text)]!r} and the name of class number"
            f" {classes.index(text)}; expected number:{text} or name:{text}"
        )
    expected = f"label {text}: expected 0 to {len(classes) - 1}"
    if all(name == str(i) for i, name in enumerate(classes)):
        raise InputError(expected)
    known = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:12]))
    near = "".join(f"; did you mean {name!r}?" for name in difflib.get_close_matches(text, classes, n=1))
    raise InputError(f"{expected} ({known}), or one of these names{near}")
