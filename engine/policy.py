"""Models: loading a causal language model, checking what the fast passes compute against it, saving it."""
import json
from pathlib import Path

import torch

from .attention import register_attention, shares_prompts
from .chat import load_tokenizer
from .distributed import rank
from .files import InputError, atomic_write, explain_read_errors, first_line
from .logprobs import token_logprobs
from .optimizer import merged_weights, save_adapters
from .plain import generate_plain, token_logprobs_plain
from .rollout import decode_batch


def explain_load_errors(name):
    """A context that raises InputError where it cannot read the model. Raises it where there is none."""
    if not Path(name).is_dir() and (str(name).startswith((".", "/")) or str(name).count("/") != 1):
        raise InputError(f"{name}: no such model folder; train it first, or give another with --model")
    return explain_read_errors(name, "not a complete model with a tokenizer",
                               "train or copy it again, or give another with --model")


def load_architecture(name):
    """(model without weights, tokenizer): takes no time and no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM
    with explain_load_errors(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
        return model, load_tokenizer(name)


def load_policy(name, device="cpu", dtype="float32", share_prompts=True):
    """(policy, tokenizer) from a model folder or hub name. InputError where none can be computed here.

    share_prompts: compute each prompt once for its group, if that gives the scores of the model's own pass.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar
    register_attention()
    disable_progress_bar()
    with explain_load_errors(name):
        tokenizer = load_tokenizer(name)
        policy, report = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, dtype), attn_implementation="grouped_query", output_loading_info=True)
        if missing := report["missing_keys"]:
            raise ValueError(f"{len(missing)} weights are missing, such as {min(missing)}")
    if (Path(name) / "adapter").is_dir() and dtype != "float32" and not rank():
        print(f"ALARM (rounding): {name} has adapters merged in float32; {dtype} rounds most of their change "
              "away, --dtype float32 keeps it")
    policy.to(device).eval()
    why = mismatch(policy) if share_prompts else "--no_share_prompts"
    if why:
        policy.shares_prompts = False
        policy.set_attn_implementation("eager")
        if difference := mismatch(policy):
            raise InputError(f"{name}: decoding differs from a forward pass of this model of type "
                             f"{policy.config.model_type} ({difference}); use another model")
        print(f"{name}: every completion gets its own copy of the prompt, which is slower ({why})")
    return policy, tokenizer


@torch.inference_mode()
def mismatch(policy):
    """How log-probabilities in rollout or update differ from the model's own forward pass; '' if they do not.

    Shared prompts do not support scaled or capped logits (Granite, Cohere, Gemma 2), attention sinks
    (gpt-oss) and layers whose state is not keys and values (Qwen3-Next).
    """
    attention, vocabulary = policy.config._attn_implementation, policy.get_input_embeddings().num_embeddings
    prompt = [token % vocabulary for token in range(5, 40, 5)]
    uniforms = torch.tensor([[0.1] * 5, [0.9] * 5], device=policy.device)       # two completions, no EOS
    eos = torch.tensor([-1], device=policy.device)
    try:
        if shares_prompts(policy):
            ids = torch.tensor([prompt], device=policy.device)
            logits = policy.get_output_embeddings()(policy.base_model(ids).last_hidden_state)
            if not torch.allclose(logits.float(), policy(ids).logits.float(), rtol=1e-3, atol=1e-3):
                return "its logits are scaled or capped"
            tokens, sampled, _ = decode_batch(policy, eos, [prompt], [2], uniforms, 1.0, 2)
        else:
            tokens, sampled, _ = generate_plain(policy, eos, [prompt] * 2, uniforms, 1.0)
        groups = [(prompt, tokens.tolist())]
        trained = token_logprobs(policy, groups)[0]
        policy.set_attn_implementation("eager")
        own = token_logprobs_plain(policy, groups)[0]
        difference = max((logprobs - own).abs().mean().item() for logprobs in (sampled, trained))
        tolerance = 1e-3 if policy.dtype == torch.float32 else 0.2      # 16 bits: sums in another order
        return "" if difference < tolerance else f"log-probabilities differ by {difference:.2g}"
    except Exception as error:      # an architecture of another kind fails in any way
        return first_line(error)
    finally:
        policy.set_attn_implementation(attention)


def save_model(policy, tokenizer, folder, dtype=None):
    """A model folder, complete or absent."""
    weights = merged_weights(policy, dtype)
    if rank() == 0:
        with atomic_write(folder) as temporary:
            policy.save_pretrained(temporary, state_dict=weights)
            save_adapters(policy, temporary / "adapter")
            if (temporary / "adapter").is_dir():                    # its merged weights are in float32
                config = json.loads((temporary / "config.json").read_text())
                (temporary / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2))
            tokenizer.save_pretrained(temporary)
