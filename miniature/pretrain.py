"""Pretraining of the miniature's base models: a tokenizer, batches drawn by other processes, a small Llama trained on completions.

Weights are saved every 250 batches: the same command continues. A model may begin with the weights of another one, whose tokenizer may differ.
"""
import itertools
import os
import random
import re
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

MUON_LR = 0.01

CHAT_TEMPLATE = (
    "{# no system message: trained without one #}"      # engine/chat.py adds none then
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(texts, isolated, vocabulary):
    """A byte-level BPE where a match of `isolated` (a digit) is a token by itself; the text between may merge across words, so a step is short."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(isolated), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=20)
    tokenizer.train_from_iterator((re.sub(r"<\|[a-z]+\|>|</?think>", "\n", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_batches(draw, seed, folder, index):
    """Batches of about 2,500 tokens, 2,000 prompts in all, the same for the same index; a row: ids of a prompt, ids of each completion with EOS."""
    from transformers import AutoTokenizer
    tokenizer, rng, rows = AutoTokenizer.from_pretrained(folder), random.Random(f"{seed}, {index}"), []
    for prompt, texts in (draw(rng) for _ in range(2000)):
        rows.append([tokenizer(prompt)["input_ids"], *(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts)])
    batches, batch = [], []
    for row in sorted(rows, key=lambda row: sum(map(len, row))):
        batch.append(row)
        if len(batch) * sum(map(len, row)) >= 2500:
            batches.append(batch)
            batch = []
    rng.shuffle(batches)
    return batches


def prefetch(function):
    """function(0), function(1), ..: other processes compute the next ones meanwhile."""
    num = max(1, min(4, (os.cpu_count() or 1) - 1))
    with ProcessPoolExecutor(num, get_context("spawn")) as pool:
        later = deque(pool.submit(function, index) for index in range(num))
        for index in itertools.count(num):
            later.append(pool.submit(function, index))
            yield later.popleft().result()


def new_model(tokenizer, width, layers, start):
    """A small Llama for the tokenizer: with random weights, or with those of the model in the folder `start`.

    Its tokenizer may be another: the embedding of a token is the mean of those of the tokens that spelt its text.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=(len(tokenizer) + 15) // 16 * 16, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, attn_implementation="grouped_query",
                         max_position_embeddings=1024, tie_word_embeddings=True, rope_theta=10000.0,
                         bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(config)
    if start:
        old, spelt_by = LlamaForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
        weights = old.state_dict()
        embedding = weights["model.embed_tokens.weight"]                # (vocabulary, width)
        texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        rows = [embedding[spelt_by(text)["input_ids"]].mean(0) for text in texts]
        rows += [embedding.new_zeros(width)] * (config.vocab_size - len(rows))      # padding of the vocabulary
        embedding = torch.stack(rows)
        model.load_state_dict({**weights, "model.embed_tokens.weight": embedding, "lm_head.weight": embedding})
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def pretrain(draw, seed, num_batches, out, isolated, vocabulary, width=128, layers=4, start=None):
    """Train a model and its tokenizer, and save both in `out`. The loss is on completions alone.

    draw(rng) -> (text of a prompt, texts of completions). start: folder of a model to begin with, see new_model.
    """
    import torch
    from tqdm import tqdm
    from transformers import AutoTokenizer

    from engine.attention import register_attention
    from engine.files import atomic_write
    from engine.logprobs import token_logprobs
    register_attention()
    out.mkdir(parents=True, exist_ok=True)
    saved = out / "pretrain.pt"
    if not saved.exists():
        rng = random.Random(seed + 1)
        tokenizer = make_tokenizer([prompt + text for prompt, texts in (draw(rng) for _ in range(4000)) for text in texts], isolated, vocabulary)
        tokenizer.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    torch.manual_seed(seed)
    model = new_model(tokenizer, width, layers, start)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}")
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01)
    done, log = 0, []
    if saved.exists():
        state = torch.load(saved, map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        done = state["done"]
    batches = itertools.chain.from_iterable(prefetch(partial(make_batches, draw, seed, out)))
    for step, batch in enumerate(tqdm(itertools.islice(batches, num_batches), total=num_batches, unit="batch", desc="pretraining"), 1):
        if step <= done:                          # drawn again after an interruption, in a hundredth of the time
            continue
        factor = min(1, step / 100, (1 - (step - 1) / num_batches) / 0.6)  # warmup, constant, linear to zero over the last 60 %
        for optimizer, rate in ((muon, MUON_LR), (adam, 1.5e-3)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        logprobs, mask, _ = token_logprobs(model, [(prompt, texts) for prompt, *texts in batch])
        loss = -logprobs[mask].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        log.append(loss.item())
        if step % 250 == 0:
            tqdm.write(f"batch {step}: loss {sum(log[-250:]) / len(log[-250:]):.4f}")
            state = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "done": step}
            with atomic_write(saved) as temporary:
                torch.save(state, temporary)
    model.config.dtype = "float32"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    saved.unlink(missing_ok=True)
    return model, tokenizer
