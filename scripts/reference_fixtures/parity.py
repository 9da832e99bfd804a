"""`parity/`: some thirty small models of drawn settings, and what transformers and PEFT compute with them.

`models.json` holds settings, token ids and greedy ids, `logits.safetensors` the logits of a few positions,
`training.json` the losses of LoRA runs on a few of the models, `logits_processors.json` the tokens that transformers'
processors forbid, `sampling.json` the probabilities that its warpers leave, and `generation.json` what `generate` says
with such settings. The weights are those of `seeded_weights`, rounded to the dtype of the case.
"""

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation import logits_process as processes

from . import seeded_weights
from .files import save_json, save_tensors

CASES = 34
SEED = 12
ROWS, LENGTH = 2, 40
NEW_TOKENS = 40
# Logits closer than this could be ordered differently in f32 on another machine; the ids end before such a step.
SMALLEST_MARGIN = 2e-3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 0.9,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "original_max_position_embeddings": 24,
    },
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
        "original_max_position_embeddings": 16,
    },
]


def write_all(folder: Path, models: Path) -> None:
    draw = random.Random(SEED)
    cases = [Case(number, draw) for number in range(CASES)]
    described, logits = [], {}
    for case in cases:
        entry, tensor = case.run()
        described.append(entry)
        logits[str(case.number)] = tensor
    save_json(folder / "models.json", described)
    save_tensors(folder / "logits.safetensors", logits)
    save_json(folder / "training.json", [train(cases[number]) for number in TRAINED])
    save_json(folder / "logits_processors.json", processor_cases())
    save_json(folder / "sampling.json", sampling_cases())
    save_json(folder / "generation.json", generation_cases(models))


class Case:
    """One model: `config` is the content of its `config.json`."""

    def __init__(self, number: int, draw: random.Random) -> None:
        self.number = number
        self.family = ("llama", "qwen2")[number % 2]
        # 0: tied and without a head, 1: untied, 2: tied according to the settings, but with a different head,
        # 3: tied, and saved as the head alone
        self.head = (0, 1, 1, 0, 2, 1, 3)[number % 7]
        self.dtype = ("float32", "bfloat16", "float16")[draw.randrange(3)]
        self.shards = draw.choice([1, 1, 2, 3])
        self.config = self.draw_config(draw)

    def draw_config(self, draw: random.Random) -> dict[str, Any]:
        heads = draw.choice([1, 2, 3, 4, 5, 6, 7])
        key_value = draw.choice([k for k in range(1, heads + 1) if heads % k == 0])
        head_dim = draw.choice([4, 6, 8, 10, 16])
        own_head_dim = draw.random() < 0.4
        hidden = heads * (draw.choice([4, 8, 12]) if own_head_dim else head_dim)
        config: dict[str, Any] = {
            "model_type": self.family,
            "hidden_size": hidden,
            "intermediate_size": draw.choice([24, 40, 56, 33]),
            "num_hidden_layers": draw.choice([1, 2, 2, 3]),
            "num_attention_heads": heads,
            "num_key_value_heads": key_value,
            "vocab_size": draw.choice([37, 64, 80, 101]),
            "hidden_act": draw.choice(["silu", "silu", "swish"]),
            "rms_norm_eps": draw.choice([1e-6, 1e-5, 3e-3]),
            "max_position_embeddings": draw.choice([128, 256]),
            "tie_word_embeddings": self.head != 1,
            "torch_dtype" if draw.random() < 0.5 else "dtype": self.dtype,
            "eos_token_id": draw.choice([-1, None, [-1]]),
            "bos_token_id": None,
        }
        if own_head_dim:
            config["head_dim"] = head_dim
        if self.family == "llama":
            config["attention_bias"] = draw.random() < 0.4
            config["mlp_bias"] = draw.random() < 0.4
        elif draw.random() < 0.6:
            config |= self.draw_windows(draw, config["num_hidden_layers"])
        return config | self.draw_rope(draw)

    def draw_windows(self, draw: random.Random, layers: int) -> dict[str, Any]:
        window = {"use_sliding_window": True, "sliding_window": draw.choice([1, 5, 17, 33])}
        if draw.random() < 0.5:
            return window | {"max_window_layers": draw.randrange(layers + 1)}
        kinds = ["full_attention", "sliding_attention"]
        return window | {"layer_types": [draw.choice(kinds) for _ in range(layers)]}

    def draw_rope(self, draw: random.Random) -> dict[str, Any]:
        """Both layouts, and mixtures of them."""
        rope = dict(ROPES[(self.number // 2) % len(ROPES)])
        theta = draw.choice([100.0, 10000.0, 500000.0])
        settings: dict[str, Any] = {}
        if "original_max_position_embeddings" in rope and draw.random() < 0.5:
            # at the top level it takes precedence over the nested one, which is optional
            settings["original_max_position_embeddings"] = 20
            if draw.random() < 0.5:
                rope.pop("original_max_position_embeddings")
        layout = self.number % 4
        if layout < 2:
            return settings | {"rope_parameters": rope | {"rope_theta": theta}}
        if layout == 3 and draw.random() < 0.5:
            rope["type"] = rope.pop("rope_type")
        return settings | {"rope_theta": theta, "rope_scaling": None if len(rope) == 1 else rope}

    def weights(self, names: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        tensors = {name: seeded_weights.tensor(self.number, name, shape) for name, shape in names.items()}
        return {name: tensor.to(DTYPES[self.dtype]) for name, tensor in tensors.items()}

    def model(self, folder: Path) -> torch.nn.Module:
        """The model folder, loaded by transformers; computed in f32."""
        save_json(folder / "config.json", self.config)
        settings = AutoConfig.from_pretrained(folder)
        empty = AutoModelForCausalLM.from_config(settings)
        names = {name: tuple(p.shape) for name, p in empty.named_parameters(remove_duplicate=False)}
        tied = self.head in (0, 3)
        if tied:
            names.pop("lm_head.weight", None)
        weights = self.weights(names)
        if self.head == 3:
            weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @torch.no_grad()
    def run(self) -> tuple[dict[str, Any], torch.Tensor]:
        folder = Path(tempfile.mkdtemp())
        model = self.model(folder)
        shutil.rmtree(folder)
        vocabulary = self.config["vocab_size"]
        ids = [seeded_weights.integers(self.number, f"ids.{row}", LENGTH, vocabulary) for row in range(ROWS)]
        logits = model(torch.tensor(ids), use_cache=False).logits
        if not 0.3 < logits.std() < 30:
            raise ValueError(f"case {self.number}: logits of deviation {logits.std():.2f}")
        positions = [0, 7, LENGTH - 1]
        greedy = [self.greedy(model, row[: LENGTH - 9 * number]) for number, row in enumerate(ids)]
        entry = {
            "config": self.config,
            "seed": self.number,
            "dtype": self.dtype,
            "head": ["embedding", "own", "own though tied", "alone"][self.head],
            "shards": self.shards,
            "positions": positions,
            "prompts": [LENGTH - 9 * number for number in range(ROWS)],
            "greedy": greedy,
        }
        return entry, logits[:, positions]

    def greedy(self, model: torch.nn.Module, prompt: list[int]) -> list[int]:
        """The tokens that `generate` appends, up to a step whose logits are too close."""
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=-1,
            pad_token_id=0,
            # with a window of one token, transformers' own cache keeps all tokens
            use_cache=self.config.get("sliding_window") != 1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        new = output.sequences[0, len(prompt) :].tolist()
        for step, scores in enumerate(output.scores):
            top = scores[0].topk(2).values
            if top[0] - top[1] < SMALLEST_MARGIN:
                return new[:step]
        return new


STEPS, RATE = 10, 5e-3
# Settings that matter for training: windows, biases, untied heads, rotary scaling, head dimensions.
TRAINED = (1, 6, 7, 11, 12, 16, 18, 23)


def train(case: Case) -> dict[str, Any]:
    """Ten steps of AdamW on a LoRA of every linear layer, whose factors follow from the seed, too.

    Run in f32 and once more in f64, to say how much of the losses and norms is rounding.
    """
    rank, alpha = 2 + case.number % 3, 6
    steps, exact = (train_as(dtype, case, rank, alpha) for dtype in (torch.float32, torch.float64))
    rounding = [max(abs(a[i] - b[i]) / b[i] for a, b in zip(steps, exact, strict=True)) for i in range(2)]
    if rounding[0] > 2e-6 or rounding[1] > 1e-5:
        raise ValueError(f"case {case.number}: rounding shows: {rounding}")
    return {
        "case": case.number,
        "r": rank,
        "lora_alpha": alpha,
        "learning_rate": RATE,
        "steps": [list(step) for step in steps],
        "rounding": rounding,
    }


def train_as(dtype: torch.dtype, case: Case, rank: int, alpha: float) -> list[tuple[float, float]]:
    """Loss and norm of the gradient of each step."""
    folder = Path(tempfile.mkdtemp())
    base = case.model(folder).to(dtype)
    shutil.rmtree(folder)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            short = name.removeprefix("base_model.model.").replace(".default", "")
            # B is not zero, so that A has a gradient from the first step
            values = seeded_weights.fractions(case.number, short, parameter.numel())
            values = values * values.dtype.type(0.5 if "lora_A" in name else 0.25)
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape)))
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, foreach=False
    )
    steps = []
    model.train()
    for step in range(STEPS):
        vocabulary = case.config["vocab_size"]
        rows = [seeded_weights.integers(case.number, f"step.{step}.{row}", 24, vocabulary) for row in range(3)]
        ids = torch.tensor(rows)
        optimizer.zero_grad()
        logits = model(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0, foreach=False)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return steps


def processor_cases() -> list[dict[str, Any]]:
    """Random settings, single and combined, over a vocabulary of 12."""
    draw = random.Random(SEED)
    cases = []
    for number in range(60):
        prompt = draw.randrange(1, 8)
        history = [draw.randrange(5) for _ in range(prompt + draw.choice([0, 0, 1, 3, 6]))]
        eos = draw.sample(range(12), draw.choice([1, 2]))
        choices: dict[str, Any] = {
            "no_repeat_ngram_size": draw.choice([1, 2, 3, 4]),
            "bad_words_ids": [
                [7],
                [eos[0]],
                history[-1:] + [8],
                history[-2:] + [9],
                [11, 10],
                [draw.randrange(12) for _ in range(9)],
            ],
            "min_length": draw.choice([0, 4, 9]),
            "min_new_tokens": draw.choice([0, 2, 5]),
            "suppress_tokens": draw.sample(range(12), 2),
            "begin_suppress_tokens": draw.sample(range(12), 2),
        }
        names = list(choices)
        settings = {names[number % 6]: choices[names[number % 6]]}
        if number >= 36:
            settings |= {name: choices[name] for name in draw.sample(names, 3)}
        forbidden = forbidden_tokens(settings, history, prompt, eos)
        cases.append({"settings": settings, "history": history, "prompt": prompt, "eos": eos, "forbidden": forbidden})
    return cases


def forbidden_tokens(settings: dict[str, Any], history: list[int], prompt: int, eos: list[int]) -> list[int]:
    """The tokens that the processors of these settings forbid."""
    makers = {
        "no_repeat_ngram_size": lambda v: processes.NoRepeatNGramLogitsProcessor(v),
        "bad_words_ids": lambda v: processes.NoBadWordsLogitsProcessor(v, eos),
        "min_length": lambda v: processes.MinLengthLogitsProcessor(v, eos),
        "min_new_tokens": lambda v: processes.MinNewTokensLengthLogitsProcessor(prompt, v, eos),
        "suppress_tokens": lambda v: processes.SuppressTokensLogitsProcessor(v),
        "begin_suppress_tokens": lambda v: processes.SuppressTokensAtBeginLogitsProcessor(v, prompt),
    }
    scores = torch.full((1, 12), 0.5)
    for name, value in settings.items():
        scores = makers[name](value)(torch.tensor([history]), scores)
    return [token for token in range(12) if scores[0, token] == -float("inf")]


def sampling_cases() -> list[dict[str, Any]]:
    """Random sampling settings, single and combined, with the resulting probabilities."""
    draw = random.Random(SEED)
    cases = []
    for number in range(72):
        size = draw.choice([5, 12, 12, 120])
        logits = [round(draw.gauss(0, 2), 2) for _ in range(size)]
        history = [draw.randrange(size) for _ in range(6)]
        choices: dict[str, Any] = {
            "temperature": draw.choice([0.5, 0.8, 1.3]),
            "top_h": draw.choice([0.2, 0.5, 0.9]),
            "top_k": draw.choice([1, 3, 10]),
            "top_p": draw.choice([0.3, 0.7, 0.95]),
            "min_p": draw.choice([0.01, 0.1, 0.5]),
            "typical_p": draw.choice([0.2, 0.6, 0.95]),
            "epsilon_cutoff": draw.choice([0.005, 0.05, 0.4]),
            "eta_cutoff": draw.choice([0.005, 0.05, 0.4]),
            "repetition_penalty": draw.choice([0.8, 1.2, 2.0]),
        }
        names = [list(choices)[number % 9]] if number < 36 else draw.sample(list(choices), draw.choice([2, 4, 6]))
        settings = {"do_sample": True, "top_k": 0} | {name: choices[name] for name in choices if name in names}
        probabilities = [float(f"{p:.7g}") for p in warped(settings, logits, history)]
        cases.append({"settings": settings, "logits": logits, "history": history, "probabilities": probabilities})
    return cases


def warped(settings: dict[str, Any], logits: list[float], history: list[int]) -> list[float]:
    """The probabilities after transformers' processors, in the order of `generate`."""
    makers: dict[str, Any] = {
        "repetition_penalty": processes.RepetitionPenaltyLogitsProcessor,
        "temperature": processes.TemperatureLogitsWarper,
        "top_h": processes.TopHLogitsWarper,
        "top_k": processes.TopKLogitsWarper,
        "top_p": processes.TopPLogitsWarper,
        "min_p": processes.MinPLogitsWarper,
        "typical_p": processes.TypicalLogitsWarper,
        "epsilon_cutoff": processes.EpsilonLogitsWarper,
        "eta_cutoff": processes.EtaLogitsWarper,
    }
    scores = torch.tensor([logits])
    for name, maker in makers.items():
        if settings.get(name):
            scores = maker(settings[name])(torch.tensor([history]), scores)
    return scores.softmax(-1)[0].tolist()


def generation_cases(models: Path) -> list[dict[str, Any]]:
    """Greedy ids of the models of `models/` with the settings of a `generation_config.json`, an end token included."""
    cases = []
    for name in ("llama-tiny", "qwen2-tiny"):
        model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32).eval()
        model.generation_config.do_sample = False
        prompts = (seeded_weights.integers(SEED + attempt, name, 9, 200) for attempt in range(100))
        # one whose continuation has no close logits
        prompt, plain = next((p, g) for p in prompts if len(g := continued(model, p, {})) == NEW_TOKENS)
        for settings in (
            {},
            {"no_repeat_ngram_size": 2},
            {"no_repeat_ngram_size": 1, "repetition_penalty": 1.3},
            {"suppress_tokens": plain[:3]},
            {"begin_suppress_tokens": plain[:1]},
            {"bad_words_ids": [plain[:1], plain[2:5], [prompt[-1], plain[0]]]},
            {"min_new_tokens": 40, "no_repeat_ngram_size": 3},
            {"min_length": 30, "eos_token_id": plain[4:6]},
            {"min_new_tokens": 8, "eos_token_id": plain[2]},
            {"eos_token_id": plain[2]},
        ):
            cases.append({"model": name, "prompt": prompt, "settings": settings, "ids": continued(model, prompt, settings)})
    return cases


def continued(model: torch.nn.Module, prompt: list[int], settings: dict[str, Any]) -> list[int]:
    """The tokens that `generate` appends, up to a step whose logits are too close."""
    defaults = {"repetition_penalty": 1.0, "eos_token_id": -1}
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=NEW_TOKENS,
        output_scores=True,
        return_dict_in_generate=True,
        **(defaults | settings),
    )
    new = output.sequences[0, len(prompt) :].tolist()
    for step, scores in enumerate(output.scores):
        top = scores[0].topk(2).values
        if top[0] - top[1] < SMALLEST_MARGIN:
            return new[:step]
    return new
