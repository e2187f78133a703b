"""Data parallelism under torchrun: a rank samples and trains on its part of a batch, results are gathered."""
import atexit
import os
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def join_ranks():
    """Join torchrun's process group, where there is one. Only rank 0 prints."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave_ranks():
    """End a rank's process at once, at the end of a script: Gloo's threads can outlive the process group and
    abort an interpreter that ends (pytorch/pytorch issue 190489). After an error torchrun ends the ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()
        atexit._run_exitfuncs()             # wandb ends its run
        sys.stderr.flush()
        os._exit(0)


def gather(value):
    """The list of every rank's value."""
    values = [value] * num_ranks()
    if num_ranks() > 1:
        dist.all_gather_object(values, value)
    return values


def on_all_ranks(work, items):
    """The results of work(items), a list in their order, on every rank; each rank works on a part of them."""
    mine = items[rank()::num_ranks()]
    parts = gather(work(mine) if mine else [])
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(items))]


# FSDP2: weights, gradients and optimizer states spread over the ranks
def is_sharded(policy):
    return hasattr(policy, "unshard")


def shard_model(policy, dtype):
    """Spread float32 weights over the ranks (FSDP2); a forward pass gathers them in dtype, layer by layer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer
    how = {"mesh": dist.device_mesh.init_device_mesh(policy.device.type, (num_ranks(),)),
           "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)}
    for layer in [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)]:
        fully_shard(layer, **how)
    fully_shard(policy, **how)
    policy.float()
    with torch.no_grad():  # FSDP finds its root module in the first forward pass
        policy(torch.zeros(1, 1, dtype=torch.long, device=policy.device))
    policy.reshard()


@contextmanager
def unsharded(policy):
    """All weights of a sharded policy on every rank in the block: gathered once, not for every token."""
    parts = [m for m in policy.modules() if is_sharded(m)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def is_dtensor(value):
    return hasattr(value, "full_tensor")


def gather_full_state(state):
    """A state with every sharded tensor in it gathered: it can be loaded on any number of devices."""
    if isinstance(state, dict):
        return {name: gather_full_state(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [gather_full_state(value) for value in state]
    return state.full_tensor().cpu() if is_dtensor(state) else state


def shard_like(weight, saved):
    """A saved tensor, sharded as the weight is."""
    if not is_dtensor(weight):
        return saved
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(saved.to(weight.device), weight.device_mesh, weight.placements)
