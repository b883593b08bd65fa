"""Batches of few classes: the order of an epoch for `--classes-per-batch`. Pure; the chance is in the order given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["grouped"]


def grouped(order: Tensor, labels: Tensor, batch_size: int, classes: int) -> Tensor:
    """`order`, rearranged so that each batch has samples of `classes` classes; every sample stays in it once.

    A batch takes the classes that come first in what is left, and of these the samples that come first. Since what
    the others have before them stays at the front, all classes come in turn. Where those classes have fewer samples
    left than a batch needs it takes further ones; at the end of the epoch there may be fewer than `classes` left.

    The reference implementation (Nøkland & Eidnes 2019) asks for 10 classes, whatever the number given.

    Args:
        order: indices of samples, a random permutation, int64 [samples].
        labels: of all samples, int64 [samples].
    """
    left = order.numpy()
    known = labels.numpy()
    batches = []
    while len(left):
        kinds = known[left]
        found, first = np.unique(kinds, return_index=True)
        by_turn = found[np.argsort(first)]
        count = min(classes, len(found))
        sizes = np.bincount(kinds)[by_turn].cumsum()
        while sizes[count - 1] < min(batch_size, len(left)):
            count += 1
        taken = np.flatnonzero(np.isin(kinds, by_turn[:count]))[:batch_size]
        batches.append(left[taken])
        left = np.delete(left, taken)
    return torch.from_numpy(np.concatenate(batches)) if batches else order
