"""Functions with a gradient written out, against torch."""

from __future__ import annotations

import pytest
import torch

from pipeline.learning.ops import spatial_std


@pytest.mark.parametrize("channels_last", [False, True])
def test_spatial_std_equals_torch_with_its_gradient(channels_last: bool) -> None:
    x = torch.randn(4, 5, 3, 7, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weights = torch.randn(4, 5, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (spatial_std(ours) * weights).sum().backward()
    (theirs.std(dim=(2, 3)) * weights).sum().backward()
    torch.testing.assert_close(spatial_std(x), x.std(dim=(2, 3)))
    torch.testing.assert_close(ours.grad, theirs.grad)
