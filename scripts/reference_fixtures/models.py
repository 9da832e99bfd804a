"""`models/<name>/`: tiny random models as transformers saves them, with what transformers says they do.

Beside the usual files each folder has `reference.safetensors` (input_ids, logits, hidden states) and
`reference.json` (prompts, greedy continuations, chat renderings).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from . import tokenizer as tokenizers
from .files import generator, load_json, save_json, save_tensors

NEW_TOKENS = 24
PENALTY = 1.3
# Logits closer than this could be ordered differently in f32 on another machine.
SMALLEST_MARGIN = 1e-3

PROMPTS = ["The quick brown fox", "Gr\u00fc\u00dfe, \u4e16\u754c! \U0001f642 e\u0301", "1 + 2 =\n\n  3, isn't it?"]

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris."},
    ],
    [
        {"role": "system", "content": "  Be brief. "},
        {"role": "user", "content": "Add 12 and 30."},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Und jetzt auf Gr\u00f6nl\u00e4ndisch \U0001f642?"},
        {"role": "assistant", "content": "I cannot.\nSorry."},
        {"role": "user", "content": '<b>Why</b> & "how"?'},
    ],
]
BAD_CONVERSATION = [{"role": "wizard", "content": "Abracadabra"}]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass
class TinyModel:
    """One folder. `version_4` writes config and chat template the way transformers 4 spelled them."""

    family: str
    config: LlamaConfig | Qwen2Config
    version_4: bool = False
    max_shard_size: str = "5GB"


def catalogue() -> dict[str, TinyModel]:
    """Each model covers features that the others do not have."""
    shared: dict[str, Any] = {"max_position_embeddings": 512, "initializer_range": 0.1, "dtype": "float32"}
    llama = {**shared, "vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
    qwen2 = {**shared, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "llama-tiny": TinyModel(
            "llama",
            LlamaConfig(
                **llama,
                hidden_size=64,
                intermediate_size=96,
                num_key_value_heads=2,
                rope_parameters=dict(LLAMA3_ROPE),
                tie_word_embeddings=False,
            ),
        ),
        "llama-tied-tiny": TinyModel(
            "llama",
            LlamaConfig(
                **llama,
                hidden_size=32,
                intermediate_size=48,
                num_key_value_heads=1,
                head_dim=12,  # is not hidden_size / heads
                rope_parameters={**LLAMA3_ROPE, "rope_theta": 500000.0},
                tie_word_embeddings=True,
                attention_bias=True,
                mlp_bias=True,
            ),
            version_4=True,
        ),
        "qwen2-tiny": TinyModel(
            "qwen2",
            Qwen2Config(
                **qwen2,
                vocab_size=304,  # padded beyond the tokenizer's 300, as in the released models
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=3,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                tie_word_embeddings=True,
            ),
        ),
        "qwen2-sharded-tiny": TinyModel(
            "qwen2",
            Qwen2Config(
                **qwen2,
                vocab_size=300,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                tie_word_embeddings=False,
            ),
            version_4=True,
            max_shard_size="48KB",
        ),
    }


def write_all(folder: Path) -> None:
    for name, tiny in catalogue().items():
        write(folder / name, name, tiny)


def write(folder: Path, name: str, tiny: TinyModel) -> None:
    """Saves one model with its tokenizer, then the results of transformers."""
    tokenizer = tokenizers.build(tiny.family)
    tiny.config.bos_token_id = tokenizer.bos_token_id
    tiny.config.eos_token_id = tokenizer.eos_token_id
    tiny.config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(tiny.config, dtype=torch.float32, attn_implementation="eager").eval()
    randomise(model, generator(f"models/{name}"))
    model.generation_config = generation_config(tiny.family, tokenizer)
    model.save_pretrained(folder, max_shard_size=tiny.max_shard_size)
    tokenizer.save_pretrained(folder, save_jinja_files=not tiny.version_4)
    if tiny.version_4:
        spell_as_version_4(folder)
    write_logits(folder / "reference.safetensors", name, model)
    save_json(folder / "reference.json", describe(name, tiny.family, model, tokenizer))


@torch.no_grad()
def randomise(model: PreTrainedModel, source: torch.Generator) -> None:
    """Weights that exercise every part: norms not one, biases not zero, logits that vary."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=source)
        if "norm" in name:
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.dim() == 1:
            parameter.copy_(0.2 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.copy_(0.4 * noise)
        else:
            parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)


def generation_config(family: str, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Llama's has no settings; Qwen2's has several end tokens and enables sampling, like released ones."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if family == "llama":
        return GenerationConfig(**ids, eos_token_id=tokenizer.eos_token_id)
    return GenerationConfig(
        **ids,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        repetition_penalty=1.05,
    )


def spell_as_version_4(folder: Path) -> None:
    """Rewrites rope, dtype and tokenizer class in the older spelling of most published folders."""
    config = load_json(folder / "config.json")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    save_json(folder / "config.json", dict(sorted(config.items())))
    settings = load_json(folder / "tokenizer_config.json")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend")
    save_json(folder / "tokenizer_config.json", settings)


@torch.no_grad()
def write_logits(path: Path, name: str, model: PreTrainedModel) -> None:
    """`input_ids` (2, 20), `logits` (2, 20, vocab) and `hidden_states.<i>` (2, 20, hidden).

    Hidden state 0 is the embedding, i the output of layer i - 1; the last one is after the final norm.
    """
    vocabulary = model.config.vocab_size
    input_ids = torch.randint(0, vocabulary, (2, 20), generator=generator(f"input_ids/{name}"))
    output = model(input_ids, output_hidden_states=True, use_cache=False)
    hidden = {f"hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
    save_tensors(path, {"input_ids": input_ids, "logits": output.logits, **hidden})


def describe(name: str, family: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of `reference.json`."""
    return {
        "model": name,
        "prompts": [describe_prompt(text, model, tokenizer) for text in PROMPTS],
        "chats": [
            describe_chat(messages, add_generation_prompt, family, tokenizer)
            for messages in CONVERSATIONS
            for add_generation_prompt in (False, True)
        ],
        "chats_refused": [BAD_CONVERSATION] if family == "llama" else [],
    }


def describe_prompt(text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A prompt's tokens and its greedy continuations, with and without a repetition penalty."""
    ids = tokenizer(text)["input_ids"]
    return {
        "text": text,
        "ids": ids,
        "ids_without_special": tokenizer(text, add_special_tokens=False)["input_ids"],
        "decoded": tokenizer.decode(ids, skip_special_tokens=True),
        "greedy": [continuation(ids, penalty, model, tokenizer) for penalty in (1.0, PENALTY)],
    }


def continuation(
    ids: list[int], penalty: float, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Up to `NEW_TOKENS` greedy tokens; an end token is included and ends the list."""
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        repetition_penalty=penalty,
        output_scores=True,
        return_dict_in_generate=True,
    )
    margin = min((top[0] - top[1]).item() for top in (scores[0].topk(2).values for scores in output.scores))
    if margin < SMALLEST_MARGIN:
        raise ValueError(f"a greedy choice is decided by {margin:.1e}; take another seed")
    new = output.sequences[0, len(ids) :].tolist()
    return {
        "repetition_penalty": penalty,
        "ids": new,
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "ended": new[-1] in (tokenizer.eos_token_id, tokenizer.pad_token_id),
    }


def describe_chat(
    messages: list[dict[str, str]], add_generation_prompt: bool, family: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """A rendered conversation. The mask is 1 on the assistant's tokens, including `<|im_end|>`."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    marked = tokenizer.apply_chat_template(
        messages,
        chat_template=tokenizers.marked_template(family),
        add_generation_prompt=add_generation_prompt,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    if tokenizer(text, add_special_tokens=False)["input_ids"] != marked["input_ids"]:
        raise ValueError("the template with generation tags renders another text")
    return {
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "text": text,
        "ids": marked["input_ids"],
        "assistant_mask": marked["assistant_masks"],
    }
