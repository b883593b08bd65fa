"""A run's weights, whatever may have become of the file: they load, or it is told in a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

import pipeline
from pipeline.config.toml import from_toml
from pipeline.errors import ConfigError, DataError
from tests.support.data import message

KNOWN = {"model": "mlp", "input_shape": "1,2,2", "classes": "3"}


def weights() -> dict[str, Tensor]:
    blocks = pipeline.create_model("mlp", input_shape=(1, 2, 2), classes=3, hidden_units=4, hidden_layers=1)
    return {f"{i}.{name}": x for i, block in enumerate(blocks) for name, x in block.state_dict().items()}


def folder(path: Path, data: bytes | None = None, toml: str | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "model.safetensors").write_bytes(save(weights(), KNOWN) if data is None else data)
    given_toml = '[model]\nmodel = "mlp"\nhidden_units = 4\nhidden_layers = 1\n' if toml is None else toml
    (path / "config.toml").write_text(given_toml)
    return path


def test_what_is_whole_loads(tmp_path: Path) -> None:
    model = pipeline.load_model(folder(tmp_path / "run"))
    assert model(torch.zeros(5, 1, 2, 2)).shape == (5, 3)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())


def spoilt(name: str, value: float) -> dict[str, Tensor]:
    found = weights()
    found[name].view(-1)[0] = value
    return found


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "holds no finished run (model.safetensors: "),
        (b"\xff" * 100, "holds no finished run (model.safetensors: "),
        (save(weights(), KNOWN)[:-1], "holds no finished run (model.safetensors: "),
        (save(weights()), "was your own; pass it as `blocks`"),
        (save(weights(), {**KNOWN, "input_shape": "1,2,x"}), "does not say what it is the network for (invalid"),
        (save(weights(), {"model": "mlp"}), "does not say what it is the network for ('input_shape')"),
        (save(weights(), {**KNOWN, "classes": str(10**12)}), f"and {10**12} classes, which cannot be"),
        (save(weights(), {**KNOWN, "classes": str(2**30)}), "do not fit the network"),
        (save(weights(), {**KNOWN, "input_shape": "1,9999,9999"}), "do not fit the network"),
        (save(spoilt("0.bn.weight", float("nan")), KNOWN), "holds what is no number, in 0.bn.weight"),
        (save(spoilt("0.bn.weight", float("inf")), KNOWN), "holds a weight that is infinite, in 0.bn.weight"),
        (save({**weights(), "a\nb": torch.tensor([float("nan")])}, KNOWN), "no number, in a b"),
        (save(weights(), {**KNOWN, "input_shape": "1," * 100_000 + "1"}), "which cannot be"),
        (save(weights(), {**KNOWN, "classes": "9" * 4000}), "which cannot be"),
        (save({**weights(), **{f"z{index}": torch.zeros(1) for index in range(2000)}}, KNOWN), "do not fit"),
        (save(weights(), KNOWN) + b"more", "holds no finished run (model.safetensors: "),
        (save({**weights(), "9.x": torch.zeros(1)}, KNOWN), "do not fit the network"),
        (save({**weights(), "0.bn.weight": torch.ones(4).half()}, KNOWN), "(0.bn.weight is torch.float16)"),
    ],
)
def test_what_is_not_whole_is_told(data: bytes, told: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "run", data)
    try:
        pipeline.load_model(path)
    except (DataError, ConfigError) as error:
        text = str(error)
    assert told in text and "\n" not in text and len(text) < 700


def test_a_file_larger_than_the_memory_is_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "run")
    os.truncate(path / "model.safetensors", 1 << 43)  # it takes no place on the disk
    with patch.object(Path, "read_bytes", side_effect=AssertionError("read")):
        assert "holds no finished run" in message(lambda: pipeline.load_model(path), DataError)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml"])
@pytest.mark.parametrize("damage", [link_to_nowhere, pipe, empty_folder, Path.unlink])
def test_what_is_no_file_is_told_and_never_waited_for(
    damage: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    path = folder(tmp_path / "run")
    damage(path / name)
    kind = DataError if name == "model.safetensors" else ConfigError
    assert name in message(lambda: pipeline.load_model(path), kind)


@pytest.mark.parametrize(
    "toml",
    [
        "[model",
        "x = " + "[" * 100_000,
        "x = " + "9" * 5000,
        "x = 1\nx = 2",
        "a = 1\n" * 400_000,
        "[model]\nwidth = nan",
        "model = 3",
        "[[model]]",
        "train = 3\n[model]\nmodel = 'mlp'",
        "[model]\nhidden_units = 0x" + "f" * 6000,
        "[model]\nwidth = 0x" + "f" * 6000,
        "[model]\nmodel" + ".a" * 1000 + " = 1",
        "[model]\nmodel" + ".a" * 100_000 + " = 1",
        "[model]\nmodel = '" + "x" * 500_000 + "'",
        '[model]\n"a\\nb" = 1',
    ],
)
def test_a_configuration_that_is_none_is_told(toml: str, tmp_path: Path) -> None:
    text = message(lambda: pipeline.load_model(folder(tmp_path / "run", toml=toml)), ConfigError)
    assert len(text) < 700 and "\n" not in text


@pytest.mark.parametrize(
    "toml",
    [
        '["a\\nb"]',
        "[" + "a" * 500_000 + "]",
        "[train]\n" + "a" * 500_000 + " = 1",
        "[train]\nepochs" + ".a" * 1000 + " = 1",
        *(f"[train]\n{key} = 0x{'f' * 6000}" for key in ("epochs", "lr", "seed", "segments", "threads", "eval_every")),
        *(f"[train]\n{key} = [0x{'f' * 6000}]" for key in ("split", "segments", "threads", "lr_milestones")),
        f"[train]\nthreads = {list(range(5000))}",
    ],
)
def test_a_configuration_for_training_that_is_none_is_told(toml: str) -> None:
    text = message(lambda: from_toml(toml), ConfigError)
    assert len(text) < 700 and "\n" not in text


WHOLE = save(weights(), KNOWN)
HEADER = st.dictionaries(
    st.sampled_from(["__metadata__", "0.bn.weight", "1.encoder.bias", "x"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(["F32", "I64", "BOOL"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "model", "classes"]), inner, max_size=4
            )
        ),
    ),
    max_size=4,
).map(lambda header: json.dumps(header).encode())
MUTATED = st.one_of(
    st.binary(max_size=100),
    st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8)).map(
        lambda change: WHOLE[: change[0]] + change[1] + WHOLE[change[0] + len(change[1]) :]
    ),
    st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end]),
    HEADER.map(lambda header: len(header).to_bytes(8, "little") + header + bytes(64)),
)


@pytest.mark.fuzz
@settings(max_examples=int(os.environ.get("FUZZ", "200")), deadline=None, derandomize=True, database=None)
@given(MUTATED)
def test_no_file_of_weights_makes_the_reader_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = folder(tmp_path_factory.getbasetemp() / "weights", data)
    try:
        pipeline.load_model(path)
    except (DataError, ConfigError) as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told


TOML = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "model",
                    "width",
                    "hidden_units",
                    "dropout",
                    "loss",
                    "lr",
                    "split",
                    "segments",
                    "model.x",
                    '"\\n"',
                    "x",
                ]
            ),
            st.one_of(
                st.integers().map(str),
                st.integers(0, 8000).map(lambda digits: "0x" + "f" * (digits + 1)),
                st.floats().map(str),
                st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
                st.sampled_from(["true", "[1]", "{}", "1979-05-27", "nan", '"vgg8b"', '"mlp"', "[[1]]", "1e400"]),
            ),
        ),
        max_size=5,
    ).flatmap(
        lambda entries: st.sampled_from(["[model]\n", "[train]\n", "[[model]]\n", "model = 1\n", '["\\n"]\n', ""]).map(
            lambda head: head + "\n".join(f"{key} = {value}" for key, value in entries)
        )
    ),
)


@pytest.mark.fuzz
@settings(max_examples=int(os.environ.get("FUZZ", "200")), deadline=None, derandomize=True, database=None)
@given(TOML)
def test_no_configuration_makes_the_reader_fail(text: str) -> None:
    try:
        from_toml(text)
    except ConfigError as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told
