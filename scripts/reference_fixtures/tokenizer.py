"""The tokenizers of the tiny models: byte-level BPE of 300 tokens, and their chat templates.

`llama` begins every text with `<|begin_of_text|>` (a post-processor) and knows no default system
message; `qwen2` normalises to NFC, splits by Qwen2's pattern and puts a default system message first.
"""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 300
BEGIN, END_OF_TEXT, START, END = "<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "A model learns what it is taught, and the rest it makes up.",
    "What is the capital of France? The capital of France is Paris.",
    "Add 12 and 30: the answer is 42. Then the other answer is 7.",
    "She said that the rain in the north is the rain they remember.",
] * 4

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role: ' + message['role']) }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {{- message['content'] | trim + '<|im_end|>' }}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

QWEN2_TEMPLATE = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- message.content + '<|im_end|>' }}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

TEMPLATES = {"llama": LLAMA_TEMPLATE, "qwen2": QWEN2_TEMPLATE}


def marked_template(family: str) -> str:
    """The template with `{% generation %}` around what the assistant says.

    transformers' mask of the assistant's tokens needs the tag; other engines do not know it, so the
    saved template goes without.
    """
    lines = TEMPLATES[family].splitlines()
    at = next(i for i, line in enumerate(lines) if "content" in line)
    lines[at : at + 1] = [
        "{%- if message.role == 'assistant' %}",
        "{%- generation %}" + lines[at].strip() + "{%- endgeneration %}",
        "{%- else %}",
        lines[at].strip(),
        "{%- endif %}",
    ]
    return "\n".join(lines)


def build(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `CORPUS`, with special tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        specials = [END_OF_TEXT, START, END]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        specials = [BEGIN, END_OF_TEXT, START, END]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if family == "llama":
        begin = (BEGIN, tokenizer.token_to_id(BEGIN))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN if family == "llama" else None,
        eos_token=END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=TEMPLATES[family],
    )
