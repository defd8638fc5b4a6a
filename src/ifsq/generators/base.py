"""What the rest of the house knows of a generator: `loss` on a batch of codes, `sample` given labels.

One object owns a formula for training and for sampling, and the trainer never learns which kind it holds.
The autoregressive model reads the indices of a batch, the diffusion model its codes; both come from the same digits.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from ifsq.codes.spec import CodeSpec
from ifsq.store.run import Run

MAX_TOKENS = 2**20  # positions: tables of them are made before a weight is read


@dataclass(frozen=True)
class CodeBatch:
    """A batch from the code cache: integer digits (b, h, w, d) and int64 labels (b,)."""

    digits: Int[Tensor, "b h w d"]
    labels: Int[Tensor, "b"]


@dataclass(frozen=True)
class Sampled:
    """What a generator draws: lattice codes for the decoder and the same thing as indices.

    codes    float32 (b, d, h, w) in [-1, 1], on the lattice
    indices  int64 (b, h, w, g) in the generator's own groups, the axis kept for one group too
    """

    codes: Float[Tensor, "b d h w"]
    indices: Int[Tensor, "b h w g"]


class Generator(nn.Module, ABC):
    """A model of codes given a class label.

    spec         layout of the codes
    num_classes  labels are 0..num_classes-1; the label num_classes is the null class of classifier-free guidance
    """

    kind: str

    def __init__(self, spec: CodeSpec, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: expected at least 1")
        if spec.tokens > MAX_TOKENS:
            raise ValueError(
                f"a grid of {spec.grid[0]} x {spec.grid[1]} codes: expected at most {MAX_TOKENS} positions"
            )
        if not spec.on_lattice:
            raise ValueError(
                f"codes of a codebook of {spec.levels[0]}: expected codes on a lattice (fsq, lfq, bsq, ...)"
            )
        self.spec = spec
        self.num_classes = num_classes

    @abstractmethod
    def loss(self, batch: CodeBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is the one to minimise. All randomness but dropout's comes from ``rng``."""

    @abstractmethod
    def sample(self, labels: Int[Tensor, "b"], *, guidance: float = 1.0, seed: int = 0, first: int = 0) -> Sampled:
        """One image's codes for every label, the images numbered from ``first`` on.

        Image number i is a function of (weights, its label, options, seed, i): its random numbers exactly, its codes
        but for what a batch of another shape rounds otherwise. So a batch that starts at ``first`` draws what one
        over all images would.

        guidance  1 is none; s > 1 extrapolates from the null class: ``null + s * (class - null)``
        seed      0 to 2**63 - 1, as ``first``

        Raises ValueError on a label outside 0..num_classes-1, and where the network gives no finite numbers.
        """

    def observe(self, digits: Integer[Tensor, "n h w d"]) -> None:
        """Take from the training digits what the model must know beforehand; called once, before training."""

    @staticmethod
    def from_pretrained(source: str | Path, revision: str | None = None) -> "Generator":
        """The generator of a run or of a saved model, autoregressive or diffusion, in eval mode.

        source    a folder, or a repository ``owner/name`` of the Hugging Face hub where no such folder is (extra
                  ``hub``); a `Path` is always a folder
        revision  branch, tag or commit of the repository

        Raises InputError.
        """
        from ifsq.generators.pretrained import load_generator  # both kinds are built on this file

        return load_generator(Run.open(source, revision))[0]

    def check_labels(self, labels: Int[Tensor, "b"]) -> None:
        """Raise ValueError naming the first label that is not a class."""
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.numel():
            raise ValueError(f"label {int(wrong[0])}: expected 0 to {self.num_classes - 1}")
