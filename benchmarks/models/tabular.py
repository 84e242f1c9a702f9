"""The MLP of Table 2: two hidden layers of 256 neurons with dropout (Sec. 5), embeddings for categoricals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.data import Data
from benchmarks.registry import register


class LevelEmbedding(nn.Embedding):
    """Embedding of a categorical column whose unknown level, code 0, was trained whatever the column.

    Where `Data.in_training` turns rare levels into unknown ones, code 0 has a vector of its own, which
    these train. A column without rare levels never shows one in training: there an unknown level reads
    the mean of the known levels' vectors as they are, not the vector that it was initialised with.

    Parameters
    ----------
    data : its training rows say which of the two a column is. column : index in x. dim : width.

    Shape
    -----
    codes (...), int64 in [0, categories[column]) -> (..., dim).
    """

    def __init__(self, data: Data, column: int, dim: int):
        super().__init__(data.categories[column], dim)
        # A buffer: models stacked by `benchmarks.running.stacked`, their tables padded to one length,
        # each divide by their own number of levels. None at all where there is nothing to average.
        averaged = data.averaged_levels(column)
        self.register_buffer("averaged", torch.tensor(averaged) if averaged else None)

    def forward(self, codes: Tensor) -> Tensor:
        vectors = super().forward(codes)
        if self.averaged is None:
            return vectors
        place = torch.arange(len(self.weight), device=codes.device)
        known = ((place >= 1) & (place <= self.averaged)).to(self.weight.dtype)
        mean = (known / self.averaged) @ self.weight
        return torch.where((codes == 0).unsqueeze(-1), mean, vectors)


class TabularInput(nn.Module):
    """Columns of mixed kinds (B, F) to one vector (B, width).

    Continuous columns pass through; where one is missing it becomes 0 (the training mean) and its
    missing-value indicator, a column of its own, becomes 1. Codes are embedded.

    Parameters
    ----------
    data : decides which columns are categorical and which can be missing.
    dim : embedding width; a column with few levels gets no more than half its cardinality.
    """

    def __init__(self, data: Data, *, dim: int = 8):
        super().__init__()
        categories = data.categories or (0,) * data.train.x.shape[1]
        continuous = [j for j, c in enumerate(categories) if c == 0]
        self.categorical = [j for j, c in enumerate(categories) if c > 0]
        missing = data.train.x[:, continuous].isnan().any(0)
        self.register_buffer("continuous", torch.tensor(continuous, dtype=torch.long))
        self.register_buffer("can_miss", missing.nonzero().flatten().cpu())
        self.embeddings = nn.ModuleList(
            LevelEmbedding(data, j, min(dim, (categories[j] + 1) // 2)) for j in self.categorical
        )
        embedded = sum(embedding.embedding_dim for embedding in self.embeddings)
        self.width = len(continuous) + len(self.can_miss) + embedded

    def forward(self, x: Tensor) -> Tensor:
        values = x[..., self.continuous]
        absent = values.isnan()
        parts = [torch.where(absent, 0.0, values), absent[..., self.can_miss].to(x.dtype)]
        for column, embedding in zip(self.categorical, self.embeddings, strict=True):
            parts.append(embedding(x[..., column].long()))
        return torch.cat(parts, dim=-1)


NEEDS = {"dataset": "tabular"}
OFFERS = ()


@register("mlp")
def build_mlp(
    data: Data, *, hidden: tuple[int, ...] = (256, 256), dropout: float = 0.1
) -> nn.Module:
    """Build the multilayer perceptron of Table 2."""
    columns = TabularInput(data)
    layers: list[nn.Module] = [columns]
    width = columns.width
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, data.num_classes))
