"""SAINT layer by layer against its formulas, written out as loops over numbers in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.data import Data, Split
from benchmarks.models.saint import Attention, Block, FeedForward, build_saint


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def affine(vector: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
    """``W v + b``, one output at a time."""
    out = [sum(w * v for w, v in zip(row, vector, strict=True)) for row in array(layer.weight)]
    return np.array(out) + (0 if layer.bias is None else array(layer.bias))


def attention(tokens: np.ndarray, layer: Attention, *, width: int) -> np.ndarray:
    """Self-attention over the rows of `tokens` (N, dim), head by head, pair by pair."""
    projected = np.array([affine(token, layer.qkv) for token in tokens])
    total = layer.heads * width
    mixed = np.zeros((len(tokens), total))
    for head in range(layer.heads):
        q, k, v = (
            projected[:, part * total + head * width : part * total + (head + 1) * width]
            for part in range(3)
        )
        for i in range(len(tokens)):
            scores = [math.exp(q[i] @ k[j] / math.sqrt(width)) for j in range(len(tokens))]
            for j in range(len(tokens)):
                share = scores[j] / sum(scores)
                mixed[i, head * width : (head + 1) * width] += share * v[j]
    return np.array([affine(row, layer.out) for row in mixed])


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def feed_forward(token: np.ndarray, layer: FeedForward) -> np.ndarray:
    both = affine(token, layer.enter)
    half = len(both) // 2
    return affine(np.array([both[j] * gelu(both[half + j]) for j in range(half)]), layer.leave)


def normalised(token: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    mean = sum(token) / len(token)
    variance = sum((t - mean) ** 2 for t in token) / len(token)
    scaled = (token - mean) / math.sqrt(variance + layer.eps)
    return scaled * array(layer.weight) + array(layer.bias)


def block(tokens: np.ndarray, layer: Block, *, width: int) -> np.ndarray:
    """``n + attention(n)``, then ``n + ff(n)``, n the normalised input of each."""
    n = np.array([normalised(token, layer.norm1) for token in tokens])
    tokens = n + attention(n, layer.attention, width=width)
    n = np.array([normalised(token, layer.norm2) for token in tokens])
    return n + np.array([feed_forward(token, layer.feed_forward) for token in n])


def tokens_of(row: np.ndarray, layer, categories: tuple[int, ...]) -> np.ndarray:
    """CLS, then a token for each categorical column, then one for each continuous column."""
    tokens = [array(layer.cls)[0]]
    for column, embedding in zip(layer.categorical, layer.embeddings, strict=True):
        tokens.append(array(embedding.weight)[int(row[column])])
    continuous = [j for j, c in enumerate(categories) if c == 0]
    for place, column in enumerate(continuous):
        value = row[column]
        if math.isnan(value) and bool(layer.can_miss[place]):
            tokens.append(array(layer.mask)[place])
            continue
        value = 0.0 if math.isnan(value) else value
        token = array(layer.bias2)[place].copy()
        for unit in range(layer.weight1.shape[1]):
            hidden = max(
                0.0, value * array(layer.weight1)[place, unit] + array(layer.bias1)[place, unit]
            )
            token += hidden * array(layer.weight2)[place, unit]
        tokens.append(token)
    return np.array(tokens)


def saint(x: np.ndarray, model, categories: tuple[int, ...]) -> np.ndarray:
    rows = [tokens_of(row, model.tokens, categories) for row in x]
    for column_block, row_block in zip(model.columns, model.rows, strict=True):
        rows = [block(tokens, column_block, width=16) for tokens in rows]
        flat = block(np.array([tokens.reshape(-1) for tokens in rows]), row_block, width=64)
        rows = [vector.reshape(len(rows[0]), -1) for vector in flat]
    first, _, last = model.head
    return np.array([affine(np.maximum(affine(row[0], first), 0), last) for row in rows])


def data() -> Data:
    """Column 0 categorical, 1 missing here and there, 2 whole in training but missing at test."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 4, generator=generator)
    x[:, 0] = torch.randint(0, 3, (24,), generator=generator).float()
    x[::5, 1] = torch.nan
    x[20:, 2] = torch.nan
    y = torch.arange(24) % 3
    parts = {
        name: Split(x[rows], y[rows])
        for name, rows in (
            ("train", slice(0, 12)),
            ("validation", slice(12, 16)),
            ("test", slice(16, 24)),
        )
    }
    return Data(name="small", **parts, num_classes=3, kind="tabular", categories=(3, 0, 0, 0))


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """Away from the start, where norms are the identity, and in evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.double().eval()


@pytest.mark.parametrize("width", [16, 64])
def test_attention(width):
    layer = moved(Attention(6, heads=2, width=width))
    x = torch.randn(5, 6, dtype=torch.float64)
    np.testing.assert_allclose(array(layer(x)), attention(array(x), layer, width=width), atol=1e-12)


def test_feed_forward_and_its_first_outputs():
    layer = moved(FeedForward(5, dropout=0.8))
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = np.array([feed_forward(row, layer) for row in array(x)])
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-12)
    np.testing.assert_allclose(array(layer(x, 2)), expected[:, :2], atol=1e-12)


def test_block_and_its_first_outputs():
    layer = moved(Block(6, heads=2, width=16, dropout=0.8))
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = block(array(x), layer, width=16)
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-12)
    np.testing.assert_allclose(array(layer(x, 3)), expected[:, :3], atol=1e-12)


def test_tokens_of_categories_values_and_missing_values():
    set_ = data()
    layer = moved(build_saint(set_, dim=4)).tokens
    x = torch.cat([set_.train.x, set_.test.x]).double()
    expected = np.array([tokens_of(row, layer, set_.categories) for row in x.numpy()])
    np.testing.assert_allclose(array(layer(x)), expected, atol=1e-12)
    assert layer.can_miss.tolist() == [True, False, False]


@pytest.mark.parametrize("depth", [1, 2])
def test_whole_model(depth):
    set_ = data()
    model = moved(build_saint(set_, dim=4, depth=depth, heads=2))
    x = set_.test.x.double()
    np.testing.assert_allclose(
        array(model(x)), saint(x.numpy(), model, set_.categories), atol=1e-11
    )


def test_sizes_are_the_authors():
    """1 -> 100 -> dim per column, hidden layers of 4 dim, a head of 1000, dim 32, 8 above 100."""
    model = build_saint(data())
    assert model.tokens.weight1.shape == (3, 100)
    assert model.tokens.weight2.shape == (3, 100, 32)
    assert len(model.columns) == len(model.rows) == 1
    column, row = model.columns[0], model.rows[0]
    assert column.attention.qkv.weight.shape == (3 * 4 * 16, 32)
    assert row.attention.qkv.weight.shape == (3 * 4 * 64, 5 * 32)
    assert column.feed_forward.leave.weight.shape == (32, 4 * 32)
    assert row.feed_forward.enter.weight.shape == (8 * 5 * 32, 5 * 32)
    assert column.feed_forward.dropout.p == row.feed_forward.dropout.p == 0.8
    assert model.head[0].weight.shape == (1000, 32)
    wide = data()
    splits = {
        name: Split(torch.randn(4, 101), torch.zeros(4, dtype=torch.long))
        for name in ("train", "validation", "test")
    }
    wide = build_saint(Data(name="wide", **splits, num_classes=2, kind="tabular"))
    assert wide.tokens.cls.shape == (1, 8)
    assert (model.evaluation_batch, wide.evaluation_batch) == (256, 64)
