"""Any failure of one process becomes the same error in all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from pipeline.errors import PipelineError, first_line, out_of_memory
from pipeline.transport.control import Control
from pipeline.transport.network import why
from pipeline.transport.verdict import known_to_all, lost_connection

__all__ = ["failures_told"]


@contextmanager
def failures_told(control: Control) -> Iterator[None]:
    """Tell the other processes of what fails inside, and raise the failure that came first; a bug as it is."""
    who = control.describe(control.rank)
    try:
        yield
    except PipelineError as error:
        if not known_to_all(error):  # such as an image that cannot be read, met under way
            raise control.fail(str(error)) from error
        raise
    except OSError as error:  # such as a full disk
        raise control.fail(f"{who} cannot read or write: {error}") from error
    except Exception as error:
        if out_of_memory(error):
            raise control.fail(f"{who} ran out of memory: {first_line(error)}") from error
        if lost_connection(error):
            raise control.lost(None, first_line(error)) from error
        if isinstance(error, dist.DistError):  # such as a network that nccl cannot use
            raise control.fail(
                f"{who} cannot reach the others {why(error)}; look at the network between them"
            ) from error
        control.fail(f"{who} failed: {type(error).__name__}: {first_line(error)}")
        raise
