"""The recorded training traces of the authors' implementation: same start, same batches, same losses and weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import ModelConfig, TrainConfig
from pipeline.local import LocalBlock, Numerics
from pipeline.models import infer_shapes, named_network
from pipeline.packet import Kind, Packet
from pipeline.plans import POOL, VGG_PLANS
from pipeline.stage import Stage, build_stage

RUNS = (
    *("mlp_glob", "mlp_pred", "mlp_predsim", "mlp_predsim_bio", "mlp_sim"),
    *("vgg8b_glob", "vgg8b_pred", "vgg8b_pred_bio", "vgg8b_predsim", "vgg8b_sim", "vgg8b_sim_bio"),
)

# Names inside a block: the recorded ones, ours.
NAMES = {
    "decoder_y.weight_fa": "local_head.decoder.feedback",
    "decoder_y.": "local_head.decoder.",
    "proj_y.weight": "local_head.projection",
    "conv_loss.": "local_head.similarity.",
    "linear_loss.": "local_head.similarity.1.",
}


class Golden:
    """One recorded run."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta"]))

    def config(self) -> TrainConfig:
        meta = self.meta
        return TrainConfig(
            loss=meta["loss"] + ("-bio" if meta["bio"] else ""),
            beta=meta["beta"],
            decoder_dim=meta["dim_in_decoder"],
            target_projection=meta["target_proj_size"],
            batch_size=meta["batch"],
            lr=meta["lr"],
        )

    def stage(self, *, faithful: bool) -> Stage:
        """The network in one stage with the recorded weights; `faithful` is NCHW without a fused optimizer."""
        meta, config = self.meta, self.config()
        model = ModelConfig(
            model=meta["model"],
            width=meta["feat_mult"],
            hidden_units=meta["hidden_units"],
            hidden_layers=meta["hidden_layers"],
            nonlinearity={"leakyrelu": "leaky_relu"}.get(meta["nonlinearity"], meta["nonlinearity"]),
        )
        shape = self.arrays["x"].shape[2:]
        network = named_network(model, shape, meta["classes"], config.loss)
        shapes = infer_shapes(network, shape)
        numerics = Numerics(torch.device("cpu"), channels_last=not faithful, fused=not faithful)
        stage = build_stage(config, network, shapes, meta["classes"], [len(network)], 0, numerics)
        for name, tensor in self.tensors(stage, "init").items():
            tensor.copy_(torch.from_numpy(self.arrays[name]))
        return stage

    def tensors(self, stage: Stage, prefix: str) -> dict[str, Tensor]:
        """Our tensor for every recorded one of `init/` or `final/`."""
        state = {name: tensor for block in stage.blocks for name, tensor in own_state(block).items()}
        pairs = {}
        for name in self.arrays:
            if not name.startswith(prefix + "/") or (self.meta["bio"] and "conv_loss" in name):
                continue  # the reference creates dead conv_loss weights in bio mode
            pairs[name] = state[self.translate(name.removeprefix(prefix + "/"))]
        return pairs

    def translate(self, name: str) -> str:
        plan = VGG_PLANS.get(self.meta["model"], ())
        convolutions = [i for i, entry in enumerate(plan) if entry != POOL]
        hidden = len(convolutions)
        if match := re.match(r"features\.(\d+)\.(.*)", name):
            index, rest = convolutions.index(int(match[1])), match[2]
        elif match := re.match(r"(?:classifier\.)?layers\.(\d+)\.(.*)", name):
            index, rest = hidden + int(match[1]), match[2]
        else:
            index, rest = hidden + self.meta["hidden_layers"], "encoder." + name.rpartition(".")[2]
        for theirs, ours in NAMES.items():
            if rest.startswith(theirs):
                rest = ours + rest.removeprefix(theirs)
                break
        return f"{index}.{rest}"

    def batch(self, step: int, kind: Kind = Kind.TRAIN) -> Packet:
        images, labels = torch.from_numpy(self.arrays["x"][step]), torch.from_numpy(self.arrays["y"][step])
        return Packet(kind, 1, step, images, labels)


def own_state(block: LocalBlock) -> dict[str, Tensor]:
    head = {} if block.loss is None else block.loss.state_dict()
    return block.inference_state() | {f"{block.index}.local_head.{n}": t for n, t in head.items()}


@pytest.fixture(params=RUNS)
def golden(request: pytest.FixtureRequest, shared_dir: Path) -> Golden:
    return Golden(shared_dir / "golden" / f"{request.param}.npz")


def train(golden: Golden, stage: Stage) -> tuple[list[float], list[float]]:
    """Run the recorded steps; returns the sum of local losses and the output layer's loss of each step."""
    local, output = [], []
    for step in range(golden.meta["steps"]):
        stage.step(golden.batch(step))
        losses = [float(block.train_meter.sums[0]) / golden.meta["batch"] for block in stage.blocks]
        for block in stage.blocks:
            block.train_meter.reset()
        local.append(sum(losses[:-1]))
        output.append(losses[-1])
    return local, output


def evaluate(golden: Golden, stage: Stage) -> Tensor:
    scores = stage.evaluate(golden.batch(0, Kind.EVALUATE)).activation
    assert scores is not None
    return scores


def test_every_recorded_run_is_listed(shared_dir: Path) -> None:
    assert sorted(path.stem for path in (shared_dir / "golden").glob("*.npz")) == sorted(RUNS)


def test_training_follows_the_recorded_trace(golden: Golden) -> None:
    stage = golden.stage(faithful=True)
    local, output = train(golden, stage)
    np.testing.assert_allclose(local, golden.arrays["loss_local_sum"], rtol=1e-4, atol=3e-5)
    np.testing.assert_allclose(output, golden.arrays["loss_output"], rtol=1e-4, atol=3e-5)
    noise = 1.2 * golden.meta["steps"] * golden.meta["lr"]
    for name, tensor in golden.tensors(stage, "final").items():
        # A batch norm follows the encoder's bias: its gradient is rounding noise, which Adam blows up to the rate.
        loose = name.endswith(("encoder.bias", "bn.running_mean"))
        rtol, atol = (0.0, noise) if loose else (1e-4, 3e-5)
        np.testing.assert_allclose(tensor.numpy(), golden.arrays[name], rtol=rtol, atol=atol, err_msg=name)
    np.testing.assert_allclose(
        evaluate(golden, stage).numpy(), golden.arrays["eval_logits_first_batch"], rtol=0, atol=2e-3
    )


def test_channels_last_and_the_fused_optimizer_stay_close_to_the_trace(golden: Golden) -> None:
    stage = golden.stage(faithful=False)
    local, output = train(golden, stage)
    np.testing.assert_allclose(local, golden.arrays["loss_local_sum"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(output, golden.arrays["loss_output"], rtol=0, atol=1e-3)
    # With another order of summation the bias's rounding noise may have the opposite sign: the walks drift apart.
    noise = 2 * 1.2 * golden.meta["steps"] * golden.meta["lr"]
    for name, tensor in golden.tensors(stage, "final").items():
        loose = name.endswith(("encoder.bias", "bn.running_mean"))
        atol = noise if loose else 2e-3
        np.testing.assert_allclose(tensor.numpy(), golden.arrays[name], rtol=0, atol=atol, err_msg=name)
