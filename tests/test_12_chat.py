"""engine/chat.py: prompts through the chat templates of real models, and the tokens that end a completion."""
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.chat import encode, eos_ids, opened_thought, prompt_text
from engine.files import InputError
from engine.rollout import generate

QWEN = ROOT.parent / "shared/data/qwen2.5_tokenizer"

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


@pytest.fixture
def messages(srl, example):
    return srl.srl_prompt(example)


@pytest.fixture
def byte_tokenizer():
    """A tokenizer of single characters that puts a BOS before every text, as Llama's does."""
    vocabulary = {"<bos>": 0, "<eos>": 1, "<unk>": 2} | {chr(c): c - 29 for c in range(32, 127)} | {"\n": 98}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


# Templates
def test_the_miniatures_prompt_is_the_problem_and_the_steps_alone(tokenizer, messages, example):
    assert prompt_text(tokenizer, messages) == f"<|user|>{example['problem']}\n\nSolution:\n{example['partial']}<|assistant|>"


@pytest.mark.skipif(not QWEN.exists(), reason=f"no {QWEN}: the real tokenizer, which is not part of the repository")
def test_the_real_qwen_template_gets_our_system_message_and_no_other_token(messages):
    qwen = AutoTokenizer.from_pretrained(QWEN)
    prompt, (system, user) = encode(qwen, messages), (message["content"] for message in messages)
    assert qwen.decode(prompt) == f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt[0] == 151644 and prompt.count(151644) == 3 and prompt.count(151645) == 2
    assert opened_thought(qwen.decode(prompt)) == ""


@pytest.mark.parametrize("name, end, opened", [("qwen3 thinking", "assistant\n<think>\n", "<think>"), ("llama 3", "assistant<|end_header_id|>\n\n", ""),
                                               ("no system role", "model\n", "")])
def test_every_template_has_the_whole_prompt_and_ends_where_the_answer_begins(byte_tokenizer, messages, name, end, opened):
    byte_tokenizer.chat_template, (system, user) = TEMPLATES[name], (message["content"] for message in messages)
    text = prompt_text(byte_tokenizer, messages)
    assert text.endswith(end) and text.count(system) == 1 and text.count(user.strip()) == 1 and opened_thought(text) == opened
    if name == "no system role":
        assert text.startswith(f"<bos><start_of_turn>user\n{system}\n\n{user.strip()}")


@pytest.mark.parametrize("name", [None, "llama 3", "no system role"])
def test_a_prompt_has_one_bos_whether_the_template_writes_it_or_there_is_no_template(byte_tokenizer, messages, name):
    byte_tokenizer.chat_template = TEMPLATES[name] if name else None
    prompt = encode(byte_tokenizer, messages)
    assert prompt[0] == 0 and prompt.count(0) == 1
    if not name:
        assert prompt_text(byte_tokenizer, messages) == "".join(f"{m['content']}\n\n" for m in messages)


# EOS
def test_each_of_several_eos_ids_ends_a_completion_and_a_model_without_any_is_refused(tokenizer, tiny):
    tiny.generation_config.eos_token_id = [5, 6]
    eos = eos_ids(tiny, tokenizer)
    assert eos == sorted({tokenizer.eos_token_id, 5, 6})
    torch.manual_seed(0)
    rollout = generate(tiny, tokenizer, [[3, 4], [7, 8, 9]], 200, temperature=3.0, max_new_tokens=60)
    assert rollout.finished == [completion[-1] in eos for completion in rollout.completions]
    assert {completion[-1] for completion in rollout.completions} > set(eos) and not any(set(ids[:-1]) & set(eos) for ids in rollout.completions)
    tiny.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="EOS token"):
        eos_ids(tiny, SimpleNamespace(eos_token_id=None))
