"""Settings of torch that hold for a whole thread or process, and that a caller may have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["plain_settings"]


@contextmanager
def plain_settings() -> Iterator[None]:
    """Torch's own settings inside, the caller's afterwards: float32 on the CPU, gradients, no autocast.

    The default number format is one for the whole process: other threads see it meanwhile.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # the mode costs time in every call
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
