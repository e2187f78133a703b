"""The optimizer: Adam with float32 master weights, 8-bit states, LoRA adapters and gradient checkpointing."""
import math
from functools import partial

import torch
import torch.distributed as dist

from .distributed import gather_full_state, is_dtensor, is_sharded, num_ranks, shard_like
from .files import InputError


class MasterAdam:
    """Adam on float32 copies (master weights) of 16-bit weights; float32 weights are used as they are.

    A bfloat16 number has three digits: at the paper's learning rate of 5e-7 an update is far smaller than the
    distance to the next number, and would be lost. Gradients are accumulated in float32 as well, each freed
    as soon as it has been added.
    """

    def __init__(self, policy, learning_rate, base):
        weights = [p for p in policy.parameters() if p.requires_grad]
        self.masters = {p: p.detach().float().requires_grad_() for p in weights if p.dtype != torch.float32}
        for p in self.masters:
            p.register_post_accumulate_grad_hook(self.add_gradient)
        self.weights = [self.masters.get(p, p) for p in weights]
        self.adam = base(self.weights, lr=learning_rate, betas=(0.9, 0.95))
        self.mid_update = False         # the weights are newer than the log and the counters of the run

    @torch.no_grad()
    def add_gradient(self, p):
        master = self.masters[p]
        master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
        p.grad = None

    def set_learning_rate(self, learning_rate):
        for group in self.adam.param_groups:
            group["lr"] = learning_rate

    @torch.no_grad()
    def step(self, max_grad_norm):
        """Sum the gradients over the ranks, clip, take a step if their norm is finite. Returns the norm."""
        for w in self.weights if num_ranks() > 1 else ():
            if is_dtensor(w):
                w.grad.mul_(num_ranks())                            # FSDP has averaged them
            else:
                w.grad = torch.zeros_like(w) if w.grad is None else w.grad
                dist.all_reduce(w.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, max_grad_norm)
        norm = (norm.full_tensor() if is_dtensor(norm) else norm).item()
        self.mid_update = True
        if math.isfinite(norm):
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.copy_masters()
        return norm

    def copy_masters(self):
        for p, master in self.masters.items():
            p.copy_(master)

    def state_dict(self):
        """Adam's moments and all trained weights in float32; with the starting model they give the policy."""
        weights = [w.detach() for w in self.weights]
        return gather_full_state({"adam": self.adam.state_dict(), "weights": weights})

    @torch.no_grad()
    def load_state_dict(self, state):
        moments = {}
        for (i, entry), w in zip(state["adam"]["state"].items(), self.weights, strict=False):
            moments[i] = {name: shard_like(w, value) if getattr(value, "shape", None) == w.shape else value
                           for name, value in entry.items()}
        self.adam.load_state_dict({**state["adam"], "state": moments})
        for w, saved in zip(self.weights, state["weights"], strict=True):
            w.copy_(shard_like(w, saved))
        self.copy_masters()


def make_optimizer(policy, cfg):
    """The optimizer of a policy, which gets adapters and checkpointed layers. InputError: missing package."""
    base = torch.optim.Adam
    try:
        if cfg.lora_rank:
            from peft import LoraConfig, inject_adapter_in_model
            lora = LoraConfig(r=cfg.lora_rank, lora_alpha=2 * cfg.lora_rank, target_modules="all-linear")
            inject_adapter_in_model(lora, policy)
        if cfg.optimizer == "adam8bit":
            from bitsandbytes.optim import Adam8bit as base
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise InputError(f"{package}: not installed, but --lora_rank or --optimizer asks for it; "
                         f"pip install {package}") from None
    if cfg.gradient_checkpointing:  # transformers' own switch drops the cache of the shared prompt
        from transformers.modeling_layers import GradientCheckpointingLayer
        for layer in policy.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)
    return MasterAdam(policy, cfg.learning_rate, base)


def merged_weights(policy, dtype=None):
    """The state dict of a model without adapters, or of gathered shards in dtype; None: as the policy's.

    Weights with adapters are in float32: in 16 bits most of a small change would be lost. Prints how much.
    """
    adapters = {name: m for name, m in policy.named_modules() if hasattr(m, "get_delta_weight")}
    if is_sharded(policy):
        return {name: w.to(dtype) for name, w in gather_full_state(policy.state_dict()).items()}
    if not adapters:
        return None
    state = {name: w for name, w in policy.state_dict().items() if ".lora_" not in name}
    weights, change, kept = {name.replace(".base_layer.", "."): w for name, w in state.items()}, 0.0, 0.0
    for name, module in adapters.items():
        base, delta = module.base_layer.weight, module.get_delta_weight("default").float()
        weights[f"{name}.weight"] = merged = base.float() + delta
        change += delta.square().sum().item()
        kept += ((merged.to(torch.bfloat16).float() - base.float()) * delta).sum().item()
    if change:
        print(f"adapters merged in float32; bfloat16 would keep {kept / change:.0%} of their change")
    return weights


def save_adapters(policy, folder):
    """The adapters of a policy, where it has any, in peft's own format."""
    if hasattr(policy, "peft_config"):
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file
        folder.mkdir()
        policy.peft_config["default"].save_pretrained(folder)
        state = get_peft_model_state_dict(policy, adapter_name="default")
        state = {f"base_model.model.{name}": w.contiguous() for name, w in state.items()}
        save_file(state, folder / "adapter_model.safetensors")
