"""Headers, whatever becomes of them on the way: they are what was sent, or it is told in a line."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StageFailure
from pipeline.learning.packet import Kind, Packet, Position, TensorSpec, labelled
from pipeline.transport.wire import Contract, decode_header, encode_header

CONTRACT = Contract(labelled(TensorSpec((1,), torch.float32)), 4)
WORDS = CONTRACT.header_length
INT64 = st.integers(-(2**63), 2**63 - 1)

fuzzed = settings(max_examples=int(os.environ.get("FUZZ", "200")), deadline=None, derandomize=True, database=None)


def header(step: int) -> torch.Tensor:
    labels = torch.arange(3)
    return encode_header(Packet(Kind.TRAIN, Position(2, step), {"x": labels, "labels": labels}), 7, CONTRACT)


@pytest.mark.fuzz
@fuzzed
@given(st.lists(INT64, min_size=WORDS, max_size=WORDS), st.booleans(), st.booleans())
def test_no_header_makes_the_reader_fail(words: list[int], marked: bool, summed: bool) -> None:
    """Random words, some of which begin as they should, and add up."""
    got = torch.tensor(words)
    if marked:
        got[0], got[5] = header(0)[0], 7
    if summed:
        got[6] = got.sum() - got[6]
    try:
        packet, batch = decode_header(got, 7, "stage 0", CONTRACT)
    except StageFailure as error:
        told = str(error)
        assert told.startswith("stage 0 sent packet ") and "\n" not in told
    else:
        assert 0 <= batch <= 4 and packet.kind in Kind and min(packet.at.epoch, packet.at.step) >= 0


@pytest.mark.fuzz
@fuzzed
@given(st.integers(0, 2**40), st.integers(0, WORDS - 1), INT64)
def test_a_word_that_is_altered_is_noticed(step: int, place: int, word: int) -> None:
    got = header(step)
    altered = int(got[place]) != word
    got[place] = word
    try:
        packet, batch = decode_header(got, 7, "stage 0", CONTRACT)
    except StageFailure:
        assert altered
    else:
        assert not altered and (packet.at, batch) == (Position(2, step), 3)


def test_a_damaged_header_is_told() -> None:
    got = header(5)
    got[-1] = 9
    with pytest.raises(
        StageFailure, match=r"packet 7 with a damaged header \(kind 0, epoch 2, step 5, 3 of at most 4"
    ):
        decode_header(got, 7, "stage 0", CONTRACT)
