"""What Table 4 takes, by arithmetic: device hours and gigabytes from FLOPs, never measured. No torch.

``python -m benchmarks cost --suite paper`` prints it; ``python -m benchmarks.forecast.clip`` for
every device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.spec import RunSpec

GIGA = 1e9

# Images per split (WILDS iWildCam 2.0) and bytes of the archive, as the `wilds` package states.
ROWS = {"train": 129_809, "validation": 7_314, "test": 8_154, "ood_test": 42_791}
ARCHIVE_BYTES = 11_957_420_032
CAPTIONS = 182 * 2

# Sustained bfloat16 FLOP/s: the data sheet's dense peak x the share a ViT-B/16 usually reaches.
DEVICES = {
    "H100 80 GB": {"peak": 989e12, "share": 0.35, "memory_gb": 80},
    "A100 80 GB": {"peak": 312e12, "share": 0.40, "memory_gb": 80},
}
CORES = 16
# Measured on one core of a server CPU: 597 x 448 JPEG decoded and cropped to 224; RandAugment at 224.
DECODE_SECONDS = 4.5e-3
RANDAUGMENT_SECONDS = 1.1e-3

# Bytes kept for the backward pass per token, width and layer in 16 bits, attention matrices not kept
# (Korthikanti et al. 2022, Equation 2 without its quadratic term), and with checkpointing.
ACTIVATION_BYTES = 34
CHECKPOINTED_BYTES = 2
PARAMETERS = 149.6e6
# Forward passes (units of one forward of the batch): backward is two; a dual number is three.
BACKWARD, DUAL = 2, 3
ENSEMBLE_ALPHAS = 11


@dataclass(frozen=True)
class Tower:
    """A transformer tower of ViT-B/16 CLIP."""

    tokens: int
    width: int
    layers: int = 12

    @property
    def flops(self) -> float:
        """Of one forward pass of one input: matrix products of the layers."""
        dense = 2 * self.tokens * 12 * self.width**2
        attention = 4 * self.tokens**2 * self.width
        return self.layers * (dense + attention)

    def activation_bytes(self, *, checkpointed: bool) -> float:
        """Kept for the backward pass of one input."""
        per_layer = self.tokens * self.width
        if checkpointed:  # every layer's input, and one layer whole
            kept = self.layers * CHECKPOINTED_BYTES + ACTIVATION_BYTES
            return per_layer * kept
        return per_layer * self.layers * ACTIVATION_BYTES


IMAGE = Tower(tokens=197, width=768)
TEXT = Tower(tokens=77, width=512)


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """Estimate of one row of Table 4.

    Attributes
    ----------
    hours : device hours of one seed: training, evaluation every epoch, ensembling, decoding.
    memory_gb : device memory at the peak.
    """

    row: str
    upstream: str
    runs: int
    steps: int
    hours: float
    memory_gb: float

    @property
    def total_hours(self) -> float:
        return self.runs * self.hours


@dataclass(frozen=True, kw_only=True)
class TableCost:
    """Estimate of the table, and what it stands on."""

    device: str
    epochs: int
    rows: tuple[RowCost, ...]
    download_gb: float
    disk_gb: float
    assumptions: tuple[str, ...]

    @property
    def hours(self) -> float:
        return sum(row.total_hours for row in self.rows)

    @property
    def memory_gb(self) -> float:
        return max((row.memory_gb for row in self.rows), default=0.0)


def estimate(specs: Iterable[RunSpec], *, device: str = "H100 80 GB") -> TableCost:
    """Estimate planned runs of CLIP ViT-B/16 on iWildCam-WILDS, row by row."""
    grouped: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in specs:
        grouped.setdefault((spec.upstream, spec.row), []).append(spec)
    rows = tuple(row_cost(runs, device=device) for runs in grouped.values())
    checkpoint = PARAMETERS * (3 + 1) * 4 / GIGA  # weights, two moments, weights of the best epoch
    return TableCost(
        device=device,
        epochs=max(spec.settings.recipe.epochs for runs in grouped.values() for spec in runs),
        rows=rows,
        download_gb=(ARCHIVE_BYTES + 4 * PARAMETERS) / GIGA,
        disk_gb=2 * ARCHIVE_BYTES / GIGA + 4 * PARAMETERS / GIGA + checkpoint,
        assumptions=(
            f"{device}: {DEVICES[device]['peak'] / 1e12:.0f} TFLOP/s bfloat16, "
            f"{DEVICES[device]['share']:.0%} of it sustained (assumed)",
            f"forward {IMAGE.flops / GIGA:.1f} GFLOP an image, {TEXT.flops / GIGA:.1f} a caption; "
            "backward twice that; Pi three forwards; every caption of a batch distinct",
            f"decoding {1e3 * DECODE_SECONDS:.1f} ms and RandAugment {1e3 * RANDAUGMENT_SECONDS:.1f} ms "
            f"an image (measured on one core), on {CORES} cores, not overlapped with the device",
            f"{ACTIVATION_BYTES} bytes per token, width and layer kept for the backward pass",
            "archive and its unpacked images both on disk, one checkpoint at a time",
        ),
    )


def row_cost(runs: list[RunSpec], *, device: str = "H100 80 GB") -> RowCost:
    """Estimate the seeds of one row."""
    spec, rate = runs[0], DEVICES[device]["peak"] * DEVICES[device]["share"]
    settings, recipe = spec.settings, spec.settings.recipe
    trains = settings.refiner.name != "zero-shot"
    train = ROWS["train"]
    epochs = recipe.epochs if trains else 0
    steps = epochs * math.ceil(train / recipe.batch_size)
    evaluated = ROWS["validation"] + ROWS["test"] + ROWS["ood_test"]
    evaluations = max(epochs, 1) / (recipe.evaluate_every or 1) if trains else 1
    if settings.model.settings.get("ensemble") and trains:
        # Of the last and of the best epoch: every coefficient on id_val, the chosen one everywhere.
        evaluations += 2 * (1 + ENSEMBLE_ALPHAS * ROWS["validation"] / evaluated)
    probe = train + ROWS["validation"] if settings.refiner.name == "lp-ft" else 0
    read = evaluations * evaluated + probe
    flops = steps * _step_flops(spec) + read * IMAGE.flops
    decode = (epochs * train + read + steps * _validation_rows(spec)) * DECODE_SECONDS
    if settings.upstream.name == "wilds-randaugment":
        decode += epochs * train * RANDAUGMENT_SECONDS
    return RowCost(
        row=spec.row,
        upstream=spec.upstream,
        runs=len(runs),
        steps=steps,
        hours=(flops / rate + decode / CORES) / 3600,
        memory_gb=_memory_bytes(spec) / GIGA,
    )


def render(cost: TableCost) -> str:
    """Lay out an estimate for a terminal."""
    lines = [
        f"Table 4 by arithmetic, on one {cost.device}: CLIP ViT-B/16, {cost.epochs} epochs of "
        f"{ROWS['train']:,} images"
    ]
    lines += [
        f"  {row.upstream + '/' + row.row:<36} {row.runs} seeds x {row.hours:5.2f} h = "
        f"{row.total_hours:5.1f} h {row.steps:>7,} steps a run {row.memory_gb:5.1f} GB of device memory"
        for row in cost.rows
    ]
    lines.append(
        f"  together {cost.hours:.0f} device hours, up to {cost.memory_gb:.0f} GB of device memory, "
        f"{cost.download_gb:.2f} GB to download (archive {ARCHIVE_BYTES / GIGA:.2f}, CLIP weights "
        f"{4 * PARAMETERS / GIGA:.2f}), {cost.disk_gb:.0f} GB on disk"
    )
    return "\n".join([*lines, "  based on", *(f"    {line}" for line in cost.assumptions)]) + "\n"


def _step_flops(spec: RunSpec) -> float:
    """FLOPs of one optimiser step with everything its refiner adds."""
    settings, batch = spec.settings, spec.settings.recipe.batch_size
    model = settings.model.settings
    again = bool(model.get("gradient_checkpointing")) + (model.get("micro_batch") is not None)
    passes = 1 + BACKWARD + again
    texts = min(batch, CAPTIONS) * TEXT.flops if settings.refiner.name != "lp-ft" else 0.0
    images = batch * IMAGE.flops
    total = passes * ((1 + (settings.clean_share > 0)) * images + texts)
    if validation := _validation_rows(spec):
        gradient = 1 + BACKWARD + bool(model.get("gradient_checkpointing"))
        refresh = settings.refiner.settings.get("refresh_every", 1)
        total += gradient * validation * (IMAGE.flops + TEXT.flops) / refresh
        total += DUAL * (images + texts)
    return total


def _validation_rows(spec: RunSpec) -> int:
    """Pairs of id_val behind each validation gradient; 0 for rows without one."""
    refiner = spec.settings.refiner
    refines = refiner.name.startswith("saflex") or refiner.name == "weights-only"
    return refiner.settings.get("validation_batch", 128) if refines else 0


def _memory_bytes(spec: RunSpec) -> float:
    """Weights, gradients, moments, activations at the peak of a step."""
    settings: Any = spec.settings
    model, batch = settings.model.settings, settings.recipe.batch_size
    if settings.refiner.name == "zero-shot":
        return 4 * PARAMETERS
    checkpointed = bool(model.get("gradient_checkpointing"))
    rows = min(batch, model.get("micro_batch") or batch)
    image = IMAGE.activation_bytes(checkpointed=checkpointed)
    text = TEXT.activation_bytes(checkpointed=checkpointed)
    if settings.refiner.name == "lp-ft":
        text = 0.0
    # With micro-batches the clean and the augmented images follow each other.
    streams = 1 + (settings.clean_share > 0 and not model.get("micro_batch"))
    step = rows * (streams * image + text)
    gradient = _validation_rows(spec) * (image + text)
    refined = 2 if _validation_rows(spec) else 0  # validation gradient and tangent
    return PARAMETERS * 4 * (4 + refined) + PARAMETERS * 2 + max(step, gradient)


def main() -> None:
    """Print the estimate of the paper suite's Table 4 for every device."""
    from benchmarks import suite

    specs = suite.plan(suite.load("paper"), table="4")
    for device in DEVICES:
        print(render(estimate(specs, device=device)))


if __name__ == "__main__":
    main()
