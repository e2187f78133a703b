"""Attention of every forward pass of transformers' models, its masks, the cache that their layers call."""
import torch


def shares_prompts(policy):
    """Whether a prompt is computed once for its group; load_policy finds out."""
    return getattr(policy, "shares_prompts", True)


def shared_prompt_attention(query, key, value, scaling, cache, layer):
    """One decode step: each row attends, under one softmax, to its group's prompt and its own tokens.

    query (B, H, 1, D), key and value (B, H_kv, t, D) -> (B, 1, H, D). The rows fill a grid (P, W) with a line
    for each prompt, which meets all its rows in one matrix product; empty slots of the grid are never read.
    """
    prompt_keys, prompt_values = cache.prompts[layer]               # (P, H_kv, D, T), (P, H_kv, T, D)
    B, H_kv, _, D = key.shape
    P, W = cache.row_of_slot.shape
    T = prompt_keys.shape[3]
    query = (query * (scaling or D**-0.5)).view(B, H_kv, -1, D)
    R = query.shape[2]                                              # query heads that share a key

    def to_grid(rows):                                              # (B, H_kv, R, n) -> (P, H_kv, W * R, n)
        grid = rows.index_select(0, cache.row_of_slot.view(-1)).view(P, W, H_kv, R, -1)
        return grid.transpose(1, 2).reshape(P, H_kv, W * R, -1)

    def from_grid(grid):                                            # and back
        rows = grid.view(P, H_kv, W, R, -1).transpose(1, 2).reshape(P * W, H_kv, R, -1)
        return rows.index_select(0, cache.slot_of_row)

    prompt_scores = from_grid((to_grid(query) @ prompt_keys).add_(cache.padding_mask))
    own_scores = query @ key.transpose(2, 3)
    if cache.length_mask is not None:
        own_scores.add_(cache.length_mask)
    weights = torch.cat([prompt_scores, own_scores], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (from_grid(to_grid(weights[..., :T]) @ prompt_values) + weights[..., T:] @ value).view(B, 1, -1, D)


def grouped_query_attention(module, query, key, value, attention_mask, scaling=None, decode_cache=None, **kw):
    """Attention of all passes: query (B, H, L, D), key and value (B, H_kv, T, D), additive attention_mask
    (B, 1, L, T) -> (B, L, H, D). On a CPU torch's kernel takes grouped keys; transformers' repeats them."""
    if decode_cache is not None:
        return shared_prompt_attention(query, key, value, scaling, decode_cache, module.layer_idx), None
    if query.is_cuda or attention_mask is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kw)
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, attention_mask, scale=scaling, enable_gqa=True).transpose(1, 2), None


def register_attention():
    """Make attn_implementation="grouped_query" known to transformers, whose import takes seconds."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    AttentionInterface.register("grouped_query", grouped_query_attention)
    AttentionMaskInterface.register("grouped_query", sdpa_mask)


def additive_mask(mask, dtype):
    """A bool mask, True where a query may attend, as numbers to add to its scores."""
    numbers = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return numbers.masked_fill_(~mask, torch.finfo(dtype).min)


class LayerCache:
    """What each layer of a transformers model calls with its new keys and values; this one stores them."""

    def __init__(self):
        self.layers = {}

    def update(self, key, value, layer, *args, **kwargs):
        self.layers.setdefault(layer, (key, value))     # gradient checkpointing computes a layer twice
        return key, value

    def get_seq_length(self, layer=0):
        return 0
