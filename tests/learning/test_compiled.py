"""--compile: the same bits for every placement, close to the plain ones, and what it needs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning import ops
from pipeline.learning.compiled import check_compiler, compiled
from pipeline.learning.heads import AveragePool
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import infer_shapes
from pipeline.runtime.checkpoint import digest

CPU = torch.device("cpu")

# Of torch's own compiler: it uses what torch 2.11 has deprecated, leaves files to the collector, and misses CUDA.
pytestmark = pytest.mark.filterwarnings("ignore")


def stages(config: TrainConfig, split: Sequence[int], dropout: float = 0.2) -> list[Stage]:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    network = given_network(blocks_from(nn.Sequential(*layers)))
    shapes = infer_shapes(network, (6,))
    return [build_stage(config, network, shapes, 3, split, index, Numerics(CPU)) for index in range(len(split))]


def trained(config: TrainConfig, split: Sequence[int], dropout: float = 0.2) -> dict[str, Tensor]:
    made = stages(config, split, dropout)
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        x, labels = torch.randn(4, 6, generator=draw), torch.randint(3, (4,), generator=draw)
        packet = Packet.of(Kind.TRAIN, Position(1, step), x, labels)
        for stage in made:
            packet = stage.forward(packet)
        for stage in reversed(made):
            stage.update()
    return {name: tensor for stage in made for name, tensor in stage.state_dict().items()}


@pytest.mark.runs
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_blocks_have_the_same_bits_for_every_placement() -> None:
    config = TrainConfig(loss="pred", batch_size=4, lr=1e-2, compile=True)
    whole, apart = trained(config, (3,)), trained(config, (1, 2))
    assert digest(whole) == digest(apart)
    plain = trained(TrainConfig(loss="pred", batch_size=4, lr=1e-2), (3,), dropout=0)
    whole = trained(config, (3,), dropout=0)  # a compiled dropout draws other numbers
    assert any(name.endswith("local_head.decoder.weight") for name in whole)
    weights = [name for name in plain if re.fullmatch(r"\d\.body\.\d\.weight", name)]
    assert len(weights) == 3
    for name in weights:
        torch.testing.assert_close(whole[name], plain[name], rtol=1e-3, atol=1e-3)


@pytest.mark.runs
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_the_gradient_of_a_pooling_is_compiled_as_a_gpu_spreads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "spread_by_copy", ops.spread_by_rows)
    pool = AveragePool((2, 4))
    x = torch.randn(3, 5, 4, 8).contiguous(memory_format=torch.channels_last)
    gradients = []
    for act in (pool.forward, compiled(pool.forward, "pool")):
        leaf = x.clone().requires_grad_()
        (act(leaf).flatten(1) ** 2).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_every_function_is_compiled_by_itself() -> None:
    one, other = (compiled(torch.relu, name) for name in ("one", "other"))
    codes = [function._torchdynamo_orig_callable.__code__ for function in (one, other)]  # type: ignore[attr-defined]
    assert [code.co_name for code in codes] == ["one", "other"]


def test_what_compilation_needs_is_said_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler, and there is none; install g\+\+"):
        check_compiler(CPU)
    with pytest.raises(ConfigError, match="--compile needs a C"):
        stages(TrainConfig(compile=True), (3,))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_compiler(CPU)
    with pytest.raises(ConfigError, match="--compile needs Triton for a GPU, and there is none"):
        check_compiler(torch.device("cuda", 0))
