"""sam_edge.training.processes: what two joined processes tell each other."""

import os
import socket
import subprocess
import sys

import torch
from torch import nn

from sam_edge.training.processes import agreed, average_gradients, joined_processes, mean_of_all, rank, share, world

TALK = """
import torch
from torch import nn
from sam_edge.training.processes import agreed, average_gradients, joined_processes, mean_of_all, rank, share, world

torch.set_num_threads(1)
with joined_processes("cpu"):
    me = rank()
    assert world() == 2
    model = nn.BatchNorm1d(3)
    with torch.no_grad():
        model.weight.fill_(7.0 + me)
        model.running_mean.fill_(3.0 + me)
        model.num_batches_tracked.fill_(5 + me)
    share(model)
    assert (model.weight == 7).all() and (model.running_mean == 3).all() and model.num_batches_tracked == 5
    assert agreed(me + 4) == 4
    assert agreed(0.25 - me) == 0.25
    assert mean_of_all({"a": 1.0 + me, "b": -2.0}, torch.device("cpu")) == {"a": 1.5, "b": -2.0}
    # both met the first, only process 1 the second, none the third
    both, one, none = (nn.Parameter(torch.zeros(size)) for size in (2, 3, 4))
    loss = (1 + me) * both.sum() + (4 * one.sum() if me else 0)
    loss.backward()
    average_gradients([one, both, none])
    assert (both.grad == 1.5).all() and (one.grad == 2).all() and none.grad is None
print("talked")
"""


def test_two_processes_share_agree_and_average_whatever_each_of_them_met():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TALK],
            env={**os.environ, **where, "RANK": number, "LOCAL_RANK": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err[-2000:]
            assert out == "talked\n"
    finally:
        for process in processes:
            process.kill()


def test_a_process_alone_agrees_with_itself():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with joined_processes("cpu"):
        assert (rank(), world(), agreed(3)) == (0, 1, 3)
        share(model)
        average_gradients(model.parameters())
        assert mean_of_all({"a": 2.0}, torch.device("cpu")) == {"a": 2.0}
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
