"""Run folders as networks, those of older versions too, and with the local classifiers of their blocks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.config.cli import parse
from pipeline.data.batches import Batches
from pipeline.errors import ConfigError, DataError
from pipeline.learning.exit_figures import exit_errors
from pipeline.learning.exits import EarlyExits
from pipeline.report.evaluation import collect_scores
from pipeline.training import Options, run
from tests.support.data import message
from tests.support.in_place import Adds
from tests.support.run_folders import SMALL, train


def test_a_folder_of_an_older_version_still_loads(tmp_path: Path) -> None:
    x, blocks = torch.randn(2, 1, 4, 4), older(tmp_path, "pred")
    assert torch.equal(pipeline.load_model(tmp_path)(x), torch.nn.Sequential(*blocks).eval()(x))


def older(folder: Path, loss: str) -> list[Any]:
    """A folder without local classifiers, whose configuration has an entry that has gone; its blocks."""
    blocks = pipeline.create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8, loss=loss)
    weights = {f"{i}.{name}": x for i, block in enumerate(blocks) for name, x in block.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"model": "mlp", "input_shape": "1,4,4", "classes": "3"})
    train = f'[train]\nloss = "{loss}"\nspeed = "an entry that has gone"\n'
    (folder / "config.toml").write_text('[model]\nmodel = "mlp"\nhidden_units = 8\n\n' + train)
    return blocks


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.mark.parametrize(
    ("flags", "exits"),
    [
        ("--loss predsim", (0, 1, 2, 3)),
        ("--loss predsim-bio", (0, 1, 2, 3)),
        ("--loss glob+pred", (0, 1, 2, 3)),
        ("--loss pred --model vgg6a --width 0.0625 --segments 2,2,2", (1, 3, 5)),
        ("--loss pred-bio --segments 2", (0, 3)),
        ("--loss predsim --classifier mlp-sr", (0, 1, 2, 3)),
        ("--loss pred --model vgg6a --width 0.0625 --segments 3 --classifier copy", (1, 2, 5)),
        ("--loss pred --model vgg6a --width 0.0625 --segments 2,2,2 --classifier fast-copy", (1, 3, 5)),
        ("--loss predsim-bio --ema 0.6", (0, 1, 2, 3)),
        ("--loss pred --model vgg6a --width 0.0625 --segments 3 --classifier copy --ema 0.6", (1, 2, 5)),
        ("--loss sim", (3,)),
        ("--loss glob", (3,)),
    ],
)
def test_every_exit_has_the_error_of_the_summary(flags: str, exits: tuple[int, ...], tmp_path: Path) -> None:
    train(tmp_path / "run", *flags.split())
    model = pipeline.load_model(tmp_path / "run", exits=True)
    assert model.exits == exits and not model.training
    assert (tmp_path / "run" / "exits.safetensors").exists() == (len(exits) > 1)
    config = parse([*SMALL, *flags.split()]).config
    batches = Batches.from_config(config.data, seed=1, batch_size=32, device=torch.device("cpu"))
    assert (model.shape, model.classes) == (batches.shape, batches.classes)
    plain = pipeline.load_model(tmp_path / "run")
    with torch.no_grad():
        assert all(torch.equal(model(x)[-1], plain(x)) for x, _ in batches.test())
    expected = json.loads((tmp_path / "run" / "summary.json").read_text())["block_test_error_percent"]
    assert [index for index, error in enumerate(expected) if error is not None] == list(exits)
    errors = exit_errors(*collect_scores(model.as_trained(), batches.test()))
    assert errors == pytest.approx([expected[index] for index in exits])


def test_the_file_holds_what_answers_and_no_more(tmp_path: Path) -> None:
    with safe_open(train(tmp_path / "run", "--loss", "predsim-bio") / "exits.safetensors", "pt") as file:
        names = {f"{index}.{name}" for index in range(3) for name in ("decoder.weight", "decoder.bias", "projection")}
        assert set(file.keys()) == names
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert file.metadata() == {"weights_sha256": summary["weights_sha256"]}


def test_without_exits_the_classifiers_do_not_matter(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "exits.safetensors").write_bytes(b"garbage")
    model = pipeline.load_model(folder)
    assert type(model) is nn.Sequential and set(model.state_dict()) == set(load_file(folder / "model.safetensors"))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Adds(), nn.Dropout(0.1, inplace=True), nn.Linear(8, 3))


def data() -> TensorDataset:
    return TensorDataset(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3)


def train_own(folder: Path, **values: Any) -> pipeline.TrainResult:
    config = pipeline.TrainConfig(epochs=2, batch_size=8, threads=1, lr=1e-2, decoder_dim=32, **values)
    return pipeline.train(pipeline.blocks_from(network()), data(), data(), config, output=folder)


def test_a_users_own_network_has_exits_too(tmp_path: Path) -> None:
    done = train_own(tmp_path / "run")
    blocks = pipeline.blocks_from(network())
    model = pipeline.load_model(tmp_path / "run", blocks, exits=True)
    assert model.exits == (0, 1, 2) and model.layers == ("linear 0", "linear 1", "linear 2")
    assert list(model.blocks) == blocks, "filled in place"
    x, labels = data().tensors
    kept = x.clone()
    scores = model(x)
    assert torch.equal(x, kept) and torch.equal(scores[-1], done.model(x))
    errors = exit_errors(*collect_scores(model, zip(x.split(8), labels.split(8), strict=True)))
    assert errors == pytest.approx(done.summary.block_test_error_percent)
    with pytest.raises(ConfigError, match="was your own; pass it as `blocks`"):
        pipeline.load_model(tmp_path / "run", exits=True)


def test_an_older_version_without_classifiers_is_told_to_go_on(tmp_path: Path) -> None:
    older(tmp_path, "pred")
    told = message(lambda: pipeline.load_model(tmp_path, exits=True))
    assert told == (
        f"{tmp_path} has no exits.safetensors, which versions before this one did not write; go on with --resume "
        f"{tmp_path}, or pipeline.train(..., resume=...), which writes it, or train it anew"
    )


@pytest.mark.parametrize("loss", ["glob", "sim"])
def test_an_older_version_whose_loss_has_no_classifiers_has_one_exit(loss: str, tmp_path: Path) -> None:
    x, blocks = torch.randn(2, 1, 4, 4), older(tmp_path, loss)
    (scores,) = pipeline.load_model(tmp_path, exits=True)(x)
    assert torch.equal(scores, torch.nn.Sequential(*blocks).eval()(x))


def test_going_on_writes_what_an_older_version_has_not(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = (folder / "exits.safetensors").read_bytes()
    (folder / "exits.safetensors").unlink()
    command = parse(["--resume", str(folder)])
    run(command.config, Options(command.output, resume=command.resume))
    assert (folder / "exits.safetensors").read_bytes() == before


def spoilt(value: float) -> Callable[[dict[str, Tensor]], None]:
    def spoil(found: dict[str, Tensor]) -> None:
        found["1.decoder.weight"][0, 0] = value

    return spoil


def halved(found: dict[str, Tensor]) -> None:
    found["1.decoder.bias"] = found["1.decoder.bias"].half()


def narrowed(found: dict[str, Tensor]) -> None:
    found["1.decoder.weight"] = found["1.decoder.weight"][:, 1:].contiguous()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoilt(float("nan")), "exits.safetensors holds what is no number, in 1.decoder.weight; give the weights of"),
        (spoilt(float("inf")), "exits.safetensors holds a weight that is infinite, in 1.decoder.weight; give the"),
        (halved, "exits.safetensors do not fit the run (1.decoder.bias is torch.float16); give the folder as its"),
        (narrowed, "exits.safetensors do not fit the run (Error(s) in loading state_dict for ModuleDict: size mism"),
        (lambda found: found.pop("0.decoder.bias"), "exits.safetensors do not fit the run (Error(s) in loading"),
        (lambda found: found.update({"3.decoder.bias": torch.ones(10)}), "exits.safetensors do not fit the run"),
    ],
)
def test_classifiers_that_do_not_fit_are_told(
    spoil: Callable[[dict[str, Tensor]], object], told: str, finished: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with safe_open(folder / "exits.safetensors", "pt") as file:
        known = file.metadata()
    tensors = load_file(folder / "exits.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "exits.safetensors", known)
    text = message(lambda: pipeline.load_model(folder, exits=True))
    assert told in text and len(text) < 700


@pytest.mark.parametrize("content", [b"", b"\xff" * 100])
def test_a_damaged_file_of_classifiers_is_told(content: bytes, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "exits.safetensors").write_bytes(content)
    assert "holds no finished run (exits.safetensors: " in message(lambda: pipeline.load_model(folder, exits=True))


def test_classifiers_that_are_a_link_to_nowhere_or_a_folder_are_told(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    file = folder / "exits.safetensors"
    file.unlink()
    file.symlink_to("nowhere")
    assert "(exits.safetensors: it is missing)" in message(lambda: pipeline.load_model(folder, exits=True))
    file.unlink()
    file.mkdir()
    assert "(exits.safetensors: it is no ordinary file)" in message(lambda: pipeline.load_model(folder, exits=True))


def test_classifiers_of_another_run_are_told(finished: Path, tmp_path: Path) -> None:
    folder = train(tmp_path / "run", "--seed", "2")
    shutil.copy(finished / "exits.safetensors", folder)
    told = message(lambda: pipeline.load_model(folder, exits=True))
    assert told.startswith(f"{folder}/exits.safetensors is not of the weights beside it; give the folder as its run")


@pytest.mark.parametrize(
    ("entry", "told", "kind"),
    [
        ("segments = [1, 1]", "has segments 1,1 for a network of 4 blocks; give the folder as", ConfigError),
        ("segments = 9", "has segments 9 for a network of 4 blocks; give the folder as", ConfigError),
        ("segments = [2, 2]", "do not fit the run (", DataError),
        ("decoder_dim = 'x'", "has train.decoder_dim = 'x'; give a whole number", ConfigError),
        ("decoder_dim = 0", "--decoder-dim is 0; give a whole number at least 1", ConfigError),
        ("target_projection = 0x" + "f" * 5000, "--target-projection is ", ConfigError),
    ],
)
def test_a_method_that_cannot_be_is_told(
    entry: str, told: str, kind: type[Exception], finished: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = (folder / "config.toml").read_text().splitlines()
    key = entry.partition(" ")[0]
    kept = [line for line in lines if not line.startswith(f"{key} ")]
    text = "\n".join(kept).replace("[train]", f"[train]\n{entry}")
    (folder / "config.toml").write_text(text)
    found = message(lambda: pipeline.load_model(folder, exits=True), kind)
    assert told in found and len(found) < 700


def test_a_file_of_a_run_in_place_of_its_folder_is_told(finished: Path) -> None:
    file = finished / "model.safetensors"
    told = message(lambda: pipeline.load_model(file))
    assert told == f"run_folder is {file}, a file; give the folder of a run that has ended"


def test_types_say_what_comes(finished: Path) -> None:
    plain: nn.Sequential = pipeline.load_model(finished)
    early: EarlyExits = pipeline.load_model(finished, exits=True)
    assert isinstance(plain, nn.Sequential) and isinstance(early, EarlyExits)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in early.parameters())
    assert set(early.state_dict()) == {
        *(f"blocks.{name}" for name in load_file(finished / "model.safetensors")),
        *(f"classifiers.{name}" for name in load_file(finished / "exits.safetensors")),
    }


@pytest.mark.fuzz
@settings(max_examples=int(os.environ.get("FUZZ", "60")), deadline=None, derandomize=True, database=None)
@given(st.data())
def test_no_bytes_in_place_of_classifiers_make_the_reader_fail(finished: Path, data: st.DataObject) -> None:
    whole = (finished / "exits.safetensors").read_bytes()
    at, new = data.draw(st.integers(0, 600)), data.draw(st.binary(min_size=1, max_size=8))
    end = data.draw(st.sampled_from([len(whole), len(whole) - 1, at + len(new)]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kept in ("config.toml", "model.safetensors"):
            (folder / kept).write_bytes((finished / kept).read_bytes())
        (folder / "exits.safetensors").write_bytes((whole[:at] + new + whole[at + len(new) :])[:end])
        try:
            told, exits = "", pipeline.load_model(folder, exits=True).exits
        except DataError as error:
            told, exits = str(error), (0, 1, 2, 3)
    assert exits == (0, 1, 2, 3) and "\n" not in told
