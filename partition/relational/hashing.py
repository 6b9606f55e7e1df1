"""Random choices as a hash in plain arithmetic: DuckDB, Spark and NumPy draw alike, whatever the order of the rows.

The hash of whole numbers is one number of 32 bits. Each number is mixed into it by two rounds of xorshift and
multiplication; the multipliers are below 2^31, so that nothing exceeds 63 bits, which every engine has. Numbers
below 2^32 that are hashed after equal ones never share a hash.
"""

from __future__ import annotations

from collections.abc import Sequence

import ibis.expr.types as ir

MASK = 2**32 - 1
# Found by Chris Wellons' search for rounds of low bias: (shift, multiplier) twice, then the last shift.
ROUNDS, LAST_SHIFT = ((16, 0x21F0AAAD), (15, 0x735A2D97)), 15
HASH = "hash"


def mix(value: int) -> int:
    """Mixes the 32 bits of a number; different numbers give different ones."""
    for shift, factor in ROUNDS:
        value ^= value >> shift
        value = value * factor & MASK
    return value ^ value >> LAST_SHIFT


def seeded(seed: int) -> int:
    """The hash of a seed of any size, to which the hash of a row is added."""
    state = mix(0x9E3779B9)
    while True:
        state = mix(state ^ seed & MASK)
        seed >>= 32
        if not seed:
            return state


def with_hash(table: ir.Table, seed: int, columns: Sequence[str]) -> ir.Table:
    """Adds the column `HASH`, int64 below 2^32, of the seed and the whole numbers in `columns`, in their order."""
    state: int | ir.IntegerValue = seeded(seed)
    for name in columns:
        number = table[name].cast("int64")
        # Every step is a column of its own: an expression that names its operand twice would double at each step.
        table = table.mutate(**{HASH: ((number & MASK) ^ (number >> 32)) ^ state})
        for shift, factor in ROUNDS:
            table = table.mutate(**{HASH: table[HASH] ^ (table[HASH] >> shift)})
            table = table.mutate(**{HASH: (table[HASH] * factor) & MASK})
        table = table.mutate(**{HASH: table[HASH] ^ (table[HASH] >> LAST_SHIFT)})
        state = table[HASH]
    return table
