"""The networks that look at reconstructions, loaded by the first process before the others."""

from dataclasses import dataclass
from pathlib import Path

from ifsq.evaluation.judge import JudgeNet, share_judge
from ifsq.evaluation.options import OFFICIAL, ImagesToMeasure, TokenizerEvaluation
from ifsq.pretrained.inception import FIDInception, load_inception
from ifsq.pretrained.lpips import LPIPS, load_lpips
from ifsq.training.distributed import World, in_turn
from ifsq.training.log import Reporter


@dataclass(frozen=True)
class Networks:
    """Networks on this process's device; None: was not asked for.

    lpips      the perceptual distance
    inception  features for rFID
    judge      features of the classifier of these images
    left_out   in words, what these images did not allow
    """

    lpips: LPIPS | None = None
    inception: FIDInception | None = None
    judge: JudgeNet | None = None
    left_out: tuple[str, ...] = ()


def load_networks(
    options: TokenizerEvaluation, parent: Path, on: ImagesToMeasure, channels: int, world: World, reporter: Reporter
) -> Networks:
    """What the options ask for, in every process; a judge that is not there yet is trained in a folder of ``parent``.

    Raises InputError in every process.
    """
    lpips = inception = judge = None
    if options.lpips:
        path = None if options.lpips == OFFICIAL else options.lpips
        lpips = in_turn(world, lambda: load_lpips(path)).to(world.device)
    if options.fid:
        weights = None if options.fid == OFFICIAL else options.fid
        inception = in_turn(world, lambda: load_inception(weights)).to(world.device)
    if options.judge and len(on.indices) > 1:
        judge = share_judge(parent, on.data, channels, world, reporter)
    left_out = ("rFD(judge): 1 image, needs 2",) if options.judge and judge is None else ()
    return Networks(lpips, inception, judge, left_out)
