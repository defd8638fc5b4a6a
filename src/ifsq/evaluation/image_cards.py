"""Figures of samples against a reference, from what networks have seen of both, each with its card."""

from dataclasses import replace

from torch import Tensor

from ifsq.config import InputError
from ifsq.evaluation.collect import Look, Seen
from ifsq.evaluation.reference import View, told_of
from ifsq.metrics import FeatureStatistics, Moments, ProtocolCard, fd_name
from ifsq.metrics.distribution import INCEPTION_2015, frechet_from_statistics, sfd_name
from ifsq.metrics.inception_score import PART, score_name
from ifsq.metrics.intervals import CORRECTS, bias_note, bootstrap_means, frechet_jackknife, percentiles
from ifsq.metrics.kernel import kernel_distance, kid_name
from ifsq.metrics.neighbours import neighbours
from ifsq.training.distributed import World, from_first

K, K_DENSITY = 3, 5
LEAST = K_DENSITY + 1
"""Images that each side needs to be compared pair by pair."""
SHARES = {
    "precision": f"share of samples within the ball of a reference image, k = {K}",
    "recall": f"share of reference images within the ball of a sample, k = {K}",
    "density": f"balls of reference images that hold a sample, over k = {K_DENSITY}",
    "coverage": f"share of reference images whose ball holds a sample, k = {K_DENSITY}",
}


def image_cards(
    look: Look, seen: Seen, view: View, blank: ProtocolCard, world: World
) -> tuple[list[ProtocolCard], list[str]]:
    """What one network says of samples: cards, and in words what the reference does not allow. In every process.

    look   what was asked of the network
    seen   of the samples
    view   of the reference
    blank  the protocol, without a metric yet

    Raises InputError in every process where there are too few images.
    """
    network, name = look.network, look.network.name
    _refuse_few(blank.samples or "samples", seen.n, LEAST if look.pairs else 2)
    blank = replace(blank, n=seen.n, features=told_of(look))
    left_out: list[str] = []

    def distances() -> list[ProtocolCard]:
        cards = [_frechet(fd_name(name), seen, network.pooled, view.pooled, view, blank)]
        if network.spatial and look.spatial and view.spatial is not None:
            cards.append(_frechet(sfd_name(name), seen, network.spatial, view.spatial, view, blank))
        if seen.score is not None:
            cards.append(_score(score_name(name), seen.score.values(), blank))
        return cards

    cards = from_first(world, distances)
    if network.spatial and look.spatial and view.spatial is None:
        left_out.append(f"{sfd_name(name)}: the reference holds no spatial statistics (mu_s, sigma_s)")
    if look.pairs and view.rows is None:
        what = ", ".join([kid_name(name), *(_called(share, name) for share in SHARES)])
        left_out.append(f"{what}: the reference holds statistics alone; expected its images")
    elif view.rows is not None:
        cards += _pairs(name, seen.kept(), view.rows, blank, world)
    return cards, left_out


def bias_of(look: Look, seen: Seen, view: View) -> str:
    """What the number of images does to the Fréchet distance of pooled features, where it is much, in words."""
    return bias_note(_fewer(seen, view), look.network.widths[look.network.pooled])


def _fewer(seen: Seen, view: View) -> int:
    """Images of the smaller side."""
    return min(seen.n, view.n) if view.n else seen.n


def _frechet(
    metric: str, seen: Seen, output: str, against: FeatureStatistics | Moments, view: View, blank: ProtocolCard
) -> ProtocolCard:
    """A Fréchet distance, with the interval of a jackknife over groups of samples."""
    parts, fewer = seen.parts(output), _fewer(seen, view)
    width = len(parts[0].mean)
    method = [
        *(["reference statistics as its file gives them"] if view.given else []),
        bias_note(fewer, width) or "biased upwards a little, about as 1/n",
    ]
    if len(parts) > 1:
        found = frechet_jackknife(parts, against)
        low, high = found.interval
        values = {"distance": found.value, "low": low, "high": high}
        method.append(f"95 % interval: jackknife over {len(parts)} groups of samples")
        if fewer >= CORRECTS * width:
            values["corrected"] = found.corrected
            method.append("corrected: of the samples' bias in 1/n")
    else:
        values = {"distance": frechet_from_statistics(seen.statistics(output), against)}
    return replace(blank, metric=metric, values=values, method="; ".join(method))


def _score(metric: str, parts: Tensor, blank: ProtocolCard) -> ProtocolCard:
    """The Inception Score: the mean over its parts, and their deviation."""
    deviation = float(parts.std()) if len(parts) > 1 else 0.0
    few = f"; {blank.n} images here, which bias it downwards" if blank.n < PART else ""
    method = f"softmax of the class scores, mean and deviation over parts of {PART} images{few}"
    return replace(blank, metric=metric, values={"mean": float(parts.mean()), "std": deviation}, method=method)


def _pairs(name: str, samples: Tensor, reference: Tensor, blank: ProtocolCard, world: World) -> list[ProtocolCard]:
    """What compares single images: the kernel distance, and how images lie among each other's neighbours."""
    for whose, rows in ((blank.samples, samples), (blank.reference, reference)):
        _refuse_few(whose, len(rows), LEAST)
    of = f"{len(samples)} samples against {len(reference)} reference images; 95 % interval: bootstrap over images"
    if world.device.type == "cuda":
        samples, reference = samples.to(world.device), reference.to(world.device)
    kernel = kernel_distance(samples, reference, world=world)
    low, high = percentiles(kernel.drawn)
    values = {"distance": kernel.value, "low": low, "high": high}
    method = f"unbiased at any number of images, polynomial kernel of degree 3; {of}"
    cards = [replace(blank, metric=kid_name(name), values=values, method=method)]
    found = neighbours(reference, samples, K, K_DENSITY, world=world)
    for share, method in SHARES.items():
        each = getattr(found, share).cpu()
        low, high = percentiles(bootstrap_means(each))
        values = {"mean": float(each.mean()), "low": low, "high": high}
        cards.append(replace(blank, metric=_called(share, name), values=values, method=f"{method}; {of}"))
    return cards


def _called(share: str, name: str) -> str:
    return share if name == INCEPTION_2015 else f"{share}({name})"


def _refuse_few(whose: str, n: int, least: int) -> None:
    if n < least:
        raise InputError(f"{whose}: {n} images; expected at least {least} to measure")
