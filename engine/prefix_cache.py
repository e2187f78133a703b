"""Prefix caching between the turns of episodes: a prompt that begins with the last one reuses its keys and
values."""
import bisect

import torch

from .attention import LayerCache


def common_prefix_length(a, b):
    if a == b:
        return len(a)
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


class PrefixCache:
    """Keys and values of one turn's prompts for the next turn, with the same weights."""

    def __init__(self):
        self.stored, self.new = {}, {}  # {prompt: keys and values of its n tokens in all layers (n, F)}
        self.prompts, self.max_bytes = [], 0                        # stores nothing before next_turn

    def next_turn(self, max_bytes):
        """What was added is what is found from now on; at most max_bytes can be added."""
        self.stored, self.new, self.max_bytes = self.new, {}, max_bytes
        self.prompts = sorted(self.stored)

    def find(self, prompt, none):
        """Keys and values (n, F) of the longest known prefix of prompt[:-1], or `none`."""
        i = bisect.bisect(self.prompts, tuple(prompt))              # sorted: the longest prefix is beside it
        near = self.prompts[max(i - 1, 0):i + 1]
        lengths = [common_prefix_length(prompt[:-1], list(known)) for known in near]
        n = max(lengths, default=0)
        return self.stored[near[lengths.index(n)]][:n] if n else none

    def add(self, prompts, is_token, layers):
        """Store {layer: (keys, values) (N, H_kv, T, D)} of N prompts; is_token (N, T) is False at padding."""
        self.max_bytes -= sum(t.nbytes for pair in layers.values() for t in pair)
        if self.max_bytes >= 0:
            # (N, T, F)
            vectors = torch.cat([t.transpose(1, 2).flatten(2) for pair in layers.values() for t in pair], 2)
            for prompt, vector, valid in zip(prompts, vectors, is_token, strict=True):
                self.new[tuple(prompt)] = vector[valid]


class PrefillCache(LayerCache):
    """Stores the keys and values of a prefill, each after its part of those of known prefixes (N, n, F)."""

    def __init__(self, prefixes):
        super().__init__()
        self.prefixes = prefixes

    def update(self, key, value, layer, *args, **kwargs):
        return super().update(self.prepend(key), self.prepend(value), layer)

    def prepend(self, new):
        N, H, _, D = new.shape
        if not self.prefixes.shape[1]:
            return new
        known, self.prefixes = self.prefixes.split([H * D, self.prefixes.shape[2] - H * D], 2)
        return torch.cat([known.view(N, -1, H, D).transpose(1, 2), new], 2)
