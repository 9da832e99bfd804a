"""Weights that follow from a seed and a tensor's name, so that no fixture has to hold them.

`crates/metal-candle/tests/common/seeded.rs` makes the same bits. Number i of a tensor is 24 bits of SplitMix64's
output i, taken as a signed fraction in [-1, 1); everything after that is one f32 operation at a time.
"""

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def fnv1a(text: str) -> int:
    """64-bit FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def bits(seed: int, name: str, count: int) -> np.ndarray:
    """The first `count` outputs of SplitMix64 from the state that seed and name give."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed ^ fnv1a(name)) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fractions(seed: int, name: str, count: int) -> np.ndarray:
    """f32 in [-1, 1)."""
    whole = (bits(seed, name, count) >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return whole.astype(np.float32) / np.float32(1 << 23)


def integers(seed: int, name: str, count: int, below: int) -> list[int]:
    """Integers from 0 to below `below`."""
    return [int(word) % below for word in bits(seed, name, count) >> np.uint64(11)]


def tensor(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights that exercise every part: norms not one, biases not zero, logits that vary."""
    values = fractions(seed, name, int(np.prod(shape)))
    if "norm" in name:
        values = np.float32(1) + np.float32(0.3) * values
    elif len(shape) == 1:
        values = np.float32(0.3) * values
    elif "embed_tokens" in name or "lm_head" in name:
        values = np.float32(0.75) * values
    else:
        values = np.float32(2.5 / float(shape[1]) ** 0.5) * values
    return torch.from_numpy(values.reshape(shape).copy())
