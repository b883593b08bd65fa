"""What travels between stages, its header, and the start-up agreement on shape and dtype between neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError, StageFailure
from pipeline.learning.packet import Kind, Packet

__all__ = ["Contract", "agree", "decode_header", "encode_header", "header_length"]

_FIELDS = 6  # magic, kind, epoch, step, batch size, sequence number; labels follow
_MAGIC = 0x6C6F63616C  # first word of every header, so that a stream out of step is noticed at once


@dataclass(frozen=True)
class Contract:
    """What one stage promises to send and the next expects: the shape of one sample's activation, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: int  # largest batch

    def describe(self) -> str:
        """As text that compares equal exactly when the contracts are equal."""
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}, batches up to {self.batch}"


def agree(sender: int, promised: str, expected: Contract) -> None:
    """Raise ConfigError unless the stage after `sender` expects what it promises."""
    if promised != expected.describe():
        raise ConfigError(
            f"stage {sender} sends {promised}, but stage {sender + 1} expects {expected.describe()}; "
            "give every process the same network and the same flags"
        )


def header_length(batch: int) -> int:
    """Words of a header for batches up to `batch`."""
    return _FIELDS + batch


def encode_header(packet: Packet, sequence: int, length: int) -> Tensor:
    """The header of a packet, int64 [length]: six fields, then the labels."""
    header = torch.zeros(length, dtype=torch.int64)
    header[:_FIELDS] = torch.tensor([_MAGIC, packet.kind, packet.epoch, packet.step, packet.batch, sequence])
    if packet.labels is not None:
        header[_FIELDS : _FIELDS + packet.batch] = packet.labels
    return header


def decode_header(header: Tensor, sequence: int, source: int) -> Packet:
    """The packet of a header, its activation still missing.

    Raises StageFailure if the header is damaged or not the next one (`sequence`) from stage `source`.
    """
    magic, kind, epoch, step, batch, received = header[:_FIELDS].tolist()
    if magic != _MAGIC or received != sequence:
        raise StageFailure(
            f"stage {source} sent packet {received} (mark {magic:#x}) where packet {sequence} (mark {_MAGIC:#x}) was "
            "due; the stages are out of step, start the run anew with one version everywhere"
        )
    labels = header[_FIELDS : _FIELDS + batch].clone() if batch else None
    return Packet(Kind(kind), epoch, step, labels=labels)
