"""Training with alignment: it falls, reaches what it should, and is as exact as training without."""

import contextlib
import os
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.multiprocessing as mp
from tests.ports import free_port

from ifsq.codes import CodeSet, CodeSpec
from ifsq.codes.features import FeatureRows
from ifsq.generators import ARGenerator, DiffusionGenerator, Generator, MaskedGenerator
from ifsq.generators.ar import ARConfig
from ifsq.generators.diffusion import DiTConfig
from ifsq.generators.masked import MaskedConfig
from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.generators.train import GeneratorTask
from ifsq.pretrained.teachers import TeacherConfig
from ifsq.store import checkpoints
from ifsq.store.run import Run
from ifsq.training.claim import Claim
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World, join
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import fit, train
from ifsq.training.optim import OptimConfig

SPEC = CodeSpec((5, 5, 3), (2, 1), "little", "paper", (2, 4))
GRIDS = {"ar": (2, 4), "diffusion": (1, 2), "masked": (2, 4)}
MODELS = {
    "ar": lambda **more: ARGenerator(ARConfig(3, 16, 2, mlp_multiple_of=16, dropout=0.1, **more), SPEC, 3),
    "diffusion": lambda **more: DiffusionGenerator(DiTConfig(3, 16, 2, patch=2, **more), SPEC, 3),
    "masked": lambda **more: MaskedGenerator(MaskedConfig(3, 16, 2, mlp_multiple_of=16, dropout=0.1, **more), SPEC, 3),
}
STEPS = 6
CONFIG = TrainConfig(
    steps=STEPS, batch=8, log_every=1, save_every=3, ema=0.9, keep=9, optim=OptimConfig(lr=1e-2, warmup=0)
)
TABLES = ("model", "ema", "companion", "optimizer")


def codes():
    """Random digits; a teacher that tells what each token is, and one its class and column, mirrored too."""
    rng = torch.Generator().manual_seed(0)
    digits = torch.stack([torch.randint(L, (24, *SPEC.grid), generator=rng) for L in SPEC.levels], dim=-1)
    tables = [torch.randn(15, f, generator=rng) for f in (6, 4)]
    labels = torch.arange(24) % 3
    told = digits[..., 0] + 5 * digits[..., 2], (5 * labels[:, None, None] + torch.arange(4)).expand(24, 2, 4)
    first, second = (table[known].flatten(1, 2) for table, known in zip(tables, told, strict=True))
    features = (
        FeatureRows(first.bfloat16(), SPEC.grid),
        FeatureRows(second.bfloat16(), SPEC.grid, 2 * second.bfloat16()),
    )
    return CodeSet(SPEC, digits, labels, digits, features=features)


def options(**given):
    given = {"teachers": ("one", "two"), "depth": 1, "weight": 0.5, "hidden": 16} | given
    teachers = tuple(TeacherConfig(*one) if isinstance(one, tuple) else TeacherConfig(one) for one in given["teachers"])
    return AlignmentConfig(**given | {"teachers": teachers})


class KilledError(Exception):
    pass


class Stopped(GeneratorTask):
    """KilledError before a step."""

    stop_at = None

    def loss(self, model, batch, rng, step):
        if step == self.stop_at:
            raise KilledError
        return super().loss(model, batch, rng, step)


def task(kind, config=CONFIG, asked=None, **more):
    torch.manual_seed(0)
    model, train_set = MODELS[kind](**more), codes()
    if asked is None:
        return GeneratorTask(model, replace(train_set, features=()), None, config)
    widths = [{"self": 16, "one": 6, "two": 4}[one.source] for one in asked.teachers]
    grids = [model.token_grid if one.source == "self" else SPEC.grid for one in asked.teachers]
    companion = Alignment(asked, 16, model.token_grid, widths, grids)
    return Stopped(model, train_set, None, config, companion)


def here(folder, made, config=CONFIG):
    with join("cpu") as world:
        return train(made, config, folder, world, Silent(), "one")


def tables(folder, names=TABLES):
    step, path = checkpoints.steps_in(folder / "checkpoints")[-1]
    assert step == STEPS
    return {name: checkpoints.at(path).load(name) for name in names}


def assert_same(a, b, **close):
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key, value in a[name].items():
            torch.testing.assert_close(b[name][key], value, msg=f"{name} {key}", **(close or {"atol": 0, "rtol": 0}))


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_of_alignment_falls_and_the_projectors_learn(kind, tmp_path):
    config = replace(CONFIG, steps=30, batch=24, save_every=30)
    made = task(kind, config, options(weight=2.0, depth=2))
    begun = {name: value.clone() for name, value in made.companion.state_dict().items()}
    here(tmp_path, made, config)
    assert not any(torch.equal(value, begun[name]) for name, value in made.companion.state_dict().items())
    rows = [row["alignment"] for row in read_metrics(tmp_path / "metrics.jsonl") if "alignment" in row]
    assert sum(rows[-8:]) / 8 < sum(rows[:8]) / 8 - 0.04


@pytest.mark.parametrize("kind", MODELS)
def test_the_gradient_of_alignment_reaches_the_blocks_up_to_its_depth_and_the_projectors(kind):
    made = task(kind, asked=options(depth=2))
    model, batch = made.model.train(), made.train.batch(torch.arange(8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    rng = torch.Generator().manual_seed(0)
    made.loss(model, batch, rng, 0)["alignment"].backward()
    blocks = model.dit.blocks if kind == "diffusion" else model.layers
    reached = [any(p.grad is not None and bool(p.grad.any()) for p in block.parameters()) for block in blocks]
    assert reached == [True, True, False]
    assert all(bool(p.grad.any()) for p in made.companion.parameters() if p.ndim > 1)
    out = {"ar": "head", "diffusion": "dit.final_layer", "masked": "output"}[kind]
    assert all(p.grad is None or not p.grad.any() for p in model.get_submodule(out).parameters())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("step", "weight"), [(0, 3.0), (3, 1.5), (5, 0.5)])
def test_the_loss_is_the_generators_plus_the_alignment_as_it_is_weighed_at_the_step(kind, step, weight):
    made = task(kind, asked=options(weight=3.0, decay="linear"))
    batch = made.train.batch(torch.arange(8))
    torch.manual_seed(1)
    losses = made.loss(made.model, batch, torch.Generator().manual_seed(2), step)
    torch.manual_seed(1)
    own = made.model.loss(batch, torch.Generator().manual_seed(2), step / STEPS)["loss"]
    assert losses["alignment"] != 0
    torch.testing.assert_close(losses["loss"], own + weight * losses["alignment"])


@pytest.mark.parametrize("kind", MODELS)
def test_an_alignment_that_has_stopped_leaves_the_bits_of_training_alone(kind, tmp_path):
    """But for clipping: the norm of more tensors is summed in another order."""
    config = replace(CONFIG, optim=replace(CONFIG.optim, clip=0.0))
    here(tmp_path / "off", task(kind, config, options(stop=0.0)), config)
    here(tmp_path / "none", task(kind, config), config)
    names = ("model", "ema")
    assert_same(tables(tmp_path / "none", names), tables(tmp_path / "off", names))


@pytest.mark.parametrize("start", [0, 2, 5])
def test_batches_bring_no_features_once_nothing_is_aligned_any_more(start):
    """The same examples as without alignment, in two parts a step; four of six steps are aligned."""
    config = replace(CONFIG, engine=EngineConfig(accumulate=2))
    alone = World(0, 1, torch.device("cpu"))
    with (
        contextlib.closing(task("ar", config, options(stop=0.6)).batches(start, alone)) as aligned,
        contextlib.closing(task("ar", config).batches(start, alone)) as plain,
    ):
        parts = 2 * (STEPS - start)
        for number, (one, other) in enumerate(islice(zip(aligned, plain, strict=True), parts)):
            assert torch.equal(one.content, other.content)
            assert len(one.features) == (2 if start + number // 2 < 4 else 0)
            assert other.features == ()


@pytest.mark.parametrize(
    ("stop", "decay", "expected"),
    [(0.0, "constant", 0), (0.5, "linear", 5), (0.55, "constant", 6), (0.7, "cosine", 7), (1.0, "linear", 10)],
)
def test_the_steps_that_are_aligned_are_those_with_a_weight(stop, decay, expected):
    asked = options(stop=stop, decay=decay)
    assert asked.aligned_steps(10) == expected == sum(asked.weight_at(step / 10) > 0 for step in range(10))


RESUMED = {
    "ar": {"teachers": ("one", ("self", 3), "two"), "decay": "linear", "stop": 0.8},
    "diffusion": {"teachers": ("self",), "projector": "conv"},
    "masked": {"teachers": ("one", "self"), "cleaner": 0.5},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_goes_on_with_the_same_bits(kind, tmp_path):
    asked = options(**RESUMED[kind])
    here(tmp_path / "whole", task(kind, asked=asked))
    cut = task(kind, asked=asked)
    cut.stop_at = 4
    with pytest.raises(KilledError):
        here(tmp_path / "cut", cut)
    here(tmp_path / "cut", task(kind, asked=asked))
    assert_same(tables(tmp_path / "whole"), tables(tmp_path / "cut"))


def test_averaged_weights_teach_in_eval_mode_without_gradient_and_see_the_noise_of_the_pass():
    made = task("diffusion", asked=options(teachers=("self",), cleaner=0.0), label_dropout=0.5)
    model, batch = made.model.train(), made.train.batch(torch.arange(8))
    average = task("diffusion").model.eval()
    average.load_state_dict(model.state_dict())
    made.average = average
    seen = []
    average.dit.blocks[1].register_forward_hook(lambda block, given, out: seen.append((given, out, block.training)))
    model.dit.blocks[1].register_forward_hook(lambda block, given, out: seen.append((given, out, block.training)))
    losses = made.loss(model, batch, torch.Generator().manual_seed(3), 0)
    assert [training for _, _, training in seen] == [True, False]
    ((x, c, _), out, _), ((teachers_x, teachers_c, _), teachers_out, _) = seen
    assert torch.equal(x, teachers_x)  # codes with the same noise at the same time
    assert out.requires_grad
    assert not teachers_out.requires_grad
    dropped = (c != teachers_c).any(dim=1)  # the average sees the class that was dropped
    assert 0 < int(dropped.sum()) < 8
    losses["loss"].backward()
    assert all(p.grad is None for p in average.parameters())


def test_averaged_weights_see_the_noise_of_the_pass_at_times_nearer_to_the_data():
    made = task("diffusion", asked=options(teachers=("self",), cleaner=0.5), label_dropout=0.5)
    model, batch = made.model.train(), made.train.batch(torch.arange(8))
    made.average = task("diffusion").model.eval()
    seen = {}
    for name, one in (("student", model), ("teacher", made.average)):
        one.dit.t_embedder.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0]}))
        one.dit.x_embedder.register_forward_hook(lambda _, given, __, name=name: seen.update({f"{name}'s x": given[0]}))
    made.loss(model, batch, torch.Generator().manual_seed(3), 0)
    nearer = seen["teacher"] - seen["student"]
    assert 0 <= float(nearer.min()) < float(nearer.max()) <= 0.5
    assert nearer.unique().numel() == 8  # each image at a time of its own
    data, t, later = model.normalize(batch.codes()), *(seen[name].view(8, 1, 1, 1) for name in ("student", "teacher"))
    noise = (seen["student's x"] - t * data) / (1 - t)
    torch.testing.assert_close(seen["teacher's x"], later * data + (1 - later) * noise, atol=1e-4, rtol=1e-4)


def test_what_sampling_loads_has_no_projector(tmp_path):
    """Nor has a model that is saved; the checkpoint has it, for a run that goes on."""
    made = task("ar", asked=options())
    with join("cpu") as world:
        fit(made, CONFIG, Claim(tmp_path / "run", "ar", CONFIG, "codes"), world, Silent())
    found = tables(tmp_path / "run")
    assert found["companion"].keys() == made.companion.state_dict().keys()
    for average in (True, False):
        model = Generator.from_run(Run.open(tmp_path / "run"), average=average)
        assert not any("projector" in key for key in model.state_dict())
    model.save_pretrained(tmp_path / "saved")
    assert Generator.from_pretrained(tmp_path / "saved").state_dict().keys() == found["model"].keys()


def _two(rank, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    with join("cpu") as world:
        for kind in MODELS:
            asked = options(**{**RESUMED[kind], "stop": 0.7})
            train(task(kind, asked=asked), CONFIG, folder / kind / "two", world, Silent(), "two")
            sharded = replace(CONFIG, engine=EngineConfig(sharding="shard"))
            train(task(kind, sharded, asked), sharded, folder / kind / "shard", world, Silent(), "two")
            cut = task(kind, sharded, asked)
            cut.stop_at = 4
            with contextlib.suppress(KilledError):
                train(cut, sharded, folder / kind / "cut", world, Silent(), "two")
            train(task(kind, sharded, asked), sharded, folder / kind / "cut", world, Silent(), "two")


@pytest.mark.slow
def test_two_processes_replicated_or_sharded_are_as_exact_as_without_alignment(tmp_path):
    """Also when alignment stops on the way, and its projectors have no gradient of their own any more."""
    mp.spawn(_two, (free_port(), tmp_path), nprocs=2)
    parts = replace(CONFIG, engine=EngineConfig(accumulate=2))
    for kind in MODELS:
        folder, asked = tmp_path / kind, options(**{**RESUMED[kind], "stop": 0.7})
        here(folder / "one", task(kind, parts, asked), parts)
        assert_same(tables(folder / "two"), tables(folder / "one"))
        assert_same(tables(folder / "two"), tables(folder / "shard"), atol=1e-4, rtol=1e-3)
        assert_same(tables(folder / "shard"), tables(folder / "cut"))
