"""The MLP of Table 2: two hidden layers of 256 neurons with dropout (Sec. 5), embeddings for categoricals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.data import Data
from benchmarks.registry import register


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
            nn.Embedding(categories[j], min(dim, (categories[j] + 1) // 2))
            for j in self.categorical
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
