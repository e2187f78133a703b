"""Chat templates and token ids: messages become the prompt that a model was trained on."""
import json
import re
from functools import lru_cache, partial
from pathlib import Path

from .files import InputError, explain_read_errors

# a template's comment that it leaves the system message out on purpose; it stays with the model's folder
NO_SYSTEM = re.compile(r"\{#-?\s*no system message")
# at the end of a prompt: <think>..</think>, or </think> alone
CLOSED_THOUGHTS = re.compile(r"(?:<think>(?:(?!</?think>)[\s\S])*)?</think>\s*\Z")
TAG = re.compile(r"</?(?:think|solution|tool_call|tool_response|function|parameter|command)>")
# every rule by which tokenizers differ: capitals, digits, spaces, accents, other scripts
SAMPLE = ("1. **Add 14** to\tboth  sides:\n\n  x = 2025.5, don't\n\\frac{1}{2} "
          "e\u0301\u00e9 SOLVE \u6570\u5b66 \U0001f600 ")
GUARD = "\ufdd0"        # no character of Unicode, so that no text has it


def load_tokenizer(name):
    """The tokenizer of a folder or hub name, as its tokenizer.json says.

    transformers picks a class by the model's type, and that may split text in its own way: Qwen2Tokenizer
    ignores the rules of a custom tokenizer. Raises InputError where no class follows the file.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import cached_file
    path = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if not path:
        return AutoTokenizer.from_pretrained(name)
    own = Tokenizer.from_file(path)
    own.no_truncation()
    own.no_padding()
    for tokenizer_class in (AutoTokenizer, PreTrainedTokenizerFast):
        try:
            tokenizer = tokenizer_class.from_pretrained(name)
        except Exception:                               # a class may ask for tokens that the file has not
            if tokenizer_class is PreTrainedTokenizerFast:
                raise
            continue
        ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        if ids == own.encode(SAMPLE, add_special_tokens=False).ids:
            return tokenizer
    raise InputError(f"{name}: {type(tokenizer).__name__} encodes otherwise than its tokenizer.json; "
                     "save the tokenizer again with the class it was made with")


def fill(template, example):
    """The template with {problem} and {partial} replaced; other braces, of formulas, are unchanged."""
    return re.sub(r"\{(problem|partial)\}", lambda name: example.get(name[1], ""), template)


def with_prompt_file(make_prompt, path):
    """make_prompt with the messages of a file in place of its own; without a path, make_prompt itself.

    The file: a system message, and behind a line --- a user message with {problem}. InputError otherwise.
    """
    if not path:
        return make_prompt
    with explain_read_errors(path, "not text", "give a text file with the system message"):
        text = Path(path).read_text(encoding="utf-8")
    system, *user = re.split(r"^---[ \t]*$", text, maxsplit=1, flags=re.MULTILINE)
    if user and "{problem}" not in user[0]:
        raise InputError(f"{path}: no {{problem}} after the line ---; the user message needs the problem")
    messages = {"system": system.strip(), **({"user": user[0].strip("\n")} if user else {})}
    return partial(make_prompt, **messages)


@lru_cache(maxsize=8)
def special_pattern(tokenizer, template, size):
    """What spells a special token of the tokenizer or template, except tags that a text may hold (TAG).

    size: of the vocabulary, so that lru_cache sees added tokens.
    """
    names = []
    for token in tokenizer.added_tokens_decoder.values():
        name, in_template = token.content, token.content[:1] in "<[|" and token.content in template
        if (token.special or in_template) and len(name.strip()) > 1 and not TAG.fullmatch(name):
            names.append(re.escape(name))
    return re.compile(f"(?s)(?={'|'.join(names)})(.)" if names else r"(?!)()")


def guarded(tokenizer, text):
    """The text with a GUARD inside each part that spells a special token, so that it stays text."""
    pattern = special_pattern(tokenizer, str(tokenizer.chat_template), len(tokenizer))
    return pattern.sub(rf"\1{GUARD}", text)


class Prompt(str):
    """A rendered prompt, made of its guarded text. parts: the text cut at the guards."""

    def __new__(cls, text):
        prompt = super().__new__(cls, text.replace(GUARD, ""))
        prompt.parts = text.split(GUARD)
        return prompt


def holds(text, message):
    """Whether a rendered prompt has the text of a message, as it is or as JSON; white space aside."""
    def visible(text):
        return "".join(text.replace(GUARD, "").split())
    content, text = message["content"].strip(), visible(text)
    return visible(content) in text or visible(json.dumps(content, ensure_ascii=False)[1:-1]) in text


def prompt_text(tokenizer, messages):
    """A prompt as the model's own chat template writes it, with the generation prompt at its end.

    A template that refuses or drops a system message gets it at the beginning of the user's, unless it says
    that this is on purpose (NO_SYSTEM); without a template the messages are plain text. Raises InputError
    where the template drops the user's message too.
    """
    from jinja2.exceptions import TemplateError
    messages = [{**m, "content": guarded(tokenizer, m["content"])} for m in messages]
    if not tokenizer.chat_template:
        return Prompt("".join(f"{m['content']}\n\n" for m in messages))
    on_purpose, attempts = NO_SYSTEM.search(str(tokenizer.chat_template)), [messages]
    if messages[0]["role"] == "system":
        system, user, *rest = messages
        content = "\n\n".join(filter(None, (system["content"], user["content"])))
        attempts.append([{**user, "content": content}, *rest])
    for attempt in attempts:
        try:
            text = tokenizer.apply_chat_template(attempt, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            why = f"fails ({error})"
            continue
        opened = CLOSED_THOUGHTS.sub("", text)          # the policy writes its own thoughts
        text = opened if holds(opened, attempt[-1]) else text       # unless the message itself ends so
        why = "drops the instructions or the problem"
        # of an agent's earlier calls a template may drop the thoughts
        shown = [{**m, "content": m["content"].split("</think>")[-1]} if m["role"] == "assistant" else m
                 for m in attempt]
        if on_purpose or all(holds(text, message) for message in shown):
            return Prompt(text)
    raise InputError(f"{tokenizer.name_or_path}: its chat template {why}; correct it, or use another model")


def token_ids(tokenizer, parts, add_special_tokens):
    """Token ids of the parts of a text, each encoded apart: no special token forms where they meet."""
    first, *rest = parts
    ids = tokenizer(first, add_special_tokens=add_special_tokens)["input_ids"]
    anchor = tokenizer.eos_token or ""      # after a token: some tokenizers begin a text with a space
    skip = len(tokenizer(anchor, add_special_tokens=False)["input_ids"])
    for part in rest:
        ids += tokenizer(anchor + part, add_special_tokens=False)["input_ids"][skip:]
    return ids


def encode_texts(tokenizer, texts):
    """Token ids of each prompt_text."""
    add = not tokenizer.chat_template       # a template writes a BOS itself
    return [token_ids(tokenizer, getattr(text, "parts", [text]), add) for text in texts]


def encode_target(tokenizer, prompt, text):
    """Token ids of a training target, without EOS. It continues or closes thoughts that the prompt opened."""
    if opened_thought(prompt):
        text = text.removeprefix("<think>") if text.startswith("<think>") else f"</think>\n{text}"
    return token_ids(tokenizer, guarded(tokenizer, text).split(GUARD), False)


def encode(tokenizer, messages):
    """Token ids of a prompt."""
    return encode_texts(tokenizer, [prompt_text(tokenizer, messages)])[0]


def opened_thought(text):
    """'<think>' where a prompt ends in it, else '': some templates open the thoughts of the completion."""
    return "<think>" if text.rstrip().endswith("<think>") else ""


def full_text(prompt, completion):
    """A completion with the <think> that its prompt opened; a policy may have opened it once more."""
    return completion if completion.lstrip().startswith("<think>") else opened_thought(prompt) + completion


def extend_solution(partial, action):
    """The solution so far and one more action: in training data and while an episode is sampled.

    An empty line follows an action of several lines, and each one where the text before has empty lines.
    """
    return partial + action + ("\n\n" if "\n" in action or "\n\n" in partial else "\n")


def eos_ids(policy, tokenizer):
    """All ids that end a completion; generation_config may list several. InputError where there is none."""
    ids = policy.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}
    if not ids:
        raise InputError("no EOS token in tokenizer or generation config: no completion ends; set eos_token")
    return sorted(ids, key=lambda id: (id != tokenizer.eos_token_id, id))
