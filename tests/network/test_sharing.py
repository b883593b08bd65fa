"""Blocks train alone: what two of them share is refused; what one shares within itself is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.network.borrowing import borrowed
from pipeline.network.formats import lay_out
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.sharing import check_separate, unexpand
from pipeline.network.spec import infer_shapes


class Holding(nn.Module):
    """A layer with a buffer."""

    def __init__(self, buffer: Tensor, *, persistent: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", buffer, persistent=persistent)


def same_buffer() -> list[nn.Module]:
    table = torch.ones(6)
    return [Holding(table), Holding(table, persistent=False)]


def overlapping_views() -> list[nn.Module]:
    table = torch.ones(6)
    return [Holding(table[:4]), Holding(table[3:])]


def same_module() -> list[nn.Module]:
    norm = nn.BatchNorm1d(4, affine=False)
    return [nn.Sequential(nn.Linear(4, 4), norm), nn.Sequential(nn.Linear(4, 4), norm)]


def same_data() -> list[nn.Module]:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight.data = first.weight.data.T
    return [first, second]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (same_buffer, "blocks 0 and 1 share the buffer table, but every block trains alone; give each its own"),
        (overlapping_views, "blocks 0 and 1 share the buffer table"),
        (same_module, "blocks 0 and 1 share the buffer 1.running_mean"),
        (same_data, "blocks 0 and 1 share the parameter weight"),
    ],
)
def test_memory_of_two_blocks_is_refused(blocks: Callable[[], list[nn.Module]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_separate(blocks())


@pytest.mark.parametrize("sparse", [Tensor.to_sparse, Tensor.to_sparse_csr], ids=["by coordinates", "by rows"])
def test_a_sparse_buffer_that_is_not_kept_is_taken(sparse: Callable[[Tensor], Tensor]) -> None:
    class Spread(Holding):
        def forward(self, x: Tensor) -> Tensor:
            spread: Tensor = torch.sparse.mm(self.get_buffer("table"), self.layer(x).T)
            return spread.T

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which calls CSR new
        blocks = [Spread(sparse(torch.eye(4)), persistent=False), nn.Linear(4, 3)]
    network = given_network(blocks)
    assert [shape.outputs for shape in infer_shapes(network, (4,))] == [(4,), (3,)]
    with borrowed(blocks):
        lay_out(blocks[0], channels_last=True)


def test_a_sparse_map_has_no_memory_format() -> None:
    blocks = [Holding(torch.ones(1, 1, 2, 2).to_sparse(), persistent=False)]
    with borrowed(blocks):
        lay_out(blocks[0], channels_last=True)
    assert blocks[0].get_buffer("table").is_sparse


def test_a_norm_without_weights_used_twice_is_refused_when_a_network_is_cut() -> None:
    norm = nn.BatchNorm1d(4, affine=False)
    with pytest.raises(ConfigError, match=r"share the buffer body\.3\.running_mean"):
        blocks_from(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm, nn.Linear(4, 2)))


def test_pieces_of_one_memory_that_do_not_overlap_are_taken() -> None:
    table = torch.ones(8)
    check_separate([Holding(table[:4]), Holding(table[4:]), nn.Linear(3, 3, device="meta"), nn.LazyLinear(2)])


def test_what_is_tied_inside_a_block_is_taken() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    check_separate([nn.Sequential(first, second), nn.Linear(4, 2)])


class Odd(nn.Module):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(4, 4), state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_state_that_is_no_plain_tensor_is_refused() -> None:
    message = "block 1 keeps _extra_state, which is of the kind dict; only plain tensors can be kept with the weights"
    with pytest.raises(ConfigError, match=message):
        check_separate([nn.Linear(4, 4), Odd({"scale": 1.0})])
    with pytest.raises(ConfigError, match="block 0 keeps _extra_state, which is of the kind sparse_coo"):
        check_separate([Odd(torch.ones(3).to_sparse())])
    check_separate([Odd(torch.ones(3))])


def test_what_was_expanded_gets_memory_and_keeps_its_values() -> None:
    block = Holding(torch.arange(3.0).unsqueeze(1).expand(3, 4))
    frozen = nn.Parameter(torch.ones(1).expand(4), requires_grad=False)
    block.layer.bias = frozen
    given_network([block])
    table = block.get_buffer("table")
    assert table.is_contiguous() and table[:, 3].tolist() == [0, 1, 2]
    assert block.layer.bias is frozen
    block.load_state_dict({name: x.clone() for name, x in block.state_dict().items()})


def test_a_conjugate_is_worked_out() -> None:
    block = Holding(torch.tensor([1 + 2j]).conj())
    unexpand(block)
    table = block.get_buffer("table")
    assert not table.is_conj() and table.tolist() == [1 - 2j]


def test_a_parameter_that_was_expanded_cannot_learn() -> None:
    block = nn.Sequential(nn.Linear(4, 4))
    block[0].bias = nn.Parameter(torch.zeros(1).expand(4))
    with pytest.raises(ConfigError, match=r"the parameter 0\.bias has been expanded, .*; clone it, or expand it"):
        unexpand(block)


def test_a_state_that_is_not_the_blocks_own_tensors_is_refused() -> None:
    def changed(hook: Callable[[dict[str, Tensor]], None]) -> nn.Module:
        layer = nn.Linear(4, 4)
        layer._register_state_dict_hook(lambda module, state, *_: hook(state))
        return layer

    copies = changed(lambda state: state.update({name: x.clone() for name, x in state.items()}))
    renames = changed(lambda state: state.update(kernel=state.pop("weight")))
    leaves_out = changed(lambda state: state.__delitem__("bias"))
    for block, told in (
        (copies, "block 0 keeps weight, which is no tensor of its own, as where a hook changes what state_dict gives"),
        (renames, "block 0 keeps kernel, which is no tensor of its own"),
        (leaves_out, "block 0 leaves the parameter bias out of its state"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_separate([block])


def test_an_extra_state_that_is_made_anew_is_refused() -> None:
    class Anew(Odd):
        def get_extra_state(self) -> object:
            return torch.ones(3)

    with pytest.raises(ConfigError, match="block 0 keeps _extra_state, which is no tensor of its own"):
        check_separate([Anew(None)])
