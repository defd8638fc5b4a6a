"""The grid that docs/bench.md explains plans as it stands there, and so do the lines that it has as comments."""

import pytest
from tests.docs.blocks import ROOT, blocks

from ifsq.bench.grid import lookups
from ifsq.bench.grid.cells import cells, told
from ifsq.bench.grid.plan import plan_grid

(EXAMPLE,) = (
    block.text
    for block in blocks(ROOT / "docs/bench.md")
    if block.language == "toml" and block.text.startswith("question")
)


@pytest.mark.parametrize("commented", [False, True])
def test_the_file_of_the_page_plans(tmp_path, monkeypatch, commented):
    """What a training costs is not counted here."""
    monkeypatch.setattr(lookups, "tokenizer_flops", lambda config, sides: 10**9)
    monkeypatch.setattr(lookups, "generator_flops", lambda experiment, layout, classes, code_dim: 10**8)
    text = EXAMPLE
    if commented:
        text = text.partition("\n[protocol]")[0].replace("apart = true", "# apart = true", 1)
        text = (
            text.replace("# training", "training")
            .replace("# sampling", "sampling")
            .replace("# tokenizer = 0", "tokenizer = 0")
        )
    (tmp_path / "grid.toml").write_text(text)
    plan = plan_grid(tmp_path / "grid.toml", tmp_path / "out")
    assert {told(cell) for cell in cells(plan.grid)} == {
        "vq ar", "vq diffusion", "ae diffusion",
        *(f"{name} bits {bits} {kind}" for name in ("fsq", "ifsq") for bits in (2, 4) for kind in ("ar", "diffusion")),
    }  # fmt: skip
    trained = [stage for stage in plan.stages.values() if stage.kind == "tokenizer"]
    assert len(trained) == 6 * (1 if commented else 3)
    assert len({one.seed for one in plan.figures}) == 3
