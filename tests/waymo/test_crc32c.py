from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.waymo import crc32c as module
from kdlib.waymo.crc32c import crc32c, masked


def naive(data: bytes) -> int:
    """Bit by bit, as the definition has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def noise(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def test_check_value_and_published_vectors():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    # RFC 3720, appendix B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_mask_by_hand():
    assert masked(0) == 0xA282EAD8
    assert masked(0xFFFFFFFF) == 0xA282EAD7
    assert masked(1) == (0x00020000 + 0xA282EAD8)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_short_data_equal_the_definition(data):
    assert module._by_bytes(data) == naive(data) == crc32c(data)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(4, 6000), seed=st.integers(0, 2**32))
def test_lanes_equal_the_definition_at_any_length(length, seed):
    assert module._by_lanes(noise(length, seed)) == naive(noise(length, seed))


@pytest.mark.parametrize("length", [16383, 16384, 16385, 16387, 3 * 16384, 1 << 17, (1 << 17) + 1, 299_999])
def test_long_data_equal_the_byte_table(length):
    data = noise(length)
    assert crc32c(data) == crc32c(memoryview(data)) == module._by_bytes(data)


def test_zeros_at_either_end_count():
    data = noise(20_000)
    assert len({crc32c(some) for some in (data, bytes(1) + data, data + bytes(1), bytes(1024) + data)}) == 4


def test_googles_library_agrees():
    google = pytest.importorskip("google_crc32c")
    for length in (0, 1, 8, 20_000, 1_000_001):
        assert google.value(noise(length)) == module._by_bytes(noise(length))
    assert module._by_lanes(noise(1_000_001)) == google.value(noise(1_000_001))


def test_a_native_library_is_used_unless_it_is_a_byte_loop(monkeypatch):
    class Library:
        implementation = "c"

        @staticmethod
        def value(data):
            return 7

    monkeypatch.setattr(module, "_native", Library)
    assert crc32c(b"123456789") == 7
    monkeypatch.setattr(Library, "implementation", "python")
    assert crc32c(b"123456789") == 0xE3069283
