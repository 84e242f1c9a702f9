"""Sample inspector: what a refiner made of augmented images, as pictures (Algorithm 1, looked at).

For chosen epochs a grid of samples: the clean image, the augmented one, and as bars the upstream's
label beside the learned one, with the weight the sample got.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.record import replacing
from benchmarks.running.execute import load_data
from benchmarks.running.machine import chosen_device
from benchmarks.spec import RunSpec
from benchmarks.train import Training
from saflex import soft_rows

COLUMNS = 3  # samples side by side; each takes three panels
UPSTREAM, LEARNED, REJECTED = "#8c959f", "#0969da", "#cf222e"


class SampleInspector:
    """Draw the first batch of chosen epochs; an observer for `Training.run(after_step=...)`.

    Parameters
    ----------
    epochs : counted from 1.
    folder : where ``epoch3.png`` goes.
    count : samples a picture, from the top of the batch.

    Attributes
    ----------
    written : pictures written so far.
    """

    def __init__(self, folder: Path, *, epochs: Collection[int], count: int = 15):
        if not epochs or min(epochs) < 1 or count < 1:
            raise BenchmarkError(f"epochs {sorted(epochs)} and {count} samples: both count from 1")
        self.folder, self.epochs, self.count = folder, set(epochs), count
        self.written: list[Path] = []

    def __call__(self, training: Training) -> None:
        epoch = training.epoch + 1
        if training.step_in_epoch == 1 and epoch in self.epochs:
            figure = draw(training, self.count)
            target = self.folder / f"epoch{epoch}.png"
            _save(figure, target)
            self.written.append(target)

    def and_stop(self, training: Training) -> None:
        """Observe, and end the run after the last picture."""
        self(training)
        if len(self.written) == len(self.epochs):
            raise _AllDrawn


def inspect(
    spec: RunSpec,
    results: Path,
    *,
    epochs: Collection[int],
    count: int = 15,
    device: str | None = None,
) -> list[Path]:
    """Train a run as `execute` does, without a record, and draw its samples at chosen epochs.

    Returns
    -------
    list of Path
        ``figures/samples/<bundle>/seed0/epoch3.png`` below `results`.

    Raises
    ------
    BenchmarkError
        The data are not images, or an epoch lies beyond the run's.
    """
    total = spec.settings.recipe.epochs
    if max(epochs, default=0) > total:
        raise BenchmarkError(f"epoch {max(epochs)} to inspect, but {spec.bundle} trains {total}")
    data = load_data(spec, chosen_device(device))
    if data.kind != "image":
        raise BenchmarkError(f"{data.name} has no images to look at")
    folder = results / "figures" / "samples" / spec.name
    inspector = SampleInspector(folder, epochs=epochs, count=count)
    training = Training(spec, data)
    with contextlib.suppress(_AllDrawn):
        training.run(after_step=inspector.and_stop)
    return inspector.written


class _AllDrawn(Exception):
    """Every chosen epoch has been drawn: the rest of the run would change no picture."""


def draw(training: Training, count: int) -> Figure:
    """Draw the samples of a training's last step (`Training.seen`)."""
    augmented, refined = training.seen
    count = min(count, len(refined.w))
    upstream = soft_rows(augmented.y, training.data.num_classes, check=False)
    clean = training.data.normalize(training.train.x[augmented.index[:count]])
    images = [to_pixels(x, training.data) for x in (clean, refined.x[:count])]
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 1.45 * rows + 0.7), layout="constrained")
    figure.suptitle(_heading(training, refined.w), fontsize=9)
    axes = figure.subplots(rows, 3 * COLUMNS, squeeze=False, width_ratios=[1, 1, 1.6] * COLUMNS)
    for panel in axes.flat:
        panel.set_axis_off()
    for i in range(count):
        panels = axes[i // COLUMNS, 3 * (i % COLUMNS) : 3 * (i % COLUMNS) + 3]
        weight = (refined.w[i] * len(refined.w)).item()
        _pictures(panels[:2], images[0][i], images[1][i], weight)
        _bars(panels[2], upstream[i].cpu().numpy(), refined.y[i].cpu().numpy())
    return figure


def to_pixels(x: Tensor, data: Data) -> np.ndarray:
    """Undo an affine normalisation: x (B, 3, H, W) to (B, H, W, 3) in [0, 1]."""
    ends = torch.tensor([0, 255], dtype=torch.uint8, device=x.device).view(2, 1, 1, 1)
    low, high = data.normalize(ends.expand(2, x.shape[1], 1, 1))
    return ((x - low) / (high - low)).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


def _pictures(panels, clean: np.ndarray, augmented: np.ndarray, weight: float) -> None:
    panels[0].imshow(clean, interpolation="nearest")
    panels[1].imshow(augmented, interpolation="nearest")
    panels[0].set_title("clean", fontsize=6, pad=2)
    color = REJECTED if weight == 0 else "black"
    panels[1].set_title(f"w = {weight:.2f}/B", fontsize=6, pad=2, color=color)


def _bars(panel, upstream: np.ndarray, learned: np.ndarray) -> None:
    """Bars of two labels over the classes; a star marks where the arg max of the two differs."""
    place = np.arange(len(upstream))
    panel.set_axis_on()
    panel.bar(place - 0.2, upstream, 0.4, color=UPSTREAM)
    panel.bar(place + 0.2, learned, 0.4, color=LEARNED)
    panel.set_ylim(0, 1.02)
    panel.set_yticks([])
    panel.set_xticks(place, [str(k) for k in place], fontsize=5)
    panel.tick_params(length=0, pad=1)
    moved = upstream.argmax() != learned.argmax()
    panel.set_title(
        f"{upstream.argmax()} → {learned.argmax()}{' *' if moved else ''}", fontsize=6, pad=2
    )


def _heading(training: Training, w: Tensor) -> str:
    spec = training.spec
    _, refined = training.seen
    upstream = soft_rows(training.seen[0].y, training.data.num_classes, check=False)
    kept = (upstream.argmax(-1) == refined.y.argmax(-1)).float().mean().item()
    return (
        f"{spec.bundle}, seed {spec.seed}, first batch of epoch {training.epoch + 1} "
        f"(B = {len(w)}): {100 * kept:.0f} % of the labels keep their class, "
        f"{100 * (w > 0).float().mean().item():.0f} % have weight.\n"
        f"Grey: upstream label; blue: learned label; * class changed\n{_classes(training.data)}"
    )


def _classes(data: Data) -> str:
    """Legend of the classes, each name cut to its first words."""
    names = [name.split(",")[0].split("(")[0].strip()[:24] for name in data.class_names]
    return ", ".join(f"{k} {name}" for k, name in enumerate(names))


def _save(figure: Figure, target: Path) -> None:
    """Write a PNG by atomic rename."""
    with replacing(target) as fresh, fresh.open("wb") as stream:
        FigureCanvasAgg(figure).print_png(stream)
