"""`ops/*.safetensors`: inputs, outputs and gradients of each fused operation, from torch.

A file holds cases. Tensors are named `<case>.<name>`; the upstream gradient is `<case>.g` and the
gradients are `<case>.grad.<name>`. The metadata has one JSON string for each case, see `Cases.add`.
Every case exists twice, `<case>_f32` and `<case>_f64`, on the same inputs (exact in f32).
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .files import generator, save_tensors

DTYPES = {"f32": torch.float32, "f64": torch.float64}


class Cases:
    """The cases of one file: collects tensors and metadata, then writes them."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.generator = generator(f"ops/{op}")
        self.tensors: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def add(
        self,
        case: str,
        function: Callable[..., Tensor],
        inputs: dict[str, Tensor],
        constants: dict[str, Tensor] | None = None,
        **parameters: Any,
    ) -> None:
        """Runs `function(**inputs, **constants, **parameters)` forward and backward in f32 and f64.

        `inputs` get gradients, `constants` (tables, labels, positions) do not; `parameters` are the
        scalars that go to the metadata.
        """
        constants = constants or {}
        upstream = None
        for suffix, dtype in DTYPES.items():
            leaves = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in inputs.items()}
            fixed = {name: t.to(dtype) if t.is_floating_point() else t for name, t in constants.items()}
            y = function(**leaves, **fixed, **parameters)
            upstream = self.randn(*y.shape) if upstream is None else upstream
            y.backward(upstream.to(dtype))
            tensors = {**leaves, **fixed, "y": y, "g": upstream.to(dtype)}
            tensors |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items()}
            self.store(f"{case}_{suffix}", suffix, tensors, list(inputs), list(constants), parameters)

    def store(
        self,
        case: str,
        dtype: str,
        tensors: dict[str, Tensor],
        inputs: list[str],
        constants: list[str],
        parameters: dict[str, Any],
    ) -> None:
        """Stores the tensors of one case and describes it in the metadata."""
        for name, tensor in tensors.items():
            self.tensors[f"{case}.{name}"] = tensor
        self.metadata[case] = json.dumps(
            {"op": self.op, "dtype": dtype, "inputs": inputs, "constants": constants, "parameters": parameters}
        )

    def save(self, folder: Path) -> None:
        save_tensors(folder / f"{self.op}.safetensors", self.tensors, self.metadata)


def matmul(cases: Cases) -> None:
    """Batched products of a (.., m, k) and b (.., k, n), either of them stored transposed."""

    def product(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
        return (a.mT if transpose_a else a) @ (b.mT if transpose_b else b)

    shapes = {
        "plain": ((3, 4), (4, 5), False, False),
        "batched": ((2, 3, 4), (2, 4, 5), False, False),
        "transposed_b": ((2, 3, 4), (2, 5, 4), False, True),
        "transposed_a": ((2, 4, 3), (2, 4, 5), True, False),
        "transposed_both": ((2, 4, 3), (2, 5, 4), True, True),
        "shared_b": ((2, 3, 4), (4, 5), False, False),
        "broadcast": ((3, 1, 2, 4), (1, 2, 4, 5), False, False),
        "one_row": ((2, 1, 7), (2, 7, 9), False, False),
        "odd": ((17, 33), (33, 9), False, False),
    }
    for case, (a, b, transpose_a, transpose_b) in shapes.items():
        inputs = {"a": cases.randn(*a), "b": cases.randn(*b)}
        cases.add(case, product, inputs, transpose_a=transpose_a, transpose_b=transpose_b)


def softmax(cases: Cases) -> None:
    """Softmax over `dim`; `masked` has entries of -inf, `large` would overflow without the maximum."""

    def softmax_(x: Tensor, dim: int) -> Tensor:
        return F.softmax(x, dim)

    cases.add("last_dim", softmax_, {"x": cases.randn(2, 3, 5)}, dim=2)
    cases.add("middle_dim", softmax_, {"x": cases.randn(2, 3, 5)}, dim=1)
    cases.add("vector", softmax_, {"x": cases.randn(7)}, dim=0)
    cases.add("wide", softmax_, {"x": cases.randn(3, 130)}, dim=1)
    cases.add("large", softmax_, {"x": cases.randn(4, 6) * 50 + 200}, dim=1)
    masked = cases.randn(4, 6).masked_fill(torch.ones(4, 6).triu(1).bool(), -math.inf)
    cases.add("masked", softmax_, {"x": masked}, dim=1)


def rms_norm(cases: Cases) -> None:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times weight where there is one."""

    def rms_norm_(x: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    for case, shape, scale, eps in NORM_SHAPES:
        inputs = {"x": cases.randn(*shape) * scale, "weight": 1 + 0.3 * cases.randn(shape[-1])}
        cases.add(case, rms_norm_, inputs, eps=eps)
    cases.add("unweighted", rms_norm_, {"x": cases.randn(3, 8)}, eps=1e-5)


def layer_norm(cases: Cases) -> None:
    """(x - mean) / sqrt(variance + eps) over the last dimension, times weight, plus bias."""

    def layer_norm_(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    for case, shape, scale, eps in NORM_SHAPES:
        weight = 1 + 0.3 * cases.randn(shape[-1])
        inputs = {"x": cases.randn(*shape) * scale, "weight": weight, "bias": 0.3 * cases.randn(shape[-1])}
        cases.add(case, layer_norm_, inputs, eps=eps)
    cases.add("unweighted", layer_norm_, {"x": cases.randn(3, 8)}, eps=1e-5)


NORM_SHAPES = [
    ("matrix", (4, 8), 1.0, 1e-5),
    ("batch", (2, 3, 16), 1.0, 1e-6),
    ("odd", (3, 7), 1.0, 1e-5),
    ("wide", (2, 130), 1.0, 1e-5),
    ("small", (3, 8), 1e-3, 1e-5),  # eps outweighs the mean square
]


def rope(cases: Cases) -> None:
    """Rotary embedding of x (batch, seq, heads, head_dim) by tables cos, sin (table, head_dim / 2).

    `positions` (batch, seq) picks the row of the table. Half-split (transformers' Llama) pairs element
    i with i + head_dim / 2; interleaved pairs 2 i with 2 i + 1.
    """

    def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
        cos, sin = cos[positions], sin[positions]
        if interleaved:
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * torch.complex(cos, sin)[:, :, None]).flatten(-2)
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        return apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)[0]

    positions = {
        "start": torch.arange(5).repeat(2, 1),
        "offset": torch.arange(7, 9).repeat(2, 1),
        "scattered": torch.tensor([[0, 1, 2, 0, 1], [11, 3, 3, 7, 0]]),
    }
    for case, rows in positions.items():
        for layout, interleaved in {"half": False, "interleaved": True}.items():
            batch, seq = rows.shape
            angles = torch.arange(12)[:, None] * 10000.0 ** -(torch.arange(4) / 4)
            constants = {"cos": angles.cos(), "sin": angles.sin(), "positions": rows}
            x = cases.randn(batch, seq, 3, 8)
            cases.add(f"{case}_{layout}", rotate, {"x": x}, constants, interleaved=interleaved)


def rope_frequencies(cases: Cases) -> None:
    """`inv_freq` (head_dim / 2), f32, by transformers: the plain one and Llama 3's scaling. No gradients."""
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    tiny = {**llama3, "original_max_position_embeddings": 32}
    settings = {
        "plain": (64, {"rope_type": "default", "rope_theta": 10000.0}),
        "qwen2": (64, {"rope_type": "default", "rope_theta": 1000000.0}),
        "llama3": (128, {**llama3, "rope_theta": 500000.0}),
        "llama3_tiny": (16, {**tiny, "rope_theta": 10000.0}),
    }
    for case, (head_dim, parameters) in settings.items():
        if parameters["rope_type"] == "default":
            inv_freq = 1.0 / (parameters["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim))
        else:
            config = LlamaConfig(head_dim=head_dim, rope_parameters=dict(parameters), max_position_embeddings=131072)
            inv_freq, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
        described = {"head_dim": head_dim, **parameters}
        cases.store(f"{case}_f32", "f32", {"inv_freq": inv_freq}, [], [], described)


def swiglu(cases: Cases) -> None:
    """silu(gate) * up."""

    def swiglu_(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    cases.add("matrix", swiglu_, {"gate": cases.randn(3, 8), "up": cases.randn(3, 8)})
    cases.add("batch", swiglu_, {"gate": cases.randn(2, 3, 33), "up": cases.randn(2, 3, 33)})
    cases.add("large", swiglu_, {"gate": cases.randn(2, 8) * 40, "up": cases.randn(2, 8)})


def gelu(cases: Cases) -> None:
    """GELU by the error function (`approximate` "none") and by tanh."""

    def gelu_(x: Tensor, approximate: str) -> Tensor:
        return F.gelu(x, approximate=approximate)

    for name, approximate in {"erf": "none", "tanh": "tanh"}.items():
        cases.add(f"{name}_batch", gelu_, {"x": cases.randn(2, 3, 9)}, approximate=approximate)
        cases.add(f"{name}_large", gelu_, {"x": cases.randn(3, 8) * 6}, approximate=approximate)


def lora(cases: Cases) -> None:
    """The low-rank term scale * (x A) B with A (in, rank) and B (rank, out).

    Cases named `linear` add the frozen layer: x W^T + bias, W (out, in).
    """

    def term(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return (x @ a) @ b * scale

    def linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias) + (x @ a) @ b * scale

    def factors(inputs: int, rank: int, outputs: int) -> dict[str, Tensor]:
        return {"a": cases.randn(inputs, rank) * 0.3, "b": cases.randn(rank, outputs) * 0.3}

    for case, shape, rank, outputs, scale in [
        ("matrix", (3, 8), 2, 6, 2.0),
        ("batch", (2, 3, 16), 4, 16, 0.5),
        ("one_row", (1, 16), 8, 32, 1.25),
        ("odd", (2, 5, 7), 3, 11, 16 / math.sqrt(3)),
    ]:
        cases.add(case, term, {"x": cases.randn(*shape), **factors(shape[-1], rank, outputs)}, scale=scale)
    base = {"x": cases.randn(2, 3, 8), "weight": cases.randn(6, 8)}
    cases.add("linear", linear, {**base, **factors(8, 2, 6)}, scale=2.0)
    cases.add("linear_bias", linear, {**base, "bias": cases.randn(6), **factors(8, 2, 6)}, scale=2.0)


def attention(cases: Cases) -> None:
    """Scaled dot product attention, everything laid out (batch, seq, heads, head_dim).

    Query i stands at position `offset` + i of a key buffer that may be longer than what is filled.
    Key j is seen where j <= i + offset (if `causal`), i + offset - j < `window` (if not null), and
    both carry the same number in `segments` (batch, key seq), where that is given.
    """
    for case, settings in ATTENTION_CASES.items():
        sizes = {"batch": 2, "queries": 5, "keys": 5, "heads": 2, "kv_heads": 2, "head_dim": 8}
        sizes |= {name: value for name, value in settings.items() if name in sizes}
        batch, heads, kv_heads, head_dim = (sizes[n] for n in ("batch", "heads", "kv_heads", "head_dim"))
        inputs = {
            "q": cases.randn(batch, sizes["queries"], heads, head_dim),
            "k": cases.randn(batch, sizes["keys"], kv_heads, head_dim),
            "v": cases.randn(batch, sizes["keys"], kv_heads, head_dim),
        }
        cases.add(
            case,
            attend,
            inputs,
            {"segments": torch.tensor(settings["segments"])} if "segments" in settings else None,
            scale=settings.get("scale", head_dim**-0.5),
            causal=settings.get("causal", True),
            window=settings.get("window"),
            offset=settings.get("offset", 0),
        )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    offset: int,
) -> Tensor:
    """torch's attention with the mask spelled out."""
    i = torch.arange(q.shape[1])[:, None] + offset
    j = torch.arange(k.shape[1])[None, :]
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if causal:
        seen &= j <= i
    if window is not None:
        seen &= i - j < window
    seen = seen[None, None]
    if segments is not None:
        mine = segments[:, offset : offset + q.shape[1]]
        seen = seen & (mine[:, None, :, None] == segments[:, None, None, :])
    with sdpa_kernel(SDPBackend.MATH):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
    return y.transpose(1, 2)


PACKED = [[0, 0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 7, 7, 7]]
ATTENTION_CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False, "keys": 7},
    "scaled": {"scale": 0.125},
    "grouped": {"heads": 4, "kv_heads": 2},
    "multi_query": {"heads": 4, "kv_heads": 1},
    "window": {"queries": 8, "keys": 8, "window": 3},
    "window_grouped": {"queries": 8, "keys": 8, "window": 4, "heads": 4, "kv_heads": 2},
    "segments": {"queries": 8, "keys": 8, "segments": PACKED},
    "segments_full": {"queries": 8, "keys": 8, "segments": PACKED, "causal": False},
    "segments_window": {"queries": 8, "keys": 8, "segments": PACKED, "window": 2},
    "cached": {"queries": 3, "keys": 9, "offset": 4},
    "cached_one": {"queries": 1, "keys": 9, "offset": 5, "heads": 4, "kv_heads": 2},
    "cached_window": {"queries": 2, "keys": 9, "offset": 6, "window": 3},
    "long": {"batch": 1, "queries": 37, "keys": 37, "heads": 2, "kv_heads": 1, "head_dim": 4},
}


def cross_entropy(cases: Cases) -> None:
    """Loss of logits = hidden W^T against labels (rows), -100 ignored; hidden (rows, h), W (vocab, h).

    `reduction` "mean" divides by the number of labels that count. Smoothing is torch's:
    (1 - s) * -log p[label] + s * mean over the vocabulary of -log p.
    """

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, reduction: str) -> Tensor:
        logits = F.linear(hidden, weight)
        return F.cross_entropy(logits, labels, ignore_index=-100, reduction=reduction, label_smoothing=label_smoothing)

    for case, rows, width, vocab, scale, smoothing, reduction in [
        ("mean", 6, 8, 11, 1.0, 0.0, "mean"),
        ("sum", 6, 8, 11, 1.0, 0.0, "sum"),
        ("smoothed", 6, 8, 11, 1.0, 0.1, "mean"),
        ("smoothed_sum", 5, 4, 7, 1.0, 0.2, "sum"),
        ("large_logits", 6, 8, 11, 30.0, 0.0, "mean"),
        ("wide", 9, 8, 131, 1.0, 0.0, "mean"),
    ]:
        labels = torch.randint(0, vocab, (rows,), generator=cases.generator)
        labels[[1, rows - 1]] = -100
        inputs = {"hidden": cases.randn(rows, width), "weight": cases.randn(vocab, width) * scale}
        cases.add(case, loss, inputs, {"labels": labels}, label_smoothing=smoothing, reduction=reduction)


def adamw(cases: Cases) -> None:
    """Ten steps of torch.optim.AdamW on one tensor with given gradients.

    `initial` (3, 4); `gradients` (10, 3, 4) and, after each step, `parameter`, `exp_avg` and
    `exp_avg_sq` (10, 3, 4). `learning_rates` in the parameters has one rate for each step.
    """
    constant = [0.01] * 10
    warmed = [0.01 * min(1.0, step / 3) for step in range(10)]
    for case, rates, betas, eps, weight_decay in [
        ("plain", constant, (0.9, 0.999), 1e-8, 0.0),
        ("decay", constant, (0.9, 0.999), 1e-8, 0.1),
        ("schedule", warmed, (0.9, 0.95), 1e-6, 0.01),
    ]:
        initial, gradients = cases.randn(3, 4), cases.randn(10, 3, 4)
        for suffix, dtype in DTYPES.items():
            history = adamw_history(initial.to(dtype), gradients.to(dtype), rates, betas, eps, weight_decay)
            tensors = {"initial": initial.to(dtype), "gradients": gradients.to(dtype), **history}
            parameters = {"learning_rates": rates, "beta1": betas[0], "beta2": betas[1]}
            parameters |= {"eps": eps, "weight_decay": weight_decay}
            cases.store(f"{case}_{suffix}", suffix, tensors, ["initial", "gradients"], [], parameters)


def adamw_history(
    initial: Tensor, gradients: Tensor, rates: list[float], betas: tuple[float, float], eps: float, weight_decay: float
) -> dict[str, Tensor]:
    """The parameter and the optimizer's two moments after each step."""
    parameter = torch.nn.Parameter(initial.clone())
    optimizer = torch.optim.AdamW([parameter], betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)
    steps: dict[str, list[Tensor]] = {"parameter": [], "exp_avg": [], "exp_avg_sq": []}
    for rate, gradient in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state[parameter]
        for name, value in {"parameter": parameter, **state}.items():
            if name in steps:
                steps[name].append(value.detach().clone())
    return {name: torch.stack(values) for name, values in steps.items()}


OPERATIONS = [
    matmul,
    softmax,
    rms_norm,
    layer_norm,
    rope,
    rope_frequencies,
    swiglu,
    gelu,
    lora,
    attention,
    cross_entropy,
    adamw,
]


def write_all(folder: Path) -> None:
    for operation in OPERATIONS:
        cases = Cases(operation.__name__)
        operation(cases)
        cases.save(folder)
