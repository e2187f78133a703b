"""Speed and memory, each against an alternative in the same run. By hand: python tests/bench_speed.py step rollout turns limits update memory reward growth

step      a whole update of SRL, rollout included, against TRL's GRPOTrainer (needs trl): same model, prompts, G, longest completion, reward, Adam;
          no dynamic sampling in either
rollout   tokens a second against transformers' generate(num_return_sequences=8), on the miniature
turns     an update and a rollout of stepwise RLVR against the same with equal prompts computed once, but no shared prefixes
limits    the update of `step`, the time of its matrix products alone, the update in bfloat16, and with torch.compile
layout    rollout and update of another checkout, --old FOLDER, against this one, in two processes that are asked alternately; base and --model
          these five with the base model, or another of the miniature: --model runs/srl/model, whose completions have more tokens in common
update    each prompt computed once against each completion as a sequence of its own, random model of 20 M parameters, three shapes
memory    peak memory of the update at a vocabulary of 151,936 against a plain forward with all logits
reward    similarities a second on real steps (../shared) or the miniature's, against difflib alone
growth    seconds of a rollout against prompts, G and prompt length; a plot in results/growth.png
plan      nothing measured: memory, traffic and time of an update of --recipe paper on N GPUs of 80 GB, from the shapes of Qwen2.5-7B
"""
import argparse
import itertools
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from difflib import SequenceMatcher
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from engine import kv_cache, logprobs, prefix_cache  # noqa: E402
from engine.attention import register_attention  # noqa: E402
from engine.chat import encode  # noqa: E402
from engine.files import read_jsonl  # noqa: E402
from engine.optimizer import make_optimizer  # noqa: E402
from engine.plain import left_pad  # noqa: E402
from engine.policy import load_policy  # noqa: E402
from engine.tables import STYLE  # noqa: E402

srl, segmentation = import_module("02_srl_train"), import_module("01_segment")


def seconds(*functions, repeats=5):
    """Median wall time of a call of each, after one to warm up. They alternate, so other load on the machine slows all of them."""
    times = []
    for _ in range(repeats + 1):
        marks = [time.perf_counter()]
        for function in functions:
            function()
            marks.append(time.perf_counter())
        times.append([b - a for a, b in itertools.pairwise(marks)])
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def miniature(P, model):
    """The policy, its tokenizer and P training examples, spread over the expert's problems."""
    examples, _ = segmentation.segment(read_jsonl(ROOT / "miniature/expert.jsonl"))
    return *load_policy(model), random.Random(0).sample(examples, P)


def random_model(vocab_size=496, **size):
    register_attention()
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, tie_word_embeddings=True, attn_implementation="grouped_query", **size))


def sampled(policy, tokenizer, examples, cfg):
    """(turns for an update, stats) of one batch, all groups kept."""
    torch.manual_seed(0)
    cfg = replace(cfg, prompts_per_batch=len(examples), max_tries=1, eps=-1.0)      # eps below 0: every group is kept
    groups, stats = srl.collect(policy, tokenizer, srl.Cursor(examples, 0), srl.srl_prompt, srl.srl_reward, None, cfg)
    return [(*e.turns[0][:3], a) for episodes, _, advantages in groups for e, a in zip(episodes, advantages.tolist(), strict=True)], stats


def step(model):
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    P, G, steps = 48, 8, 5
    policy, tokenizer, examples = miniature(P, model)
    cfg = srl.Config(device="cpu")
    optimizer = make_optimizer(policy, cfg)
    parts = []

    def ours():
        turns, stats = sampled(policy, tokenizer, examples, cfg)
        srl.update(policy, optimizer, turns, cfg)
        parts.append((stats["seconds_rollout"], stats["completions"] * stats["tokens"]))

    data = Dataset.from_list([{"prompt": srl.srl_prompt(e), "action": e["action"]} for e in examples])

    def reward(completions, action, **kwargs):
        return [srl.srl_reward(c[0]["content"], {"action": a}) for c, a in zip(completions, action, strict=True)]
    marks = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            marks.append(time.perf_counter())

        def on_step_end(self, *args, **kwargs):                                        # an update of theirs, one of ours, ..
            marks.append(time.perf_counter())
            ours()
            marks.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(model, reward, train_dataset=data, args=GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=P, gradient_accumulation_steps=G, num_generations=G,
            max_completion_length=cfg.max_new_tokens, learning_rate=cfg.learning_rate, beta=0.0, max_steps=steps + 1, save_strategy="no",
            report_to="none", disable_tqdm=True, gradient_checkpointing=False), callbacks=[Clock()])
        trainer.train()
    times = [b - a for a, b in itertools.pairwise(marks)]
    theirs, own = (statistics.median(times[first::2]) for first in (2, 3))             # without the first of each
    print(f"ours: {own:.2f} s an update of {P} prompts x {G}, of which rollout {statistics.median(p[0] for p in parts[1:]):.2f} s; {parts[-1][1]:.0f} tokens")
    print(f"TRL:  {theirs:.2f} s an update; ratio {theirs / own:.1f}")


def rollout(model):
    policy, tokenizer, examples = miniature(48, model)
    prompts = [encode(tokenizer, srl.srl_prompt(e)) for e in examples]
    tokens, rows, forward = [], [], kv_cache.SharedPromptCache.forward

    def count_rows(self, tokens):
        rows.append(len(tokens))
        return forward(self, tokens)
    kv_cache.SharedPromptCache.forward = count_rows

    def ours():
        torch.manual_seed(0)
        rows.clear()
        tokens.append(sum(map(len, srl.generate(policy, tokenizer, prompts, 8).completions)))
    ids, is_token, _ = left_pad(prompts, "cpu")

    def theirs():
        torch.manual_seed(0)
        out = policy.generate(ids, attention_mask=is_token.long(), do_sample=True, num_return_sequences=8, max_new_tokens=160, top_k=0)
        counts.append(int((out[:, ids.shape[1]:] != tokenizer.pad_token_id).sum()))
    counts = []
    a, b = seconds(ours, theirs)
    kv_cache.SharedPromptCache.forward = forward
    print(f"{tokens[-1]} tokens, of which {sum(rows) / tokens[-1]:.0%} were decoded: completions share a row until they diverge")
    rates = tokens[-1] / a, counts[-1] / b
    print(f"ours {a:.2f} s, {rates[0]:,.0f} tokens/s; generate {b:.2f} s, {rates[1]:,.0f} tokens/s; ratio {rates[0] / rates[1]:.1f}")


def turns(model):
    rlvr, common_prefix_length = import_module("03_rlvr_train"), logprobs.common_prefix_length
    policy, tokenizer, examples = miniature(400, model)
    cfg = srl.Config(device="cpu", learning_rate=1e-12)
    optimizer, problems, times = make_optimizer(policy, cfg), rlvr.problem_starts(examples)[:24], {}

    def rollout():
        return srl.run_episodes(policy, tokenizer, problems, 8, srl.srl_prompt, rlvr.next_turn, cfg, seeds=list(range(len(problems))))
    batch = [(*turn[:3], 1.0 - 2 * (g % 2)) for episodes in rollout() for g, e in enumerate(episodes) for turn in e.turns]
    print(f"{len(problems)} problems x 8, {len(batch)} turns")
    for name, length in (("shared prefixes once", common_prefix_length), ("equal prompts once", lambda a, b: len(a) if a == b else 0)):
        logprobs.common_prefix_length = prefix_cache.common_prefix_length = length
        times[name] = seconds(rollout, lambda: srl.update(policy, optimizer, batch, cfg))
        saved = logprobs.update_cost(batch, 1.0)["prompt_tokens_saved"]
        print(f"{name}: rollout {times[name][0]:.2f} s, update {times[name][1]:.2f} s, {saved:.0%} of the prompts' tokens saved")
    logprobs.common_prefix_length = prefix_cache.common_prefix_length = common_prefix_length
    print("ratios: rollout {:.2f}, update {:.2f}".format(*(b / a for a, b in zip(*times.values(), strict=True))))


def limits(model):
    policy, tokenizer, examples = miniature(48, model)
    cfg = srl.Config(device="cpu", learning_rate=1e-12)
    batch, _ = sampled(policy, tokenizer, examples, cfg)

    def updates(policy):
        optimizer = make_optimizer(policy, cfg)
        return lambda: srl.update(policy, optimizer, batch, cfg)
    with FlopCounterMode(display=False) as counter:
        updates(policy)()
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    width, inner = policy.config.hidden_size, policy.config.intermediate_size
    a, b = torch.randn(750, width), torch.randn(width, inner)
    rate = 2 * a.numel() * inner / seconds(lambda: a @ b, repeats=200)[0]
    torch._dynamo.config.recompile_limit = 100                                         # with 8, most layers are not compiled
    compiled = load_policy(model)[0]
    for layer in compiled.base_model.layers:
        layer.compile(dynamic=True)
    started = time.perf_counter()
    updates(compiled)()
    compiling = time.perf_counter() - started
    plain, half, fused = seconds(updates(policy), updates(load_policy(model, dtype="bfloat16")[0]), updates(compiled))
    print(f"update {plain:.2f} s; its matrix products alone, {products / 1e9:.0f} billion operations at the {rate / 1e9:.0f} billion a second of a "
          f"repeated one: {products / rate:.2f} s; in bfloat16 {half:.2f} s; with compiled layers {fused:.2f} s after {compiling:.0f} s of compiling")


def layout(model, old, repeats=7):
    workers, models = {}, {"base": str(ROOT / "miniature/base"), Path(model).name: model}
    for name, folder in (("old", old), ("new", ROOT)):
        workers[name] = subprocess.Popen([sys.executable, ROOT / "tests/bench_worker.py", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(name, what):
        print(what, file=workers[name].stdin, flush=True)
        return json.loads(workers[name].stdout.readline())
    for label, folder in models.items():
        for kind in ("rollout", "update"):
            found = {"old": [], "new": []}
            for i in range(repeats + 1):                                               # old new, new old, ..
                for name in ("old", "new") if i % 2 else ("new", "old"):
                    found[name].append(measure(name, f"{kind} {Path(folder).resolve()}"))
            (old_s, old_cpu), (new_s, new_cpu) = ([statistics.median(r[key] for r in found[name][1:]) for key in ("seconds", "cpu")] for name in found)
            tokens, same = found["new"][0]["tokens"], found["old"][0]["digest"] == found["new"][0]["digest"]
            print(f"{label}, {kind}: old {old_s:.3f} s ({tokens / old_s:,.0f} tokens/s), new {new_s:.3f} s ({tokens / new_s:,.0f} tokens/s), "
                  f"speed new / old {old_s / new_s:.3f}, by CPU time {old_cpu / new_cpu:.3f}; {tokens} tokens{'' if same else ', NOT THE SAME'}", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


def update():
    model = random_model(hidden_size=384, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2)
    print(f"{model.num_parameters() / 1e6:.1f} M parameters, G = 8")
    for P, R in ((100, 60), (600, 100), (1500, 300)):
        prompt, group = torch.randint(5, 400, (P,)).tolist(), torch.randint(5, 400, (8, R)).tolist()

        def gradient(groups):
            model.zero_grad()
            for part in groups:
                srl.token_logprobs(model, part)[0].sum().backward()
            return torch.cat([p.grad.flatten() for p in model.parameters()])
        ways = {"shared": [[(prompt, group)]], "unshared": [[(prompt, [completion])] for completion in group]}
        grads = [gradient(groups) for groups in ways.values()]
        times = dict(zip(ways, seconds(*(partial(gradient, groups) for groups in ways.values()), repeats=2), strict=True))
        difference = ((grads[0] - grads[1]).norm() / grads[1].norm()).item()
        print(f"P {P:5}, R {R:4}: " + ", ".join(f"{name} {t:.2f} s" for name, t in times.items())
              + f"; ratio {times['unshared'] / times['shared']:.1f}, of tokens {8 * (P + R) / (P + 8 * R):.1f}; gradients differ by {difference:.0e}")


def resident(name):
    """VmRSS or VmHWM of this process in GB (Linux)."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 2**20


def peak(way, queue):
    """Peak memory in GB that an update adds, in a process of its own."""
    model = random_model(151_936, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    prompt, group = torch.randint(5, 400, (200,)).tolist(), torch.randint(5, 400, (8, 300)).tolist()
    Path("/proc/self/clear_refs").write_text("5")                                      # resets the peak
    before = resident("VmRSS")
    if way == "ours":
        srl.token_logprobs(model, [(prompt, group)])[0].sum().backward()
    else:
        ids = torch.tensor([prompt + completion for completion in group])
        logprobs = model(ids).logits[:, len(prompt) - 1:-1].log_softmax(-1).gather(-1, ids[:, len(prompt):, None])
        logprobs.sum().backward()
    queue.put(resident("VmHWM") - before)


def memory():
    context, peaks = multiprocessing.get_context("spawn"), {}
    for way in ("ours", "plain"):
        queue = context.SimpleQueue()
        process = context.Process(target=peak, args=(way, queue))
        process.start()
        peaks[way] = queue.get()
        process.join()
    print("8 completions of 300 tokens, prompt 200, vocabulary 151,936: " + ", ".join(f"{way} {gb:.2f} GB" for way, gb in peaks.items())
          + f"; ratio {peaks['plain'] / peaks['ours']:.1f}")


def reward():
    path, steps = ROOT.parent / "shared/data/s1k/s1k_numbered_sample_60.jsonl", []
    for record in read_jsonl(path if path.exists() else ROOT / "miniature/expert.jsonl"):
        with suppress(ValueError):
            steps.append(segmentation.split_steps(record["solution"]))
    rng, pairs = random.Random(0), []
    for _ in range(512):                                                               # a step and eight attempts: other steps, and copies with errors
        solution = rng.choice(steps)
        expert = rng.choice(solution)
        for g in range(8):
            copy = "".join(c if rng.random() > 0.03 * g else rng.choice("abcde 0123\\{}") for c in expert)
            pairs.append((rng.choice(solution) if g > 5 else copy, expert))
    ways = {"difflib": lambda a, b: SequenceMatcher(None, a, b, autojunk=False).ratio(), "compiled": srl.similarity.__wrapped__,
            "cached": srl.similarity}
    results, times = {}, {}
    for name, way in ways.items():
        started = time.perf_counter()
        results[name] = [way(a, b) for a, b in pairs]
        times[name] = time.perf_counter() - started
    assert results["difflib"] == results["compiled"] == results["cached"]
    print(f"{len(pairs)} pairs, median length {statistics.median(len(b) for _, b in pairs):.0f}: "
          + ", ".join(f"{name} {t:.1f} s ({len(pairs) / t:,.0f}/s)" for name, t in times.items())
          + f"; ratio {times['difflib'] / times['cached']:.1f}")


def growth():
    policy, tokenizer, examples = miniature(256, srl.Config.model)
    prompts = [encode(tokenizer, srl.srl_prompt(e)) for e in examples]
    text = sum(prompts, [])
    policy.generation_config.eos_token_id, tokenizer.eos_token_id = 0, None            # the padding token: never sampled, so all completions are equally long

    def cost(prompts, G):
        return seconds(lambda: srl.generate(policy, tokenizer, prompts, G, max_new_tokens=40), repeats=2)[0]
    sweeps = {"prompts\n(G = 8, 55 tokens)": ([16, 32, 64, 128, 256], lambda n: cost(prompts[:n], 8)),
              "completions per prompt\n(16 prompts)": ([4, 8, 16, 32, 64], lambda n: cost(prompts[:16], n)),
              "tokens of a prompt\n(16 prompts, G = 8)": ([50, 100, 200, 400, 800], lambda n: cost([text[i:i + n] for i in range(16)], 8))}
    times = {}
    for name, (sizes, measure) in sweeps.items():
        times[name] = {n: measure(n) for n in sizes}
        print(name.replace("\n", " "), ", ".join(f"{n}: {t:.2f} s" for n, t in times[name].items()), flush=True)
    draw_growth(times, ROOT / "results/growth.png")


def draw_growth(times, path):
    """times: {what grows: {size: seconds}}; dashed: in proportion to the size, from the largest one down."""
    import matplotlib.pyplot as plt
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(1, 3, figsize=(7.4, 3.2), layout="constrained")
    for ax, (name, measured) in zip(axes, times.items(), strict=True):
        largest = max(measured)
        ax.plot([0, largest], [0, measured[largest]], "--", color="#777777", lw=1.5)
        ax.plot(measured.keys(), measured.values(), "o-", color="#0072B2", lw=2)
        ax.set(xlabel=name, xlim=(0, None), ylim=(0, None))
    axes[0].set_ylabel("seconds")
    figure.suptitle("Seconds of a rollout; dashed: proportional\n(miniature, two CPU cores)", fontsize=12)
    figure.savefig(path, dpi=150)
    print(path)


def plan(weights=7.6e9, layers=28, kv_heads=4, head_dim=128, vocabulary=152_064, memory=80, prompt=650, completion=300, refill=1.5):
    """The table of the README, "More than one device". Traffic is what a rank receives; both bandwidths are those of the makers' data sheets."""
    cfg, GB = replace(srl.Config(), **srl.PAPER["srl"]), 1e9
    groups, row_bytes = cfg.prompts_per_batch, (cfg.max_new_tokens + prompt / cfg.group_size) * 2 * layers * kv_heads * head_dim * 2 + 12 * vocabulary
    update_tokens = groups * (prompt + cfg.group_size * completion)
    sampled = groups * refill * cfg.group_size * completion
    compute = sampled / 9900 + update_tokens / 7558                                               # seconds on one H200, measured: bench_gpu.py
    print("GPUs | GB of weights, gradients, Adam | GB gathered | rows (GB) | GB gathered an update | GB of gradients | traffic, s | compute, s")
    for n, bandwidth in ((1, None), (8, 400), (64, 50)):                                          # GB/s: NVLink inside a node, 400 Gb/s network
        shards, gathered = 16 * weights / n / GB, 2 * weights / GB if n > 1 else 0.0
        free = memory - shards - gathered
        rows = max(0, int(free * GB / 2 / row_bytes))
        batches = -(-update_tokens // (cfg.update_tokens * n))                                     # micro-batches of a rank
        moved, gradients = (refill * gathered + batches * 2 * gathered, batches * 4 * weights / GB) if n > 1 else (0.0, 0.0)
        print(f"{n:4} | {shards:6.1f} | {gathered:5.1f} | {rows} ({rows * row_bytes / GB:.0f}) | {moved:.0f} | {gradients:.0f} | "
              f"{(moved + gradients) / bandwidth if bandwidth else 0:.1f} | {compute / n:.0f}")


def main():
    sections = {f.__name__: f for f in (step, rollout, turns, limits, layout, update, memory, reward, growth, plan)}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"some of {', '.join(sections)}; default: all but layout")
    parser.add_argument("--model", default=str(ROOT / "miniature/base"), help="of step, rollout, turns, limits and layout")
    parser.add_argument("--old", help="of layout: the folder of another checkout")
    args = parser.parse_args()
    if "layout" in args.sections and not args.old:
        parser.error("layout: give the folder of another checkout with --old")
    for name in args.sections or [name for name in sections if name != "layout"]:
        print(f"== {name}")
        sections[name](*([args.model] if name in ("step", "rollout", "turns", "limits") else [args.model, args.old] if name == "layout" else []))


if __name__ == "__main__":
    main()
