"""Damaged files, as Hypothesis's strategies: a valid file, and a few things done to it.

Bytes are flipped, cut, doubled, moved and overwritten; in a table (JSON, TOML, the header of safetensors) fields are
removed, doubled, renamed and exchanged, and values become other types and huge numbers, so that cases get behind the
first check of a parser. A case is small numbers alone: Hypothesis shrinks it, and any bytes make one.
"""

import copy
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 3, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**12, 10**400)
TOKENS = (
    *(b"\0", b"\n", b"\r", b"\t", b" ", b'"', b"'", b",", b":", b";", b"=", b"#", b"[", b"]", b"{", b"}", b"{}", b"[]"),
    *(b"null", b"true", b"NaN", b"Infinity", b"-", b"1e999", b"0x", b"1_0", b"9" * 5000, b"-1", b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\x1b[31m", b"\xe2\x80\xa8", b"../", b"/dev/zero"),
    *(b"~", b"*", b"{0..9}", b"[" * 200, b'{"a":' * 200, b"a" * 2000, b"1979-05-27", b"..", b"://", b"PK\x03\x04"),
    b"ustar",
)  # fmt: skip


@dataclass(frozen=True)
class Raw:
    """Text in the place of a value that no writer of JSON or TOML would write."""

    text: str


VALUES: tuple[Any, ...] = (
    *(None, True, False, *NUMBERS, 0.5, -0.5, 1e-45, 1e308, "", "x", " ", "0", "true", "ü", "\ud800", "\0", "a\nb"),
    *("\x1b[31m", "/dev/zero", "..", "../x", "/etc/passwd", "hf://x", "x" * 3000, "9" * 5000, [], {}, [[]], [None]),
    *([1], [-1, 4], [4] * 40, ["x"], [0.5], [2**63], [[1, 2]], {"x": 1}, {"kind": "fsq"}, {"": []}),
    *map(Raw, ("NaN", "nan", "Infinity", "-inf", "1e999", "1E400", "9" * 5000, "[" * 3000, "0x10", "1979-05-27")),
)
NAMES = ("", "x", "kind", "path", "step", "__metadata__", "\ud800", "a.b", "constructor", "levels", "0", "x" * 3000)

MOST = 2000
"""Values in a table, about, from which it is damaged no further: a larger one takes time and shows nothing more."""

Step = tuple[int, int, int]
"""What is done, where, and with which of the values that there are for it."""
STEP = st.tuples(st.integers(0, 63), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))
STEPS = st.lists(STEP, min_size=1, max_size=4)


Case = tuple[str, bytes]
"""The name of the file that is damaged, and its bytes."""


def damaged_bytes(valid: Mapping[str, bytes]) -> st.SearchStrategy[Case]:
    """One of these files after one to four steps of damage."""
    names, contents = list(valid), list(valid.values())
    return st.tuples(st.integers(0, len(names) - 1), STEPS).map(
        lambda case: (names[case[0]], _bytes_after(contents, *case))
    )


def damaged_tables(valid: Mapping[str, Any], write: Callable[[str, Any], bytes]) -> st.SearchStrategy[Case]:
    """One of these tables after one to four steps of damage, written; of every eighth the bytes are damaged as well.

    write  the bytes of the file of a name, for what has become of its table
    """
    names, tables = list(valid), list(valid.values())

    def make(case: tuple[int, list[Step], int, Step]) -> Case:
        which, steps, more, last = case
        content = write(names[which], table_after(tables[which], steps))
        return names[which], content if more < 7 else _bytes_after((content,), 0, [last])

    return st.tuples(st.integers(0, len(names) - 1), STEPS, st.integers(0, 7), STEP).map(make)


def _bytes_after(valid: Sequence[bytes], which: int, steps: Sequence[Step]) -> bytes:
    content = valid[which]
    for what, at, value in steps:
        content = _BYTES[what % len(_BYTES)](content, at % (len(content) + 1), value, valid)
    return content


def _flip(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content or b"\0")
    changed[at % len(changed)] ^= 1 << value % 8
    return bytes(changed)


def _set(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    return content[:at] + bytes([value % 256]) + content[at + 1 :]


def _cut(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    return content[:at] if value % 2 else content[at:]


def _remove(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    return content[:at] + content[at + 1 + value % 64 :]


def _double(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    part = content[at : at + 1 + value % 512]
    return content[:at] + part * (2 + value % 3) + content[at:]


def _insert(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    return content[:at] + TOKENS[value % len(TOKENS)] + content[at:]


def _overwrite(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    """By an integer of 1 to 8 bytes, as headers hold them."""
    form = ["<B", "<H", ">H", "<I", ">I", "<Q", ">Q"][value % 7]
    number = NUMBERS[value // 7 % len(NUMBERS)] % 2 ** (8 * struct.calcsize(form))
    return content[:at] + struct.pack(form, number) + content[at + struct.calcsize(form) :]


def _number(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    """Decimal digits by another number."""
    start = next((place for place in range(at, len(content)) if content[place : place + 1].isdigit()), None)
    if start is None:
        return content
    end = start
    while content[end : end + 1].isdigit():
        end += 1
    return content[:start] + str(NUMBERS[value % len(NUMBERS)]).encode() + content[end:]


def _move(content: bytes, at: int, value: int, _: Sequence[bytes]) -> bytes:
    length, place = 1 + value % 64, value * 97 % (len(content) + 1)
    part, rest = content[at : at + length], content[:at] + content[at + length :]
    return rest[:place] + part + rest[place:]


def _splice(content: bytes, at: int, value: int, valid: Sequence[bytes]) -> bytes:
    other = valid[value % len(valid)]
    return content[:at] + other[value * 31 % (len(other) + 1) :]


_BYTES = (_flip, _flip, _set, _cut, _remove, _double, _insert, _insert, _overwrite, _overwrite, _number, _move, _splice)


class Table(list[Any]):
    """A table as pairs of name and value, so that a name may stand twice."""


def table_after(valid: Any, steps: Sequence[Step]) -> Any:
    """Plain values after some steps of damage: tables become `Table`."""
    root = Table([["", as_table(valid)]])
    for what, at, value in steps:
        places = list(_places(root[0][1])) or [(root, 0)]
        if len(places) > MOST:
            break
        holder, number = places[at % len(places)]
        _TABLES[what % len(_TABLES)](root, holder, number, value)
    return root[0][1] if root else None


def as_table(value: Any) -> Any:
    """Plain values with every table as pairs."""
    if isinstance(value, dict):
        return Table([[name, as_table(one)] for name, one in value.items()])
    return [as_table(one) for one in value] if isinstance(value, (list, tuple)) else value


def as_plain(value: Any) -> Any:
    """`as_table` back; of a name that stands twice the last one counts."""
    if isinstance(value, Table):
        return {name: as_plain(one) for name, one in value}
    return [as_plain(one) for one in value] if isinstance(value, list) else value


def _places(value: Any) -> Any:
    """Every list or table with the number of an entry in it."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield value, number
            yield from _places(one[1] if isinstance(value, Table) else one)


def _get(holder: Any, number: int) -> Any:
    return holder[number][1] if isinstance(holder, Table) else holder[number]


def _put(holder: Any, number: int, value: Any) -> None:
    if isinstance(holder, Table):
        holder[number] = [holder[number][0], value]
    else:
        holder[number] = value


def _replace(_: Any, holder: Any, number: int, value: int) -> None:
    _put(holder, number, as_table(VALUES[value % len(VALUES)]))


def _retype(_: Any, holder: Any, number: int, value: int) -> None:
    """The value of a place as another type."""
    old = _get(holder, number)
    casts: tuple[Callable[[Any], Any], ...] = (
        *(str, lambda one: [one], lambda one: Table([["x", one]]), lambda one: one is not None, lambda one: None),
        *(lambda one: float(len(str(one))), lambda one: [one] * 3, lambda one: json.dumps(str(one))),
    )
    _put(holder, number, casts[value % len(casts)](old))


def _scale(_: Any, holder: Any, number: int, value: int) -> None:
    """A number a little or far off; of a text its length."""
    old, by = _get(holder, number), NUMBERS[value % len(NUMBERS)]
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        near = (-old, old + 1, old - 1, old * 2, by, -by)
        _put(holder, number, near[value // 17 % 6] if abs(old) < 2**70 else by)
    elif isinstance(old, str):
        _put(holder, number, (old + "x", old[:-1], old * 2, old.upper(), old + "\n", " " + old)[value % 6])
    elif isinstance(old, list):
        often = 1 + value % 1000 % (MOST // (1 + sum(1 for _ in _places(old[:1]))) + 1)
        _put(holder, number, type(old)((old[:-1], old * 2, old[::-1], old[:1] * often)[value % 4]))


def _drop(_: Any, holder: Any, number: int, value: int) -> None:
    del holder[number]


def _again(_: Any, holder: Any, number: int, value: int) -> None:
    """The same field twice, or an entry of a list."""
    holder.insert(value % (len(holder) + 1), copy.deepcopy(holder[number]))


def _rename(_: Any, holder: Any, number: int, value: int) -> None:
    if isinstance(holder, Table):
        name = holder[number][0]
        names = (*NAMES, f"{name}x", name[:-1], name.upper(), name.replace("_", "-"))
        holder[number] = [names[value % len(names)], holder[number][1]]


def _exchange(root: Any, holder: Any, number: int, value: int) -> None:
    """The values of two places."""
    places = list(_places(root[0][1]))
    other, at = places[value * 7919 % len(places)] if places else (holder, number)
    mine, theirs = _get(holder, number), _get(other, at)
    _put(holder, number, copy.deepcopy(theirs))
    if number < len(holder) and at < len(other):
        _put(other, at, copy.deepcopy(mine))


def _nest(_: Any, holder: Any, number: int, value: int) -> None:
    inside = _get(holder, number)
    for _level in range(1 + value % 90):
        inside = [inside] if value % 2 else Table([["x", inside]])
    _put(holder, number, inside)


_TABLES: tuple[Callable[[Any, Any, int, int], None], ...] = (
    *(_replace, _replace, _replace, _retype, _scale, _scale, _scale, _drop, _again, _rename, _exchange, _nest),
)


def json_of(value: Any) -> bytes:
    """JSON, with names twice where a table has them."""
    return _text(value, ": ").encode("utf-8", "surrogatepass")


def toml_of(value: Any) -> bytes:
    """TOML: the tables of the top under their names, all below as inline tables."""
    if not isinstance(value, Table):
        return _text(value, " = ").encode("utf-8", "surrogatepass")
    plain = [f"{_name(name)} = {_text(one, ' = ')}" for name, one in value if not isinstance(one, Table)]
    tables = [
        f"[{_name(name)}]\n" + "\n".join(f"{_name(key)} = {_text(inner, ' = ')}" for key, inner in one)
        for name, one in value
        if isinstance(one, Table)
    ]
    return "\n".join([*plain, *tables, ""]).encode("utf-8", "surrogatepass")


def _name(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else json.dumps(name, ensure_ascii=False)


def _text(value: Any, colon: str) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Table):
        return (
            "{"
            + ", ".join(f"{json.dumps(name, ensure_ascii=False)}{colon}{_text(one, colon)}" for name, one in value)
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_text(one, colon) for one in value) + "]"
    return (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
    )
