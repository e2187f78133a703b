"""The key-value cache of a rollout: a group's prompt is stored once and read once for all its rows."""
import warnings
import weakref
from dataclasses import dataclass

import torch

from .attention import LayerCache, additive_mask
from .distributed import is_sharded
from .plain import left_pad
from .prefix_cache import PrefillCache, PrefixCache


@dataclass
class DecodeCache(LayerCache):
    """The tensors that one decode step reads; it writes the new token's column of own."""
    length: torch.Tensor            # (B,) tokens of each row so far
    row: torch.Tensor               # (B,) 0 .. B - 1
    row_of_slot: torch.Tensor       # (P, W)
    slot_of_row: torch.Tensor       # (B,)
    padding_mask: torch.Tensor      # (P, 1, 1, T), additive: padding of the prompts
    prompts: tuple                  # of each layer keys (P, H_kv, D, T) and values (P, H_kv, T, D)
    own: tuple                      # of each layer keys and values (B, H_kv, t, D)
    # (B, 1, 1, t), additive; None: all rows are equally long, and the last column is the new one
    length_mask: torch.Tensor = None

    def update(self, key, value, layer, *args, **kwargs):
        for stored, new in zip(self.own[layer], (key, value), strict=True):
            if self.length_mask is None:
                stored[:, :, -1] = new[:, :, 0]
            else:
                stored[self.row, :, self.length] = new[:, :, 0]
        return self.own[layer]


class DecodeStep(torch.nn.Module):
    """One token of each row as a function of tensors, which can be traced: tokens (B,), positions (B,) and
    the fields of DecodeCache -> last hidden states (B, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, positions, *fields):
        cache = DecodeCache(*fields)
        output = self.model(input_ids=tokens[:, None], position_ids=positions[:, None], past_key_values=cache,
                            attention_mask=cache.padding_mask, use_cache=True, decode_cache=cache)
        return output.last_hidden_state[:, -1]


# {policy: {(ids of its weights, number of fields): DecodeStep, traced}}; LoRA adds weights
TRACED = weakref.WeakKeyDictionary()


def traced_step(policy, weights, inputs):
    """The DecodeStep of a policy, on a CPU traced with TorchScript: without Python a small model's rollout
    takes two thirds of the time. Untraced where a number controls the code (dynamic RoPE) or torch cannot."""
    step = DecodeStep(policy.base_model)
    if policy.device.type != "cpu" or is_sharded(policy):
        return step
    steps, key = TRACED.setdefault(policy, {}), (weights, len(inputs))
    if key not in steps:
        from transformers.utils import logging
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()           # tracing reads every property of a model, deprecated ones too
        with warnings.catch_warnings(action="ignore"):
            try:                                                    # the warning: a number leaves the tensors
                warnings.simplefilter("error", torch.jit.TracerWarning)
                steps[key] = torch.jit.trace(step, tuple(inputs), check_trace=False)
            except Exception:  # an architecture of another kind fails in any way
                steps[key] = step
        logging.set_verbosity(verbosity)
    return steps[key]


class SharedPromptCache:
    """Keys and values of B rows in groups that share a prompt. A decode step writes one column.

        prompts[layer]      keys (P, H_kv, D, T), values (P, H_kv, T, D): each prompt once, padded on the left
        own[layer]          keys, values (B or more, H_kv, room, D): row b in columns 0 .. length[b] - 1
        group (B,)          the prompt of each row
        slot_of_row (B,)    its slot in a grid with a line for each prompt; row_of_slot (P, W) is the inverse
    """
    ROOM = 32               # columns that own grows by

    def __init__(self, policy, max_length, prefix_cache=None):
        self.policy, self.max_length, self.prefix_cache = policy, max_length, prefix_cache or PrefixCache()
        self.head = policy.get_output_embeddings()
        self.weights = tuple(map(id, policy.parameters()))
        self.on_gpu = policy.device.type == "cuda" and not is_sharded(policy)
        self.room, self.prompts, self.own = 0, {}, {}
        # (P, T), False at padding
        self.is_token = torch.zeros(0, 0, dtype=torch.bool, device=policy.device)
        self.group = self.length = torch.zeros(0, dtype=torch.long, device=policy.device)

    def prefill(self, prompts, sizes):
        """Compute prompts (lists of ids) and open sizes[i] rows for prompts[i]: the logits of all (b, V)."""
        none = torch.zeros(0, 0, dtype=self.policy.dtype, device=self.policy.device)
        prefixes = [self.prefix_cache.find(prompt, none) for prompt in prompts]
        new = max(len(prompt) - len(prefix) for prompt, prefix in zip(prompts, prefixes, strict=True))
        tokens = 2000 if self.policy.device.type == "cpu" else 32_000       # what a core's cache holds, about
        size = max(1, min(tokens // new, 32_000 // max(map(len, prompts)))) # known prefixes are copied
        parts = [self.read(prompts[i:i + size], prefixes[i:i + size]) for i in range(0, len(prompts), size)]
        hidden, masks, layers = zip(*parts, strict=True)
        T, P = max(self.is_token.shape[1], *(mask.shape[1] for mask in masks)), len(self.is_token)
        sizes = torch.as_tensor(sizes, device=self.group.device)
        group = torch.repeat_interleave(torch.arange(len(prompts), device=sizes.device), sizes)
        for layer, (key, value) in layers[0].items():
            pairs = [self.prompts.get(layer, (key[:0], value[:0])), *(part[layer] for part in layers)]
            keys, values = zip(*pairs, strict=True)
            self.prompts[layer] = (torch.cat([pad_left(t, 3, T) for t in keys]),
                                   torch.cat([pad_left(t, 2, T) for t in values]))
            H, D = value.shape[1], (key.shape[2], value.shape[3])
            new = [value.new_zeros(len(group), H, self.room, d) for d in D]
            old = [t[:len(self.group)] for t in self.own.get(layer, new)]
            self.own[layer] = [torch.cat(pair) for pair in zip(old, new, strict=True)]
        self.is_token = torch.cat([pad_left(mask, 1, T) for mask in (self.is_token, *masks)])
        self.group = torch.cat([self.group, P + group])
        self.length = torch.cat([self.length, torch.zeros_like(group)])
        self.arrange()
        return self.head(torch.cat(hidden)[group])

    def read(self, prompts, prefixes):
        """One pass over N prompts after their known prefixes: last hidden states (N, D), is_token (N, T) and
        {layer: (keys (N, H_kv, D, T), values (N, H_kv, T, D))}."""
        device = self.policy.device
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        n, F = max(map(len, prefixes)), max(prefix.shape[1] for prefix in prefixes)
        unread = [prompt[len(prefix):] for prompt, prefix in zip(prompts, prefixes, strict=True)]
        ids, is_token, positions = left_pad(unread, device)
        known = torch.arange(n, device=device) >= n - lengths[:, None]                          # (N, n)
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
        # a padded position attends to itself: no empty softmax
        mask = (is_token[:, None, :] & causal) | torch.eye(len(causal), dtype=torch.bool, device=device)
        mask = torch.cat([known[:, None, :].expand(-1, len(causal), -1), mask], 2)[:, None]  # (N, 1, L, n+L)
        prefixes = [pad_left(prefix.view(len(prefix), F), 0, n) for prefix in prefixes]
        cache = PrefillCache(torch.stack(prefixes))                                             # (N, n, F)
        output = self.policy.base_model(
            input_ids=ids, attention_mask=additive_mask(mask, self.policy.dtype), past_key_values=cache,
            position_ids=positions + lengths[:, None], use_cache=True)
        is_token = torch.cat([known, is_token], 1)
        self.prefix_cache.add(prompts, is_token, cache.layers)
        layers = {layer: (key.transpose(2, 3), value) for layer, (key, value) in cache.layers.items()}
        return output.last_hidden_state[:, -1], is_token, layers

    def decode(self, row, token):
        """Append token (B,) to row (B,) of the cache. Returns the next logits (R, V) and new rows (B,) of R.

        Completions with the same tokens stay in the same row, which is forked where they diverge; not on a
        GPU: CUDA graphs need the same rows at every step. Rows without a completion are evicted, several at
        once: it costs a copy.
        """
        V = len(self.head.weight)
        pairs, index = (row * V + token).unique(return_inverse=True)  # (row, token), each once, ascending
        row, token = pairs // V, pairs % V
        if len(row) < 0.8 * len(self.length) or int(self.length.max()) + 1 == self.max_length:
            kept = row.unique_consecutive()
            row = torch.searchsorted(kept, row)
            self.evict_all_but(kept)
        diverges = torch.diff(row, prepend=row.new_full((1,), -1)) == 0  # another token for the same row
        if not self.on_gpu and diverges.any():
            forked = torch.arange(int(diverges.sum()), device=row.device) + len(self.length)
            self.fork(row[diverges])
            row[diverges] = forked
        if not len(row):
            return None, row
        tokens = token.new_zeros(len(self.length)).index_put((row,), token)
        return self.forward(tokens), row[index]

    def evict_all_but(self, rows):
        """Only these rows stay, and their prompts."""
        self.own = map_layers(self.own, lambda t: t.index_select(0, rows))
        needed, self.group = self.group[rows].unique(return_inverse=True)
        if len(needed) < len(self.is_token):
            self.prompts = map_layers(self.prompts, lambda t: t.index_select(0, needed))
            self.is_token = self.is_token[needed]
        if not len(needed):
            self.prompts, self.is_token = {}, self.is_token[:, :0]
        self.length = self.length[rows]
        self.arrange()

    def fork(self, rows):
        """Open a new row for each of these, with the same prompt and the same tokens."""
        old, new = len(self.group), len(self.group) + len(rows)
        for pair in self.own.values():
            for i, t in enumerate(pair):
                if len(t) < new:
                    pair[i] = t = torch.cat([t, t.new_zeros(new, *t.shape[1:])])
                t[old:new] = t.index_select(0, rows)
        self.group = torch.cat([self.group, self.group[rows]])
        self.length = torch.cat([self.length, self.length[rows]])
        self.arrange()

    def arrange(self):
        """Give each row a slot beside the others of its group."""
        self.graph, self.repeats = None, 0
        self.row = torch.arange(len(self.group), device=self.group.device)
        counts = torch.bincount(self.group, minlength=len(self.is_token))                       # (P,)
        order = self.group.argsort(stable=True)
        width = int(counts.max()) if len(counts) else 0
        self.slot_of_row = self.group * width
        self.slot_of_row[order] += self.row - (counts.cumsum(0) - counts)[self.group[order]]
        self.row_of_slot = self.slot_of_row.new_zeros(len(self.is_token), width)
        self.row_of_slot.view(-1)[self.slot_of_row] = self.row
        self.padding_mask = additive_mask(self.is_token, self.policy.dtype)[:, None, None]
        self.first_position = self.is_token.sum(1)[self.group]  # (B,) of a row's first own token

    def forward(self, tokens):
        """The logits (B, V) after one more token of each row, tokens (B,)."""
        if int(self.length.max()) == self.room:
            self.room, self.graph, self.repeats = self.room + self.ROOM, None, 0
            self.own = map_layers(self.own, lambda t: torch.nn.functional.pad(t, [0, 0, 0, self.ROOM]))
        hidden = self.replay(tokens) if self.on_gpu and tokens.is_cuda else self.decode_step(tokens)
        self.length.add_(1)
        return self.head(hidden)

    def decode_step(self, tokens):
        """The last hidden states (B, D) after tokens (B,)."""
        if self.on_gpu:  # a CUDA graph needs the same sizes at every step
            columns, ragged = self.room, True
        else:
            columns, ragged = int(self.length.max()) + 1, bool((self.length != self.length[0]).any())
        own = map_layers(self.own, lambda t: t[:len(tokens), :, :columns])
        prompts, own = (tuple(map(tuple, layers.values())) for layers in (self.prompts, own))
        inputs = [tokens, self.first_position + self.length, self.length, self.row, self.row_of_slot,
                  self.slot_of_row, self.padding_mask, prompts, own]
        if ragged:
            valid = torch.arange(columns, device=tokens.device) <= self.length[:, None]
            inputs.append(additive_mask(valid, self.policy.dtype)[:, None, None])
        return traced_step(self.policy, self.weights, inputs)(*inputs)

    def replay(self, tokens):
        """decode_step as a CUDA graph, captured at the second step of a size: 1.3 to 1.7 times as fast."""
        self.repeats += 1
        if self.repeats == 1:
            return self.decode_step(tokens)
        if self.graph is None:
            self.graph, self.graph_tokens = torch.cuda.CUDAGraph(), tokens.clone()
            with torch.cuda.graph(self.graph):
                self.graph_hidden = self.decode_step(self.graph_tokens)
        self.graph_tokens.copy_(tokens)
        self.graph.replay()
        return self.graph_hidden


def map_layers(layers, function):
    """{layer: [keys, values]} with a function applied to each tensor."""
    return {layer: [function(t) for t in pair] for layer, pair in layers.items()}


def pad_left(t, dim, length):
    """The tensor with zeros before its beginning along dim, up to length."""
    if t.shape[dim] == length:
        return t
    return torch.nn.functional.pad(t, [0, 0] * (t.dim() - 1 - dim) + [length - t.shape[dim], 0])
