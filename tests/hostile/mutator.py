"""A seeded mutator, which damages files like a bad disk, a cut download, an old editor or an attacker."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_DEEP: Any = "deep"  # stands for a list that is a thousand levels deep, which JSON's writer cannot write
_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2**31,
    10**30,
    -(10**30),
    1e308,
    0.5,
    "",
    "x",
    "../../etc/passwd",
    "\x00",
    "ü" * 300,
    [],
    {},
    [[]],
    {"": None},
    ["a", 1, None],
    _DEEP,
)
_PIECES = (b"\t\t", b"nan", b"1e39", b"-5", b"\xff\xfe", b"9" * 400, b"\r", b";", b'"')
_WHOLES = (b"[1, 2]", b"7", b"a\n", b"- a\n- b\n", b"\x00", b"%YAML 9.9\n---\na", b"? ? ?", b"---\n---\n")
_TEXTS = ("[]", "{}", "null", "-1", "1e300", "10000000000", ".nan", ".inf", "2001-99-99", "yes", "'x'")


def flipped(raw: bytes, rng: random.Random) -> bytes:
    """Flip some bits, cut out, double, zero or replace a stretch by noise, or cut off the end."""
    data = bytearray(raw)
    kind = rng.choice(("bits", "bit", "cut", "out", "double", "zero", "noise", "text", "nothing", "random"))
    at = rng.randrange(len(data))
    stretch = rng.randrange(1, max(2, min(len(data) - at, 200)))
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else rng.randrange(2, 40)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "out":
        del data[at : at + stretch]
    elif kind == "double":
        data[at:at] = data[at : at + stretch]
    elif kind == "zero":
        data[at : at + stretch] = bytes(stretch)
    elif kind == "noise":
        data[at : at + stretch] = rng.randbytes(stretch)
    elif kind == "text":
        data[at : at + stretch] = rng.choice(
            (b"\t\t", b"nan", b"1e39", b"-5", b"\xff\xfe", b"9" * 400, b"\r", b";", b'"')
        )
    elif kind == "nothing":
        return b""
    else:
        return rng.randbytes(rng.randrange(1, 400))
    return bytes(data)


def mangled_json(content: Any, rng: random.Random) -> str:
    """Replace a value by one of another kind, drop it, or replace the whole document."""
    content = copy.deepcopy(content)
    place = content
    for _ in range(rng.randrange(0, 6)):
        inner = _inner(place)
        if not inner:
            break
        key = rng.choice(inner)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if isinstance(place, dict) and rng.random() < 0.3:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(_VALUES))
    else:
        inner = _inner(place)
        if inner:
            place[rng.choice(inner)] = copy.deepcopy(rng.choice(_VALUES))
        else:
            content = rng.choice(_VALUES)
    return json.dumps(content).replace(json.dumps(_DEEP), "[" * 1000 + "]" * 1000)


def _inner(place: Any) -> list[Any]:
    if isinstance(place, dict):
        return list(place)
    return list(range(len(place))) if isinstance(place, list) else []


def mangled_yaml(text: str, rng: random.Random) -> bytes:
    """Return YAML in another encoding, with aliases, tags, depth, another kind of value, or damaged bytes."""
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition(":")[0]
    kind = rng.choice(("encoding", "value", "tag", "alias", "deep", "bytes", "whole", "indent"))
    if kind == "encoding":
        return text.replace(":", ": # ü", 1).encode(rng.choice(("utf-16", "latin-1", "utf-32", "utf-8-sig")))
    if kind == "bytes":
        return flipped(text.encode(), rng)
    if kind == "whole":
        return rng.choice(
            (b"[1, 2]", b"7", b"a\n", b"- a\n- b\n", b"\x00", b"%YAML 9.9\n---\na", b"? ? ?", b"---\n---\n")
        )
    values = {
        "value": rng.choice(
            ("[]", "{}", "null", "-1", "1e300", "10000000000", ".nan", ".inf", "2001-99-99", "yes", "'x'")
        ),
        "tag": rng.choice(("!!python/object/apply:os.system ['touch hacked']", "!!binary x", "!!set {a}", "!x y")),
        "alias": "&a [1]\nother: *a",
        "deep": "[" * 3000 + "]" * 3000,
        "indent": "\n      - a\n   b: c",
    }
    lines[at] = f"{name}: {values[kind]}"
    return "\n".join(lines).encode()
