"""SAFLEX with memory as a row: Pi averaged over visits decides as the whole validation set would."""

from __future__ import annotations

import small_runs
import torch

from benchmarks.models.tabular import build_mlp
from benchmarks.refiners import Context
from benchmarks.refiners.saflex import Recommended, Remembering
from benchmarks.tasks import Classification
from benchmarks.upstream import Augmented


def context(*, noise: int = 0) -> Context:
    """A run on blobs; with `noise`, each validation batch is another draw of that many rows."""
    data = small_runs.blobs()
    torch.manual_seed(0)
    model = build_mlp(data)
    generator = torch.Generator().manual_seed(5)

    def validation(size):
        rows = torch.randperm(60, generator=generator)[:noise] if noise else torch.arange(60)
        return data.validation.x[rows], data.validation.y[rows]

    return Context(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=data,
        task=Classification(model, data),
        validation=validation,
        seed=3,
        epochs=5,
        steps_per_epoch=4,
    )


def augmented(data, rows) -> Augmented:
    return Augmented(x=data.train.x[rows], y=(data.train.y[rows] + 1) % 3, index=rows)


def test_memory_decides_as_the_whole_validation_set_would():
    """Pi against six validation rows is noisy; the average of 30 looks picks the label all rows pick."""
    rows = torch.arange(60)
    whole = context()
    settings = {"tau": 0.0, "eps": 1.0}
    exact = Recommended(whole, **settings)(augmented(whole.data, rows)).y
    noisy = context(noise=6)
    plain, memory = Recommended(noisy, **settings), Remembering(noisy, **settings)
    agreement, remembered = [], None
    for _ in range(30):
        single = plain(augmented(noisy.data, rows)).y
        agreement.append((single.argmax(-1) == exact.argmax(-1)).float().mean())
        remembered = memory(augmented(noisy.data, rows)).y
    noisy_share = torch.stack(agreement).mean()
    share = (remembered.argmax(-1) == exact.argmax(-1)).float().mean()
    assert 1 - share < 0.5 * (1 - noisy_share)
