"""Prompts through the chat templates of real models: what stands in them, and what a template may do to them."""
import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

QWEN = ROOT.parent / "shared/data/qwen2.5_tokenizer"
needs_qwen = pytest.mark.skipif(not QWEN.exists(), reason=f"no {QWEN}: the real tokenizer, which is not part of the repository")

# What the templates of these families do, in short: their marks, whether they trim, open the thoughts, or refuse a system message
TEMPLATES = {
    "qwen3 thinking": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
                      "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "llama 3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
               "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "no system role": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
                      "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
                      "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
}


@pytest.fixture(scope="module")
def qwen():
    return AutoTokenizer.from_pretrained(QWEN)


@pytest.fixture
def byte_tokenizer():
    """A tokenizer of single characters that puts a BOS before every text, as Llama's does."""
    vocabulary = {"<bos>": 0, "<eos>": 1, "<unk>": 2} | {chr(c): c - 29 for c in range(32, 127)} | {"\n": 98}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


# Words
def test_the_step_prompt_has_every_element_that_the_paper_describes(srl, example):
    system, user = (message["content"] for message in srl.srl_prompt(example))
    for element in ("beginning of its solution", "the one step that comes next", "not the rest of the solution", "<think> and </think>", "informally",
                    "at whatever length", "After </think> write only the next step"):
        assert element in system
    assert user == f"{example['problem']}\n\nSolution:\n{example['partial']}"


def test_the_evaluation_prompt_has_every_element_that_the_paper_describes(rlvr, example):
    system, user = (message["content"] for message in rlvr.solve_prompt(example))
    for element in ("step by step", "at any point between <think> and </think>", "final answer in \\boxed{}"):
        assert element in system
    assert user == example["problem"]


def test_the_miniature_sees_the_problem_and_the_steps_alone(srl, tokenizer, example):
    assert srl.prompt_text(tokenizer, srl.srl_prompt(example)) == f"<|user|>{example['problem']}\n\nSolution:\n{example['partial']}<|assistant|>"


def test_a_title_hint_stands_behind_the_steps(srl, example):
    assert srl.srl_prompt({**example, "title": "Divide"})[1]["content"].endswith(example["partial"] + "\n\nThe title of the next step: Divide")


# A file in place of our words
def test_a_prompt_file_replaces_the_system_message_or_both_messages(srl, rlvr, example, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Do one step.\n")
    assert srl.with_prompt_file(srl.srl_prompt, path)(example) == [{"role": "system", "content": "Do one step."}, srl.srl_prompt(example)[1]]
    assert rlvr.solve_prompt(example)[1] == srl.with_prompt_file(rlvr.solve_prompt, path)(example)[1]
    path.write_text("Do one step.\n---\nQ: {problem}\nS: {partial}{\\frac{1}{2}}\n")
    filled = srl.with_prompt_file(srl.srl_prompt, path)({**example, "problem": "What is {partial}?"})
    assert [m["content"] for m in filled] == ["Do one step.", f"Q: What is {{partial}}?\nS: {example['partial']}{{\\frac{{1}}{{2}}}}"]


def test_without_a_prompt_file_the_prompt_is_ours(srl):
    assert srl.with_prompt_file(srl.srl_prompt, "") is srl.srl_prompt


@pytest.mark.parametrize("text, said", [("System\n---\nno place for it", "no {problem} after the line ---"), (None, "No such file")])
def test_a_prompt_file_that_cannot_serve_is_refused(srl, segment, tmp_path, text, said):
    path = tmp_path / "prompt.txt"
    if text:
        path.write_text(text)
    with pytest.raises(segment.InputError, match=said):
        srl.with_prompt_file(srl.srl_prompt, path)


# Templates
@needs_qwen
def test_the_real_qwen_template_gets_our_system_message_and_no_token_more(srl, qwen, example):
    prompt = srl.encode(qwen, srl.srl_prompt(example))
    user = f"{example['problem']}\n\nSolution:\n{example['partial']}"
    assert qwen.decode(prompt) == f"<|im_start|>system\n{srl.SRL_SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt[0] == 151644 and prompt.count(151644) == 3 and prompt.count(151645) == 2
    assert srl.opened_thought(qwen.decode(prompt)) == ""


@pytest.mark.parametrize("name, end", [("qwen3 thinking", "assistant\n<think>\n"), ("llama 3", "assistant<|end_header_id|>\n\n"),
    ("no system role", "model\n")])
def test_every_template_holds_the_whole_prompt_and_is_open_for_the_answer(srl, byte_tokenizer, example, name, end):
    byte_tokenizer.chat_template = TEMPLATES[name]
    text = srl.prompt_text(byte_tokenizer, srl.srl_prompt(example))
    assert text.endswith(end) and text.count(srl.SRL_SYSTEM) == 1 and text.count(srl.srl_prompt(example)[1]["content"].strip()) == 1


def test_without_a_system_role_the_system_message_opens_the_users(srl, byte_tokenizer, example):
    byte_tokenizer.chat_template = TEMPLATES["no system role"]
    assert srl.prompt_text(byte_tokenizer, srl.srl_prompt(example)).startswith(f"<bos><start_of_turn>user\n{srl.SRL_SYSTEM}\n\n{example['problem']}")


def test_without_a_template_the_messages_are_plain_text_with_the_tokenizers_bos(srl, byte_tokenizer, example):
    assert byte_tokenizer.chat_template is None
    assert srl.prompt_text(byte_tokenizer, srl.srl_prompt(example)) == "".join(f"{m['content']}\n\n" for m in srl.srl_prompt(example))
    prompt = srl.encode(byte_tokenizer, srl.srl_prompt(example))
    assert prompt[0] == 0 and prompt.count(0) == 1


@pytest.mark.parametrize("name", ["llama 3", "no system role"])
def test_a_template_that_writes_the_bos_gets_no_second_one(srl, byte_tokenizer, example, name):
    byte_tokenizer.chat_template = TEMPLATES[name]
    prompt = srl.encode(byte_tokenizer, srl.srl_prompt(example))
    assert prompt[0] == 0 and prompt.count(0) == 1


# A template that opens <think>
class Opened:
    """The miniature's tokenizer with a template that opens the thoughts."""

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template = tokenizer, "{{ messages[-1]['content'] }}<|assistant|><think>"

    def __call__(self, *args, **kwargs):
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def apply_chat_template(self, messages, **kwargs):
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **kwargs)


@pytest.mark.parametrize("written, reward, verdict", [
    ("3 x = 15</think>\n2. **Divide both sides by 3** x = 5", 1.0, "no answer"), ("so</think> \\boxed{5}", None, "right"),
    ("I try \\boxed{5}", -1.0, "no answer")])
def test_thoughts_that_the_template_opened_are_thoughts(srl, rlvr, tokenizer, tiny, example, monkeypatch, written, reward, verdict):
    monkeypatch.setattr(srl, "generate", lambda policy, tokenizer, prompts, sizes, *rest: srl.Rollout([[1]], [[0.0]], [written], [True]))
    ((episode,),) = srl.play(tiny, Opened(tokenizer), [example], 1, srl.srl_prompt, None, srl.Config())
    text = episode.turns[0][3]
    assert text == "<think>" + written
    assert rlvr.judge(text, "5") == verdict
    if reward is not None:
        assert srl.srl_reward(text, example) == reward


@pytest.mark.parametrize("sft_target, expected", [("outline", "</think>\n{action}"), ("reasoning", "two thirds</think>\n{action}")])
def test_fine_tuning_goes_on_from_thoughts_that_the_template_opened(srl, tokenizer, tiny, example, monkeypatch, tmp_path, sft_target, expected):
    seen = []

    def watch(policy, groups, *args):
        seen.extend(completion for _, group in groups for completion in group)
        raise KeyboardInterrupt

    monkeypatch.setattr(srl, "load_policy", lambda *args: (tiny, Opened(tokenizer)))
    monkeypatch.setattr(srl, "token_logprobs", watch)
    cfg = srl.Config(out=str(tmp_path), sft_target=sft_target)
    with pytest.raises(KeyboardInterrupt):
        srl.train_sft(cfg, [{**example, "thoughts": "two thirds"}], [example])
    assert seen == [tokenizer(expected.format(action=example["action"]), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]]


# EOS and padding
def test_every_one_of_several_eos_ids_ends_a_completion(srl, tokenizer, tiny):
    other = [i for i in (5, 6) if i != tokenizer.eos_token_id]
    tiny.generation_config.eos_token_id = other
    eos = srl.eos_ids(tiny, tokenizer)
    assert eos == sorted({tokenizer.eos_token_id, *other})
    torch.manual_seed(0)
    rollout = srl.generate(tiny, tokenizer, [[3, 4], [7, 8, 9]], 200, temperature=3.0, max_new_tokens=60)
    last = {ids[-1] for ids, done in zip(rollout.completions, rollout.finished, strict=True) if done}
    assert last == set(eos) and not any(set(ids[:-1]) & set(eos) for ids in rollout.completions)


def test_a_model_without_any_eos_is_refused(srl, segment, tokenizer, tiny):
    class NoEos:
        eos_token_id = None
    tiny.generation_config.eos_token_id = None
    with pytest.raises(segment.InputError, match="names an EOS token"):
        srl.eos_ids(tiny, NoEos())


def test_with_pad_equal_to_eos_the_eos_of_prompt_and_completion_both_count(srl, tokenizer, tiny):
    eos = tokenizer.eos_token_id
    tiny.config.pad_token_id = eos
    groups = [([3, eos, 4], [[5, eos], [6, 7, 8, eos]]), ([9, 3, eos, 4, eos, 5], [[eos]])]
    with torch.no_grad():
        logprobs, mask, _ = srl.token_logprobs(tiny, groups)
        assert mask.sum(1).tolist() == [2, 4, 1]
        for row, (prompt, completion) in enumerate((p, c) for p, group in groups for c in group):
            plain = tiny(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            expected = plain[torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1), torch.tensor(completion)]
            torch.testing.assert_close(logprobs[row][mask[row]], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_sampled_and_trained_log_probabilities_equal_transformers_own_however_the_batch_is_padded(srl, tokenizer, tiny, padding):
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12, 13, 14], [15]]
    torch.manual_seed(0)
    rollout = srl.generate(tiny, tokenizer, prompts, 2, max_new_tokens=12)
    with torch.no_grad():
        trained, mask, _ = srl.token_logprobs(tiny, [(p, rollout.completions[2 * i:2 * i + 2]) for i, p in enumerate(prompts)])
    rows = [prompts[b // 2] + completion for b, completion in enumerate(rollout.completions)]
    for batch in ([[b] for b in range(6)] if padding == "none" else [list(range(6))]):
        longest = max(len(rows[b]) for b in batch)
        before = {b: longest - len(rows[b]) if padding == "left" else 0 for b in batch}
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        real = torch.zeros_like(ids)
        for i, b in enumerate(batch):
            ids[i, before[b]:before[b] + len(rows[b])], real[i, before[b]:before[b] + len(rows[b])] = torch.tensor(rows[b]), 1
        with torch.no_grad():
            logits = tiny(input_ids=ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0)).logits.log_softmax(-1)
        for i, b in enumerate(batch):
            n, start = len(rollout.completions[b]), before[b] + len(prompts[b // 2]) - 1
            expected = logits[i, start:start + n].gather(-1, torch.tensor(rollout.completions[b])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(rollout.logprobs[b]), expected, atol=1e-4, rtol=0)
            torch.testing.assert_close(trained[b][mask[b]], expected, atol=1e-4, rtol=0)
