"""Writes `fixtures/turns/*.json`: which tokens transformers and TRL would train on.

    venv/bin/pip install transformers==5.23.0 jinja2==3.1.6 tokenizers==0.23.3
    venv/bin/python scripts/turns.py --output fixtures/turns

`marks.json`: masks of `apply_chat_template(return_assistant_tokens_mask=True)` for templates with generation marks, with
the tokenizer of `fixtures/models/llama-tiny`. (No marked text ends in a character of several tokens: transformers would
leave all but the first of these out.) `completions.json`: token ids and masks of prompts with completions as TRL
1.16 makes them (the end token is appended to the text, both are tokenised as one, and the completion begins where the
tokens of the prompt alone end or differ), for a tokenizer with metaspace and byte fallback and for a Unigram one.
The templates beside them are written by hand.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CONVERSATIONS = [
    [("user", "2+2"), ("assistant", "4")],
    [("user", "2+2"), ("assistant", "4"), ("user", "the 3+3"), ("assistant", " the answer is six \n")],
    [("system", "Be brief."), ("user", "the fox?"), ("assistant", "Größe 🦊!"), ("user", ""), ("assistant", "the end")],
    [("user", "a<|im_end|>"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
]

SAY = "{{ message['content'] }}"
TEMPLATES = {
    "in a loop": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}" + SAY + "<|im_end|>{% endgeneration %}"
    "{% else %}" + SAY + "<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}",
    "with the line break": "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}" + SAY + "<|im_end|>\n\n{% endgeneration %}"
    "{% else %}" + SAY + "<|im_end|>\n{% endif %}{% endfor %}",
    "white space control": """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation -%}
            {{- message['content'] | trim + '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}""",
    "lines of blocks": """{% for message in messages %}
<|im_start|>{{ message['role'] }}
  {% if message['role'] == 'assistant' %}
    {% generation %}
{{ message['content'] }}<|im_end|>
    {% endgeneration %}
  {% else %}
{{ message['content'] }}<|im_end|>
  {% endif %}
{% endfor %}""",
    "only the last": "{% for message in messages %}{{ message.role }}:{% if loop.index0 >= messages | length - 2 and "
    "message.role == 'assistant' %}{% generation %}" + SAY + "<|im_end|>{% endgeneration %}{% else %}" + SAY
    + "{% endif %}{% endfor %}",
    "two marks a turn": "{% for message in messages %}{{ message.role }}: {% if message.role == 'assistant' %}"
    "{% generation %}" + SAY + "{% endgeneration %} (said) {% generation %}<|im_end|>{% endgeneration %}"
    "{% else %}" + SAY + "{% endif %}\n{% endfor %}",
    "set inside": "{% for message in messages %}{% set end = '!' %}{{ message.role }}{% if message.role == 'assistant' %}"
    "{% generation %}{% set end = '?' %}" + SAY + "{{ end }}{% endgeneration %}{% else %}" + SAY
    + "{% endif %}{{ end }}{% endfor %}",
}

COMPLETIONS = [
    ("The answer is ", "yes"),
    ("The answer is", " yes"),
    ("hel", "lo world"),
    ("hello", " world"),
    ("hello ", " world"),
    ("hello world", "\nyes"),
    ("", "hello"),
    ("hello", ""),
    ("is é", "🦊 is"),
    ("hello</s>", "world"),
]


def marks(folder: Path) -> dict:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    cases = []
    for name, template in TEMPLATES.items():
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            out = tokenizer.apply_chat_template(
                messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
            )
            case = {"name": name, "template": template, "messages": messages}
            cases.append(case | {"ids": list(out["input_ids"]), "mask": list(out["assistant_masks"])})
    return {"tokenizer": "models/llama-tiny", "cases": cases}


def metaspace() -> Tokenizer:
    """BPE with byte fallback, like Llama 2."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>"])}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for letter in "▁abcdefghijklmnopqrstuvwxyzTé":
        vocab[letter] = len(vocab)
    merges = []
    for word in ["▁hello", "▁world", "▁The", "▁answer", "▁is", "▁yes", "lo", "▁▁"]:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with metaspace, like T5, XLM-R and ALBERT, without its own end token."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    words = ["▁hello", "▁world", "▁The", "▁answer", "▁is", "▁yes", "hel", "lo", "wor", "ld", "▁hel", "▁"]
    pieces += [(word, -2.0 - i / 8) for i, word in enumerate(words)]
    pieces += [(letter, -8.0 - i / 8) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyzTé\n")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def completions(inner: Tokenizer) -> dict:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    cases = []
    for prompt, completion in COMPLETIONS:
        ended = completion if completion.endswith("</s>") else completion + "</s>"
        prompt_ids, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + ended)["input_ids"]
        same = next((i for i, (a, b) in enumerate(zip(prompt_ids, ids)) if a != b), min(len(prompt_ids), len(ids)))
        mask = [int(i >= same) for i in range(len(ids))]
        cases.append({"prompt": prompt, "completion": completion, "ids": ids, "mask": mask})
    return {"tokenizer": json.loads(inner.to_str()), "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write, usually `fixtures/turns`")
    output = parser.parse_args().output
    fixtures = {
        "marks.json": marks(output.parent / "models" / "llama-tiny"),
        "completions.json": {"metaspace": completions(metaspace()), "unigram": completions(unigram())},
    }
    for name, value in fixtures.items():
        (output / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
