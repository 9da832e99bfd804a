"""Reads every fixture back and checks it; raises on the first error."""

import json
from pathlib import Path

import check_adapter
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .files import load_json, load_tensors


def require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def operations(folder: Path) -> None:
    """Tensors and metadata agree; f32 and f64 agree to f32's precision; gradients are there and finite."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors, metadata = load_tensors(path)
        described = {case: json.loads(text) for case, text in metadata.items()}
        require({name.split(".")[0] for name in tensors} == set(described), f"{path}: cases and metadata differ")
        for case, about in described.items():
            mine = {name.removeprefix(f"{case}."): t for name, t in tensors.items() if name.startswith(f"{case}.")}
            require(set(about["inputs"] + about["constants"]) <= set(mine), f"{path}: {case} lacks an input")
            if "g" in mine:
                gradients = {f"grad.{name}" for name in about["inputs"]}
                require(gradients | {"y"} <= set(mine), f"{path}: {case} lacks an output or a gradient")
            for name, tensor in mine.items():
                require(not tensor.isnan().any(), f"{path}: {case}.{name} has a NaN")
                if case.endswith("_f64"):
                    compare_precisions(f"{path}: {case}.{name}", tensors[f"{case[:-4]}_f32.{name}"], tensor)


def compare_precisions(what: str, single: torch.Tensor, double: torch.Tensor) -> None:
    if double.is_floating_point():
        require(double.dtype == torch.float64 and single.dtype == torch.float32, f"{what}: dtypes")
        difference = (single.double() - double)[double.isfinite()].abs().max().item()
        largest = double[double.isfinite()].abs().max().item()
        require(difference <= 2e-5 * max(1.0, largest), f"{what}: f32 and f64 differ by {difference:.1e}")


@torch.no_grad()
def models(folder: Path) -> None:
    """Each folder loads and reproduces its logits, token ids and greedy tokens."""
    for path in sorted(folder.iterdir()):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        tensors, _ = load_tensors(path / "reference.safetensors")
        difference = (model(tensors["input_ids"]).logits - tensors["logits"]).abs().max().item()
        require(difference < 1e-4, f"{path}: logits differ by {difference:.1e} after loading")
        require(tensors["logits"].std() > 0.5, f"{path}: logits hardly vary")
        reference = load_json(path / "reference.json")
        for prompt in reference["prompts"]:
            require(tokenizer(prompt["text"])["input_ids"] == prompt["ids"], f"{path}: tokens of {prompt['text']!r}")
            for greedy in prompt["greedy"]:
                if greedy["repetition_penalty"] == 1.0:
                    check_greedy(str(path), model, prompt["ids"], greedy["ids"])
        for chat in reference["chats"]:
            text = tokenizer.apply_chat_template(
                chat["messages"], tokenize=False, add_generation_prompt=chat["add_generation_prompt"]
            )
            require(text == chat["text"], f"{path}: a chat renders differently after loading")
            said = any(message["role"] == "assistant" for message in chat["messages"])
            require(len(chat["assistant_mask"]) == len(chat["ids"]), f"{path}: length of a mask")
            require(any(chat["assistant_mask"]) == said, f"{path}: a mask without reason")


def check_greedy(what: str, model: torch.nn.Module, prompt: list[int], expected: list[int]) -> None:
    """Each token is the most likely one after all before it, computed without a cache."""
    logits = model(torch.tensor([prompt + expected])).logits[0]
    chosen = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    require(chosen == expected, f"{what}: greedy tokens with and without cache differ")


def training(folder: Path) -> None:
    """Every case has its tensors, nonzero gradients, and rounding far below the tolerance of the tests."""
    for path in sorted(folder.glob("*.json")):
        about = load_json(path)
        tensors, _ = load_tensors(path.with_suffix(".safetensors"))
        names = [f"{module}.lora_{part}.weight" for module in about["modules"] for part in "AB"]
        expected = {f"{prefix}.{name}" for prefix in ("initial", "gradient", "final") for name in names}
        for i in range(len(about["steps"])):
            expected |= {f"step.{i}.{name}" for name in ("input_ids", "attention_mask", "labels")}
        require(set(tensors) == expected, f"{path}: tensors and modules differ")
        for name in names:
            moved = not torch.equal(tensors[f"initial.{name}"], tensors[f"final.{name}"])
            require(moved, f"{path}: {name} did not move")
        clipped = {step["grad_norm"] > about["optimizer"]["max_grad_norm"] for step in about["steps"]}
        require(clipped == ({True, False} if about["lora"]["use_rslora"] else {True}), f"{path}: which steps clip")
        require(about["rounding"]["loss_relative"] < 2e-6, f"{path}: rounding shows in the losses")
        require(about["rounding"]["final_absolute"] < 1e-4, f"{path}: rounding shows in the adapter")


def adapters(folder: Path, models_folder: Path) -> None:
    """PEFT loads each adapter, and it has an effect."""
    for path in sorted(folder.iterdir()):
        model = models_folder / load_json(path / "adapter_config.json")["base_model_name_or_path"]
        difference, effect = check_adapter.differences(model, path, path / "reference.safetensors")
        require(difference < 1e-4, f"{path}: logits differ by {difference:.1e} after loading")
        require(effect > 1e-2, f"{path}: the adapter has next to no effect")


def parity(folder: Path) -> None:
    """Every kind of setting occurs, logits vary, and greedy runs exceed a cache of 64 tokens."""
    cases = load_json(folder / "models.json")
    logits, _ = load_tensors(folder / "logits.safetensors")
    require(set(logits) == {str(case["seed"]) for case in cases}, f"{folder}: cases and logits differ")
    for case in cases:
        config, tensor = case["config"], logits[str(case["seed"])]
        shape = (len(case["prompts"]), len(case["positions"]), config["vocab_size"])
        require(tensor.shape == shape, f"{folder}: logits of case {case['seed']}")
        require(bool(tensor.isfinite().all()) and tensor.std() > 0.3, f"{folder}: logits of case {case['seed']}")
    ropes = [case["config"].get("rope_parameters") or case["config"].get("rope_scaling") or {} for case in cases]
    kinds = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes}
    require(kinds == {"default", "linear", "dynamic", "llama3", "yarn"}, f"{folder}: kinds of rope {kinds}")
    for field in ("head", "dtype", "shards"):
        require(len({case[field] for case in cases}) >= 3, f"{folder}: hardly any variety in {field}")
    lengths = [p + len(g) for case in cases for p, g in zip(case["prompts"], case["greedy"], strict=True)]
    require(sum(length > 64 for length in lengths) > 20, f"{folder}: greedy runs are short")
    for run in load_json(folder / "training.json"):
        require(len(run["steps"]) == 10 and max(run["rounding"]) <= 1e-5, f"{folder}: training of case {run['case']}")
    forbidden = [case["forbidden"] for case in load_json(folder / "logits_processors.json")]
    require(sum(map(bool, forbidden)) > len(forbidden) / 2, f"{folder}: processors hardly forbid anything")
    for case in load_json(folder / "sampling.json"):
        require(abs(sum(case["probabilities"]) - 1) < 1e-5, f"{folder}: probabilities of {case['settings']}")
