"""Bytes enter, their CRC-32C (Castagnoli) leaves; vectorised numpy, or google-crc32c where it is installed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

try:
    import google_crc32c as _native
except ImportError:
    _native = None

_Words = NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78  # reflected
_LANE = 1024  # bytes; a power of two
_SHORT = 16 * _LANE  # below this a plain loop is faster than feeding lanes


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes; ``crc32c(b"123456789") == 0xE3069283``.

    4 MB take some 10 ms without google-crc32c, 0.5 ms with it.
    """
    if _native is not None and _native.implementation == "c":  # its own fallback is a byte loop
        return int(_native.value(bytes(data)))
    return _by_lanes(data) if len(data) >= _SHORT else _by_bytes(data)


def masked(crc: int) -> int:
    """Return a CRC as TFRecord stores it: turned by 15 bits plus a constant (format spec section 1)."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _by_bytes(data: bytes | memoryview) -> int:
    table, crc = _byte_list(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _by_lanes(data: bytes | memoryview) -> int:
    """Run one register per lane of 1024 bytes side by side, then join neighbours pairwise.

    Zeros before the data leave a register of 0 alone, so the first lane may be padded; the initial value of all ones is the same
    as the first four bytes inverted.
    """
    lanes = -(-len(data) // _LANE)
    start = lanes * _LANE - len(data)
    padded = np.empty(lanes * _LANE, np.uint8)
    padded[:start] = 0
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= 0xFF
    low, high = _word_tables()
    words = padded.view("<u4").reshape(lanes, -1)
    state = np.zeros(lanes, np.uint32)
    for column in range(words.shape[1]):
        state ^= words[:, column]
        state = low[state & 0xFFFF] ^ high[state >> 16]
    length = _LANE
    while len(state) > 1:
        if len(state) % 2:
            state = np.concatenate([np.zeros(1, np.uint32), state])
        state = _apply(_zeros(length), state[0::2]) ^ state[1::2]
        length *= 2
    return int(state[0]) ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _bytes_table() -> _Words:
    """Return the register after one byte, for each byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@lru_cache(maxsize=1)
def _byte_list() -> list[int]:
    return _bytes_table().tolist()


@lru_cache(maxsize=1)
def _word_tables() -> tuple[_Words, _Words]:
    """Return what the low and the high half of a register become after four zero bytes, (65536,) each."""
    table, halves = _bytes_table(), []
    for shift in (0, 16):
        state = np.arange(1 << 16, dtype=np.uint32) << np.uint32(shift)
        for _ in range(4):
            state = table[state & 0xFF] ^ (state >> np.uint32(8))
        halves.append(state)
    return halves[0], halves[1]


@lru_cache(maxsize=64)
def _zeros(length: int) -> _Words:
    """Return the GF(2) operator (32 columns) of feeding so many zero bytes, a power of two."""
    if length == 1:
        bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return _bytes_table()[bits & 0xFF] ^ (bits >> np.uint32(8))
    half = _zeros(length // 2)
    return _apply(half, half)


def _apply(operator: _Words, states: _Words) -> _Words:
    result = np.zeros(len(states), np.uint32)
    for bit, column in enumerate(operator):
        result ^= np.where(states >> np.uint32(bit) & np.uint32(1), column, np.uint32(0))
    return result
