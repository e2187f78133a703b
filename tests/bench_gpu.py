"""Speed and memory at the shape of Qwen2.5-7B on one GPU, random weights, bfloat16. python tests/bench_gpu.py limits rollout update memory step turns trl

limits    what this GPU does at best: a large matrix product, a large copy
rollout   tokens a second, with a CUDA graph and eager, against transformers' generate(num_return_sequences=8) and (`continuous`) its continuous batching;
          and the least time of a decode step: weights, keys and values loaded once, or the operations at the rate of `limits`; many: 1,024 rows alone
update    each prompt computed once against each completion as a sequence of its own; model FLOP utilisation of a micro-batch of 15,000 tokens
memory    peak of an update over weights and gradients against a plain forward with all logits, two of the 28 layers, checkpointed
step      one batch of --recipe paper --lora_rank 64: rollout and update, 32 prompts x 8
turns     rollout and update of episodes of three turns, with prefixes computed once and without
trl       a whole step against TRL's GRPOTrainer at the shape of Qwen2.5-0.5B (needs trl): same model, prompts, G, length, optimizer; reward without cost

Prompts have 650 tokens and completions 300, what README takes a step of s1K to have. Random weights end no completion, so all are equally long.
"""
import argparse
import itertools
import random
import sys
import tempfile
import time
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from engine import logprobs, prefix_cache  # noqa: E402
from engine.attention import register_attention  # noqa: E402
from engine.kv_cache import SharedPromptCache  # noqa: E402
from engine.optimizer import make_optimizer  # noqa: E402
from engine.policy import load_policy  # noqa: E402
from engine.run import peak_gb  # noqa: E402

srl = import_module("02_srl_train")
register_attention()
DEVICE, PROMPT, COMPLETION, G, VOCABULARY = "cuda", 650, 300, 8, 152_064
SIZES = {"7B": (3584, 18944, 28, 28, 4), "0.5B": (896, 4864, 24, 14, 2)}                          # width, feed-forward, layers, heads, key-value heads
NO_TOKENIZER = SimpleNamespace(eos_token_id=None, batch_decode=lambda ids, **kwargs: [""] * len(ids))


@lru_cache(maxsize=1)
def random_model(size="7B", layers=None, attention="grouped_query"):
    """A model of Qwen2.5's shape in bfloat16. Its end token is 0."""
    width, feed_forward, depth, heads, kv_heads = SIZES[size]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = Qwen2ForCausalLM(Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers or depth, num_attention_heads=heads,
            num_key_value_heads=kv_heads, tie_word_embeddings=size != "7B", attn_implementation=attention, bos_token_id=None, eos_token_id=0, pad_token_id=0))
    torch.set_default_dtype(torch.float32)
    model.config.dtype = "bfloat16"
    return model.eval()


def draw(rng, num):
    return [rng.randrange(5, 150_000) for _ in range(num)]


def timed(function):
    """(seconds, what it returns)."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    value = function()
    torch.cuda.synchronize()
    return time.perf_counter() - started, value


def median_time(function, repeats=3):
    function()
    return sorted(timed(function)[0] for _ in range(repeats))[repeats // 2]


@lru_cache(maxsize=1)
def limits():
    """(operations a second of a bf16 matrix product, bytes a second of a copy, loads and stores counted)."""
    a, b = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16), torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    flops = 2 * 8192**3 / median_time(lambda: a @ b, 9)
    source = torch.empty(2**31, device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    rate = 2 * len(source) / median_time(lambda: target.copy_(source), 9)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {flops / 1e12:.0f} TFLOP/s, {rate / 1e12:.2f} TB/s")
    return flops, rate


def weights_used(model):
    """Weights in the matrix products of a token: all but the embedding, of which it takes one row."""
    tied = model.config.tie_word_embeddings
    return sum(p.numel() for p in model.parameters()) - (0 if tied else model.get_input_embeddings().weight.numel())


def least_step(model, rows):
    """Seconds that a decode step of so many rows takes at least, half way through the completions."""
    flops, rate = limits()
    c = model.config
    kv = 2 * 2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads)         # bytes a token
    loaded = 2 * weights_used(model) + kv * rows * (PROMPT / G + COMPLETION / 2)
    attention = 4 * c.num_hidden_layers * c.hidden_size * rows * (PROMPT + COMPLETION / 2)
    return max(loaded / (rate / 2) / 2, (2 * weights_used(model) * rows + attention) / flops)      # half of a copy's bytes are loads; here all are


def rollout(sizes=(128, 384, 1024)):
    model, rng = random_model(), random.Random(0)

    def ours(prompts):
        result = srl.generate(model, NO_TOKENIZER, prompts, G, max_new_tokens=COMPLETION, max_rows=2048)
        return sum(map(len, result.completions))

    def eager(prompts):
        replay, SharedPromptCache.replay = SharedPromptCache.replay, SharedPromptCache.decode_step
        try:
            return ours(prompts)
        finally:
            SharedPromptCache.replay = replay

    def transformers_generate(prompts):
        ids = torch.tensor(prompts, device=DEVICE)
        model.set_attn_implementation("sdpa")
        try:
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, num_return_sequences=G, max_new_tokens=COMPLETION, top_k=0)
        finally:
            model.set_attn_implementation("grouped_query")
        return out[:, ids.shape[1]:].numel()

    ours([draw(rng, 50)] * 2)
    for rows in sizes:
        prompts = [draw(rng, PROMPT) for _ in range(rows // G)]
        for name, way in (("CUDA graph", ours), ("eager", eager), ("generate", transformers_generate)):
            if rows <= 384 or name == "CUDA graph":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                seconds, tokens = timed(lambda way=way, prompts=prompts: way(prompts))
                print(f"{rows:5} rows, {name:10}: {seconds:6.2f} s, {tokens / seconds:7,.0f} tokens/s, "
                      f"{1000 * seconds / COMPLETION:5.1f} ms a step with all else, "
                      f"at least {1000 * least_step(model, rows):.1f}; peak {torch.cuda.max_memory_allocated() / 1e9:.0f} GB", flush=True)


def continuous():
    """transformers' continuous batching on the same 384 rows."""
    model, rng = random_model(attention="sdpa"), random.Random(0)
    prompts = [prompt for prompt in (draw(rng, PROMPT) for _ in range(48)) for _ in range(G)]
    config = GenerationConfig(max_new_tokens=COMPLETION, do_sample=True, top_k=0, eos_token_id=0, pad_token_id=0)
    seconds, out = timed(lambda: model.generate_batch(inputs=prompts, generation_config=config))
    tokens = sum(len(o.generated_tokens) for o in out.values())
    print(f"  384 rows, continuous batching: {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s, set-up included")


def group_of(rng, P, R):
    return draw(rng, P), [draw(rng, R) for _ in range(G)]


def with_checkpoints(model):
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)


def update():
    model, rng = random_model(), random.Random(0)

    def gradient(parts):
        for part in parts:
            srl.token_logprobs(model, part)[0].sum().backward()
        model.zero_grad(set_to_none=True)
    limits()
    for P, R in ((100, 60), (600, 100), (1500, 300)):
        prompt, group = group_of(rng, P, R)
        shared = median_time(lambda prompt=prompt, group=group: gradient([[(prompt, group)]]))
        unshared = median_time(lambda prompt=prompt, group=group: gradient([[(prompt, [completion])] for completion in group]))
        print(f"P {P:5}, R {R:4}: shared {shared:.3f} s, unshared {unshared:.3f} s; ratio {unshared / shared:.1f}, "
              f"of tokens {8 * (P + R) / (P + 8 * R):.1f}", flush=True)
    with_checkpoints(model)
    groups = [group_of(rng, PROMPT, COMPLETION) for _ in range(5)]
    torch.cuda.reset_peak_memory_stats()
    seconds = median_time(lambda: gradient([groups]))
    tokens, c = 5 * (PROMPT + G * COMPLETION), model.config
    layers = weights_used(model) - VOCABULARY * c.hidden_size
    pairs = 5 * (PROMPT**2 / 2 + G * (COMPLETION * PROMPT + COMPLETION**2 / 2))                    # (query, key) pairs of attention
    work = 6 * (layers * tokens + VOCABULARY * c.hidden_size * 5 * G * COMPLETION) + 12 * c.num_hidden_layers * c.hidden_size * pairs
    print(f"micro-batch of {tokens} tokens with checkpointed layers: {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s, model FLOP utilisation "
          f"{work / seconds / 989e12:.0%} of 989 TFLOP/s, {work / seconds / limits()[0]:.0%} of the measured product; recomputation of layers not counted; "
          f"peak {torch.cuda.max_memory_allocated() / 1e9:.0f} GB")
    random_model.cache_clear()


def memory():
    model = random_model(layers=2)
    with_checkpoints(model)
    prompt, group = group_of(random.Random(0), PROMPT, 2000)
    ids = torch.tensor([prompt + completion for completion in group], device=DEVICE)

    def plain():
        logprobs = model(ids).logits[:, len(prompt) - 1:-1].float().log_softmax(-1).gather(-1, ids[:, len(prompt):, None])
        logprobs.sum().backward()
    peaks = []
    for way in (lambda: srl.token_logprobs(model, [(prompt, group)])[0].sum().backward(), plain):
        way()                                                                                     # from now on the gradients have their memory
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 1e9)
    print(f"8 completions of 2,000 tokens, prompt {PROMPT}, vocabulary {VOCABULARY}: "
          f"ours {peaks[0]:.2f} GB, plain {peaks[1]:.2f} GB; ratio {peaks[1] / peaks[0]:.1f}")
    random_model.cache_clear()


def one_step(model, optimizer, cfg, prompts):
    """Rollout and update with random advantages. Returns (seconds of the rollout, seconds of the update, sampled tokens)."""
    rolled, sample = timed(lambda: srl.generate(model, NO_TOKENIZER, prompts, G, max_new_tokens=cfg.max_new_tokens, max_rows=cfg.max_rows))
    advantages = srl.group_advantages(torch.rand(len(prompts), G)).flatten().tolist()
    turns = [(prompts[i // G], *x, a) for i, (*x, a) in enumerate(zip(sample.completions, sample.logprobs, advantages, strict=True))]
    updated, stats = timed(lambda: srl.update(model, optimizer, turns, cfg))
    return rolled, updated, sum(map(len, sample.completions)), stats


def with_lora():
    cfg = replace(srl.Config(), **{**srl.PAPER["srl"], "lora_rank": 64, "max_new_tokens": COMPLETION, "learning_rate": 5e-6, "device": DEVICE})
    random_model.cache_clear()
    model = random_model()
    model.requires_grad_(False)
    optimizer = make_optimizer(model, cfg)
    model.to(DEVICE)
    return model, optimizer, cfg, random.Random(0)


def step():
    model, optimizer, cfg, rng = with_lora()
    torch.cuda.reset_peak_memory_stats()
    for name in ("first", "second"):
        rolled, updated, tokens, stats = one_step(model, optimizer, cfg, [draw(rng, PROMPT) for _ in range(32)])
        print(f"{name} step, 32 prompts x 8: rollout {rolled:.1f} s ({tokens / rolled:,.0f} tokens/s), update {updated:.1f} s "
              f"({tokens / updated:,.0f} tokens/s), largest difference of log-probabilities {stats['mismatch']:.3f}; "
              f"peak {peak_gb('cuda'):.0f} GB", flush=True)
    random_model.cache_clear()


def turns(problems=8, num=3, written=100, action=40):
    """Each of 8 episodes a problem appends an action of its own to the prompt in every turn."""
    model, optimizer, cfg, rng = with_lora()
    first = [draw(rng, PROMPT) for _ in range(problems)]
    prompts = [[prompt for prompt in first for _ in range(G)]]
    while len(prompts) < num:
        prompts.append([prompt + draw(rng, action) for prompt in prompts[-1]])

    def rollout(cache):
        turns = []
        for ids in prompts:
            sample = srl.generate(model, NO_TOKENIZER, first if ids is prompts[0] else ids, G if ids is prompts[0] else 1,
                                  max_new_tokens=written, max_rows=cfg.max_rows, prefix_cache=cache)
            turns += [(*x, 1.0 - 2 * (i % 2)) for i, x in enumerate(zip(ids, sample.completions, sample.logprobs, strict=True))]
        return turns
    rollout(None)
    length, times = logprobs.common_prefix_length, []
    for name, cache, common in (("prefixes once", prefix_cache.PrefixCache(), length), ("equal prompts once", None, lambda a, b: len(a) if a == b else 0)):
        logprobs.common_prefix_length = common
        rolled, batch = timed(lambda cache=cache: rollout(cache))
        updated, stats = timed(lambda batch=batch: srl.update(model, optimizer, batch, cfg))
        times.append((rolled, updated))
        print(f"{problems} problems x {G} episodes of {num} turns, {name}: rollout {rolled:.2f} s, update {updated:.2f} s, "
              f"largest difference of log-probabilities {stats['mismatch']:.3f}", flush=True)
    logprobs.common_prefix_length = length
    print("ratios: rollout {:.2f}, update {:.2f}".format(*(b / a for a, b in zip(*times, strict=True))))
    random_model.cache_clear()


def trl():
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    P, length, steps, model = 48, 200, 2, random_model("0.5B")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "miniature/base")
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "Solve 6(9x + 2) + 53 = 46x - 63 " * 16}]}] * P * 4)
    prompt = tokenizer.apply_chat_template(data[0]["prompt"], add_generation_prompt=True)["input_ids"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        policy, _ = load_policy(folder, DEVICE, "bfloat16")
        cfg = srl.Config(device=DEVICE, dtype="bfloat16", max_new_tokens=length, update_tokens=16_000)
        optimizer = make_optimizer(policy, cfg)
        prompts = [[*prompt, 5 + i] for i in range(P)]                                             # P different ones: equal prompts would be computed once
        parts = [one_step(policy, optimizer, cfg, prompts) for _ in range(steps + 1)][1:]
        ours = sum(a + b for a, b, *_ in parts) / steps
        print(f"ours: {ours:.2f} s a step of {P} prompts of {len(prompt)} tokens x {G} completions of {length}, "
              f"rollout {sum(p[0] for p in parts) / steps:.2f} s", flush=True)
        ends = []

        class Clock(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                ends.append(time.perf_counter())
        trainer = GRPOTrainer(folder, lambda completions, **kwargs: [random.random() for _ in completions], train_dataset=data, processing_class=tokenizer,
                              args=GRPOConfig(output_dir=folder, bf16=DEVICE == "cuda", use_cpu=DEVICE == "cpu", per_device_train_batch_size=P,
                                              gradient_accumulation_steps=G, num_generations=G,
                                              max_completion_length=length, learning_rate=5e-7, beta=0.0, max_steps=steps + 1, save_strategy="no",
                                              report_to="none", disable_tqdm=True, gradient_checkpointing=False,
                                              model_init_kwargs={"dtype": "bfloat16"}), callbacks=[Clock()])
        trainer.train()
    theirs = sum(b - a for a, b in itertools.pairwise(ends)) / steps
    print(f"TRL:  {theirs:.2f} s a step; ratio {theirs / ours:.1f}")


def main():
    sections = {f.__name__: f for f in (rollout, update, memory, step, turns, trl, continuous)} | {"many": partial(rollout, (1024,)), "limits": limits}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="+", choices=sections)
    for name in parser.parse_args().sections:
        print(f"== {name}", flush=True)
        sections[name]()


if __name__ == "__main__":
    main()
