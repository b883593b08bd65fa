"""Given weights that cannot be trained as they are: each is told with its block, its name and the remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.network.dtypes import check_dtypes
from pipeline.network.sequential import blocks_from, given_network


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (torch.float64, r"float64, but weights are float32; call \.float\(\) on the network first"),
        (torch.float16, r"float16, but weights are float32; call \.float\(\) on the network first"),
        (torch.bfloat16, r"bfloat16, but weights are float32; call \.float\(\) on the network first"),
        (torch.complex64, r"complex64, but weights are float32; give its real and imaginary part as two"),
    ],
)
def test_weights_of_another_number_format_are_told(dtype: torch.dtype, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"^weight weight of block 1 is {remedy}$"):
        check_dtypes([nn.Linear(2, 2), nn.Linear(2, 2, dtype=dtype)])


def test_a_user_is_told_when_the_network_is_given() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with pytest.raises(ConfigError, match=r"of block 0 is float64"):
        given_network(blocks_from(network))


def test_weights_without_data_are_told() -> None:
    with pytest.raises(
        ConfigError, match=r"weight weight of block 0 has no data \(device meta\); build the network on"
    ):
        check_dtypes([nn.Linear(2, 2, device="meta")])


def test_weights_of_inference_mode_are_told() -> None:
    with torch.inference_mode():
        layer = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"block 0 was made below torch\.inference_mode; build the network outside"):
        check_dtypes([layer])


def test_buffers_without_data_or_of_inference_mode_are_told() -> None:
    norm = nn.BatchNorm1d(2, affine=False)
    with pytest.raises(ConfigError, match=r"buffer running_mean of block 0 has no data \(device meta\)"):
        check_dtypes([norm.to("meta")])
    with torch.inference_mode():
        norm = nn.BatchNorm1d(2, affine=False)
    with pytest.raises(ConfigError, match=r"buffer running_mean of block 0 was made below torch\.inference_mode"):
        check_dtypes([norm])


def test_whole_numbers_buffers_and_weights_without_a_shape_are_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.table = nn.Parameter(torch.arange(3), requires_grad=False)
            self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    check_dtypes([Odd(), nn.BatchNorm1d(2), nn.LazyLinear(3)])
