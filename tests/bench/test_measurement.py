"""Measurements: what is written is what is read; whatever is no measurement is refused in a line that names it."""

import json
from dataclasses import asdict, replace

import pytest

from ifsq.bench.measurement import Measurement, append_measurement, read_measurements, write_measurements
from ifsq.config import InputError
from ifsq.metrics import ProtocolCard

CARD = ProtocolCard(
    "FD(judge)", {"distance": 2.5, "low": 2.0}, "photos val", "ab", 64, 32, "centre", "lanczos", "float32"
)
ONE = Measurement(
    {"tokenizer": "ifsq", "bits": 4, "rate": 0.5}, 0, 1, 20, 1e9, "FD(judge)", "distance", 2.5, CARD.to_dict(),
    "c0ffee", "stages/generator-c0ffee", "ifsq generator eval stages/generator-c0ffee",
)  # fmt: skip
OTHER = replace(ONE, cell={"tokenizer": "vq"}, sampling_seed=None, step=None, flops=None, value="low", figure=2.0)


def test_what_is_appended_or_written_is_read(tmp_path):
    path = tmp_path / "measurements.jsonl"
    append_measurement(path, ONE)
    append_measurement(path, OTHER)
    found = read_measurements(path)
    assert found == [ONE, OTHER]
    assert [type(found[0].cell[axis]) for axis in ("tokenizer", "bits", "rate")] == [str, int, float]
    assert ProtocolCard.from_dict(found[0].card) == CARD
    write_measurements(path, [OTHER])
    assert read_measurements(path) == [OTHER]
    write_measurements(path, [])
    assert read_measurements(path) == []


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "measurements.jsonl"
    write_measurements(path, [ONE, OTHER])
    path.write_text(path.read_text()[:-10])
    assert read_measurements(path) == [ONE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figure": "2"}, "figure: input should be a valid number, got '2'"),
        ({"seed": 0.5}, "seed: input should be a valid integer"),
        ({"seed": None}, "seed: input should be a valid integer"),
        ({"cell": {"bits": [4]}}, "cell"),
        ({"cell": {"bits": True}}, "cell"),
        ({"colour": 1}, "colour: unknown key"),
        ({"figure": 3.0}, "card: FD(judge), distance 2.5; expected FD(judge), 3.0"),
        ({"metric": "PSNR"}, "card: FD(judge), distance 2.5; expected PSNR, 2.5"),
        ({"value": "high"}, "card: FD(judge), high None"),
        ({"figure": 1e300}, "figure=1e+300: expected a finite number"),
        ({"card": {"metric": "FD(judge)"}}, "protocol card: field 'code_version' is missing"),
        ({"card": ONE.card | {"values": 2.5}}, "card.values: expected numbers by name"),
        ({"card": ONE.card | {"values": {"distance": [2.5]}}}, "card.values: expected numbers by name"),
    ],
)
def test_what_is_no_measurement_is_refused(tmp_path, change, message):
    path = tmp_path / "measurements.jsonl"
    path.write_text(json.dumps(asdict(OTHER)) + "\n" + json.dumps(asdict(ONE) | change) + "\n")
    with pytest.raises(InputError) as caught:
        read_measurements(path)
    assert str(caught.value).startswith(f"{path}: line 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "message"), [("{", "cannot be read as JSON"), ("[1]", "expected a JSON object")])
def test_a_damaged_line_is_refused(tmp_path, line, message):
    path = tmp_path / "measurements.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(InputError, match=f"line 1: {message}"):
        read_measurements(path)


def test_a_field_that_is_missing_is_named(tmp_path):
    path = tmp_path / "measurements.jsonl"
    table = asdict(ONE)
    del table["flops"]
    path.write_text(json.dumps(table) + "\n")
    with pytest.raises(InputError, match="flops: is required"):
        read_measurements(path)


def test_nothing_is_counted_twice(tmp_path):
    path = tmp_path / "measurements.jsonl"
    again = replace(ONE, flops=2e9, command="another")
    write_measurements(path, [ONE, OTHER, again])
    with pytest.raises(InputError, match="line 3: measures again what an earlier line did"):
        read_measurements(path)


def test_no_file_and_no_finite_number(tmp_path):
    with pytest.raises(InputError, match="no such file; expected what bench wrote"):
        read_measurements(tmp_path / "measurements.jsonl")
    with pytest.raises(InputError, match="is no regular file"):
        read_measurements(tmp_path)
    with pytest.raises(ValueError, match="figure=inf: expected a finite number"):
        replace(ONE, figure=float("inf"))
