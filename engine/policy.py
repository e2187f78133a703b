"""Models: loading a causal language model and its tokenizer, checking that the fast passes compute what it
computes, saving it."""
import json
from contextlib import contextmanager
from pathlib import Path

import torch

from .attention import register_attention
from .chat import load_tokenizer
from .distributed import rank
from .files import InputError, atomic_write, first_line
from .kv_cache import SharedPromptCache
from .optimizer import merged_weights, save_adapters
from .plain import generate_plain, token_logprobs_plain


@contextmanager
def explain_load_errors(name):
    """Raises InputError where there is no such model, or the block cannot read it."""
    if not Path(name).is_dir() and (str(name).startswith((".", "/")) or str(name).count("/") != 1):
        raise InputError(f"{name}: no such model folder; train it first, or give another with --model")
    try:
        yield
    except Exception as error:  # a file that is missing, truncated, of another type: dozens of types
        raise InputError(f"{name}: not a complete model with a tokenizer ({first_line(error)}); "
                         "train or copy it again, or give another with --model") from None


def load_architecture(name):
    """(model without weights, tokenizer): takes no time and no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM
    with explain_load_errors(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
        return model, load_tokenizer(name)


def load_policy(name, device="cpu", dtype="float32", share_prompts=True):
    """(policy, tokenizer) from a model folder or hub name. Raises InputError where there is none, or none
    that can be computed here.

    share_prompts: compute each prompt once for its group, unless that would not give the scores of the
    model's own forward pass.
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
    policy.to(device).eval()
    why = cache_mismatch(policy) if share_prompts else "--no_share_prompts"
    policy.shares_prompts = not why
    if why:
        policy.set_attn_implementation("eager")
        if mismatch := plain_mismatch(policy):
            raise InputError(f"{name}: decoding differs from a forward pass of this model of type "
                             f"{policy.config.model_type} ({mismatch}); use another model")
        print(f"{name}: every completion gets its own copy of the prompt, which is slower ({why})")
    return policy, tokenizer


def probe_tokens(policy):
    return torch.arange(5, 65, 5, device=policy.device) % policy.get_input_embeddings().num_embeddings


@torch.inference_mode()
def cache_mismatch(policy):
    """How twelve tokens decoded with SharedPromptCache are scored otherwise than by the model's own forward
    pass, '' where they are not.

    Shared prompts do not support scaled or capped logits (Granite, Cohere, Gemma 2), attention sinks
    (gpt-oss) and layers whose state is not keys and values (Qwen3-Next).
    """
    def distribution(logits):
        return logits[0].float().softmax(-1)
    tokens, attention = probe_tokens(policy), policy.config._attn_implementation
    try:
        cache, rows = SharedPromptCache(policy, len(tokens)), torch.arange(2, device=policy.device)
        logits = cache.prefill([tokens[:7].tolist()], [2])  # two rows that share seven tokens
        for token in tokens[7:]:
            logits, _ = cache.decode(rows, token.expand(2))
        policy.set_attn_implementation("eager")
        own = distribution(policy(tokens[None]).logits[:, -1])
        difference = (own - distribution(logits)).abs().sum().item() / 2
        # 16 bits: sums in another order differ by a few percent
        if not difference < (1e-3 if policy.dtype == torch.float32 else 0.2):
            return f"the probabilities differ by {difference:.1%}"
        head = policy.get_output_embeddings()(policy.base_model(tokens[None]).last_hidden_state[:, -1])
        return "" if (own - distribution(head)).abs().sum() < 1e-3 else "its logits are scaled or capped"
    except Exception as error:  # an architecture of another kind fails in any way
        return first_line(error)
    finally:
        policy.set_attn_implementation(attention)


@torch.inference_mode()
def plain_mismatch(policy):
    """How five greedy tokens of generate_plain are scored otherwise than by the model's own forward pass, ''
    where they are not."""
    try:
        prompt = probe_tokens(policy)[:7].tolist()
        eos, greedy = torch.tensor([-1], device=policy.device), torch.full((1, 5), -1.0, device=policy.device)
        tokens, decoded, _ = generate_plain(policy, eos, [prompt], greedy, 0)
        scored = token_logprobs_plain(policy, [(prompt, tokens.tolist())])[0]
        difference = (decoded - scored).abs().max().item()
        tolerance = 1e-2 if policy.dtype == torch.float32 else 0.5
        return "" if difference < tolerance else f"log-probabilities differ by {difference:.2g}"
    except Exception as error:
        return first_line(error)


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
