"""Chat templates and token ids: messages become the prompt that a model was trained on."""
import re
from pathlib import Path

from .files import InputError


def fill(template, example):
    """The template with {problem} and {partial} replaced; every other brace is unchanged: formulas are full
    of them."""
    return re.sub(r"\{(problem|partial)\}", lambda name: example.get(name[1], ""), template)


def read_prompt_file(path):
    """{"system": text} of a file, and {"user": text} where a line --- separates a user message with {problem}
    and {partial} in it.

    Raises InputError where the file cannot be used.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; expected a text file with the system message") from None
    system, *user = re.split(r"^---[ \t]*$", text, maxsplit=1, flags=re.MULTILINE)
    if user and "{problem}" not in user[0]:
        raise InputError(f"{path}: no {{problem}} after the line ---; the user message needs the problem")
    return {"system": system.strip(), **({"user": user[0].strip("\n")} if user else {})}


def prompt_text(tokenizer, messages):
    """A prompt as the model's own chat template writes it, with the generation prompt at its end.

    A template that refuses a system message gets it at the beginning of the user's; without a template the
    messages are plain text.
    """
    from jinja2.exceptions import TemplateError
    if not tokenizer.chat_template:
        return "".join(f"{m['content']}\n\n" for m in messages)
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        system, user, *rest = messages
        merged = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return tokenizer.apply_chat_template(merged, add_generation_prompt=True, tokenize=False)


def encode_texts(tokenizer, texts):
    """Token ids of each prompt_text. A chat template writes special tokens itself; plain text gets the
    tokenizer's, such as a BOS."""
    return tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"] if texts else []


def encode(tokenizer, messages):
    """Token ids of a prompt."""
    return encode_texts(tokenizer, [prompt_text(tokenizer, messages)])[0]


def opened_thought(text):
    """'<think>' where a prompt ends in it, else '': some templates open the thoughts, and the completion
    begins inside them."""
    return "<think>" if text.rstrip().endswith("<think>") else ""


def eos_ids(policy, tokenizer):
    """All ids that end a completion; generation_config may list several. Raises InputError where there is
    none."""
    ids = policy.generation_config.eos_token_id
    ids = sorted({tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None})
    if not ids:
        raise InputError("no EOS token in tokenizer and generation config: no completion would end; "
                         "set eos_token")
    return ids


def eos_id(policy, tokenizer):
    """The id that ends a training target."""
    return eos_ids(policy, tokenizer)[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
