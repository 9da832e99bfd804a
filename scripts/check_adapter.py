"""Loads an adapter into PEFT and compares its logits with stored ones.

    python scripts/check_adapter.py --model DIR --adapter DIR --logits FILE.safetensors

The adapter is one that metal-candle (or anyone) wrote in PEFT's format. FILE holds `input_ids`
(batch, seq), i64, and `logits` (batch, seq, vocab), f32, as computed with that adapter. Prints the
largest absolute difference; exit code 1 if it is above 1e-4 or PEFT did not take every tensor.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all paths are folders; never ask a hub

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

LARGEST_DIFFERENCE = 1e-4


def load(model: Path, adapter: Path) -> PeftModel:
    """The model with the adapter active, f32. PEFT only warns about unexpected tensors; this raises."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    peft_model = PeftModel.from_pretrained(base, adapter).eval()
    stored = load_file(adapter / "adapter_model.safetensors")
    taken = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    if missing := sorted(taken.keys() - stored.keys()):
        raise ValueError(f"{adapter}: lacks {len(missing)} tensors, the first is {missing[0]}")
    if extra := sorted(stored.keys() - taken.keys()):
        raise ValueError(f"{adapter}: PEFT has no place for {len(extra)} tensors, the first is {extra[0]}")
    if changed := [name for name in sorted(taken) if not torch.equal(taken[name].float(), stored[name].float())]:
        raise ValueError(f"{adapter}: PEFT holds other values for {len(changed)} tensors, the first is {changed[0]}")
    return peft_model


@torch.no_grad()
def differences(model: Path, adapter: Path, logits: Path) -> tuple[float, float]:
    """Largest absolute difference to the stored logits, and between the base model's logits and PEFT's."""
    stored = load_file(logits)
    peft_model = load(model, adapter)
    computed = peft_model(stored["input_ids"]).logits
    with peft_model.disable_adapter():
        base = peft_model(stored["input_ids"]).logits
    if computed.shape != stored["logits"].shape:
        raise ValueError(f"{logits}: logits are {tuple(stored['logits'].shape)}, PEFT's {tuple(computed.shape)}")
    return (computed - stored["logits"].float()).abs().max().item(), (computed - base).abs().max().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder with adapter_config.json")
    parser.add_argument("--logits", type=Path, required=True, help="safetensors with input_ids and logits")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    try:
        difference, effect = differences(arguments.model, arguments.adapter, arguments.logits)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"largest difference to PEFT's logits: {difference:.3e} (allowed: {LARGEST_DIFFERENCE:.0e})")
    print(f"the adapter changes the base model's logits by up to {effect:.3e}")
    return 0 if difference <= LARGEST_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
