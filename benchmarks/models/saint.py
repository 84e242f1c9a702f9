"""SAINT without pre-training (Somepalli et al. 2022), the transformer of Table 2.

Features become tokens, tokens of one row attend to each other (column attention), then whole rows
of the batch attend to each other (row, or intersample, attention); the CLS token is classified.
Because of the second, a prediction depends on the rows it is evaluated with: `Saint.evaluation_batch`
says how many, `Saint.evaluation_order` that a split is shuffled before it is cut into batches, by a fixed
seed. The authors evaluate in file order; where that is sorted by class, as KDD99's is, a batch mate tells
the class (docs/protocol.md).

The layers follow the authors' code where their text is silent: norm first, and the residual starts
behind the norm; heads of width 16 (columns) and 64 (rows); no dropout inside the attention.
Attention is spelled out with einsum and softmax: the fused kernels have no forward-mode formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import Data
from benchmarks.models.tabular import LevelEmbedding
from benchmarks.registry import register

WIDE = 100  # features above which the authors shrink the embedding and the batch


class Attention(nn.Module):
    """Multi-head self-attention, ``softmax(q k' / sqrt(width)) v`` per head.

    Parameters
    ----------
    dim : size of a token. heads, width : number of heads and the size of each.

    Shape
    -----
    (..., N, dim) -> (..., N, dim): every token attends to all N.
    """

    def __init__(self, dim: int, *, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * heads * width, bias=False)
        self.out = nn.Linear(heads * width, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, dim=-1))
        q = q / math.sqrt(q.shape[-1])  # here, not in the N x N scores: far fewer numbers
        weights = torch.einsum("...ihd,...jhd->...hij", q, k).softmax(-1)
        mixed = torch.einsum("...hij,...jhd->...ihd", weights, v)
        return self.out(mixed.flatten(-2))


class FeedForward(nn.Module):
    """GEGLU feed-forward, ``W2 dropout(a * gelu(b)) + c`` with ``[a, b] = W1 x``.

    Parameters
    ----------
    dim : size of a token; the hidden layer has four times as many units.
    dropout : share of hidden units set to 0 in training; the authors use 0.8.
    """

    def __init__(self, dim: int, *, dropout: float):
        super().__init__()
        self.enter = nn.Linear(dim, 8 * dim)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Give the first `first` outputs, all of them by default."""
        value, gate = self.enter(x).chunk(2, dim=-1)
        hidden = self.dropout(value * F.gelu(gate))
        return F.linear(hidden, self.leave.weight[:first], self.leave.bias[:first])


class Block(nn.Module):
    """Attention, then feed-forward, each as ``n + f(n)`` with ``n = LayerNorm(x)``.

    Parameters
    ----------
    dim : size of a token. heads, width : of the attention. dropout : of the feed-forward.

    Shape
    -----
    (..., N, dim) -> (..., N, dim), or (..., N, first) where only the first outputs are wanted.
    """

    def __init__(self, dim: int, *, heads: int, width: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads=heads, width=width)
        self.feed_forward = FeedForward(dim, dropout=dropout)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        x = self.norm1(x)
        x = x + self.attention(x)
        x = self.norm2(x)
        return x[..., :first] + self.feed_forward(x, first)


class Tokens(nn.Module):
    """Columns of mixed kinds (..., F) to tokens (..., 1 + F, dim): CLS, categorical, continuous.

    A continuous column has its own perceptron 1 -> hidden -> dim. Where it is missing, the token is
    the column's mask embedding if the training rows have missing values there; a column that is
    missing for the first time at test falls back on the training mean, since nothing trained its
    mask. A level unseen in training reads a trained vector too, see `LevelEmbedding`.
    """

    def __init__(self, data: Data, *, dim: int, hidden: int = 100):
        super().__init__()
        categories = data.categories or (0,) * data.train.x.shape[1]
        self.categorical = [j for j, c in enumerate(categories) if c > 0]
        continuous = [j for j, c in enumerate(categories) if c == 0]
        missing = data.train.x[:, continuous].isnan().any(0)
        self.register_buffer("continuous", torch.tensor(continuous, dtype=torch.long))
        self.register_buffer("can_miss", missing.cpu())
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.embeddings = nn.ModuleList(LevelEmbedding(data, j, dim) for j in self.categorical)
        self.mask = nn.Parameter(torch.randn(len(continuous), dim))
        # One perceptron a column, side by side; each starts as its two nn.Linear would.
        self.weight1 = nn.Parameter(torch.empty(len(continuous), hidden).uniform_(-1, 1))
        self.bias1 = nn.Parameter(torch.empty(len(continuous), hidden).uniform_(-1, 1))
        bound = 1 / math.sqrt(hidden)
        self.weight2 = nn.Parameter(
            torch.empty(len(continuous), hidden, dim).uniform_(-bound, bound)
        )
        self.bias2 = nn.Parameter(torch.empty(len(continuous), dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        tokens = [self.cls.expand(*x.shape[:-1], 1, -1)]
        for column, embedding in zip(self.categorical, self.embeddings, strict=True):
            tokens.append(embedding(x[..., column].long()).unsqueeze(-2))
        tokens.append(self._continuous(x[..., self.continuous]))
        return torch.cat(tokens, dim=-2)

    def _continuous(self, values: Tensor) -> Tensor:
        absent = values.isnan()
        values = torch.where(absent, 0.0, values)
        hidden = torch.relu(values.unsqueeze(-1) * self.weight1 + self.bias1)
        tokens = torch.einsum("...fh,fhd->...fd", hidden, self.weight2) + self.bias2
        return torch.where((absent & self.can_miss).unsqueeze(-1), self.mask, tokens)


class Saint(nn.Module):
    """Tokens, `depth` blocks of column and row attention, and a perceptron on the CLS token.

    Attributes
    ----------
    evaluation_batch : rows evaluated together: the recipe's batch size.
    evaluation_order : ``shuffled``, by `benchmarks.metrics.shuffled_order`.

    Shape
    -----
    (..., B, F) -> (..., B, K). Row b of the result depends on all B rows of its batch.
    """

    evaluation_order = "shuffled"

    def __init__(self, data: Data, *, dim: int, depth: int, heads: int, dropout: float, batch: int):
        super().__init__()
        self.evaluation_batch = batch
        self.tokens = Tokens(data, dim=dim)
        row = (1 + data.train.x.shape[1]) * dim
        self.columns, self.rows = nn.ModuleList(), nn.ModuleList()
        for _ in range(depth):
            self.columns.append(Block(dim, heads=heads, width=16, dropout=dropout))
            self.rows.append(Block(row, heads=heads, width=64, dropout=dropout))
        self.head = nn.Sequential(
            nn.Linear(dim, 1000), nn.ReLU(), nn.Linear(1000, data.num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        dim = tokens.shape[-1]
        for depth, (column, row) in enumerate(zip(self.columns, self.rows, strict=True), start=1):
            # Of the last block only the CLS token is read: a third of SAINT's arithmetic saved.
            first = dim if depth == len(self.rows) else None
            tokens = row(column(tokens).flatten(-2), first).unflatten(-1, (-1, dim))
        return self.head(tokens[..., 0, :])


NEEDS = {"dataset": "tabular"}
OFFERS = ()


@register("saint")
def build_saint(
    data: Data,
    *,
    dim: int | None = None,
    depth: int = 1,
    heads: int = 4,
    dropout: float = 0.8,
    evaluation_batch: int | None = None,
) -> nn.Module:
    """Build SAINT with the authors' sizes.

    Parameters
    ----------
    dim : embedding size; None: 32, or 8 above 100 features (protocol, Table 2).
    dropout : share in [0, 1) of feed-forward units dropped.
    evaluation_batch : rows evaluated together; None: the recipe's batch, 256, or 64 above 100
        features. A recipe with another batch size should say it here too.
    """
    wide = data.train.x.shape[1] > WIDE
    return Saint(
        data,
        dim=dim or (8 if wide else 32),
        depth=depth,
        heads=heads,
        dropout=dropout,
        batch=evaluation_batch or (64 if wide else 256),
    )
