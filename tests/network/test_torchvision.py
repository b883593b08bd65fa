"""torchvision's networks as blocks: the same function, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.network.sequential import blocks_from
from tests.support.data import message

models = pytest.importorskip("torchvision.models")

BLOCKS = {
    "alexnet": 8,
    "convnext_tiny": 23,  # a stem, 18 blocks with three convolutions between them, the head
    "densenet121": 9,
    "efficientnet_b0": 19,
    "mobilenet_v3_small": 15,
    "resnet18": 10,  # a stem, eight residual blocks, the head
    "shufflenet_v2_x1_0": 19,
    "swin_t": 17,
    "vgg11": 11,
    "vit_b_16": 14,  # with the class token in the first block
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_compute_what_the_network_does(name: str) -> None:
    sized: dict[str, Any] = {"image_size": 64} if name == "vit_b_16" else {}
    with torch.device("meta"):
        network = getattr(models, name)(num_classes=10, **sized)
    network = network.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0, 0.05)
        else:
            tensor.data.zero_()
    restore_indices(network)
    blocks, x = blocks_from(network), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(nn.Sequential(*blocks).eval()(x), network(x))
    assert len(blocks) == BLOCKS[name]


def restore_indices(network: nn.Module) -> None:
    """Tables that a constructor works out, and the meta device forgets."""
    for module in network.modules():
        again: Callable[[], None] | None = getattr(module, "define_relative_position_index", None)
        if again is not None:
            again()


def test_a_network_with_auxiliary_heads_is_refused() -> None:
    with torch.device("meta"):
        network = models.googlenet(num_classes=10, init_weights=False)
    text = message(lambda: blocks_from(network), ConfigError)
    assert "GoogLeNet does other things in training than in evaluation: leave out child aux1" in text
