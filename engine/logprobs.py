"""Log-probabilities with gradient: each prompt, and each shared prefix of prompts, is computed once."""
import itertools
import math
from functools import partial

import torch

from .attention import LayerCache, additive_mask, shares_prompts
from .distributed import gather, is_sharded, num_ranks, rank
from .plain import left_pad, token_logprobs_plain
from .prefix_cache import common_prefix_length

MAX_LOGITS = 1 << 26        # logits in memory at a time


def pack_prefix_tree(prompts, capacity):
    """N prompts (lists of ids) packed in R rows of at most `capacity` tokens as a prefix tree (trie).

        a b c,  a b d e  and  x y  in a row of 8       ids        a b c d e x y 0
                                                       positions  0 1 2 2 3 0 1 0
    Tree attention: a token attends to those of its own prompt before it. Returns ids (R, L), bool attends
    (R, L, L), positions (R, L) and the path of each prompt: the indices of its tokens in ids.flatten().
    """
    rows, packed, path, previous = [], [], [], []
    # sorted: the previous prompt has the longest common prefix
    for n in sorted(range(len(prompts)), key=prompts.__getitem__):
        shared = common_prefix_length(prompts[n], previous)
        if not rows or len(rows[-1]) + len(prompts[n]) - shared > capacity:
            rows, shared = [*rows, []], 0
        end = len(rows[-1])
        previous, path = prompts[n], [*path[:shared], *range(end, end + len(prompts[n]) - shared)]
        rows[-1] += [(token, position) for position, token in enumerate(previous)][shared:]
        packed.append((n, len(rows) - 1, shared, torch.tensor(path)))
    L, paths = max(map(len, rows)), [None] * len(prompts)
    ids, positions = torch.tensor([row + [(0, 0)] * (L - len(row)) for row in rows]).unbind(-1)
    # padding attends to itself: no empty softmax
    attends = torch.eye(L, dtype=torch.bool).repeat(len(rows), 1, 1)
    for n, row, shared, path in packed:
        causal = torch.ones(len(path), len(path), dtype=torch.bool).tril()
        attends[row, path[shared:, None], path] = causal[shared:]
        paths[n] = row * L + path
    return ids, attends, positions, paths


class PathCache(LayerCache):
    """The cache of a pass whose row b attends to the tokens paths[b] of packed prompts; paths (b, P)."""

    def __init__(self, layers, paths):
        self.layers, self.paths = layers, paths                     # {layer: keys, values (tokens, H_kv, D)}

    def update(self, key, value, layer, *args, **kwargs):
        return tuple(torch.cat([self.of_paths(known), new], 2)
                     for known, new in zip(self.layers[layer], (key, value), strict=True))

    def of_paths(self, t):
        """Keys or values (tokens, H_kv, D) of the packed prompts -> those of each path (b, H_kv, P, D)."""
        return t.index_select(0, self.paths.flatten()).unflatten(0, self.paths.shape).transpose(1, 2)


def chunk_logprobs(hidden, weight, bias, targets, temperature):
    """(log-probability of each target, entropy of its distribution), both (M,)."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float() / temperature
    logprobs = logits.log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def head_logprobs(policy, hidden, targets, temperature):
    """(log-probability, entropy) of M targets, both (M,), from hidden (M, D).

    The logits are computed in chunks of MAX_LOGITS, and again for the gradient unless V is tiny: no tensor
    of M x V numbers is kept.
    """
    head = policy.get_output_embeddings()
    size = max(1, MAX_LOGITS // len(head.weight))
    checkpoint = partial(torch.utils.checkpoint.checkpoint, chunk_logprobs, use_reentrant=False)
    compute = chunk_logprobs if len(head.weight) <= 1000 else checkpoint
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    chunks = [compute(h, head.weight, head.bias, t, temperature) for h, t in parts]
    return map(torch.cat, zip(*chunks, strict=True))


def prefill_prompts(policy, prompts):
    """One pass over N packed prompts: {layer: keys and values (tokens, H_kv, D)}, paths and is_token (N, P),
    last hidden states (N, D)."""
    device, cache = policy.device, LayerCache()
    # a longer row shares more, but each token meets its whole row: at as many tokens as the hidden
    # size, that costs a sixth of all other products
    capacity = max(3 * max(map(len, prompts)) // 2, min(policy.config.get_text_config().hidden_size, 1024))
    ids, attends, positions, paths = pack_prefix_tree(prompts, capacity)
    mask = additive_mask(attends[:, None].to(device), policy.dtype)
    output = policy.base_model(input_ids=ids.to(device), position_ids=positions.to(device),
                               attention_mask=mask, past_key_values=cache, use_cache=True)
    last = output.last_hidden_state.flatten(0, 1)[[int(path[-1]) for path in paths]]
    paths, is_token, _ = left_pad([path.tolist() for path in paths], device)
    layers = {layer: [t.transpose(1, 2).flatten(0, 1) for t in pair] for layer, pair in cache.layers.items()}
    return layers, paths, is_token, last


def hidden_states(policy, prompts, rows, ids):
    """Hidden states (b, L, D) that predict ids (b, L) after the rows (b,) of prefill_prompts."""
    layers, paths, is_token, last = prompts
    b, L = ids.shape
    causal = torch.ones(L - 1, L - 1, dtype=torch.bool, device=ids.device).tril().expand(b, -1, -1)
    # prompt and earlier tokens
    attends = torch.cat([is_token[rows][:, None, :].expand(-1, L - 1, -1), causal], 2)
    positions = is_token[rows].sum(1)[:, None] + torch.arange(L - 1, device=ids.device)
    mask = additive_mask(attends[:, None], policy.dtype)
    output = policy.base_model(input_ids=ids[:, :-1], attention_mask=mask, position_ids=positions,
                               past_key_values=PathCache(layers, paths[rows]), use_cache=True)
    # the prompt's end predicts token 1
    return torch.cat([last[rows][:, None], output.last_hidden_state], 1)


def passes(completions, pass_tokens):
    """Indices of completions of similar length, in lists of at most pass_tokens tokens with padding."""
    part = []
    for b in sorted(range(len(completions)), key=lambda b: len(completions[b])):
        if part and (len(part) + 1) * len(completions[b]) > pass_tokens:
            yield part
            part = []
        part.append(b)
    yield part


def token_logprobs(policy, groups, temperature=1.0):
    """Log-probabilities (B, T) of the completions' tokens, a bool mask (B, T) and the mean entropy.

    groups: list of (prompt ids, list of completions' ids), B completions in all. One pass over the prompts,
    then passes over distinct completions of similar length, which attend to their prompt's keys and values.
    """
    if not shares_prompts(policy):
        return token_logprobs_plain(policy, groups, temperature)
    device = policy.device
    pass_tokens = 750 if device.type == "cpu" else 16_000  # about what a core's cache holds
    if is_sharded(policy):              # each rank must make the same number of passes: two
        pass_tokens = math.inf
    pairs = [(n, tuple(completion)) for n, (_, group) in enumerate(groups) for completion in group]
    unique = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    which = [unique[pair] for pair in pairs]                        # (B,)
    prompts = prefill_prompts(policy, [prompt for prompt, _ in groups])
    group = torch.tensor([n for n, _ in unique], device=device)
    completions = [list(completion) for _, completion in unique]
    lengths = torch.tensor([len(c) for c in completions], device=device)
    logprobs, entropies = [None] * len(completions), [None] * len(completions)
    for part in passes(completions, pass_tokens):
        L = max(2, len(completions[part[-1]]))                      # 2: ids[:, :-1] must not be empty
        # (b, L)
        ids = torch.tensor([completions[b] + [0] * (L - len(completions[b])) for b in part], device=device)
        hidden = hidden_states(policy, prompts, group[part], ids)
        inside = torch.arange(L, device=device) < lengths[part, None]  # EOS is trained, padding is not
        values = head_logprobs(policy, hidden[inside], ids[inside], temperature)
        for stored, flat in zip((logprobs, entropies), values, strict=True):
            for b, row in zip(part, flat.split(lengths[part].tolist()), strict=True):
                stored[b] = row
    mask = torch.arange(int(lengths.max()), device=device) < lengths[which, None]               # (B, T)
    logprobs = torch.nn.utils.rnn.pad_sequence([logprobs[i] for i in which], batch_first=True)
    return logprobs, mask, torch.cat([entropies[i] for i in which]).mean()


# Micro-batches
def tokens_after_prefix_sharing(turns):
    """Of each of the sorted turns (prompt ids, completion ids, ..) the tokens that the one before lacks."""
    sizes, previous = [], ([], [])
    for prompt, completion, *_ in turns:
        new = len(prompt) - common_prefix_length(prompt, previous[0]) + len(completion)
        sizes.append(0 if (prompt, completion) == previous else new)
        previous = prompt, completion
    return sizes


def group_sequences(turns, max_tokens, share=True):
    """Turns grouped by prompt, in lists of at most max_tokens tokens; share: shared tokens count once."""
    turns, batches, free = sorted(turns, key=lambda turn: turn[:2]), [], 0
    for turn, size in zip(turns, tokens_after_prefix_sharing(turns), strict=True):
        alone = len(turn[0]) + len(turn[1])
        size = size if share else alone
        if size > free:                 # full: the rest of a group opens the next one
            batches.append([])
            free, size = max_tokens, alone
        if not batches[-1] or turn[0] != batches[-1][-1][0][0]:
            batches[-1].append([])
        batches[-1][-1].append(turn)
        free -= size
    return batches


def sequences_of_rank(turns):
    """This rank's part of the turns: whole groups, neighbours in the prefix tree, of about equal tokens."""
    mine, done, groups = [], 0, group_sequences(turns, math.inf)[0]
    each = iter(tokens_after_prefix_sharing([turn for group in groups for turn in group]))
    sizes = [sum(itertools.islice(each, len(group))) for group in groups]
    for group, size in zip(groups, sizes, strict=True):
        mine += group if int((done + size / 2) * num_ranks() / sum(sizes)) == rank() else []
        done += size
    return mine


def micro_batches(policy, turns, max_tokens):
    """(groups, weight) of this rank's micro-batches of at most max_tokens tokens of turns (ids, ids, ..).

    Ranks of a sharded policy gather layers together, so each has the same number; dummy ones have weight 0.
    """
    batches = group_sequences(sequences_of_rank(turns), max_tokens, shares_prompts(policy))
    batches = [(batch, 1.0) for batch in batches]
    if is_sharded(policy):
        batches += [([[turns[0]]], 0.0)] * (max(gather(len(batches))) - len(batches))
    for batch in batches:
        if is_sharded(policy):
            policy.unshard()  # embedding and head, which are called by themselves
        yield batch


def num_tokens(turns):
    """Tokens of the completions of turns (prompt ids, completion ids, ..)."""
    return sum(len(turn[1]) for turn in turns)


def update_cost(turns, seconds):
    """Speed of an update, and the shares of its tokens that prefix sharing and deduplication saved."""
    prompts, completions = sum(len(turn[0]) for turn in turns), num_tokens(turns)
    distinct = sorted({(tuple(turn[0]), tuple(turn[1])) for turn in turns})
    distinct_tokens = num_tokens(distinct)
    computed = sum(tokens_after_prefix_sharing(distinct))
    return {"seconds_update": seconds, "update_tokens_per_second": completions / seconds,
            "prompt_tokens_saved": 1 - (computed - distinct_tokens) / prompts,
            "completion_tokens_saved": 1 - distinct_tokens / completions}
