"""`adapters/*/reference.safetensors`: PEFT's logits with an adapter that PEFT saved, or that metal-candle wrote.

The files of `metal-candle-*` come from the Rust test that compares them byte for byte; only PEFT's answer is made here.
"""

from pathlib import Path

import check_adapter
import torch
from peft import PeftModel

from .files import load_json, load_tensors, save_tensors


def answer_ours(folder: Path, models: Path) -> None:
    """Loads each of our adapters into PEFT, which must accept every tensor unchanged, and stores the logits."""
    ours = sorted(folder.glob("metal-candle-*"))
    if not ours:
        raise FileNotFoundError(f"{folder}: no metal-candle-* folder; crates/metal-candle/tests/adapters.rs writes them")
    for path in ours:
        base = load_json(path / "adapter_config.json")["base_model_name_or_path"]
        save_logits(path, check_adapter.load(models / base, path), models / base)


@torch.no_grad()
def save_logits(folder: Path, model: PeftModel, base: Path) -> None:
    """Logits on the base model's own `input_ids`, adapter active."""
    input_ids = load_tensors(base / "reference.safetensors")[0]["input_ids"]
    save_tensors(folder / "reference.safetensors", {"input_ids": input_ids, "logits": model(input_ids).logits})
