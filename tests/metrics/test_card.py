"""Protocol cards: kept through JSON, and unlike ones never compared."""

import dataclasses
import json
import re
from typing import Any

import pytest

import ifsq
from ifsq.metrics import ProtocolCard, compare
from ifsq.metrics import card as card_module
from ifsq.metrics.card import COMPARED


def make(**changes: Any) -> ProtocolCard:
    plain: dict[str, Any] = {
        "metric": "FD(judge)",
        "values": {"fd": 3.0, "std": 0.5},
        "reference": "bundled:photos val",
        "reference_hash": "ab12",
        "n": 640,
        "size": 32,
        "crop": "random",
        "resize_kernel": "bicubic",
        "dtype": "float32",
        "code_version": "0.1.0",
    }
    return ProtocolCard(**{**plain, **changes})


def test_json_and_back_is_the_same_card() -> None:
    card = make(guidance=1.5, sampler="euler", function_evaluations=50)
    assert ProtocolCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_like_cards_compare_whatever_the_models() -> None:
    other = make(values={"fd": 2.0}, tokenizer_hash="t", generator_hash="g")
    assert compare(make(), other) == {"fd": -1.0}


@pytest.mark.parametrize(
    "field",
    [f.name for f in dataclasses.fields(ProtocolCard) if f.name not in COMPARED],
)
def test_every_unlike_protocol_field_is_refused_with_both_values(field: str) -> None:
    old = getattr(make(), field)
    new = old + type(old)(1) if isinstance(old, int | float) else f"{old} other"
    with pytest.raises(ValueError, match=re.escape(f"do not compare: {field} {old!r} against {new!r}")):
        compare(make(), make(**{field: new}))
    assert compare(make(), make(**{field: new}), allow=(field,)) == {"fd": 0.0, "std": 0.0}


def test_all_unlike_fields_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=f"n 640 against 1000; .*{make().dtype!r} against 'bfloat16', expected equal"):
        compare(make(), make(n=1000, size=64, dtype="bfloat16"))


@pytest.mark.parametrize(("change", "message"), [({"n": None}, "'n' is missing"), ({"x": 1}, "'x' is unknown")])
def test_a_card_with_other_fields_is_refused(change: dict, message: str) -> None:
    raw = {key: value for key, value in {**make().to_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ProtocolCard.from_dict(raw)


def test_a_card_older_than_a_field_has_its_default() -> None:
    raw = make().to_dict()
    del raw["labels"], raw["method"]
    assert ProtocolCard.from_dict(raw) == make()
    with pytest.raises(ValueError, match="labels '' against 'all alike'"):
        compare(ProtocolCard.from_dict(raw), make(labels="all alike"))
    del raw["code_version"]
    with pytest.raises(ValueError, match="'code_version' is missing"):
        ProtocolCard.from_dict(raw)


def test_code_version_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert card_module.code_version().startswith(ifsq.__version__)
    monkeypatch.setenv("PATH", "")
    assert card_module.code_version() == ifsq.__version__
