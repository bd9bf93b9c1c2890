"""Good bytes and documents with a few things changed, each a function of a seed."""

import copy
import json
import random
import struct
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, -(10**9), 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "x" * 3000, "../../../outside", "/etc/passwd", "\ud800", "\x00", "nan", [], {}, [[]], [None], {"": None},
    [1e300] * 3, [0, 0, 0, 0], [[5, 5, 5, 5, 5]], [-1, -1, 1e9, 1e9], 65536, 100000,
)  # fmt: skip


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few random changes of a file's bytes, mostly near its beginning."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = min(int(rng.expovariate(1 / 60)) if rng.random() < 0.6 else rng.randrange(len(data) + 1), len(data))
        kind = rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + 4] = rng.choice(
                (b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x10\x00")
            )
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 8, 200)))
        elif kind == 4:
            del data[at : at + rng.choice((1, 4, 64, 1000))]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice((4, 16, 500))]
        else:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(data))))
    return bytes(data)


def changed(rng: random.Random, value: Any) -> Any:
    """A document with a few of its nodes replaced, left out, repeated or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holders = [node for node in _nodes(value) if isinstance(node, dict | list) and node]
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = rng.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "schema", "id", key.upper()))] = holder.pop(key)
        else:
            other = rng.choice(list(_nodes(value)))
            # not a node into itself
            holder[key] = json.loads(json.dumps(other))
    return value


def _nodes(value: Any) -> list[Any]:
    found = [value]
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found += _nodes(child)
    return found


def document(rng: random.Random, value: Any) -> bytes:
    """A changed document as a file, now and then with its text broken too."""
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(
            (
                b"[" * 200_000,
                b'{"a":' * 100_000,
                b"",
                b"null",
                b"\xff\xfe{\x00}\x00",
                b"1" * 50_000,
                b'"',
                b"\xef\xbb\xbf{}",
            )
        )
    text = json.dumps(changed(rng, value)).encode("utf-8", "surrogatepass")
    return changed_bytes(rng, text) if kind < 0.2 else text
