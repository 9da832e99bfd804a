"""Writes every reference fixture that the Rust tests compare against.

    python -m venv venv && venv/bin/pip install -r scripts/requirements.txt
    venv/bin/python scripts/reference.py --output fixtures

Everything is seeded, runs on the CPU in about a minute and needs no network once the
requirements are installed. The fixtures are read back and compared at the end.
`fixtures/README.md` is written by hand and is left alone.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is made here; never ask a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from reference_fixtures import adapters, models, operations, parity, splits, templates, training, verify

FOLDERS = ("ops", "models", "training", "adapters", "parity", "templates", "tokenizers")
# What is generated here; `adapters/metal-candle-*` is written by metal-candle, and only PEFT's logits are added.
MADE = ("ops", "models", "training", "adapters/peft-*", "parity", "templates", "tokenizers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write, usually `fixtures`")
    output = parser.parse_args().output

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # one thread, one order of summation
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    for folder in (folder for pattern in MADE for folder in output.glob(pattern)):
        shutil.rmtree(folder)
    operations.write_all(output / "ops")
    models.write_all(output / "models")
    training.write_all(output / "training", output / "adapters", output / "models")
    adapters.answer_ours(output / "adapters", output / "models")
    parity.write_all(output / "parity", output / "models")

    templates.write_all(output / "templates")
    splits.write_all(output / "tokenizers")

    verify.operations(output / "ops")
    verify.models(output / "models")
    verify.training(output / "training")
    verify.adapters(output / "adapters", output / "models")
    verify.parity(output / "parity")
    files = [path for folder in FOLDERS for path in (output / folder).rglob("*") if path.is_file()]
    print(f"wrote and verified {len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
