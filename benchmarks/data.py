"""What a data set is to a run: three splits of tensors, and what a reader must know about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from benchmarks import metrics

# Chance that a level which one training row alone holds is shown to the model as unknown.
UNKNOWN_SHARE = 0.5


@dataclass(frozen=True)
class Split:
    """Inputs x (N, ...) and class indices y (N,), int64, held as tensors on one device."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> Split:
        return Split(self.x.to(device), self.y.to(device))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A prepared data set.

    Tabular: x is float32 (N, F); column j holds integer codes in [0, categories[j]) when
    categories[j] > 0, else a standardised continuous value, with NaN where it is missing (the model
    imputes the mean, 0, and embeds the mask). Code 0 is a level that the training rows lack, those
    that they hold are 1, 2, ... without a gap. Images: x is uint8 (N, 3, H, W).

    Attributes
    ----------
    normalize : maps raw x of a batch to what the model takes (images: float, mean/std; tabular: itself).
    evaluate : ``evaluate(logits, y)`` -> metrics of a split.
    mirrors : a mirror image (left for right) shows the same class, so that augmentations may flip.
    notes : one line each, shown under every table that uses the data set.
    provenance : file names with checksums, for the record and MLflow.
    content : hashes that tell these data from others (`benchmarks.running.data_hash`), for the record.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    kind: Literal["tabular", "image"]
    categories: tuple[int, ...] = ()
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    normalize: Callable[[Tensor], Tensor] = lambda x: x
    mirrors: bool = False
    notes: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    extra: Split | None = None
    evaluate: Callable[[Tensor, Tensor], dict[str, float]] = metrics.evaluate

    @property
    def evaluated(self) -> dict[str, Split]:
        """Splits that are measured, by the name their metrics carry; ``val`` selects."""
        return {"val": self.validation, "test": self.test}

    def to(self, device: torch.device | str) -> Data:
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        extra = self.extra.to(device) if self.extra is not None else None
        return replace(self, **splits, extra=extra)

    def in_training(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What training does to clean inputs before the upstream sees them: rare levels become unknown.

        A level that occurs in one training row becomes unknown (code 0) with probability one half,
        so that what a held-out row with a new level reads was trained, by every method alike.

        Parameters
        ----------
        x : raw inputs (..., F) of training rows; images come back as they are.
        generator : the run's own stream. What is drawn from it depends on the data set and the shape
            of x alone, so every method of a seed draws the same.
        """
        columns, offsets, single = self._singletons
        if len(columns) == 0:
            return x
        codes = x[..., columns]
        drawn = torch.rand(codes.shape, generator=generator, device=x.device) < UNKNOWN_SHARE
        x = x.clone()
        x[..., columns] = codes.masked_fill(drawn & single[codes.long() + offsets], 0.0)
        return x

    def averaged_levels(self, column: int) -> int:
        """Number n of levels, codes 1 to n, whose mean stands for an unknown one in this column.

        0 where training shows unknown levels themselves: some are rare enough for `in_training`.
        """
        count = self._level_counts[column]
        shown = count[0] > 0 or (count == 1).any()
        return 0 if shown else int((count > 0).sum())

    def validation_only(self) -> Data:
        """The same data to a run whose training rows are the validation rows (`val-only`).

        `train` is `validation`. Held-out rows hold inputs that no validation row would train; they
        become what a model can know: a level that validation lacks is unknown, the others are
        numbered anew, and a missing value is the mean, 0, where validation misses none. Table sizes
        and masks stay, and with them the initial weights of the other rows of the seed.
        """
        if self.kind == "image":
            return replace(self, train=self.validation)
        x = self.validation.x
        maps = {}
        for column, cardinality in enumerate(self.categories):
            if cardinality:
                held = torch.bincount(x[:, column].long(), minlength=cardinality) > 0
                held[0] = False
                maps[column] = torch.where(held, held.cumsum(0), 0).to(x.dtype)
        whole = ~x.isnan().any(0)

        def seen(split: Split) -> Split:
            values = torch.where(whole & split.x.isnan(), 0.0, split.x)
            for column, codes in maps.items():
                values[:, column] = codes[values[:, column].long()]
            return Split(values, split.y)

        validation = seen(self.validation)
        extra = seen(self.extra) if self.extra is not None else None
        return replace(
            self, train=validation, validation=validation, test=seen(self.test), extra=extra
        )

    @cached_property
    def _level_counts(self) -> dict[int, Tensor]:
        """Training rows that hold each code, (categories[j],), by categorical column j."""
        return {
            column: torch.bincount(self.train.x[:, column].long(), minlength=cardinality)
            for column, cardinality in enumerate(self.categories)
            if cardinality
        }

    @cached_property
    def _singletons(self) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (C,) with levels of one training row; where their codes start in the last, which says
        of every code of these columns, one column after the other, whether it is such a level."""
        single = {column: count == 1 for column, count in self._level_counts.items()}
        for flags in single.values():
            flags[0] = False  # unknown already
        single = {column: flags for column, flags in single.items() if flags.any()}
        device = self.train.x.device
        sizes = torch.tensor([len(flags) for flags in single.values()], dtype=torch.long)
        columns = torch.tensor(list(single), dtype=torch.long, device=device)
        return (
            columns,
            (sizes.cumsum(0) - sizes).to(device),
            torch.cat([*single.values(), torch.zeros(0, dtype=torch.bool, device=device)]),
        )
