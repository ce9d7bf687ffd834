"""Lesson 4.2 - several processes: accumulation in space instead of time.

    gradient of a batch = 1/N sum over ranks r of the gradients of the losses in its share        N: targets of all ranks

DDP keeps the whole model in every process and averages gradients while the backward pass still runs (Li et al. 2020,
"PyTorch Distributed"). FSDP keeps a share of every weight, gradient and optimizer moment in each process, and gathers a
block's weights just before they are used (Rajbhandari et al. 2020, "ZeRO", stage 3). Both come from torch; torchrun starts
the processes, on one machine or on many, and tells each who it is:

    torchrun --nproc_per_node=2 part_4/train.py --parallel ddp
"""

import contextlib
import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from part_0.cli import InputError

PARALLEL = ("none", "ddp", "fsdp")


class Process(NamedTuple):
    """Which of how many processes this one is; rank 0 alone writes files and prints."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU

    @property
    def is_main(self):
        """Whether this process writes and prints."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(parallel, device_type, script="part_4/train.py"):
    """Context that joins the group of processes which torchrun started, and leaves it at the end. Yields a Process.

    parallel: one of PARALLEL, "none" for a single process without a group. device_type: "cpu" (gloo) or "cuda" (NCCL).
    script: what was started, for messages.
    InputError when the launcher and `parallel` do not fit together, or when another process of the group is gone.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ
    if parallel == "none":
        if launched and int(os.environ["WORLD_SIZE"]) > 1:
            raise InputError("torchrun started several processes: say with --parallel ddp or fsdp how they work together")
        yield Process()
        return
    if not launched:
        raise InputError(f"--parallel {parallel} is started with: torchrun --nproc_per_node=2 {script} "
                         f"--parallel {parallel}")
    if device_type not in ("cpu", "cuda"):
        raise InputError(f"--parallel {parallel} runs on cpu or cuda, not on {device_type}")
    process = Process(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if device_type == "cuda":
        if process.local_rank >= torch.cuda.device_count():
            raise InputError(f"this machine has fewer GPUs ({torch.cuda.device_count()}) than torchrun starts processes: "
                             "take a smaller --nproc_per_node, or --device cpu")
        torch.cuda.set_device(process.local_rank)
    # Rank 0 may tokenise for a long time while the others wait.
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield process
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(f"rank {process.rank} lost contact with another process, which was probably killed; go on from the "
                         "last checkpoint with the same command and --resume auto") from error
    finally:
        dist.destroy_process_group()


def world_size():
    """How many processes work together; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values, device):
    """The sum over all processes of each number in `values`, a list of numbers; the same list without a group."""
    if not dist.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def gather(value):
    """The list of all processes' values, by rank; any object that can be pickled."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def from_main(process, function):
    """What `function` returns in rank 0, given to every process; the others do not call it.

    An InputError of rank 0 is raised in all of them, so that none waits for ever.
    """
    result, error = None, None
    if process.is_main:
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
    if process.world_size > 1:
        both = [result, error]
        dist.broadcast_object_list(both, src=0)
        result, error = both
    if error is not None:
        raise InputError(error)
    return result


def parallelise(model, parallel, device):
    """Spread `model`, which is on `device` and the same in every process. Returns what is called in its place."""
    if parallel == "ddp":
        return DistributedDataParallel(model, device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None)
    if parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard  # here, because importing it takes a second
        for block in model.blocks:  # a block's weights are gathered when it runs, and let go after it
            fully_shard(block)
        fully_shard(model)
    return model


@contextlib.contextmanager
def gradient_sync(model, on):
    """Context in which a backward pass averages gradients over the processes, or (on=False) only adds them up here."""
    if isinstance(model, DistributedDataParallel) and not on:
        with model.no_sync():
            yield
    else:
        if hasattr(model, "set_requires_gradient_sync"):  # FSDP has given it to the model
            model.set_requires_gradient_sync(on)
        yield


def full_state(model, optimizers):
    """The whole weights and optimizer state, as one process would have them, on the CPU; empty in all ranks but 0.

    Every process must call it. Returns two dicts, keyed by the names of the weights: other processes, or another number of
    them, can take these up again.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # here: it takes a second
    return get_state_dict(model, optimizers, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def set_full_state(model, optimizers, model_state, optimizer_state):
    """Put back what `full_state` gave; every process gives all of it, and keeps its share."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    set_state_dict(model, optimizers, model_state_dict=model_state, optim_state_dict=optimizer_state,
                   options=StateDictOptions(full_state_dict=True))
