"""TOML -> frozen dataclasses, strictly, and back to JSON with a hash. No torch here.

Every room keeps its config beside its owner as a frozen dataclass; this file reads them. An unknown key, a wrong type
or a value that the owner refuses is an `InputError`: one line with the file, the key, the value and what was expected.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
DEEPEST = 64
"""Tables and lists inside each other that a file may have."""
LARGEST = 2**27
"""Bytes of a file: many times what a manifest of a billion images takes. Read, each becomes up to twenty."""
LONGEST = 200
"""Characters of a value that a message shows."""
LONGEST_LINE = 600
"""Characters of a message; its middle is left out where names and values in it make it longer."""


class InputError(ValueError):
    """What a person gave cannot be used. The message is one line; the command prints it and exits with 2.

    Whatever names and values stand in it: an end of a line is a space, and what moves a cursor is written as Python
    escapes it.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)
        half = (LONGEST_LINE - len(" ... ")) // 2
        return text if len(text) <= LONGEST_LINE else f"{text[:half]} ... {text[-half:]}"


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop, and saved itself at ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command continues from there")
        self.step = step


class Remark(UserWarning):
    """A sentence worth reading about what was given, which is used nevertheless. The command prints it as a line."""


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table. Raises InputError when it is missing, no TOML, no regular file or larger than `LARGEST`."""
    return _parse(tomllib.loads, _read_text(path, "TOML"), str(path), "TOML")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError when it is missing, damaged, no regular file or above `LARGEST`."""
    return parse_json(_read_text(path, "JSON"), str(path))


def parse_json(text: str, where: str) -> Any:
    """What a JSON text says. Raises InputError, also for numbers and nesting beyond what Python reads.

    where  what to call the text in a message
    """
    return _parse(json.loads, text, where, "JSON")


def parse_overrides(arguments: Iterable[str], cls: type | None = None) -> dict[str, Any]:
    """``--train.steps 100 --data.source=photos`` -> nested table; a value is read as TOML, else taken as text.

    cls  the dataclass that they are for: what is text there is text here, ``--out 2024`` too
    """
    table: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not name:
            raise InputError(f"{flag!r}: expected --section.key value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{flag}: expected a value after it")
            value = rest.pop(0)
        *sections, key = name.replace("-", "_").split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"{flag}: {section!r} was already given as a value")
        text = cls is not None and _is_text(cls, [*sections, key])
        place[key] = _read_value(value, text)
    _refuse_deep(table, "arguments")
    return table


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass ``cls`` from a nested table of plain values.

    where  what to call the table in a message, usually the file's name
    """
    # pydantic takes a tenth of a second to import, and most commands need no config.
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(cls, table, where, ())
    _refuse_infinite(table, where, ())
    try:
        # Strict JSON mode: arrays may be tuples and integers floats, nothing else is converted.
        return TypeAdapter(cls).validate_json(json.dumps(table), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {_describe(cls, error.errors(include_url=False))}") from None
    except (TypeError, ValueError) as error:  # a TOML date is no JSON, nor is a hexadecimal number of any length
        raise InputError(f"{where}: {str(error).partition(';')[0]}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def check_seed(seed: int) -> None:
    """Raise InputError for a seed that `torch.Generator` would not take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: expected 0 to 2**63 - 1")


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys at which two nested tables differ, each with both values."""
    found = []
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key} {left!r} against {right!r}")
    return found


def _read_text(path: Path, form: str) -> str:
    try:
        if not path.is_file() and path.exists():  # a pipe would wait, a device might never end
            raise InputError(f"{path}: is no regular file; expected {form}")
        if (size := path.stat().st_size) > LARGEST:
            raise InputError(f"{path}: has {size} bytes; expected {form} of at most {LARGEST}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # no UTF-8, or a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error  # which would name the path again
        raise InputError(f"{path}: cannot be read as {form}: {why}") from error


def _parse(parse: Callable[[str], Any], text: str, where: str, form: str) -> Any:
    try:
        value = parse(text)
    except RecursionError:
        raise InputError(f"{where}: cannot be read as {form}: nested more than {DEEPEST} deep") from None
    except ValueError as error:  # Python turns no number of over 4300 digits into an integer
        why = str(error).partition(";")[0] if "digits" in str(error) else error
        raise InputError(f"{where}: cannot be read as {form}: {why}") from error
    _refuse_deep(value, f"{where}: cannot be read as {form}")
    return value


def _refuse_deep(value: Any, where: str) -> None:
    """Raise InputError for nesting that what walks over it later, by recursion, could not bear."""
    level = [value]
    for _ in range(DEEPEST):
        inside = [one for one in level if isinstance(one, (dict, list))]
        level = [below for one in inside for below in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return
    if any(isinstance(one, (dict, list)) for one in level):
        raise InputError(f"{where}: nested more than {DEEPEST} deep")


def _is_text(cls: type, path: Sequence[str]) -> bool:
    """Whether the field at this path takes text and nothing else that could be written."""
    kinds: set[Any] = {cls}
    for name in path:
        owners = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        kinds = {
            kind
            for owner in owners
            for field in dataclasses.fields(owner)
            if field.name == name
            for kind in (typing.get_args(field.type) if _is_union(field.type) else [field.type])
        } - {type(None)}
    return kinds == {str}


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _read_value(text: str, as_text: bool) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, or beyond what Python reads
        return text
    return text if as_text and not isinstance(value, str) else value


def _refuse_unknown(cls: Any, table: Any, where: str, path: tuple[str, ...]) -> None:
    if not isinstance(table, Mapping):
        return
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key, value in table.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(fields))}"
            raise InputError(f"{where}: {'.'.join((*path, key))}: unknown key; {hint}")
        for owner in typing.get_args(fields[key]) if _is_union(fields[key]) else (fields[key],):  # it may be optional
            for inside, one, place in _tables(owner, value, (*path, key)):
                _refuse_unknown(inside, one, where, place)


def _tables(owner: Any, value: Any, path: tuple[str, ...]) -> list[tuple[Any, Any, tuple[str, ...]]]:
    """What of a value is to be a dataclass: itself, or the tables of a list or of a table of names, with its place."""
    inside = [kind for kind in (owner, *typing.get_args(owner)) if dataclasses.is_dataclass(kind)]
    if not inside or dataclasses.is_dataclass(owner):
        return [(kind, value, path) for kind in inside]
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [(inside[0], one, (*path, str(name))) for name, one in items]


def _refuse_infinite(table: Any, where: str, path: tuple[str, ...]) -> None:
    if isinstance(table, float) and not math.isfinite(table):
        raise InputError(f"{where}: {'.'.join(path)}: {table}: expected a finite number")
    items = table.items() if isinstance(table, Mapping) else enumerate(table) if isinstance(table, list) else ()
    for key, value in items:
        _refuse_infinite(value, where, (*path, str(key)))


def _describe(cls: Any, errors: Sequence[Any]) -> str:
    first = errors[0]
    loc = _without_choice(cls, first["loc"])
    place = ".".join(str(part) for part in loc)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place}: is required"
    if first["type"] == "value_error":  # the owner's own words, which name the value
        return f"{place}: {message}" if place else message
    if len(loc) < len(first["loc"]):  # none of several types took it, and each says why
        said = [error["msg"] for error in errors if error["loc"][: len(loc)] == loc]
        message = " or ".join(dict.fromkeys([said[0], *(f"{told[0].lower()}{told[1:]}" for told in said[1:])]))
    given = repr(first["input"])
    shown = given if len(given) <= LONGEST else f"{given[:LONGEST]} ..."
    return f"{place}: {message[0].lower()}{message[1:]}, got {shown}"


def _without_choice(cls: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A place without pydantic's name for the type that was tried there, where a value may be of several."""
    for depth, name in enumerate(loc, start=1):
        if not dataclasses.is_dataclass(cls):
            break
        kind = next((field.type for field in dataclasses.fields(cls) if field.name == name), None)
        choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        if isinstance(kind, types.UnionType) and len(choices) > 1:
            return loc[:depth]
        cls = choices[0] if isinstance(kind, types.UnionType) else kind
    return loc
