"""Settings that a caller has changed: neither a run nor a new network sees them, and all are left as they were."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.config.schema import TrainConfig
from pipeline.runtime.world import reproducible
from pipeline.settings import plain_settings


@contextmanager
def changed(change: Callable[..., Any], there: tuple[Any, ...], back: tuple[Any, ...], **more: Any) -> Iterator[None]:
    """A setting that a call changes, for a while."""
    change(*there, **more)
    try:
        yield
    finally:
        change(*back)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: changed(torch.set_default_dtype, (torch.float64,), (torch.float32,)),
    "bfloat16": lambda: changed(torch.set_default_dtype, (torch.bfloat16,), (torch.float32,)),
    "a default device": lambda: changed(torch.set_default_device, ("meta",), (None,)),
    "a device for a while": lambda: torch.device("meta"),
    "no gradients": lambda: changed(torch.set_grad_enabled, (False,), (True,)),
    "no gradients for a while": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "strict": lambda: changed(torch.use_deterministic_algorithms, (True,), (False,)),
    "warning": lambda: changed(torch.use_deterministic_algorithms, (True,), (False,), warn_only=True),
    "threads": lambda: changed(torch.set_num_threads, (2,), (1,)),
    "cuDNN": lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True),
    "precision": lambda: changed(torch.set_float32_matmul_precision, ("medium",), ("highest",)),
    "anomalies": torch.autograd.detect_anomaly,
}


def settings() -> tuple[Any, ...]:
    """All that a caller can see."""
    return (
        *(torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        *(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        *(torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        *(torch.get_float32_matmul_precision(), torch.is_anomaly_enabled(), torch.get_rng_state().tolist()),
    )


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(32, 6, generator=generator), torch.arange(32) % 3)


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) for shape in ((8, 6), (8,), (3, 8), (3,))]


WEIGHTS = weights()


def train(data: TensorDataset) -> str:
    """The bits of a run with dropout; its network is built without a draw."""
    with plain_settings():
        first, last = (nn.Linear(n, m, device="meta").to_empty(device="cpu") for n, m in ((6, 8), (8, 3)))
        for parameter, tensor in zip([*first.parameters(), *last.parameters()], WEIGHTS, strict=True):
            parameter.data.copy_(tensor)
    blocks = pipeline.blocks_from(nn.Sequential(first, nn.ReLU(), nn.Dropout(0.3), last))
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, decoder_dim=8)
    return pipeline.train(blocks, data, data, config).summary.state_sha256


@pytest.fixture(scope="module")
def expected(data: TensorDataset) -> str:
    return train(data)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_neither_sees_nor_changes_the_callers_settings(name: str, data: TensorDataset, expected: str) -> None:
    """Below `torch.no_grad` it used to end in a RuntimeError, and `warn_only` was lost."""
    with SETTINGS[name]():
        before = settings()
        assert train(data) == expected
        assert settings() == before


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_network_is_built_the_same_whatever_the_settings(name: str, tmp_path: Path) -> None:
    plain = pipeline.create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8, loss="glob")
    with SETTINGS[name]():
        before = settings()
        made = pipeline.create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8, loss="glob")
        assert settings() == before
    for ours, theirs in zip(nn.Sequential(*made).parameters(), nn.Sequential(*plain).parameters(), strict=True):
        assert ours.dtype == torch.float32 and not ours.is_inference() and ours.requires_grad
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_a_deterministic_run_leaves_the_environment_as_it_was(
    given: str | None, data: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    before = dict(os.environ)
    blocks = pipeline.blocks_from(nn.Sequential(nn.Linear(6, 3)))
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, loss="pred", deterministic=True)
    pipeline.train(blocks, data, data, config)
    assert dict(os.environ) == before


def test_settings_come_back_after_an_error() -> None:
    with SETTINGS["float64"](), SETTINGS["warning"](), torch.no_grad():
        before = settings()
        with suppress(ValueError), reproducible(TrainConfig(), 1, torch.device("cpu")):
            assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
            torch.rand(1)
            raise ValueError
        assert settings() == before


def test_a_finished_run_is_loaded_whatever_the_settings(data: TensorDataset, tmp_path: Path) -> None:
    blocks = pipeline.blocks_from(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, decoder_dim=8)
    trained = pipeline.train(blocks, data, data, config, output=tmp_path / "run", trace=tmp_path / "trace.json").model
    for name in ("float64", "a default device", "inference"):
        again = pipeline.blocks_from(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
        with SETTINGS[name]():
            loaded = pipeline.load_model(tmp_path / "run", again)
        x = torch.ones(2, 6)
        assert torch.equal(loaded(x), trained(x)), name
