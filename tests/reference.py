"""What several tests compare with: transformers' own forward pass, token by token, and small models of any architecture."""
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.chat import encode

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [30, 31, 32, 33]]
PREFIXES = [*PROMPTS, [*PROMPTS[1], 15, 16], [*PROMPTS[1][:5], 40, 41], [*PROMPTS[1][:5], 42], PROMPTS[0][:2]]    # a tree of 20 tokens


def small_model(tokenizer, kind, **more):
    """A random model of an architecture, with two key-value heads for four query heads."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                                  num_key_value_heads=2, head_dim=8, eos_token_id=1, pad_token_id=0, bos_token_id=None, initializer_range=0.2, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation="grouped_query").eval()


def forward_logprobs(model, prompt, completion, temperature=1.0):
    """One sequence, one forward pass of transformers."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1] / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def greedy_tokens(model, prompt, n):
    """At most n greedy tokens by transformers' generate."""
    return model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=n)[0, len(prompt):].tolist()


def gradient(model, loss):
    """The gradient of a loss with respect to all weights, as one vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def sampled_turns(srl, policy, tokenizer, examples):
    """Turns of four groups of four, with advantages -1, 0 and 1."""
    torch.manual_seed(0)
    prompts = [encode(tokenizer, srl.srl_prompt(e)) for e in examples[:4]]
    rollout = srl.generate(policy, tokenizer, prompts, 4, max_new_tokens=9)
    return [(prompts[i // 4], *turn, float(i % 3 - 1)) for i, turn in enumerate(zip(rollout.completions, rollout.logprobs, strict=True))]


def update_gradients(srl, policy, turns, cfg):
    """The stats of an update, and the gradient of each weight, without the optimizer's step."""
    grads = []

    def step(max_grad_norm):
        grads.extend(p.grad.clone() for p in policy.parameters())
        policy.zero_grad()
        return 0.0
    return srl.update(policy, SimpleNamespace(step=step), turns, cfg), grads
