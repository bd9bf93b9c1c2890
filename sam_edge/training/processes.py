"""The processes of a `torchrun`: who they are, and what they tell each other; one process alone needs none of it."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

Value = TypeVar("Value", int, float)

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: while process 0 validates or writes, the others have nothing to do."""


@contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, over NCCL where each has a GPU of its own, else over gloo.

    Within, `cuda` is this process's GPU.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        yield
        return
    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if gpus:
        torch.cuda.set_device(local % gpus)
    dist.init_process_group("nccl" if count <= gpus else "gloo", timeout=PATIENCE)
    yield
    # not after an error: the others may never come, and torchrun ends them
    dist.barrier()
    dist.destroy_process_group()


def together() -> bool:
    """True where there are other processes to agree with."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if together() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    if together():
        dist.barrier()


def agreed(value: Value) -> Value:
    """Process 0's value, everywhere: decisions taken on it are then the same."""
    if not together():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


@torch.no_grad()
def share(model: nn.Module) -> None:
    """Give every process the weights and statistics of process 0."""
    if together():
        for value in [*model.parameters(), *model.buffers()]:
            dist.broadcast(value.data, 0)


def mean_of_all(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Each value's mean over the processes."""
    if not together():
        return values
    means = torch.tensor(list(values.values()), dtype=torch.float32, device=device)
    dist.all_reduce(means)
    return dict(zip(values, (means / world()).tolist(), strict=True))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of every gradient over the processes; what no process used keeps none."""
    if not together():
        return
    trained = list(parameters)
    # a prompt that only one process met must not shift the others' places in the sum
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    used = torch.tensor([p.grad is not None for p in trained], dtype=parts[0].dtype, device=parts[0].device)
    flat = torch.cat([*(part.flatten() for part in parts), used])
    dist.all_reduce(flat)
    *means, counts = flat.split([part.numel() for part in parts] + [len(trained)])
    for p, mean, count in zip(trained, means, counts.tolist(), strict=True):
        if count:
            p.grad = (mean / world()).view_as(p)
