"""TOML -> frozen dataclasses, strictly, and back to JSON with a hash. No torch here.

Every room keeps its config beside its owner as a frozen dataclass; this file reads them. An unknown key, a wrong type
or a value that the owner refuses is an `InputError`: one line with the file, the key, the value and what was expected.
Called by ``experiment`` and ``cli``.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """What a person gave cannot be used. The message is one line; the command prints it and exits with 2."""


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table. Raises InputError when it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """``--train.steps 100 --data.source=photos`` -> nested table; a value is read as TOML, else taken as text."""
    table: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not name:
            raise InputError(f"{flag!r}: expected --section.key value")
        if not equals:
            if not rest:
                raise InputError(f"{flag}: expected a value after it")
            value = rest.pop(0)
        *sections, key = name.replace("-", "_").split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"{flag}: {section!r} was already given as a value")
        place[key] = _read_value(value)
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
        first = error.errors(include_url=False)[0]
        raise InputError(f"{where}: {_describe(first)}") from None
    except TypeError as error:  # a TOML date or time is no JSON
        raise InputError(f"{where}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


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


def _read_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_unknown(cls: Any, table: Any, where: str, path: tuple[str, ...]) -> None:
    if not isinstance(table, Mapping):
        return
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key, value in table.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(fields))}"
            raise InputError(f"{where}: {'.'.join((*path, key))}: unknown key; {hint}")
        for owner in typing.get_args(fields[key]) or (fields[key],):  # a section may be optional
            if dataclasses.is_dataclass(owner):
                _refuse_unknown(owner, value, where, (*path, key))


def _refuse_infinite(table: Any, where: str, path: tuple[str, ...]) -> None:
    if isinstance(table, float) and not math.isfinite(table):
        raise InputError(f"{where}: {'.'.join(path)}: {table}: expected a finite number")
    items = table.items() if isinstance(table, Mapping) else enumerate(table) if isinstance(table, list) else ()
    for key, value in items:
        _refuse_infinite(value, where, (*path, str(key)))


def _describe(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place}: is required"
    if error["type"] == "value_error":  # the owner's own words, which name the value
        return f"{place}: {message}" if place else message
    return f"{place}: {message[0].lower()}{message[1:]}, got {error['input']!r}"
