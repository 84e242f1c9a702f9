"""`RunSpec`: everything that decides the result of one run, frozen and validated. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

TrainOn = Literal["train", "train+validation", "validation"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+._-]*$")]


class Frozen(BaseModel):
    """Base of every specification: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`seeds: true` would be one seed: to pydantic, as to Python, true is 1."""
        if isinstance(value, bool):
            kind = cls.model_fields[info.field_name].annotation
            if {int, float} & {kind, *get_args(kind)}:
                raise ValueError("expected a number, not true or false")
        return value


class Recipe(Frozen):
    """How the network is trained; the same for every method of a table (protocol)."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    schedule: Literal["constant", "milestones", "cosine", "cosine-steps"] = "constant"
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="as shares of all epochs")
    warmup_steps: int = Field(0, ge=0, description="of a linear warm-up of the learning rate")
    epochs: int = Field(200, ge=1, description="passes over the training split: the run's length")
    batch_size: int = Field(256, ge=1)
    class_weights: bool = Field(False, description="cross-entropy weighted by inverse frequency")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="autocast if not float32"
    )
    channels_last: bool = Field(False, description="memory format of image networks")
    evaluate_every: int | None = Field(None, ge=1, description="epochs; default: 100 points a run")


class Component(Frozen):
    """A registered thing and the settings handed to it."""

    name: Name
    settings: dict[str, Any] = {}


class RunSpec(Frozen):
    """One run. `key` names it for ever: the hash of its canonical JSON.

    `dataset`, `backbone`, `upstream` and `row` are the names that a table shows. They may be a suite's
    own (``cutmix-0.3``, ``clean+aug``); `settings` says what is registered. In JSON `row` is called
    ``refiner``, as the column of the tables is.
    """

    suite: Name
    table: Name
    dataset: Name
    backbone: Name
    upstream: Name
    row: Name = Field(alias="refiner")
    seed: int = Field(ge=0)
    settings: Settings
    metric: str = Field(description="primary metric of the table, such as auroc")
    reduced: str = Field(
        "", description="what was reduced against the protocol, shown in the table"
    )

    @cached_property
    def key(self) -> str:
        # Defaults are left out: a field added later leaves old keys alone. So a default, once
        # released, never changes its value.
        # The suite's name and the note on what was reduced decide no result: a record may move to
        # another suite that plans the same run.
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"suite", "reduced"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def bundle(self) -> str:
        """Name of the bundle: all seeds of one row and column, run by one process."""
        table = f"table{self.table}" if self.table[0].isdigit() else self.table
        return "/".join((table, self.dataset, self.backbone, self.upstream, self.row))

    @property
    def name(self) -> str:
        """Name of the run: ``table2/qsar/mlp/cutmix/saflex/seed0``."""
        return f"{self.bundle}/seed{self.seed}"

    @property
    def trains_on_validation(self) -> bool:
        """Whether validation rows are among the training rows: they can then choose nothing."""
        return self.settings.train_on != "train"


class Settings(Frozen):
    """The settings of each component and the recipe."""

    dataset: Component
    model: Component
    upstream: Component
    refiner: Component
    recipe: Recipe = Recipe()
    clean_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="weight of the clean batch in the loss (Eq. 3); 0: augmented only",
    )
    train_on: TrainOn = "train"
    replicas: bool = Field(False, description="train all seeds of a bundle at once")


RunSpec.model_rebuild()
