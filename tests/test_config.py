"""Strict configs: what is wrong is named in one line."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ifsq.config import (
    LARGEST,
    InputError,
    build,
    differences,
    digest,
    merge,
    parse_overrides,
    read_json,
    read_toml,
    to_dict,
)


@dataclass(frozen=True)
class Inner:
    steps: int = 3
    lr: float = 0.1
    levels: tuple[int, ...] = (1,)
    mode: Literal["a", "b"] = "a"
    size: int | tuple[int, int] = 8
    note: str | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected at least 1")


@dataclass(frozen=True)
class Outer:
    out: str
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None


@dataclass(frozen=True)
class Several:
    inner: tuple[Inner, ...] = ()
    named: dict[str, Inner] = field(default_factory=dict)
    maybe: tuple[Inner, ...] | None = None


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"inner": [{}, {"stesp": 1}]}, "inner.1.stesp"),
        ({"named": {"a": {"stesp": 1}}}, "named.a.stesp"),
        ({"maybe": [{"stesp": 1}]}, "maybe.0.stesp"),
    ],
)
def test_unknown_keys_are_refused_in_each_of_several_tables(table, place):
    with pytest.raises(InputError, match=rf"^f.toml: {place}: unknown key; did you mean 'steps'\?$"):
        build(Several, table, "f.toml")
    assert build(Several, {"inner": [{"steps": 2}], "named": {"a": {}}}, "f.toml").inner == (Inner(2),)


def test_builds_and_returns_to_json():
    table = {"out": "x", "inner": {"steps": 5, "lr": 1, "levels": [1, 2]}, "other": {"mode": "b"}}
    config = build(Outer, table, "f.toml")
    assert config == Outer("x", Inner(5, 1.0, (1, 2)), Inner(mode="b"))
    assert isinstance(config.inner.lr, float)
    assert build(Outer, to_dict(config), "again") == config


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"out": "x", "inner": {"stesp": 1}}, r"^f.toml: inner.stesp: unknown key; did you mean 'steps'\?$"),
        (
            {"out": "x", "other": {"zzz": 1}},
            r"^f.toml: other.zzz: unknown key; known: levels, lr, mode, note, size, steps$",
        ),
        (
            {"out": "x", "inner": {"steps": "many"}},
            r"^f.toml: inner.steps: input should be a valid integer, got 'many'$",
        ),
        ({"out": "x", "inner": {"steps": True}}, r"inner.steps: .*got True"),
        ({"out": "x", "inner": {"steps": 1.5}}, r"inner.steps: .*got 1.5"),
        ({"out": "x", "inner": {"lr": "0.1"}}, r"inner.lr: .*got '0.1'"),
        ({"out": "x", "inner": {"levels": [1, "a"]}}, r"inner.levels.1: .*got 'a'"),
        ({"out": "x", "inner": {"mode": "c"}}, r"inner.mode: input should be 'a' or 'b', got 'c'"),
        ({"out": "x", "inner": 3}, r"f.toml: inner: .*got 3"),
        (
            {"out": "x", "other": {"size": "many"}},
            r"^f.toml: other.size: input should be a valid integer or input should be a valid array, got 'many'$",
        ),
        (
            {"out": "x", "inner": {"size": [1, 2, 3]}},
            r"inner.size: .* or tuple should have at most 2 items .*got \[1, 2, 3\]",
        ),
        ({"out": "x", "inner": {"steps": 0}}, r"f.toml: inner: steps=0: expected at least 1$"),
        ({}, r"f.toml: out: is required$"),
    ],
)
def test_names_what_is_wrong(table, message):
    with pytest.raises(InputError, match=message) as caught:
        build(Outer, table, "f.toml")
    assert "\n" not in str(caught.value)


def test_overrides_are_read_as_toml_and_else_as_text():
    arguments = ["--inner.steps", "7", "--inner.levels=[1, 2]", "--out", "runs/a b", "--other.lr", "1e-3"]
    table = parse_overrides(arguments)
    assert table == {"inner": {"steps": 7, "levels": [1, 2]}, "out": "runs/a b", "other": {"lr": 1e-3}}
    assert merge({"out": "x", "inner": {"lr": 2.0}}, table)["inner"] == {"lr": 2.0, "steps": 7, "levels": [1, 2]}


def test_what_is_text_in_the_config_is_text_in_an_override():
    for text in ("2024", "true", "1e3", "[1, 2]", "2024-11-24", "nan", "runs/a"):
        assert parse_overrides(["--out", text], Outer) == {"out": text}
    assert parse_overrides(["--out", "'2024'"], Outer) == {"out": "2024"}
    arguments = ["--inner.steps", "7", "--other.note=3", "--inner.mode", "1", "--inner.levels", "[1]", "--gone.x", "4"]
    expected = {"inner": {"steps": 7, "mode": 1, "levels": [1]}, "other": {"note": "3"}, "gone": {"x": 4}}
    assert parse_overrides(arguments, Outer) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps", "3"], "'steps': expected --section.key value"),
        (["--steps"], "--steps: expected a value after it"),
        (["--out", "--steps", "3"], "--out: expected a value after it"),
        (["--a", "1", "--a.b", "2"], "--a.b: 'a' was already given as a value"),
    ],
)
def test_bad_overrides_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_overrides(arguments)


def test_files_that_are_no_toml_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.toml: no such file"):
        read_toml(tmp_path / "gone.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("a = = 1")
    with pytest.raises(InputError, match=r"bad.toml: cannot be read as TOML"):
        read_toml(bad)


def test_digest_and_differences():
    a, b = {"x": {"y": 1, "z": 2}}, {"x": {"z": 3, "y": 1}}
    assert digest(a) == digest({"x": {"z": 2, "y": 1}}) != digest(b)
    assert differences(a, b) == ["x.z 2 against 3"]
    assert differences(a, a) == []


DIGITS = "9" * 5000  # Python turns no number of over 4300 digits into an integer
HOSTILE = {
    "no UTF-8": (b"\xff\xfe{", "'utf-8' codec can't decode byte 0xff"),
    "cut short": (b'{"a": [1, ', "Expecting value: line 1"),
    "deeper than the stack": (b"[" * 100_000, "nested more than 64 deep"),
    "deeper than what walks over it": (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
    "a number without end": (f'{{"a": -{DIGITS}}}'.encode(), "Exceeds the limit .* value has 5000 digits$"),
    "nothing": (b"", "Expecting value"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_json_that_cannot_be_read_is_one_line(case, tmp_path):
    content, message = HOSTILE[case]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.json: cannot be read as JSON: .*{message}") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\x00b", "a\u2028b", "a\ud800b", "a" * 10**6])
def test_a_message_is_one_short_line_whatever_stands_in_it(name):
    with pytest.raises(InputError, match=r"^arguments: a.*b?: unknown key; known: ") as caught:
        build(Outer, {name: 1}, "arguments")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 600


@pytest.mark.parametrize("read", [read_json, read_toml])
def test_a_file_beyond_every_use_is_not_read(read, tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)  # no room is taken
    with pytest.raises(
        InputError, match=rf"large: has {LARGEST + 1} bytes; expected (JSON|TOML) of at most {LARGEST}$"
    ):
        read(tmp_path / "large")


def test_json_and_toml_are_read_from_regular_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is no regular file; expected JSON"):
            read_json(path)
        with pytest.raises(InputError, match="is no regular file; expected TOML"):
            read_toml(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_json(tmp_path / ("long" * 100))
    (tmp_path / "deep.json").write_text("[" * 64 + "]" * 64)
    assert read_json(tmp_path / "deep.json")


@pytest.mark.parametrize(
    "text",
    [f"a = {DIGITS}", "a = " + "[" * 5000, "a = " + "{a=" * 5000, ".".join("a" * 500) + " = 3", "a = 1", "a = 1979"],
)
def test_toml_that_cannot_be_read_is_one_line(text, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    if len(text) < 10:
        assert read_toml(tmp_path / "x.toml")
        return
    with pytest.raises(InputError, match=r"x\.toml: cannot be read as TOML: ") as caught:
        read_toml(tmp_path / "x.toml")
    assert len(str(caught.value)) < 300


def test_values_beyond_reading_are_one_short_line():
    for value in (DIGITS, "[" * 5000, f"0x{DIGITS}"):
        with pytest.raises(InputError, match=r"^arguments: ") as caught:
            build(Inner, parse_overrides(["--steps", value]), "arguments")
        assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="arguments: nested more than 64 deep"):
        parse_overrides(["--" + ".".join("a" * 5000), "3"])
    with pytest.raises(InputError, match=r"f.toml: .*hex escape"):
        build(Outer, {"out": "\ud800"}, "f.toml")
