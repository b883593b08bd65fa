"""Kinds of layers: which of a user's modules begin a block, and which only hand on what the block has computed."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from pipeline.network.blocks import Dropout

__all__ = ["is_layer", "is_plain_sequential", "is_tail", "of_torch", "own_manners", "unwrapped"]

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
_BELONGING = (*_NORMALISATIONS, nn.PReLU)  # to the layer before, although they have weights
_HOLDING = (nn.ParameterList, nn.ParameterDict, parametrize.ParametrizationList)  # parameters, and do nothing
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
    parametrized = parametrize.is_parametrized(module)
    if not (own or parametrized) or isinstance(module, _BELONGING):
        return False
    if (of_torch(module) and not isinstance(module, _HOLDING)) or any(map(is_lazy, own)):
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
    kind = type(module)
    if parametrize.is_parametrized(module):  # torch makes a class for it
        kind = kind.__bases__[0]
    return kind.__module__.startswith("torch.nn.")


def own_manners(module: nn.Module) -> str:
    """What happens at a call of the module, or where its mode is set, beside its forward; empty if nothing does."""
    for kind in ("forward", "forward_pre", "backward", "backward_pre"):
        if getattr(module, f"_{kind}_hooks", None):
            return f"{kind.replace('_', ' ')} hooks"
    for name in ("train", "eval"):
        if name in vars(module) or getattr(type(module), name) is not getattr(nn.Module, name):
            return f"a method {name} of its own"
    return ""


def is_plain_sequential(module: nn.Module) -> bool:
    """Whether calling a module is calling its children one after the other, and nothing else."""
    own = "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__ or own_manners(module)
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not own


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, out of what torch wraps around one and does nothing beside calling it."""
    while not own_manners(module):
        inner = getattr(module, "_orig_mod", None)  # torch.compile's
        if isinstance(module, DataParallel | DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module
