"""Damage to one file, drawn at random from a seed, and written as a recipe that repeats it.

A recipe is a list of JSON values: the name of a kind of sample, a file of it, and changes such as ``["flip", 17, 3]``.
Changes to bytes work on every file; those of JSON, TOML, safetensors and npy know what the bytes mean and make files
that are still well-formed and say something else.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["ODD", "changed", "draw_change"]

Change = list[Any]

OUTSIDE = "@OUTSIDE@"
"""Stands in recipes for the folder of decoys."""

ODD: Mapping[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus": "-1",
    "one": "1",
    "int31": str(2**31),
    "int63": str(2**63),
    "int64": str(2**64),
    "int100": "1" + "0" * 30,
    "int400": "1" + "0" * 400,
    "int5000": "1" + "0" * 5000,
    "half": "0.5",
    "large": "1e308",
    "infinite": "1e999",
    "tiny": "1e-320",
    "nan": "NaN",
    "inf": "Infinity",
    "neginf": "-Infinity",
    "empty": '""',
    "nul": '"a\\u0000b"',
    "surrogate": '"\\ud800"',
    "escape": '"\\u001b[31m\\r\\u2028"',
    "lines": '"one\\ntwo\\n"',
    "long": '"' + "x" * 100_000 + '"',
    "number": '"12"',
    "up": '"../outside/{file}"',
    "up2": '"../../outside/{file}"',
    "up3": '"../../../outside/{file}"',
    "absolute": f'"{OUTSIDE}/{{file}}"',
    "passwords": '"/etc/passwd"',
    "code": f"\"__import__('os').system('touch {OUTSIDE}/executed')\"",
    "list": "[]",
    "lists": "[[]]",
    "nulls": "[null]",
    "ones": "[1, 1, 1]",
    "object": "{}",
    "objects": '{"a": {"b": []}}',
    "many": "[" + ", ".join(["1"] * 5000) + "]",
    "deep": "[" * 3000 + "]" * 3000,
    "deeper": "[" * 200_000 + "]" * 200_000,
    "nested": '{"a":' * 3000 + "1" + "}" * 3000,
}
"""Values that a reader may not expect, as JSON; ``{file}`` is the name of a decoy."""

_SIZES = (0, 1, 2, 3, 7, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "X1", "")
_NUMPY = ("<f4", "<f8", "<i8", "<i4", "|u1", "|b1", ">f4", "<f2", "|O", "<U3", "|S1000000", "<M8[s]", "<c16", "V8", "x")


# Drawing ----------------------------------------------------------------------------------------------------


def draw_change(rng: random.Random, name: str, content: bytes, others: Sequence[str], decoys: Sequence[str]) -> Change:
    """A change to a file.

    Args:
        rng: Source of randomness.
        name: The file's name.
        content: Its bytes.
        others: Names of files that may take its place.
        decoys: Names of files in the folder of decoys.
    """
    suffix = name.rpartition(".")[2].lower()
    drawn = _DRAWN.get(suffix)
    if drawn is not None and rng.random() < 0.7:
        return drawn(rng, content, decoys)
    return _draw_bytes(rng, content, others, decoys)


def _draw_bytes(rng: random.Random, content: bytes, others: Sequence[str], decoys: Sequence[str]) -> Change:
    size = max(len(content), 1)
    near = min(int(rng.expovariate(1 / 200)), size - 1) if rng.random() < 0.5 else rng.randrange(size)
    kind = rng.choices(
        (
            "flip",
            "byte",
            "word",
            "cut",
            "insert",
            "zero",
            "repeat",
            "remove",
            "swap",
            "empty",
            "gone",
            "folder",
            "pipe",
            "link",
        ),
        (30, 20, 12, 12, 10, 5, 4, 6, 6, 1, 1, 1, 1, 2),
    )[0]
    if kind == "flip":
        return ["flip", near, rng.randrange(8)]
    if kind == "byte":
        return ["byte", near, rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]
    if kind == "word":
        return ["word", near, rng.choice((2, 4, 8)), rng.choice(_SIZES)]
    if kind == "cut":
        return ["cut", near]
    if kind == "insert":
        return ["insert", near, rng.randbytes(rng.choice((1, 2, 4, 8, 64))).hex()]
    if kind in ("zero", "remove"):
        return [kind, near, rng.choice((1, 4, 16, 256, 4096))]
    if kind == "repeat":
        return ["repeat", near, rng.choice((1, 4, 16, 256)), rng.choice((2, 100))]
    if kind == "swap" and others:
        return ["swap", rng.choice(others)]
    if kind == "link" and decoys:
        return ["link", rng.choice(decoys)]
    return [kind] if kind in ("empty", "gone", "folder", "pipe") else ["empty"]


def _draw_json(rng: random.Random, content: bytes, decoys: Sequence[str]) -> Change:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # after another change
        return ["cut", rng.randrange(max(len(content), 1))]
    return _draw_value(rng, value, decoys)


def _draw_value(rng: random.Random, value: Any, decoys: Sequence[str]) -> Change:
    """A change to one place of a JSON value."""
    path: list[Any] = []
    while isinstance(value, dict | list) and value and (not path or rng.random() < 0.85):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path.append(key)
        value = value[key]
    kind = rng.choices(
        ("odd", "tweak", "drop", "rename", "wrap", "add", "twice", "unwrap"), (45, 25, 10, 5, 4, 4, 4, 3)
    )[0]
    if kind == "odd" or not path:
        return ["odd", path, rng.choice(list(ODD)), rng.choice(list(decoys) or ["x"])]
    if kind == "tweak":
        return ["put", path, _tweaked(rng, value)]
    if kind == "rename":
        return ["rename", path, rng.choice(("", "unknown", "schema_version", "__class__", "\n"))]
    return [kind, path]


def _tweaked(rng: random.Random, value: Any) -> Any:
    """A value of the same type that is another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000 + 7, value * 10**9, rng.randrange(100))
        )
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    if isinstance(value, float):
        return rng.choice((value + 1, -value, value * 1e6, value / 1e6, float(round(value)), rng.uniform(-2, 2)))
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:place], value + "x", value[:place] + chr(rng.randrange(1, 0x300)) + value[place:], value.upper())
        )
    if isinstance(value, list):
        items = list(value)
        rng.shuffle(items)
        return rng.choice((items, value[:-1], value + value, value[1:]))
    if isinstance(value, dict):
        return dict(list(value.items())[: len(value) // 2])
    return rng.choice((0, "", False))


def _draw_lines(rng: random.Random, content: bytes, decoys: Sequence[str]) -> Change:
    """A change to the JSON of one line."""
    lines = content.splitlines() or [b""]
    place = rng.randrange(len(lines))
    return ["line", place, _draw_json(rng, lines[place], decoys)]


def _draw_toml(rng: random.Random, content: bytes, decoys: Sequence[str]) -> Change:
    lines = content.decode("utf-8", "replace").splitlines() or [""]
    place = rng.randrange(len(lines))
    kind = rng.choices(("value", "twice", "drop", "key", "table", "nest"), (70, 8, 8, 8, 4, 2))[0]
    if kind == "value":
        return ["toml", place, rng.choice(list(ODD)), rng.choice(list(decoys) or ["x"])]
    return ["toml", place, "=" + kind, rng.choice(("seed", "unknown", "a.b.c", '"\\n"', "x" * 5000))]


def _draw_tensors(rng: random.Random, content: bytes, decoys: Sequence[str]) -> Change:
    if rng.random() < 0.25:
        return ["head", rng.choice((*_SIZES, len(content), len(content) - 8, 100_000_000, 2**64 - 1))]
    header = _header(content)
    names = [name for name in header if name != "__metadata__"]
    kind = rng.choices(("dtype", "shape", "offsets", "name", "pair", "value", "meta"), (15, 20, 15, 8, 8, 15, 10))[0]
    if kind == "meta" or not names:
        return ["header", _draw_value(rng, header, decoys)]
    name = rng.choice(names)
    found = header[name]
    if kind == "dtype":
        return ["header", ["put", [name, "dtype"], rng.choice(_DTYPES)]]
    if kind == "shape":
        shape = list(found["shape"])
        shapes = (
            shape[::-1],
            [*shape, 1],
            shape[1:],
            [*shape, 0],
            [math.prod(shape)],
            [2**31, 2**33],
            [-1],
            [rng.choice(_SIZES)] * 2,
        )
        return ["header", ["put", [name, "shape"], rng.choice(shapes)]]
    if kind == "offsets":
        start, end = found["data_offsets"]
        options = ([start, end + 1], [end, start], [start, 2**63], [0, 0], [0, end], [start - 1, end])
        return ["header", ["put", [name, "data_offsets"], rng.choice(options)]]
    if kind == "name":
        return ["header", ["rename", [name], rng.choice(("", "x", "../x", name.upper(), rng.choice(names)))]]
    if kind == "pair":
        return ["exchange", name, rng.choice(names)]
    return ["number", name, rng.randrange(1 << 16), rng.choice(("nan", "inf", "-inf", "max", "zero", "ones"))]


def _draw_array(rng: random.Random, content: bytes, decoys: Sequence[str]) -> Change:
    kind = rng.choices(("npy", "npyshape", "npytext", "number"), (20, 25, 20, 20))[0]
    if kind == "npy":
        return ["npy", "descr", rng.choice(_NUMPY)]
    if kind == "npyshape":
        sizes = [rng.choice(_SIZES) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
        return ["npy", "shape", sizes]
    if kind == "npytext":
        return [
            "npy",
            "text",
            rng.choice(
                (
                    "__import__('os').system('touch executed')",
                    "(" * 5000,
                    "{}",
                    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}",
                    "[1]",
                    "\x00",
                )
            ),
        ]
    return [
        "word",
        rng.randrange(max(len(content), 1)),
        8,
        rng.choice((*_SIZES, 0x7FF8000000000000, 0x7FC000007FC00000)),
    ]


_DRAWN: Mapping[str, Callable[[random.Random, bytes, Sequence[str]], Change]] = {
    "json": _draw_json,
    "jsonl": _draw_lines,
    "toml": _draw_toml,
    "safetensors": _draw_tensors,
    "npy": _draw_array,
}


# Applying ---------------------------------------------------------------------------------------------------


def changed(content: bytes, change: Change, outside: str) -> bytes:
    """The bytes of a file after a change that keeps it an ordinary file.

    Args:
        content: Its bytes.
        change: As `draw_change` made it.
        outside: The folder of decoys.
    """
    kind, *given = change
    return _APPLIED[kind](content, *given).replace(OUTSIDE.encode(), outside.encode())


def _flip(content: bytes, place: int, bit: int) -> bytes:
    return _with(content, place, bytes([content[place] ^ 1 << bit])) if content else b"\0"


def _with(content: bytes, place: int, part: bytes) -> bytes:
    return content[:place] + part + content[place + len(part) :]


def _word(content: bytes, place: int, size: int, value: int) -> bytes:
    return _with(content, place, (value % 256**size).to_bytes(size, "little"))


def _repeat(content: bytes, place: int, length: int, times: int) -> bytes:
    return content[:place] + content[place : place + length] * times + content[place:]


def _odd(value: Any, path: Sequence[Any], name: str, decoy: str) -> str:
    return _dumped(value, path, ODD[name].replace("{file}", decoy))


_MARK = "@THE VALUE@"


def _dumped(value: Any, path: Sequence[Any], text: str) -> str:
    """A JSON value with a text in one place, which need not be JSON that Python can hold."""
    return json.dumps(_replaced(value, path, _MARK)).replace(f'"{_MARK}"', text, 1)


def _replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return new
    key = path[0]
    if isinstance(value, dict):
        return {name: _replaced(item, path[1:], new) if name == key else item for name, item in value.items()}
    return [_replaced(item, path[1:], new) if place == key else item for place, item in enumerate(value)]


def _at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def _json(content: bytes, kind: str, path: Sequence[Any], *given: Any) -> bytes:
    value = json.loads(content)
    return _json_text(value, kind, path, *given).encode("utf-8", "surrogatepass")


def _json_text(value: Any, kind: str, path: Sequence[Any], *given: Any) -> str:
    if kind == "odd":
        return _odd(value, path, *given)
    if kind == "put":
        return json.dumps(_replaced(value, path, given[0]))
    if kind == "wrap":
        return json.dumps(_replaced(value, path, [_at(value, path)]))
    above, key = _at(value, path[:-1]), path[-1]
    if kind == "unwrap":
        return json.dumps(_replaced(value, path[:-1], _at(value, path)))
    if isinstance(above, list):
        items = list(above)
        items[key : key + 1] = {"drop": [], "twice": [above[key]] * 2, "add": [above[key], None]}.get(
            kind, [above[key]]
        )
        return json.dumps(_replaced(value, path[:-1], items))
    if kind == "twice":  # the same key a second time, which a dictionary cannot hold
        pair = f"{json.dumps(key)}: {json.dumps(above[key])}"
        rest = ", ".join(f"{json.dumps(name)}: {json.dumps(item)}" for name, item in above.items())
        return _dumped(value, path[:-1], f"{{{pair}, {rest}}}") if path[:-1] else f"{{{pair}, {rest}}}"
    new = {"rename": {given[0] if given else "x": above[key]}, "add": {key: above[key], "unknown": [1]}}.get(kind, {})
    items_ = {
        name: item for found, entry in above.items() for name, item in (new if found == key else {found: entry}).items()
    }
    return json.dumps(_replaced(value, path[:-1], items_))


def _line(content: bytes, place: int, change: Change) -> bytes:
    lines = content.splitlines()
    if place < len(lines):
        lines[place] = _APPLIED[change[0]](lines[place], *change[1:])
    return b"\n".join(lines) + b"\n"


def _toml(content: bytes, place: int, name: str, given: str) -> bytes:
    lines = content.decode("utf-8", "replace").splitlines() or [""]
    key, equals, _ = lines[place].partition(" = ")
    if name in ODD:
        text = {"null": "1979-05-27", "NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(ODD[name], ODD[name])
        lines[place] = f"{key} = {text.replace('{file}', given)}" if equals else f"[{text[:200]}]"
    elif name == "=twice":
        lines.insert(place, lines[place])
    elif name == "=drop":
        del lines[place]
    elif name == "=key":
        lines[place] = f"{given} = {lines[place].partition(' = ')[2]}"
    elif name == "=table":
        lines.insert(place, f"[{given}]")
    else:
        lines[place] = f"{key} = " + "{a = " * 500 + "1" + "}" * 500
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _header(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    try:
        found = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and all(map(_is_entry, found.items())) else {}


def _is_entry(pair: tuple[str, Any]) -> bool:
    name, entry = pair
    if name == "__metadata__":
        return True
    sizes = entry.get("data_offsets") if isinstance(entry, dict) else None
    found = isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(size, int) for size in sizes)
    return found and isinstance(entry.get("shape"), list) and isinstance(entry.get("dtype"), str)


def _with_header(content: bytes, text: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _tensor_header(content: bytes, change: Change) -> bytes:
    text = _json_text(_header(content), change[0], *change[1:])
    return _with_header(content, text.encode("utf-8", "surrogatepass"))


def _exchange(content: bytes, first: str, second: str) -> bytes:
    header = _header(content)
    header[first], header[second] = header[second], header[first]
    return _with_header(content, json.dumps(header).encode())


_NUMBERS = {
    "nan": {8: struct.pack("<d", math.nan), 4: struct.pack("<f", math.nan), 2: struct.pack("<e", math.nan)},
    "inf": {8: struct.pack("<d", math.inf), 4: struct.pack("<f", math.inf), 2: struct.pack("<e", math.inf)},
    "-inf": {8: struct.pack("<d", -math.inf), 4: struct.pack("<f", -math.inf), 2: struct.pack("<e", -math.inf)},
    "max": {8: b"\xff" * 7 + b"\x7f", 4: b"\xff\xff\x7f\x7f", 2: b"\xff\x7b"},
}


def _number(content: bytes, name: str, place: int, what: str) -> bytes:
    """Another number in a tensor."""
    header = _header(content)
    start, end = header[name]["data_offsets"]
    width = {"F64": 8, "I64": 8, "U64": 8, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1}.get(
        header[name]["dtype"], 4
    )
    part = {"zero": bytes(width), "ones": b"\xff" * width}.get(what) or _NUMBERS.get(what, {}).get(
        width, b"\xff" * width
    )
    if end - start < width:
        return content
    base = 8 + int.from_bytes(content[:8], "little")
    return _with(content, base + start + place % ((end - start) // width) * width, part)


def _npy(content: bytes, what: str, value: Any) -> bytes:
    """An array with another header."""
    length = int.from_bytes(content[8:10], "little")
    text = content[10 : 10 + length].decode("latin1")
    if what == "text":
        text = value
    elif what == "descr":
        before, _, after = text.partition("'descr': ")
        text = f"{before}'descr': {value!r}{after[after.find(', ') :]}"
    else:
        before, _, after = text.partition("'shape': (")
        text = f"{before}'shape': ({''.join(f'{size},' for size in value)}){after[after.find(')') + 1 :]}"
    packed = text.rstrip().ljust(length - 1).encode("latin1", "replace") + b"\n"
    return content[:8] + min(len(packed), 65535).to_bytes(2, "little") + packed + content[10 + length :]


_APPLIED: Mapping[str, Callable[..., bytes]] = {
    "flip": _flip,
    "byte": lambda content, place, value: _with(content, place, bytes([value])),
    "word": _word,
    "cut": lambda content, place: content[:place],
    "insert": lambda content, place, text: content[:place] + bytes.fromhex(text) + content[place:],
    "zero": lambda content, place, count: _with(content, place, bytes(min(count, len(content) - place))),
    "remove": lambda content, place, count: content[:place] + content[place + count :],
    "repeat": _repeat,
    "empty": lambda content: b"",
    "hex": lambda content, text: bytes.fromhex(text),
    **{
        kind: (lambda name: lambda content, *given: _json(content, name, *given))(kind)
        for kind in ("odd", "put", "drop", "rename", "wrap", "add", "twice", "unwrap")
    },
    "line": _line,
    "toml": _toml,
    "head": lambda content, size: size.to_bytes(8, "little") + content[8:],
    "header": _tensor_header,
    "exchange": _exchange,
    "number": _number,
    "npy": _npy,
}
