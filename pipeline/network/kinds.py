"""Kinds of layers: which of a user's modules begin a block, and which only hand on what the block has computed."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from pipeline.network.blocks import Dropout

__all__ = ["is_layer", "is_plain_sequential", "is_tail", "of_torch"]

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
_BELONGING = (*_NORMALISATIONS, nn.PReLU)  # to the layer before, although they have weights
_TAIL = (
    Dropout,
    *(nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
    *(nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._LPPoolNd),
    *(nn.Flatten, nn.Identity),
)


def is_layer(module: nn.Module) -> bool:
    """Whether a module has weights that mix its inputs; normalisations and nonlinearities with weights have not."""
    return any(_is_layer_itself(each) for each in module.modules())


def _is_layer_itself(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    if not own or isinstance(module, _BELONGING):
        return False
    if of_torch(module) or any(map(is_lazy, own)):
        return True
    # Numbers to add or to multiply by have one axis, whatever they are spread over.
    return any(sum(side > 1 for side in parameter.shape) > 1 for parameter in own)


def is_tail(module: nn.Module) -> bool:
    """Whether a module is dropout, pooling or flattening, which the local loss taps a block before."""
    children = list(module.children())
    return isinstance(module, _TAIL) or (
        is_plain_sequential(module) and bool(children) and all(is_tail(child) for child in children)
    )


def of_torch(module: nn.Module) -> bool:
    """Whether the class is one of torch's own; its forward is not looked into."""
    return type(module).__module__.startswith("torch.nn.")


def is_plain_sequential(module: nn.Module) -> bool:
    """Whether calling a module is calling its children one after the other, and nothing else."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    own = "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__
    return (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not (any(hooks) or own)
    )
