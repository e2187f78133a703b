"""Sampling and log-probabilities the obvious way: the reference for the fast versions, and the only way for
some architectures."""
import torch


def sample_tokens(logits, rows, uniforms, temperature):
    """logits (R, V), rows (B,) of completions, uniforms (B,) in [0, 1) -> tokens and log-probabilities (B,).

    The inverse of the cumulative distribution at a uniform number is a sample; -1 takes the most probable.
    """
    probabilities = (logits.float() / (temperature or 1.0)).softmax(-1)
    cumulative = probabilities.cumsum(-1)[rows]                     # its end is not 1 to the last bit
    total = cumulative[:, -1:].contiguous()
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)
    tokens = torch.minimum(tokens, torch.searchsorted(cumulative, total))[:, 0]     # never of probability 0
    tokens = torch.where(uniforms < 0, logits.argmax(-1)[rows], tokens).clamp(max=logits.shape[-1] - 1)  # NaN
    return tokens, probabilities[rows, tokens].log()


def left_pad(prompts, device):
    """N prompts (lists of ids) -> ids, is_token (bool) and positions, all (N, P): they end in one column."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    P = int(lengths.max())
    ids = torch.tensor([[0] * (P - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    is_token = torch.arange(P, device=device) >= P - lengths[:, None]
    return ids, is_token, (is_token.cumsum(1) - 1).clamp(min=0)


def generate_plain(policy, eos, prompts, uniforms, temperature):
    """A completion for each of B prompts (lists of ids) -> tokens and log-probabilities (B, T), lengths (B,),
    EOS included.

    eos: ids that end a completion. uniforms (B, T): see sample_tokens; T is the most tokens of a completion.
    """
    from transformers import DynamicCache
    B, T = uniforms.shape
    tokens = torch.zeros(B, T, dtype=torch.long, device=policy.device)
    logprobs, lengths = torch.zeros(B, T, device=policy.device), torch.full((B,), T, device=policy.device)
    ids, is_token, positions = left_pad(prompts, policy.device)
    cache, rows = DynamicCache(config=policy.config), torch.arange(B, device=policy.device)
    for t in range(T):
        logits = policy(input_ids=ids, attention_mask=is_token.long(), position_ids=positions,
                        past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        tokens[:, t], logprobs[:, t] = sample_tokens(logits, rows, uniforms[:, t], temperature)
        ends = torch.isin(tokens[:, t], eos)
        lengths = torch.where(ends, lengths.clamp(max=t + 1), lengths)
        if (lengths <= t + 1).all():
            break
        ids, positions = tokens[:, t:t + 1], positions[:, -1:] + 1
        is_token = torch.nn.functional.pad(is_token, [0, 1], value=True)
    return tokens, logprobs, lengths


def token_logprobs_plain(policy, groups, temperature=1.0):
    """As logprobs.token_logprobs, but each completion has its own copy of the prompt, and the model's own
    forward pass computes it."""
    pairs = [(prompt, completion) for prompt, group in groups for completion in group]
    sequences = [[*prompt, *completion] for prompt, completion in pairs]
    ids, is_token, positions = left_pad(sequences, policy.device)
    logits = policy(input_ids=ids, attention_mask=is_token.long(), position_ids=positions,
                    use_cache=False).logits
    distribution = (logits[:, :-1].float() / temperature).log_softmax(-1)  # (B, L - 1, V)
    logprobs = distribution.gather(-1, ids[:, 1:, None])[..., 0]  # (B, L - 1), of ids[:, 1:]
    lengths = torch.tensor([len(completion) for _, completion in pairs], device=policy.device)
    mask = torch.arange(int(lengths.max()), device=policy.device) < lengths[:, None]            # (B, T)
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)
        entropy = torch.cat([row[-n:] for row, n in zip(entropy, lengths, strict=True)]).mean()
    rows = [row[-n:] for row, n in zip(logprobs, lengths, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), mask, entropy
