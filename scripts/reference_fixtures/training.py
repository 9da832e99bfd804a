"""`training/<case>.{json,safetensors}` and `adapters/peft-<model>/`: ten steps by PEFT and torch.

The loss is the mean over the supervised tokens of the batch (labels are not shifted in the file; token
i + 1 is predicted from token i). Each step: backward, clip_grad_norm_, AdamW, then the schedule.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from .adapters import save_logits
from .files import generator, load_json, save_json, save_tensors

STEPS, WARMUP_STEPS, PEAK_RATE = 10, 3, 5e-3
ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
ROWS = 3


@dataclass
class Case:
    """One run; `adapter` names the folder that its trained adapter is saved to."""

    name: str
    model: str
    target_modules: str | list[str]
    use_rslora: bool
    zero_b: bool  # PEFT's own start; otherwise B is random so that A learns from the first step
    max_grad_norm: float  # 1 clips every step here, 12 only some
    adapter: str | None = None


CASES = [
    Case("llama-tiny-all-linear", "llama-tiny", "all-linear", False, False, 1.0, "peft-llama-tiny"),
    Case("llama-tiny-rslora", "llama-tiny", ["q_proj", "v_proj"], True, True, 12.0),
    Case("qwen2-tiny-all-linear", "qwen2-tiny", "all-linear", False, False, 1.0),
    Case("qwen2-tiny-rslora", "qwen2-tiny", ["q_proj", "v_proj"], True, True, 12.0, "peft-qwen2-tiny"),
]

Batch = dict[str, Tensor]


@dataclass
class Run:
    """The results of one training run."""

    losses: list[float]
    grad_norms: list[float]
    learning_rates: list[float]
    first_gradients: dict[str, Tensor]
    final: dict[str, Tensor]


def write_all(folder: Path, adapters: Path, models: Path) -> None:
    for case in CASES:
        write(case, folder, adapters, models)


def write(case: Case, folder: Path, adapters: Path, models: Path) -> None:
    """Trains in f32 for the fixture, and again in f64 to measure the rounding."""
    model = build(case, models)
    initial = {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}
    batches = make_batches(case, model.config.vocab_size, model.config.pad_token_id)
    run = train(model, batches, case.max_grad_norm)
    if case.adapter:
        save_adapter(adapters / case.adapter, model, case, models)
    exact = train(build(case, models).double(), batches, case.max_grad_norm)

    tensors = {f"step.{i}.{name}": tensor for i, batch in enumerate(batches) for name, tensor in batch.items()}
    for prefix, group in (("initial", initial), ("gradient", run.first_gradients), ("final", run.final)):
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in group.items()}
    save_tensors(folder / f"{case.name}.safetensors", tensors)
    save_json(folder / f"{case.name}.json", describe(case, model, batches, run, exact))


def build(case: Case, models: Path) -> PeftModel:
    """The base model with a new adapter whose A and B come from the case's seed."""
    base = AutoModelForCausalLM.from_pretrained(models / case.model, dtype=torch.float32, attn_implementation="eager")
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        use_rslora=case.use_rslora,
        target_modules=case.target_modules,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    source = generator(f"training/{case.name}")
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=source)
            if "lora_A" in name:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(0.0 * noise if case.zero_b else 0.1 * noise)
    return model


def adapter_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """A and B by the names that PEFT gives them in adapter_model.safetensors."""
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}


def make_batches(case: Case, vocabulary: int, pad: int) -> list[Batch]:
    """Rows of random tokens of different lengths, padded on the right; the start of each is not supervised."""
    source = generator(f"batches/{case.name}")

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=source))

    batches = []
    for _ in range(STEPS):
        lengths = [draw(6, 17) for _ in range(ROWS)]
        batch = {
            "input_ids": torch.full((ROWS, max(lengths)), pad),
            "attention_mask": torch.zeros(ROWS, max(lengths), dtype=torch.int64),
            "labels": torch.full((ROWS, max(lengths)), -100),
        }
        for row, length in enumerate(lengths):
            tokens = torch.randint(0, vocabulary, (length,), generator=source)
            start = draw(1, length - 2)
            batch["input_ids"][row, :length] = tokens
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, start:length] = tokens[start:]
            if length > 12:  # a second turn that is not the assistant's
                batch["labels"][row, 9:11] = -100
        batches.append(batch)
    return batches


def supervised_tokens(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def batch_loss(model: PeftModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def train(model: PeftModel, batches: list[Batch], max_grad_norm: float) -> Run:
    """Ten steps; the gradients kept are those of the first step, before clipping."""
    parameters = adapter_parameters(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=PEAK_RATE, foreach=False, **ADAMW)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, STEPS)
    run = Run([], [], [], {}, {})
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss = batch_loss(model, batch)
        loss.backward()
        if not run.first_gradients:
            run.first_gradients = {name: p.grad.clone() for name, p in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm, foreach=False)
        run.losses.append(loss.item())
        run.grad_norms.append(norm.item())
        run.learning_rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    run.final = {name: p.detach().clone() for name, p in parameters.items()}
    return run


def describe(case: Case, model: PeftModel, batches: list[Batch], run: Run, exact: Run) -> dict[str, Any]:
    """The content of `<case>.json`."""
    config = model.peft_config["default"]
    return {
        "case": case.name,
        "model": case.model,
        "adapter": case.adapter,
        "lora": {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "use_rslora": config.use_rslora,
            "target_modules": case.target_modules,
            "scaling": config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r),
        },
        "modules": sorted({name.split(".lora_")[0] for name in run.final}),
        "optimizer": {
            "beta1": ADAMW["betas"][0],
            "beta2": ADAMW["betas"][1],
            "eps": ADAMW["eps"],
            "weight_decay": ADAMW["weight_decay"],
            "max_grad_norm": case.max_grad_norm,
            "clip_formula": "gradient * min(1, max_grad_norm / (norm + 1e-6))",
        },
        "schedule": {
            "name": "cosine_with_warmup",
            "peak_learning_rate": PEAK_RATE,
            "warmup_steps": WARMUP_STEPS,
            "total_steps": STEPS,
            "formula": "step counts from 0; step < warmup: peak * step / warmup; "
            "else: peak * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2",
        },
        "steps": [
            {
                "loss": run.losses[i],
                "grad_norm": run.grad_norms[i],
                "learning_rate": run.learning_rates[i],
                "supervised_tokens": supervised_tokens(batches[i]),
            }
            for i in range(STEPS)
        ],
        # the distance to the same run in f64 (norms still in f32), which bounds the tolerance of tests
        "rounding": {
            "loss_relative": max(abs(a - b) / b for a, b in zip(run.losses, exact.losses, strict=True)),
            "grad_norm_relative": max(abs(a - b) / b for a, b in zip(run.grad_norms, exact.grad_norms, strict=True)),
            "gradient_absolute": largest_difference(run.first_gradients, exact.first_gradients),
            "final_absolute": largest_difference(run.final, exact.final),
        },
    }


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def save_adapter(folder: Path, model: PeftModel, case: Case, models: Path) -> None:
    """What PEFT saves, plus `reference.safetensors`: logits on the model's own input_ids, adapter active."""
    model.eval()
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty model card
    config = load_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = case.model  # not a path of the machine that wrote it
    config["target_modules"].sort()  # a set, in the order of the day
    save_json(folder / "adapter_config.json", config)
    save_logits(folder, model, models / case.model)
