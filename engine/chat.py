"""Chat templates and token ids: messages become the prompt that a model was trained on."""
import json
import re
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

from .files import InputError

# a template's comment that it leaves the system message out on purpose; it stays with the model's folder
NO_SYSTEM = re.compile(r"\{#-?\s*no system message")
# at the end of a prompt: <think></think>, or </think> alone
CLOSED_THOUGHTS = re.compile(r"(?:<think>\s*)?</think>\s*\Z")
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
        tokenizer = tokenizer_class.from_pretrained(name)
        ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
        if ids == own.encode(SAMPLE, add_special_tokens=False).ids:
            return tokenizer
    raise InputError(f"{name}: {type(tokenizer).__name__} encodes otherwise than its tokenizer.json; "
                     "save the tokenizer again with the class it was made with")


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


@lru_cache(maxsize=8)
def special_pattern(tokenizer, template, size):
    """What spells a special token: one that the tokenizer calls so, or that the template uses; tags of
    thoughts and calls are tokens in a text too. size: of the vocabulary, for lru_cache."""
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
    """A rendered prompt. cuts: offsets inside what spells a special token and is text of a message."""
    cuts = ()


def without_guards(text):
    parts = text.split(GUARD)
    prompt = Prompt("".join(parts))
    prompt.cuts = list(accumulate(map(len, parts)))[:-1]
    return prompt


def holds(text, message):
    """Whether a rendered prompt has the text of a message, as it is or as JSON; white space aside."""
    def visible(text):
        return "".join(text.replace(GUARD, "").split())
    content, text = message["content"].strip(), visible(text)
    return visible(content) in text or visible(json.dumps(content, ensure_ascii=False)[1:-1]) in text


def render(tokenizer, messages):
    """What the chat template writes. Thoughts that it closes itself, <think></think> at the end, are left
    out: the policy writes its own."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    closed = CLOSED_THOUGHTS.search(text)
    # unless the message itself ends so
    return text[:closed.start()] if closed and holds(text[:closed.start()], messages[-1]) else text


def prompt_text(tokenizer, messages):
    """A prompt as the model's own chat template writes it, with the generation prompt at its end.

    A template that refuses or drops a system message gets it at the beginning of the user's, unless it says
    that this is on purpose (NO_SYSTEM); without a template the messages are plain text. Raises InputError
    where the template drops the user's message too.
    """
    from jinja2.exceptions import TemplateError
    messages = [{**m, "content": guarded(tokenizer, m["content"])} for m in messages]
    if not tokenizer.chat_template:
        return without_guards("".join(f"{m['content']}\n\n" for m in messages))
    on_purpose = NO_SYSTEM.search(str(tokenizer.chat_template))
    has_system = messages[0]["role"] == "system"
    try:
        text = render(tokenizer, messages)
    except TemplateError:
        if not has_system:
            raise
        text = None
    if has_system and (text is None or not (on_purpose or holds(text, messages[0]))):
        system, user, *rest = messages
        content = "\n\n".join(filter(None, (system["content"], user["content"])))
        messages = [{**user, "content": content}, *rest]
        text = render(tokenizer, messages)
    needed = [m for m in messages[:2] if m["role"] != "assistant"]
    if not on_purpose and not all(holds(text, message) for message in needed):
        raise InputError(f"{tokenizer.name_or_path}: its chat template drops the instructions or the "
                         "problem; correct it, or use another model")
    return without_guards(text)


def token_ids(tokenizer, prompt, add_special_tokens):
    """Token ids of a Prompt; its parts between the cuts are encoded apart, so no special token forms."""
    first, *rest = (prompt[begin:end] for begin, end in pairwise([0, *prompt.cuts, len(prompt)]))
    ids = tokenizer(str(first), add_special_tokens=add_special_tokens)["input_ids"]
    anchor = tokenizer.eos_token or ""      # after a token: some tokenizers begin a text with a space
    skip = len(tokenizer(anchor, add_special_tokens=False)["input_ids"])
    for part in rest:
        ids += tokenizer(anchor + part, add_special_tokens=False)["input_ids"][skip:]
    return ids


def encode_texts(tokenizer, texts):
    """Token ids of each prompt_text. A chat template writes special tokens itself; plain text gets the
    tokenizer's, such as a BOS."""
    add = not tokenizer.chat_template
    ids = tokenizer(texts, add_special_tokens=add)["input_ids"] if texts else []
    return [token_ids(tokenizer, text, add) if getattr(text, "cuts", ()) else plain
            for text, plain in zip(texts, ids, strict=True)]


def encode_target(tokenizer, prompt, text):
    """Token ids of a training target, without EOS. It continues or closes thoughts that the prompt opened."""
    if opened_thought(prompt):
        text = text.removeprefix("<think>") if text.startswith("<think>") else f"</think>\n{text}"
    return token_ids(tokenizer, without_guards(guarded(tokenizer, text)), False)


def encode(tokenizer, messages):
    """Token ids of a prompt."""
    return encode_texts(tokenizer, [prompt_text(tokenizer, messages)])[0]


def opened_thought(text):
    """'<think>' where a prompt ends in it, else '': some templates open the thoughts, and the completion
    begins inside them."""
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
