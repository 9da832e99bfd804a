"""`tokenizers/splits.json`: token ids of nasty strings by the Python tokenizers, for the split patterns in use.

One small byte-level BPE model serves all families; only what cuts the text before it differs. Seeded; `long` holds runs of
a million characters by the number and a checksum of their ids.

    venv/bin/python -m reference_fixtures.splits ../fixtures/tokenizers      (in scripts/)
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CODER = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ]+"


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def in_bytes(*parts):
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def families():
    byte_level = pre_tokenizers.ByteLevel
    digits = pre_tokenizers.Digits
    return {
        "gpt2": byte_level(add_prefix_space=False),
        "gpt2-prefix-space": byte_level(add_prefix_space=True),
        "llama3": in_bytes(split(LLAMA3)),
        "qwen2": in_bytes(split(QWEN2)),
        "possessive": in_bytes(split(POSSESSIVE)),
        "o200k": in_bytes(split(O200K)),
        "deepseek-v3": in_bytes(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK)),
        "deepseek-coder": in_bytes(split(r"[\r\n]"), split(CODER), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"), split("[一-龥ࠀ-一가-퟿]+"), digits(True)),
        "smollm": pre_tokenizers.Sequence([digits(True), byte_level(add_prefix_space=False)]),
        "falcon": pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), byte_level(add_prefix_space=False), digits(False), split("[0-9][0-9][0-9]")]),
        "bloom": in_bytes(split(r" ?[^(\s|[.,!?…。，、।۔،])]+")),
        "grouped-digits": in_bytes(split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(LLAMA3)),
        "words": in_bytes(split(r"\w+|[^\w\s]+", "removed", True)),
        "word-brackets": in_bytes(split(r"[\w']+|[^\w']")),
        "not-words": in_bytes(split(r"\W+")),
        "edges": in_bytes(split(r"\b")),
        "inner": in_bytes(split(r"\B")),
        "lines": in_bytes(split(r"\R")),
        "line-edges": in_bytes(split(r"^ *|\s+$")),
        "posix": in_bytes(split(r"[[:punct:]]+|[[:alpha:]]+|[[:digit:]]+|[[:upper:]]|[[:^space:]]")),
        "dot": in_bytes(split(r"(?m:a.)|.[\u0041-\x{5A}]\x09?")),
        "nested": in_bytes(split(r"[a-z&&[^aeiou]]+|[0-9[A-F]]{2}+|\h{1,2}")),
        "properties": in_bytes(split(r"\p{Han}+|\p{^Han}|\P{L}|\p{Greek}|\p{Upper}")),
        "spaces": in_bytes(split(" ?", "merged_with_next")),
        "literal": in_bytes(pre_tokenizers.Split(".", "merged_with_previous")),
        "behaviours": in_bytes(split(r"\s", "contiguous"), split(r"\d+", "merged_with_next"), split("[,;]", "removed")),
        "whitespace": in_bytes(pre_tokenizers.Whitespace()),
        "metaspace": pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), split("[-.]"), byte_level(add_prefix_space=False, use_regex=False)]),
        "case": in_bytes(split(r"(?i:straße|k|'s)")),
        "behind": in_bytes(split(r"(?<=[a-z])(?=[A-Z])|(?<!\n)\n(?!\n)")),
    }


HAND = [
    "", " ", "Hello, World!", "it's they'RE I'LL 'ſ 'S K", "x²y m³ 10⁴ ¹½¾ ⅓ ₂ ①②", "a\u200db\u200cc \ufeffd 👩\u200d👩\u200d👧 नमस्\u200dते",
    "1234567890 12 1,234,567.89 ٣٤٥ Ⅷ", "a\r\nb\n\rc\u2028d\u2029e\x85f\x0bg\x0ch", "  lead", "trail  ", "\n\n  x\n \n", "tab\t\tx \t y",
    "snake_case CamelCase HTTPServer e\u0301cole Ünï", "漢字かなカナ한국어 ไทย", "!@#$%^&*()_+-=[]{}|;':\",./<>?`~«»„“”", "don't can't o'clock 'tis",
    "\u00a0\u3000nbsp\u2003em", "emoji 🦀🦀 🇨🇭 ❤️", "if (x==1) {\n    return y;\n}\n", "straße STRASSE ǅ ﬁ İi", "abcDefGHI\n\nx\ny", "A1B2 c3d4 FF00aa", "\x00\x01\x7f\x1c\x1f",
]
PIECES = [
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\x85", "\x0b", "\u3000", "a", "Z", "hello", "World", "é", "ß", "ſ", "漢", "か", "한", "ไ", "\u0301", "1", "23", "456", "²", "½", "Ⅷ", "٣",
    "\u200d", "\u200c", "_", "'", "'s", "'LL", "-", ".", ",", "!", "…", "。", "(", ")", "🦀", "€", "\\", "/", "ʼ", "A", "B", "Ω", "ǅ", "\u24d0",
]


def checksum(ids):
    total = 0
    for id in ids:
        total = (total * 31 + id) % (1 << 61)
    return total


def token(content, special, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": not special, "special": special} | flags


SETTINGS = {
    "decoder": {"added_tokens_decoder": {"421": token("say", False, single_word=True, normalized=False), "420": token("<new>", True), "422": token("<old>", True, rstrip=True)}},
    "split": {"added_tokens_decoder": {"420": token("<new>", True)}, "eos_token": "<old>", "split_special_tokens": True},
    "extra": {"additional_special_tokens": ["<extra>", "<old>"], "eos_token": "<end>"},
    "extra-named": {"extra_special_tokens": ["<extra>", token("<other>", True) | {"__type": "AddedToken"}], "pad_token": token("<end>", True) | {"__type": "AddedToken"}},
}


def settings(base: dict) -> list[dict]:
    """The effect of tokens in `tokenizer_config.json` in transformers; `<old>` is an added token, `<end>` a special one."""
    base = dict(base) | {"added_tokens": [{"id": len(base["model"]["vocab"]) + n} | token(text, special) for n, (text, special) in enumerate([("<old>", False), ("<end>", True)])]}
    out = []
    for name, config in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tokenizer.json").write_text(json.dumps(base))
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
            loaded = PreTrainedTokenizerFast.from_pretrained(folder)
        cases = []
        for text in ["say <new> hi<old>  x<end>", "essay say, <extra><other> <new><new>", "<old> <end>y"]:
            ids = loaded.encode(text, add_special_tokens=False)
            cases.append({"text": text, "ids": ids, "decoded": loaded.decode(ids, skip_special_tokens=True)})
        out.append({"name": name, "tokenizer": {"added_tokens": base["added_tokens"]}, "config": config, "cases": cases})
    return out


def write_all(folder: Path) -> None:
    generator = random.Random(20261127)
    texts = HAND + ["".join(generator.choices(PIECES, k=generator.randint(5, 30))) for _ in range(40)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = families()["gpt2"]
    trained.train_from_iterator(texts * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = json.loads(trained.to_str())
    runs = [(" ", 1_000_000, "x"), ("\n", 1_000_000, ""), ("7", 1_000_000, ""), ("a", 300_000, " b"), (" \n", 300_000, "x"), ("!", 300_000, "")]
    long_in = ("gpt2", "llama3", "qwen2", "o200k", "deepseek-v3", "smollm")
    out = {"model": tokenizer["model"], "families": {}}
    for name, pre_tokenizer in families().items():
        trained.pre_tokenizer = pre_tokenizer
        cases = [{"text": text, "ids": trained.encode(text, add_special_tokens=False).ids} for text in texts]
        entry = {"pre_tokenizer": json.loads(trained.to_str())["pre_tokenizer"], "cases": cases}
        if name in long_in:
            entry["long"] = []
            for unit, count, tail in runs:
                count = count if name in ("gpt2", "llama3") and unit in " 7" else count // 10
                ids = trained.encode(unit * count + tail, add_special_tokens=False).ids
                entry["long"].append({"unit": unit, "count": count, "tail": tail, "length": len(ids), "checksum": checksum(ids)})
        out["families"][name] = entry
    trained.pre_tokenizer = families()["gpt2"]
    trained.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\b\w"), "_"), normalizers.Replace(Regex(r"\R"), "|")])
    out["normalized"] = {"normalizer": json.loads(trained.to_str())["normalizer"], "cases": [{"text": t, "ids": trained.encode(t, add_special_tokens=False).ids} for t in texts]}
    out["settings"] = settings(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits.json").write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(out['families'])} families, {len(texts)} texts")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
