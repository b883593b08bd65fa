"""A block with its local loss: forward, then gradients from inside the block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pipeline.config.method import Method
from pipeline.errors import ConfigError
from pipeline.learning.averaging import Average
from pipeline.learning.compiled import compiled
from pipeline.learning.losses import LocalLoss, OutputLoss, Targets, create_local_loss
from pipeline.learning.meter import Scored
from pipeline.learning.muon import score_weights
from pipeline.learning.norms import norm_biases, prepare_norms
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import TensorSpec
from pipeline.network.blocks import Block, canonical
from pipeline.network.buffers import Buffers
from pipeline.network.manners import Manners
from pipeline.network.spec import BlockShape, HeadBuilder
from pipeline.seeding import seed_default_generator, seed_host_generators

__all__ = ["LocalBlock", "create_loss"]

_HEAD, _AVERAGE = "local_head.", "ema."  # before the names of their tensors, after the block


def create_loss(
    config: Method,
    index: int,
    shape: BlockShape,
    classes: int,
    *,
    output: bool,
    segment_end: bool,
    similarity_head: HeadBuilder | None = None,
) -> LocalLoss | OutputLoss | None:
    """The loss that trains block `index`, its head keyed by (seed, block), or None where the block has none.

    Args:
        shape: of the block, for one sample.
        output: whether the block is the output layer.
        segment_end: whether the block ends a segment; only such blocks have a local loss, and all of `glob+X`.
        similarity_head: in place of the configured one.
    """
    spec = config.loss_spec
    assert config.beta is not None
    if output:
        return OutputLoss(spec.output_scale(config.beta), config.label_smoothing)
    if not spec.local or not (segment_end or spec.backpropagates):
        return None
    with torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), config.seed, "head", index)
        return create_local_loss(config, shape.features, classes, similarity_head, handed_on=shape.outputs)


class LocalBlock:
    """One block and the loss that trains it.

    Args:
        index: of the block in the network; keys its random numbers.
        loss: the local loss (or the output layer's); None where a later block's loss trains this one.
        gradient_in: whether a gradient arrives from the next block (from inside its segment).
        gradient_out: whether the block before wants one.
        gives: one sample of what is handed on.
        manners: how the block treats what it is given.
        name: for people.

    Raises ConfigError for weights that no loss would see.

    Attributes:
        scored: what the last `update` or `evaluate` made of its batch, where the block has a loss.
        average: of the weights, which is evaluated and kept in their place, where there is one.
    """

    def __init__(
        self,
        index: int,
        block: Block,
        loss: LocalLoss | OutputLoss | None,
        config: Method,
        numerics: Numerics,
        *,
        gives: TensorSpec,
        gradient_in: bool = False,
        gradient_out: bool = False,
        manners: Manners = Manners(),  # noqa: B008  frozen
        name: str = "",
    ) -> None:
        self.index, self.config, self.numerics, self.manners, self.name = index, config, numerics, manners, name
        self.block = numerics.place(block, channels_last=manners.channels_last)
        self.loss = None if loss is None else numerics.place(loss)
        self._parts = [part for part in (self.block, self.loss) if part is not None]
        prepare_norms(config, *self._parts)
        parts = {"": self.block} if self.loss is None else {"": self.block, _HEAD: self.loss}
        self.average = Average(parts) if config.ema else None
        self.gradient_in, self.gradient_out, self.gives = gradient_in, gradient_out, gives
        self.scored: Scored | None = None
        self._step = 0  # of the last forward
        self._one = torch.ones((), dtype=torch.promote_types(numerics.dtype, torch.float32), device=numerics.device)
        self._features, self._hand_on = self.block.features, self.block.hand_on
        self._judge: Callable[..., tuple[Tensor, Tensor | None]] | None = self.loss
        self._judges_out = isinstance(self.loss, LocalLoss) and self.loss.judges_handed_on
        if manners.learns_in_hand_on and not (gradient_in or self._judges_out):
            raise ConfigError(
                f"{name} has weights in hand_on, which its loss does not see, so that they cannot learn; move them to "
                "features, or take a --classifier that judges what is handed on, such as copy"
            )
        if config.compile:
            self._features = compiled(self._features, f"features_{index}")
            self._hand_on = compiled(self._hand_on, f"hand_on_{index}")
            self._judge = None if self.loss is None else compiled(self.loss.forward, f"loss_{index}")
        self.release()

    def named_trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What an optimizer changes: of the block and of its local head."""
        head = () if self.loss is None else self.loss.named_parameters(prefix="local_head")
        return [(n, p) for n, p in (*self.block.named_parameters(), *head) if p.requires_grad]

    def norm_biases(self) -> list[nn.Parameter]:
        """Those of them that batch norms add."""
        return norm_biases(*self._parts)

    def local_head(self) -> list[nn.Parameter]:
        """Those of them that are the local head's."""
        return [] if self.loss is None else [weight for weight in self.loss.parameters() if weight.requires_grad]

    def score_weights(self) -> list[nn.Parameter]:
        """Those of them whose outputs are class scores: of the output layer, or of a local classifier's last one."""
        if isinstance(self.loss, LocalLoss):
            return self.loss.score_weights()
        return [] if self.loss is None else score_weights(self.block)

    def train(self, mode: bool) -> None:
        """Switch dropout and batch norm between training and evaluation."""
        for part in self._parts:
            part.train(mode)

    def forward(self, x: Tensor, step: int) -> Tensor:
        """What the block hands on for a batch, computed from the weights before this step's update.

        The result carries no graph. Random modules draw from a generator keyed by (seed, block, step).
        """
        self.seed(step)
        return self.compute(x)

    def seed(self, step: int) -> None:
        """Key the random numbers of the block's next forward."""
        self._step = step
        self._seed_generators("block", on_host=self.manners.draws_on_host)

    def seed_backward(self) -> None:
        """Key those of the backward after it, where there are some: other blocks may have come between."""
        if self.manners.draws_in_backward:
            self._seed_generators("backward", on_host=True)

    def _seed_generators(self, what: str, *, on_host: bool) -> None:
        key = (self.config.seed, what, self.index, self._step)
        if on_host:
            seed_host_generators(*key)
        seed_default_generator(self.numerics.device, *key)

    def compute(self, x: Tensor) -> Tensor:
        """`forward` with whatever random numbers come."""
        if self.gradient_out or self.manners.wants_gradient:
            x = x.detach().requires_grad_()
        with self.numerics.autocast():
            h = self._features(self.manners.given(x))
            with torch.set_grad_enabled(self.gradient_in or self._judges_out):
                out = self._hand_on(self.manners.handed(h))
        self._x, self._h, self._out = x, h, out
        return self._handed_on(out)

    def update(self, targets: Targets, gradient: Tensor | None = None) -> Tensor | None:
        """Backward inside the block, into the gradients of its parameters; frees the activations of `forward`.

        Args:
            targets: of the batch.
            gradient: of the loss of later blocks with respect to what was handed on, if `gradient_in`.

        Returns:
            The gradient with respect to the block's input if `gradient_out`, else None.
        """
        self.seed_backward()
        return self.learn(targets, gradient)

    def learn(self, targets: Targets, gradient: Tensor | None = None) -> Tensor | None:
        """`update` with whatever random numbers come."""
        roots: list[Tensor] = []
        gradients: list[Tensor] = []
        if gradient is not None:
            roots.append(self._out)
            gradients.append(gradient.to(self._out.dtype))
        if self._judge is not None:
            with self.numerics.autocast():
                loss, scores = self._judge(self._h, targets, *self._also_judged(self._out))
            self.scored = Scored(loss.detach(), scores)
            roots.append(loss)
            gradients.append(self._one)
        torch.autograd.backward(roots, gradients)
        passed = self._x.grad if self.gradient_out else None
        self.release()
        return None if passed is None else canonical(passed, self.numerics.channels_last)

    def release(self) -> None:
        """Drop the activations of `forward`."""
        self._x = self._h = self._out = torch.empty(0)

    @torch.no_grad()
    def evaluate(self, x: Tensor, targets: Targets, step: int) -> Tensor:
        """What the block hands on in evaluation mode, by the average where there is one; what its loss makes of the
        batch is in `scored`. `step` keys the random numbers of a block that draws even then. Its state stays."""
        if self.manners.draws_in_evaluation:
            self.seed(step)
        averaged = contextlib.nullcontext() if self.average is None else self.average.in_place()
        kept = _buffers_kept(self.block) if self.manners.writes_in_evaluation else contextlib.nullcontext()
        with averaged, kept, self.numerics.autocast():
            h = self.block.features(self.manners.given(x))
            out = self.block.hand_on(self.manners.handed(h))
            if self.loss is not None:
                self.scored = Scored(*self.loss(h, targets, *self._also_judged(out)))
            return self._handed_on(out)

    def _also_judged(self, out: Tensor) -> tuple[Tensor, ...]:
        """What the loss sees beside the features."""
        return (out,) if self._judges_out else ()

    def _handed_on(self, out: Tensor) -> Tensor:
        return canonical(out.detach().to(self.numerics.dtype), self.numerics.channels_last)

    def inference_state(self) -> dict[str, Tensor]:
        """Weights and buffers of the block alone, by `<block index>.<name>`; averages where there are some."""
        averages = self._averages()
        return {f"{self.index}.{n}": averages.get(n, t) for n, t in self.block.state_dict().items()}

    def classifier_state(self) -> dict[str, Tensor]:
        """What the block's own classifier needs to answer, likewise; empty where it has none."""
        state = self.loss.classifier_state() if isinstance(self.loss, LocalLoss) else {}
        averages = self._averages()
        return {f"{self.index}.{n}": averages.get(_HEAD + n, t) for n, t in state.items()}

    def _averages(self) -> dict[str, Tensor]:
        return {} if self.average is None else self.average.state()

    def source(self, name: str, *, head: bool = False) -> str:
        """What `full_state` calls that which is `name` in `inference_state`, or with `head` in `classifier_state`."""
        index, _, own = name.partition(".")
        own = _HEAD + own if head else own
        return f"{index}.{_AVERAGE}{own}" if own in self._averages() else f"{index}.{own}"

    def full_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Everything that training changes or draws: weights, buffers, local head, their average, the optimizer's part
        of them."""
        state = {f"{self.index}.{n}": t for n, t in self.block.state_dict().items()}
        if self.loss is not None:
            state |= {f"{self.index}.{_HEAD}{n}": t for n, t in self.loss.state_dict().items()}
        state |= {f"{self.index}.{_AVERAGE}{n}": t for n, t in self._averages().items()}
        for name, parameter in self.named_trainable():
            for key, value in optimizer.state[parameter].items():
                if value is not None:  # SGD keeps an empty momentum buffer
                    state[f"{self.index}.optimizer.{name}.{key}"] = torch.as_tensor(value)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Copy this block's part out of a stage's `state_dict`; the memory layout stays the block's own."""
        own = {n.removeprefix(f"{self.index}."): t for n, t in state.items() if n.startswith(f"{self.index}.")}
        self.block.load_state_dict({name: own[name] for name in self.block.state_dict()})
        if self.loss is not None:
            self.loss.load_state_dict({name: own[_HEAD + name] for name in self.loss.state_dict()})
        if self.average is not None:
            self.average.load({name: own[_AVERAGE + name] for name in self.average.state()})
        for name, parameter in self.named_trainable():
            prefix = f"optimizer.{name}."
            found = {key.removeprefix(prefix): t for key, t in own.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {key: _like(parameter, tensor) for key, tensor in found.items()}

    def first_spoilt(self) -> str | None:
        """The first of the weights that learn, local head left out, which is not finite; waits for the device."""
        learning = {name: p for name, p in self.block.named_parameters() if p.requires_grad and p.numel()}
        whole = torch.stack([p.isfinite().all() for p in learning.values()]).tolist() if learning else []
        return next((name for name, fine in zip(learning, whole, strict=True) if not fine), None)

    def parameters(self) -> int:
        """Parameters of the inference network in this block."""
        return sum(p.numel() for p in self.block.parameters())

    def head_parameters(self) -> int:
        """Parameters of the local head."""
        return 0 if self.loss is None else sum(p.numel() for p in self.loss.parameters())


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of an optimizer's tensor: moments in the parameter's memory layout, counts as they are."""
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True)


@contextlib.contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    """Leaves the buffers as they were: how often is evaluated, and how far before a stop, decides no bit."""
    buffers = Buffers(block)
    try:
        yield
    finally:
        buffers.put_back()
