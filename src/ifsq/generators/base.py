"""What the rest of the house knows of a generator: `loss` on a batch of codes, `sample` given labels, a folder on disk.

One object owns a formula for training and for sampling, and the trainer never learns which kind it holds. A kind is
registered by its class: ``class ARGenerator(Generator, kind="ar")``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.codes import CodeBatch, CodeSet, CodeSpec, LatentSpec, Sampled
from ifsq.config import InputError, build, merge, to_dict
from ifsq.generators.conditioning import check_guidance
from ifsq.generators.origin import Origin
from ifsq.generators.taps import TrainingPass
from ifsq.generators.watch import Watch
from ifsq.store.model import save_model
from ifsq.store.model_card import UNKNOWN, Provenance, model_card
from ifsq.store.run import Run
from ifsq.store.weights import build_with, weights_digest

MAX_TOKENS = 2**20  # positions: tables of them are made before a weight is read


@dataclass(frozen=True)
class Sampling:
    """How a generator is sampled. Each kind adds its own options.

    guidance  1 is none; s > 1 extrapolates from the null class: ``null + s * (class - null)``. A kind may take several
    """

    guidance: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        check_guidance(self.guidance)

    @property
    def sampler(self) -> str:
        """The options beside guidance in words; what is switched off is left out."""
        own = {name: value for name, value in vars(self).items() if name not in ("guidance", *self.unsaid)}
        return ", ".join(f"{name} {value}" for name, value in own.items() if value is not None and value is not False)

    @property
    def unsaid(self) -> tuple[str, ...]:
        """Options that are switched off by a number."""
        return ()

    @classmethod
    def left(cls, usual: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """The usual options that still hold beside those that are asked for: of the others these take the place."""
        return dict(usual)


class Generator(nn.Module, ABC):
    """A model of codes given a class label. Each kind refuses the layouts that it cannot model.

    spec         layout of the codes: digits of a lattice, numbers of a codebook's vectors, or latents
    num_classes  labels are 0..num_classes-1; the label num_classes is the null class of classifier-free guidance
    code_dim     channels of a codebook's vectors, which its layout does not say; a kind that needs no vectors needs
                 none. Of other layouts their own
    """

    kinds: ClassVar[dict[str, type["Generator"]]] = {}
    kind: ClassVar[str]
    title: ClassVar[str]
    """The kind in words, an adjective."""
    config_class: ClassVar[type]
    sampling_class: ClassVar[type[Sampling]]
    causal: ClassVar[bool] = False
    """Whether the state at a position has read the positions before it alone, and predicts its own."""
    noisy: ClassVar[bool] = False
    """Whether the network reads codes with noise, at a time of 0 (noise) to 1 (data)."""
    config: Any
    spec: CodeSpec | LatentSpec
    origin: Origin
    """What it was trained on; of a fresh generator its classes by number."""

    def __init_subclass__(cls, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            cls.kind = kind
            Generator.kinds[kind] = cls

    def __init__(self, config: Any, spec: CodeSpec | LatentSpec, num_classes: int, code_dim: int | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: expected at least 1")
        if spec.tokens > MAX_TOKENS:
            raise ValueError(
                f"a grid of {spec.grid[0]} x {spec.grid[1]} codes: expected at most {MAX_TOKENS} positions"
            )
        if code_dim is not None and code_dim < 1:
            raise ValueError(f"code_dim={code_dim}: expected at least 1")
        self.config = config
        self.spec = spec
        self.num_classes = num_classes
        self.code_dim = spec.dim if isinstance(spec, LatentSpec) or spec.on_lattice else code_dim
        self.origin = Origin(tuple(map(str, range(num_classes))))

    @property
    def annealed(self) -> tuple[str, ...]:
        """What of `loss` follows the progress of the training, in words."""
        return ()

    def loss(self, batch: CodeBatch, rng: torch.Generator, progress: float = 1.0) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is the one to minimise. All randomness but dropout's comes from ``rng``.

        progress  share of the training that is behind, 0 to 1, by which a kind may anneal what it trains on
        """
        return self.training_pass(batch, rng, progress).losses

    @abstractmethod
    def training_pass(
        self, batch: CodeBatch, rng: torch.Generator, progress: float = 1.0, depths: Sequence[int] = ()
    ) -> TrainingPass:
        """`loss`, and the states after each of ``depths`` blocks, of one and the same pass.

        Raises ValueError unless each depth is 1 to the network's own.
        """

    @abstractmethod
    def hidden(
        self,
        batch: CodeBatch,
        depth: int,
        rng: torch.Generator | None = None,
        progress: float = 1.0,
        cleaner: float | None = None,
    ) -> Float[Tensor, "b t width"]:
        """States after ``depth`` blocks, differentiable, in the mode that the generator is in; row-major.

        rng       what `loss` would get, as ``progress``: the states are then those of its pass; None stands for a fresh
                  one of seed 0
        cleaner   for averaged weights that look at what `training_pass` gets from the same ``rng``, in eval mode: of a
                  `noisy` kind the very noise, each image at a time nearer to the data by up to so much; labels stay

        Raises ValueError unless depth is 1 to the network's own.
        """

    @property
    @abstractmethod
    def depth(self) -> int:
        """Blocks of the network."""

    @property
    @abstractmethod
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the positions that the network reads."""

    @abstractmethod
    def states_at(
        self, batch: CodeBatch, depths: Sequence[int], time: float | None = None, seed: int = 0, first: int = 0
    ) -> tuple[Float[Tensor, "b t width"], ...]:
        """States after each of ``depths`` blocks, of one pass in eval mode without gradient, row-major.

        depths  0 is what the first block reads
        time    of a `noisy` kind, 0 to 1; None: of any other
        seed    of the noise: that of image number i, the first one being ``first``, follows from (seed, i) alone

        ``batch.labels`` may hold the null class. Raises ValueError for another depth, and for a time that is missing,
        out of range or of no use.
        """

    def check_states(self, depths: Sequence[int], time: float | None) -> None:
        """Raise ValueError, see `states_at`."""
        for depth in depths:
            if not 0 <= depth <= self.depth:
                raise ValueError(f"depth={depth}: expected 0 to {self.depth}, the blocks of the network")
        if self.noisy and (time is None or not 0 <= time <= 1):
            raise ValueError(f"time={time}: expected 0, noise, to 1, data")
        if time is not None and not self.noisy:
            raise ValueError(f"time={time}: expected none, this kind reads no noise")

    @abstractmethod
    def cost(self, sampling: Sampling) -> int:
        """Network evaluations for one image; those of the null class count as well."""

    def arithmetic(self, sampling: Sampling | None = None) -> str:
        """What `sample` computes in, or without its options `loss` and `nll`, as a protocol card states it.

        Raises InputError on options that cannot be where the weights are.
        """
        return str(next(self.parameters()).dtype).removeprefix("torch.")

    def guide_digest(self, sampling: Sampling) -> str | None:
        """SHA-256 of the weights of another generator that the options name."""
        return None

    def sampler(self, sampling: Sampling) -> str:
        """The options beside guidance in words, as a protocol card states them, with the weights that they name."""
        digest = self.guide_digest(sampling)
        return sampling.sampler if digest is None else f"{sampling.sampler}, the guide's weights {digest[:12]}"

    @abstractmethod
    def draw(
        self, labels: Int[Tensor, "b"], sampling: Any, seed: int, first: int, watch: Watch | None = None
    ) -> Sampled:
        """What `sample` returns, of labels that are classes and of the kind's own options."""

    def nll(self, batch: CodeBatch, first: int = 0) -> Float[Tensor, "b"] | None:
        """Negative log-likelihood of each image in nats, or a bound, given its label; None of a kind that has none.

        first  number of the first image, from which an estimate has its random numbers
        """
        return None

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError where options of the kind's own class do not fit this generator's codes."""
        return

    def observe(self, codes: CodeSet) -> None:
        """Take from the training codes what the model must know beforehand; called once, before training."""

    def check_weights(self) -> None:
        """Raise ValueError where weights that were read cannot be of what config and layout say."""
        return

    def check_codes(self, codes: CodeSet, where: str) -> None:
        """Raise InputError where what weights from elsewhere, ``where``, know of codes is not of these."""
        return

    def check_codebook(self, codebook: Float[Tensor, "v d"] | None) -> None:
        """Raise ValueError where the model keeps other vectors than the codebook of its tokenizer, None without any."""
        return

    def sample(
        self,
        labels: Int[Tensor, "b"],
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        watch: Watch | None = None,
        **options: Any,
    ) -> Sampled:
        """One image's codes for every label, the images numbered from ``first`` on.

        Image number i is a function of (weights, its label, options, seed, i): its random numbers exactly, its codes
        but for what a batch of another shape rounds otherwise. So a batch that starts at ``first`` draws what one
        over all images would.

        sampling  of the kind's ``sampling_class``; None stands for its defaults
        seed      0 to 2**63 - 1, as ``first``
        watch     is told of every step; what is drawn is the same
        options   fields of ``sampling`` in place of its own: ``sample(labels, guidance=2.0)``

        Raises ValueError on a label outside 0..num_classes-1, on options that are out of range, and where the network
        gives no finite numbers; TypeError on an option that the kind has not.
        """
        self.check_labels(labels)
        sampling = self.sampling_class() if sampling is None else sampling
        if not isinstance(sampling, self.sampling_class):
            raise TypeError(f"{type(sampling).__name__}: expected {self.sampling_class.__name__}")
        sampling = replace(sampling, **options)
        self.check_sampling(sampling)
        return self.draw(labels, sampling, seed, first, watch)

    def sampling(self, over: Mapping[str, Any] | None = None) -> Sampling:
        """How the generator is sampled by its `origin`, with the plain values ``over`` on top. Raises InputError."""
        usual = self.sampling_class.left(self.origin.sampling, over or {})
        found = build(self.sampling_class, merge(usual, over or {}), "sampling")
        try:
            self.check_sampling(found)
        except ValueError as error:
            raise InputError(f"sampling: {error}") from error
        return found

    def check_labels(self, labels: Int[Tensor, "b"]) -> None:
        """Raise ValueError naming the first label that is not a class."""
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.numel():
            raise ValueError(f"label {int(wrong[0])}: expected 0 to {self.num_classes - 1}")

    def describe(self) -> dict[str, Any]:
        """JSON from which `from_description` builds the same architecture."""
        return {
            "kind": self.kind,
            "config": to_dict(self.config),
            "spec": self.spec.to_dict(),
            "code_dim": self.code_dim,
            "origin": to_dict(self.origin),
        }

    @classmethod
    def current(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A described config with its options as they are called now."""
        return config

    @classmethod
    def from_description(cls, described: dict[str, Any], where: str) -> "Generator":
        """Inverse of `describe`, with fresh weights. Raises InputError when it describes something else."""
        make = cls._maker(described, where)
        try:
            return make()
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> "Generator":
        """The generator of a run (averaged weights of its newest checkpoint) or of a saved model, in eval mode.

        source    a folder, or a repository ``owner/name`` of the Hugging Face hub where no such folder is (extra
                  ``hub``); a `Path` is always a folder
        revision  branch, tag or commit of the repository

        Called on a kind, it opens that kind alone. Raises InputError.
        """
        return cls.from_run(Run.open(source, revision))

    @classmethod
    def from_run(cls, run: Run, step: int | None = None, average: bool = True) -> "Generator":
        """As `from_pretrained`, of a run that is open; ``step`` and ``average`` as of `Run.weights`."""
        found = run.weights(step, average)
        make = cls._maker(found.described, run.name)
        model = build_with(make, found.load(), run.name, halves=found.step is None).eval()
        try:
            model.check_weights()
        except ValueError as error:
            raise InputError(f"{run.name}: {error}") from error
        return model

    def save_pretrained(self, folder: str | Path, made: Provenance = UNKNOWN) -> None:
        """Write ``config.json``, ``model.safetensors`` and the model card ``README.md``, whole or not at all.

        made  what the card says of data, steps, evaluation and licence
        """
        save_model(Path(folder), self.describe(), self.state_dict(), generator_card(self, made))

    @classmethod
    def _maker(cls, described: dict[str, Any], where: str) -> Callable[[], "Generator"]:
        """How the described generator is made. Raises InputError."""
        kinds = {kind: known for kind, known in Generator.kinds.items() if issubclass(known, cls)}
        kind = described.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            what = "a generator" if cls is Generator else f"a model of kind {cls.kind}"
            raise InputError(f"{where}: holds a {kind} model; expected {what}")
        for name in ("config", "spec", "origin"):
            if not isinstance(described.get(name), dict):
                raise InputError(f"{where}: its description is damaged: {name}: expected a table")
        known = kinds[kind]
        origin = build(Origin, described["origin"], f"{where}: origin")
        build(known.sampling_class, origin.sampling, f"{where}: origin.sampling")
        config: Any = build(known.config_class, known.current(described["config"]), where)
        layout: Any = LatentSpec if "dim" in described["spec"] else CodeSpec
        spec = build(layout, described["spec"], f"{where}: spec")
        code_dim = described.get("code_dim")
        if code_dim is not None and type(code_dim) is not int:
            raise InputError(f"{where}: code_dim: {code_dim!r}, expected a number of channels")
        return partial(_make, known, config, spec, origin, code_dim)


def check_depths(depths: Sequence[int], blocks: int) -> Sequence[int]:
    """The depths, where a network of so many blocks has a state after each. Raises ValueError."""
    for depth in depths:
        check_depth(depth, blocks)
    return depths


def check_depth(depth: int, blocks: int) -> None:
    """Raise ValueError unless a network of so many blocks has a state after ``depth`` of them."""
    if not 1 <= depth <= blocks:
        raise ValueError(f"depth={depth}: expected 1 to {blocks}, the blocks of the network")


def _make(cls: Any, config: Any, spec: Any, origin: Origin, code_dim: int | None) -> Generator:
    model: Generator = cls(config, spec, len(origin.classes), code_dim)
    model.origin = origin
    return model


def generator_card(model: Generator, made: Provenance) -> str:
    """The text of ``README.md``: sizes, classes, use, and what is known of the training."""
    spec, kind = model.spec, model.kind
    facts = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "kind": kind,
        "code grid": " x ".join(map(str, spec.grid)),
        **_about_codes(spec),
        "classes": str(model.num_classes),
        "SHA-256 of the tokenizer's weights": model.origin.tokenizer_digest,
        "SHA-256 of the weights": weights_digest(model),
    }
    use = (
        "import ifsq, torch",
        'generator = ifsq.Generator.from_pretrained(".")  # this folder, or owner/name on the hub',
        "drawn = generator.sample(torch.tensor([0]), seed=0)  # for the tokenizer's decode_sampled",
    )
    return model_card(f"Generator of image codes ({kind})", ("image-generation", kind), facts, use, made)


def _about_codes(spec: CodeSpec | LatentSpec) -> dict[str, str]:
    if isinstance(spec, LatentSpec):
        return {"latent channels": str(spec.dim)}
    if not spec.on_lattice:
        return {"codebook": " + ".join(map(str, spec.levels))}
    return {"levels": " x ".join(map(str, spec.levels)), "index groups": " + ".join(map(str, spec.groups))}
