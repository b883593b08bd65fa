"""How much arithmetic a configuration's network is, counted without data."""

from __future__ import annotations

from functools import cache

from pipeline.config.catalog import DATASETS
from pipeline.config.schema import RunConfig
from pipeline.learning.profile import count_costs
from pipeline.network.spec import BlockShape, infer_shapes
from pipeline.network.zoo import named_network

__all__ = ["counted"]


@cache
def counted(config: RunConfig) -> tuple[tuple[BlockShape, ...], tuple[float, ...]]:
    """Shapes of the blocks, and multiply-accumulates of a sample in a training step of each, local loss included.

    Of a data set whose images have one known size.
    """
    info = DATASETS[config.data.dataset]
    assert info.shape is not None and info.classes is not None
    network = named_network(config.model, info.shape, info.classes, config.train.loss)
    shapes = infer_shapes(network, info.shape)
    return tuple(shapes), tuple(count_costs(config.train, network, shapes, info.classes))
