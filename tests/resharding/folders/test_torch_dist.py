"""Pickles and folders of torch_dist checkpoints, as far as no weights are needed."""

import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.resharding.folders.torch_dist.pickles import read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_pickles_of_every_protocol_are_read(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("number", [1 << 20, (1 << 32) - 1])
@pytest.mark.parametrize("before", [b"", b"X\x05\x00\x00\x00pr.\n.0", b"I17\n0", b"U\x02r.0"])
def test_a_number_that_no_object_can_have_is_refused(number: int, before: bytes) -> None:
    """Wherever it stands; in a text or behind the end it is none."""
    for put in (b"r" + struct.pack("<I", number), f"p{number}\n".encode()):
        with pytest.raises(ValueError, match=f"object number {number} of"):
            read_pickle(b"\x80\x02" + before + b"]" + put + b".")
        assert read_pickle(b"\x80\x02" + before + b"]." + put) == []
        text = struct.pack("<I", len(put)) + put
        if put.isascii():
            assert read_pickle(b"\x80\x02X" + text + b".") == put.decode()
