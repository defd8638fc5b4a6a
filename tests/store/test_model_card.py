"""The card of a model: what others named is text in it, whatever they named it."""

import json
from pathlib import Path

import pytest

from ifsq.config import InputError
from ifsq.store.model_card import Provenance, code_span, model_card, provenance
from ifsq.store.run import Run

NAME = "a`b``c\n# not a title <img src=x> \x1b[31m | [link](http://x)"


def test_a_name_is_text() -> None:
    card = {"metric": NAME, "values": {NAME: 1.0}, "reference": NAME}
    told = model_card("t", (), {"fact": NAME}, (), Provenance(data=NAME, evaluation={"cards": [card]}))
    body = told.split("---", 2)[2]
    assert "\x1b" not in told
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# t",
        "## Use",
        "## Training",
        "## Evaluation",
    ]
    assert "data ``` a`b``c # not a title <img src=x> \\x1b[31m | [link](http://x) ```." in body
    rows = [line for line in body.splitlines() if "not a title" in line and line.startswith("|")]
    assert len(rows) == 2
    for row in rows:
        assert "\\<img src=x\\>" in row
        assert "\\[link\\](http" in row
    assert rows[0].count("|") == 3  # the name is one cell
    assert rows[1].count("|") == 4


@pytest.mark.parametrize(("name", "span"), [("plain", "`plain`"), ("a`", "`` a` ``"), ("a\nb", "`a b`")])
def test_a_span_holds_any_name(name: str, span: str) -> None:
    assert code_span(name) == span


GOOD = {"metric": "PSNR", "values": {"mean": 1.0}}
ODD = [
    [3],
    [{}],
    [GOOD | {"values": []}],
    [GOOD | {"values": {"mean": "x"}}],
    [GOOD | {"values": {"mean": 10**400}}],
    {},
]


@pytest.mark.parametrize("cards", ODD, ids=str)
def test_an_evaluation_that_holds_something_else_is_refused(cards: object, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps({"step": 3, "cards": cards}))
    with pytest.raises(InputError, match=r"evaluation\.json: holds no cards"):
        provenance(Run(tmp_path, "run", {"experiment": {}}), 3)


def test_what_is_known_of_the_data_is_text(tmp_path: Path) -> None:
    for experiment in ({"data": 3}, {"data": {"source": 3}}, {"codes": []}):
        assert provenance(Run(tmp_path, "run", {"experiment": experiment}), 3).data is None
