"""Each cell's best guidance: found on seeds of its own, which are compared with nothing, and used for all others."""

import json
from dataclasses import replace

import pytest
from toy_grid import SEARCH, SEEDS, SMALL, write_toy_grid

from ifsq.bench.grid.command import bench
from ifsq.bench.grid.guidance import Search
from ifsq.bench.grid.plan import plan_grid
from ifsq.bench.grid.results import taken
from ifsq.bench.grid.work import ChooseGuidance
from ifsq.bench.protocol import SEARCH_SEEDS
from ifsq.config import InputError
from ifsq.evaluation.record import Evaluation, read_cards, write_cards
from ifsq.metrics import ProtocolCard
from ifsq.training.log import Silent

ONE = SMALL[:-2]  # the protocol says which seeds
CARD = ProtocolCard("FD(judge)", {"distance": 1.0}, "photos", "ab", 64, 32, "centre", "lanczos", "float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guidance")
    write_toy_grid(folder)
    text = (folder / "grid.toml").read_text().replace("kept = 2", "kept = 1").replace(SEEDS, "")
    (folder / "grid.toml").write_text(text + SEARCH)
    return folder


def test_a_search_has_seeds_of_its_own(place):
    plan = plan_grid(place / "grid.toml", place / "out", ONE)
    kinds = [stage.kind for stage in plan.stages.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "tokenizer": 3, "tokenizer-eval": 2, "codes": 3, "ar": 3, "diffusion": 3, "generator-eval": 8, "guidance": 2,
    }  # fmt: skip
    seeds = [stage.work.experiment.train.seed for stage in plan.stages.values() if stage.kind == "ar"]
    assert sorted(seeds) == [0, 1, SEARCH_SEEDS]
    assert {figures.seed for figures in plan.figures} == {0, 1}
    other = plan_grid(place / "grid.toml", place / "out", [*ONE, "--protocol.guidance", "[1.5, 3.0]"])
    changed = {name.rpartition("-")[0] for name in plan.stages.keys() - other.stages.keys()}
    assert changed == {"generator-eval", "guidance"}
    done = set()
    for name, stage in plan.stages.items():
        assert set(stage.needs) <= done
        done.add(name)


def test_the_best_scale_is_what_a_cell_is_measured_at(place, quick_judge):
    out = place / "out"
    plan = plan_grid(place / "grid.toml", out, ONE)
    figures = next(one for one in plan.figures if one.cell.get("generator") == "ar")
    bench(place / "grid.toml", out, ONE, "cpu", Silent(), only=figures.stage)
    choice = next(plan.stages[name] for name in plan.stages[figures.stage].needs if name.startswith("guidance"))
    kept = json.loads((choice.folder(out) / "guidance.json").read_text())
    by_scale = {float(scale): seeds[str(SEARCH_SEEDS)][0] for scale, seeds in kept["figures"].items()}
    assert set(by_scale) == {1.5, 2.5}
    assert kept["guidance"] == min(by_scale, key=by_scale.get)
    drawn = [one.card for one in taken(plan, figures) if one.metric == "FD(judge)"]
    assert [card["guidance"] for card in drawn] == [kept["guidance"]]
    shown = read_cards(plan.stages[figures.of].folder(out) / "evaluation.json")  # which a report shows
    assert [card.to_dict() for card in shown.cards if card.metric == "FD(judge)"] == drawn


def test_the_choice_is_of_means_over_the_seeds_of_the_search(tmp_path):
    rows = []
    for scale, each in ((1.0, (4.0, 6.0)), (2.0, (1.0, 8.0)), (3.0, (5.0, 5.0))):
        for seed, figure in enumerate(each):
            where = tmp_path / f"{scale}_{seed}"
            write_cards(where / "evaluation.json", Evaluation((replace(CARD, values={"distance": figure}),), 4))
            rows.append((scale, seed, where))
    for better, best in (("lower", 2.0), ("higher", 1.0)):  # of equal ones the smallest
        ChooseGuidance(tuple(rows), "FD(judge)", "distance", better).run(tmp_path / better, "cpu", Silent())
        found = Search.read(tmp_path / better)
        assert found.guidance == best
        assert found.means == {1.0: 5.0, 2.0: 4.5, 3.0: 5.0}
    with pytest.raises(InputError, match=r"1\.0_0: has no FID, distance, by which the best guidance is taken"):
        ChooseGuidance(tuple(rows), "FID", "distance", "lower").run(tmp_path / "none", "cpu", Silent())
    (tmp_path / "lower" / "guidance.json").write_text("{}")
    with pytest.raises(InputError, match=r"guidance\.json: is damaged; remove"):
        Search.read(tmp_path / "lower")
