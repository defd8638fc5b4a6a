"""The masked generator: in training the hidden digits' cross-entropy, weighed to a bound; in sampling a few rounds.

Masked diffusion with an absorbing state (MDLM, arXiv 2406.07524; MD4, arXiv 2406.04329), on the digits of codes: only
the logits of each digit are needed, however large the codebook of their product is. See `schedule` for the bound.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ifsq.codes import CodeBatch, Sampled
from ifsq.generators.base import Sampling, check_depth, check_depths
from ifsq.generators.conditioning import drop_labels
from ifsq.generators.masked.bound import Bound, BoundOptions, bound
from ifsq.generators.masked.config import MaskedConfig
from ifsq.generators.masked.network import MaskedNetwork
from ifsq.generators.masked.sampling import MaskedSampling, reveal
from ifsq.generators.masked.schedule import bound_weights, hidden_numbers, ranks
from ifsq.generators.streams import uniforms
from ifsq.generators.taps import Taps, TrainingPass
from ifsq.generators.watch import Partly, Progress, Watch, blank_where_unknown
from ifsq.nn.modes import evaluating


class MaskedGenerator(MaskedNetwork, kind="masked"):
    """Model of the digits of an image that are hidden, given the others and its class. See `Generator` for arguments.

    The groups that digits share an index in are of no matter to it but in `Sampled.indices`. The numbers of a
    codebook's vectors are one digit.

    Raises ValueError for latents, where a digit has more than 2**20 levels, and where the head width does not suit
    rotary positions.
    """

    title = "masked"
    noisy = True
    config_class = MaskedConfig
    sampling_class = MaskedSampling

    def training_pass(
        self, batch: CodeBatch, rng: torch.Generator, progress: float = 1.0, depths: Sequence[int] = ()
    ) -> TrainingPass:
        """``loss``: nats a position; ``bits_per_token`` and ``bits_per_image``: the same in bits.

        Its expectation over ``rng`` is an upper bound of the negative log-likelihood, in training of the network with
        its dropout and dropped labels. Numbers of hidden digits are spread over the batch as evenly as they can.
        """
        taps = Taps(check_depths(depths, len(self.layers)))
        labels, hidden, number = self._hidden(batch, rng)
        nats = self.nats(self._digits(batch), hidden, labels, taps)  # b
        weights = bound_weights(self.config.schedule, self.units).to(number.device)[number - 1]  # b, no wait for a GPU
        loss = (nats * weights.to(nats)).mean() / self.spec.tokens
        bits = loss.detach() / math.log(2)
        losses = {"loss": loss, "bits_per_token": bits, "bits_per_image": bits * self.spec.tokens}
        return TrainingPass(losses, tuple(taps.states[depth][:, self.config.class_tokens :] for depth in depths))

    def nll(self, batch: CodeBatch, first: int = 0) -> Float[Tensor, "b"]:
        """An upper bound of the negative log-likelihood, estimated with the options' defaults; see `bound`."""
        return self.bound(batch, BoundOptions(), first=first).nats

    def bound(self, batch: CodeBatch, options: BoundOptions, *, seed: int = 0, first: int = 0) -> Bound:
        """An upper bound of the negative log-likelihood of each image given its label; see `BoundOptions`.

        No dropout of any kind, no gradient. An image's random numbers follow from (seed, its number) alone, that of the
        first being ``first``. Raises ValueError for options that do not fit the codes.
        """
        with evaluating(self):
            return bound(self, self._digits(batch), batch.labels, options, seed, first)

    def hidden(
        self,
        batch: CodeBatch,
        depth: int,
        rng: torch.Generator | None = None,
        progress: float = 1.0,
        cleaner: float | None = None,
    ) -> Float[Tensor, "b t width"]:
        """States of the positions, digits hidden as `loss` draws them; see `Generator.hidden`."""
        check_depth(depth, len(self.layers))
        rng = torch.Generator(batch.labels.device).manual_seed(0) if rng is None else rng
        labels, hidden, _ = self._hidden(batch, rng, cleaner)
        return self.states(self._digits(batch), hidden, labels, depth)

    def states_at(
        self, batch: CodeBatch, depths: Sequence[int], time: float | None = None, seed: int = 0, first: int = 0
    ) -> tuple[Float[Tensor, "b t width"], ...]:
        """Of positions of which a share ``time`` of the digits is known, whatever the schedule.

        See `Generator.states_at`.
        """
        self.check_states(depths, time)
        taps, known = Taps(depths), round((time or 0) * self.units)
        keys = uniforms(seed, first, len(batch.labels), self.units)
        hidden = self.of_digits(ranks(keys) < self.units - known).to(batch.labels.device)
        with evaluating(self):
            self.states(self._digits(batch), hidden, batch.labels, taps=taps)
        return tuple(taps.states[depth][:, self.config.class_tokens :] for depth in depths)

    def check_sampling(self, sampling: Sampling) -> None:
        assert isinstance(sampling, MaskedSampling)
        sampling.check_rounds(self.units, "digits" if self.config.mask == "digit" else "positions")

    def cost(self, sampling: Sampling) -> int:
        """One evaluation a round, two where it is guided."""
        assert isinstance(sampling, MaskedSampling)
        return sampling.rounds + sampling.guided_rounds

    def draw(
        self, labels: Int[Tensor, "b"], sampling: MaskedSampling, seed: int, first: int, watch: Watch | None = None
    ) -> Sampled:
        """Round by round; an image's random numbers are its own."""
        device = next(self.parameters()).device
        shape = (len(labels), self.spec.tokens, self.spec.dim)
        digits = torch.zeros(shape, dtype=torch.int64, device=device)
        if len(labels):
            with evaluating(self):
                tell = None if watch is None else partial(self._tell, watch, sampling.rounds)
                digits = reveal(self, labels.to(device), sampling, seed, first, tell)
        return self._sampled(digits)

    def _sampled(self, digits: Int[Tensor, "b t d"]) -> Sampled:
        digits = digits.unflatten(1, self.spec.grid)  # b h w d
        codes = self.spec.digits_to_codes(digits) if self.spec.on_lattice else None
        return Sampled(codes, self.spec.digits_to_indices(digits))

    def _tell(self, watch: Watch, rounds: int, done: int, digits: Tensor, known: Tensor) -> None:
        """Say which digits stand after so many rounds."""

        def look() -> Partly:
            there = known.unflatten(1, self.spec.grid).movedim(-1, 1)  # b d h w
            sampled = self._sampled(digits)
            return Partly(Sampled(blank_where_unknown(sampled.codes, there), sampled.indices), there)

        watch(Progress(done, rounds, look))

    def _hidden(
        self, batch: CodeBatch, rng: torch.Generator, cleaner: float | None = None
    ) -> tuple[Tensor, Bool[Tensor, "b t d"], Int[Tensor, "b"]]:
        """Labels of a training pass, which digits it hides, and how many units these are.

        cleaner  as of `Generator.hidden`: as much is drawn as in training, and labels stay
        """
        labels, count, device = batch.labels, len(batch.labels), batch.labels.device
        if self.training or cleaner is not None:
            share = self.config.label_dropout if cleaner is None else 0.0
            labels = drop_labels(labels, self.num_classes, share, rng)
        start = torch.rand(1, generator=rng, device=rng.device, dtype=torch.float64)
        times = (start + torch.arange(count, device=rng.device) / count) % 1  # evenly over the batch
        keys = torch.rand(count, self.units, generator=rng, device=rng.device, dtype=torch.float64)
        if cleaner is not None:
            nearer = cleaner * torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
            times = (times + nearer).clamp(max=1)
        number = hidden_numbers(self.config.schedule, times, self.units)
        return labels, self.of_digits(ranks(keys) < number[:, None]).to(device), number

    def _digits(self, batch: CodeBatch) -> Int[Tensor, "b t d"]:
        """Raises ValueError for latents."""
        if not isinstance(batch.layout, type(self.spec)):
            raise ValueError(f"latents of {batch.layout.dim} channels have no digits: expected digits")
        return batch.content.flatten(1, 2)
