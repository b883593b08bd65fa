"""What travels between stages: number formats, headers, and the start-up agreement between neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pipeline.errors import ConfigError, StageFailure
from pipeline.learning.numerics import FORMATS
from pipeline.learning.packet import Kind, Packet, Position, Signature, TensorSpec

__all__ = ["Cast", "Codec", "Contract", "agree", "codec_for", "decode_header", "encode_header"]

Tensors = Mapping[str, Tensor]

_FIELDS = 7  # magic, kind, epoch, step, batch size, sequence number, check; what rides along follows
_CHECK = 6  # the sum of all other words, modulo 2^64
_MAGIC = 0x6C6F63616C  # first word of every header, so that a stream out of step is noticed at once
_KINDS = frozenset(Kind)
_OF_SAMPLES = frozenset({Kind.TRAIN, Kind.EVALUATE})


class Codec(Protocol):
    """How tensors look on the wire. Between stages of one process `decode(encode(...))` stands for the wire."""

    def wire(self, signature: Signature) -> Signature:
        """What `encode` makes of tensors of these kinds."""

    def encode(self, tensors: Tensors) -> Tensors:
        """As they travel."""

    def decode(self, tensors: Tensors) -> Tensors:
        """As the stage computes with them; nothing is copied where nothing changes."""


@dataclass(frozen=True)
class Cast:
    """Activations and gradients in another number format; lossless and free where the two are the same."""

    inner: torch.dtype
    outer: torch.dtype

    def wire(self, signature: Signature) -> Signature:
        return {
            name: replace(spec, dtype=self.outer) if spec.dtype.is_floating_point else spec
            for name, spec in signature.items()
        }

    def encode(self, tensors: Tensors) -> Tensors:
        return {name: x.to(self.outer) if x.is_floating_point() else x for name, x in tensors.items()}

    def decode(self, tensors: Tensors) -> Tensors:
        return {name: x.to(self.inner) if x.is_floating_point() else x for name, x in tensors.items()}


def codec_for(name: str, inner: torch.dtype) -> Codec:
    """The codec of a `--wire` value for stages that compute in `inner`."""
    return Cast(inner, inner if name == "auto" else FORMATS[name])


@dataclass(frozen=True)
class Contract:
    """What one stage promises to send and the next expects: named tensors of a sample, and the largest batch.

    Whole numbers, one of a sample, such as labels, ride in the header; the other tensors follow it in this order.
    """

    signature: Signature
    batch: int

    @cached_property
    def riders(self) -> list[str]:
        """Names of what rides in the header."""
        return [name for name, spec in self.signature.items() if spec == TensorSpec((), torch.int64)]

    @property
    def header_length(self) -> int:
        """Words of every header."""
        return _FIELDS + len(self.riders) * self.batch

    def describe(self) -> str:
        """As text that compares equal exactly when the contracts are equal."""
        tensors = ", ".join(f"{name} {spec}" for name, spec in self.signature.items())
        return f"{tensors}, batches up to {self.batch}"


def agree(sender: int, promised: str, expected: Contract) -> None:
    """Raise ConfigError unless the stage after `sender` expects what it promises."""
    if promised != expected.describe():
        raise ConfigError(
            f"stage {sender} sends {promised}, but stage {sender + 1} expects {expected.describe()}; "
            "give every process the same network and the same flags"
        )


def encode_header(packet: Packet, sequence: int, contract: Contract) -> Tensor:
    """The header of a packet, int64 [header_length]: seven fields, then what rides along."""
    header = torch.zeros(contract.header_length, dtype=torch.int64)
    at, batch = packet.at, packet.batch
    header[:_FIELDS] = torch.tensor([_MAGIC, packet.kind, at.epoch, at.step, batch, sequence, 0])
    for place, name in enumerate(contract.riders if batch else ()):
        header[_FIELDS + place * batch :][:batch] = packet.tensors[name]
    header[_CHECK] = header.sum()
    return header


def decode_header(header: Tensor, sequence: int, sender: str, contract: Contract) -> tuple[Packet, int]:
    """The packet of a header with what rode along, and the batch size of the tensors still to come.

    Raises StageFailure if the header is damaged or not the next one (`sequence`) from `sender`.
    """
    magic, kind, epoch, step, batch, received, check = header[:_FIELDS].tolist()
    if magic != _MAGIC or received != sequence:
        raise StageFailure(
            f"{sender} sent packet {received} (mark {magic:#x}) where packet {sequence} (mark {_MAGIC:#x}) was "
            "due; the stages are out of step, start the run anew with one version everywhere"
        )
    header[_CHECK] = 0
    whole = header.sum() == check and kind in _KINDS and min(epoch, step, batch) >= 0
    if not whole or batch > contract.batch or (batch > 0) != (kind in _OF_SAMPLES):
        raise StageFailure(
            f"{sender} sent packet {sequence} with a damaged header (kind {kind}, epoch {epoch}, step {step}, {batch} "
            f"of at most {contract.batch} samples); look at the network between the stages, and start the run anew"
        )
    riders = {
        name: header[_FIELDS + place * batch :][:batch].clone()
        for place, name in enumerate(contract.riders if batch else ())
    }
    return Packet(Kind(kind), Position(epoch, step), riders), batch
