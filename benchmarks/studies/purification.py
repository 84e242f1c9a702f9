"""Purification with known truth: does a refiner find the swapped images of a stand-in set? (Table 3)

A training run is watched from outside. What a refiner decided last about each image counts as
"found" where the weight is 0 or the learned label's arg max is not the upstream label; "recovered"
where it is the class that the image really shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.datasets.image_files import decoded
from benchmarks.errors import BenchmarkError
from benchmarks.generate import manifest as manifests
from benchmarks.generate import sheets
from benchmarks.generate.manifest import Manifest
from benchmarks.record import atomic_write
from benchmarks.running.execute import load_data
from benchmarks.spec import RunSpec
from benchmarks.studies.curves import MEASURES, Purification
from benchmarks.train import Training


@dataclass
class Decisions:
    """Latest decision about each of N images.

    Attributes
    ----------
    weight : (N,), 1 where an image counts like the average one of its batch; NaN before it is seen.
    label, share : (N,), arg max of the learned label and its probability.
    """

    weight: Tensor
    label: Tensor
    share: Tensor

    @classmethod
    def none(cls, size: int) -> Decisions:
        return cls(torch.full((size,), torch.nan), torch.zeros(size).long(), torch.zeros(size))

    def take(self, index: Tensor, y: Tensor, w: Tensor) -> None:
        """Take over what one step decided about the images `index` (B,)."""
        index = index.cpu()
        share, label = y.float().max(-1)
        self.weight[index] = (w * len(w)).float().cpu()
        self.label[index], self.share[index] = label.cpu(), share.cpu()

    def measure(self, upstream: Tensor, content: Tensor) -> dict[str, float | None]:
        """Precision, recall, recovered and wronged over the images seen so far."""
        seen = ~self.weight.isnan()
        found = seen & ((self.weight == 0) | (self.label != upstream))
        swapped = seen & (content != upstream)
        recovered = swapped & (self.weight > 0) & (self.label == content)
        good = seen & ~swapped
        return {
            "precision": _share(found & swapped, found),
            "recall": _share(found & swapped, swapped),
            "recovered": _share(recovered, swapped),
            "wronged": _share(found & good, good),
        }


def watch(spec: RunSpec) -> tuple[list[dict], Decisions, float, Manifest]:
    """Train one run on a stand-in set and measure its refiner after each epoch.

    Returns
    -------
    measures of each epoch, the last decisions, last test accuracy, the set's manifest.
    """
    training = Training(spec, load_data(spec, "cpu"))
    made: Manifest | None = getattr(training.upstream, "manifest", None)
    if made is None or any(entry.content is None for entry in made.images):
        raise BenchmarkError(f"{spec.bundle}: the truth is known of stand-in sets only")
    upstream = torch.tensor([entry.label for entry in made.images])
    content = torch.tensor([entry.content for entry in made.images])
    decisions, measured = Decisions.none(len(upstream)), []

    def after_step(training: Training) -> None:
        augmented, refined = training.seen
        decisions.take(augmented.index, refined.y, refined.w)
        if training.step_in_epoch == training.steps_per_epoch:
            measured.append(decisions.measure(upstream, content))

    training.run(after_step=after_step)
    return measured, decisions, training.last["test/accuracy"], made


def purify(specs: list[RunSpec], results: Path) -> Path:
    """Measure one row over its seeds; write its curves and the contact sheet of the first seed."""
    row, curves, accuracy = specs[0].row, {name: [] for name in MEASURES}, []
    for spec in specs:
        measured, decisions, final, made = watch(spec)
        accuracy.append(final)
        for name in MEASURES:
            curves[name].append([_rounded(epoch[name]) for epoch in measured])
        if spec is specs[0]:
            _sheet(decisions, made, spec, results)
    swapped = sum(entry.content != entry.label for entry in made.images)
    outcome = Purification(
        row=row,
        content=made.content,
        swapped=swapped,
        images=len(made.images),
        epochs=list(range(1, len(measured) + 1)),
        accuracy=accuracy,
        **curves,
    )
    target = results / "purification" / f"{row}.json"
    atomic_write(target, json.dumps(asdict(outcome)) + "\n")
    return target


def _sheet(decisions: Decisions, made: Manifest, spec: RunSpec, results: Path) -> None:
    """Contact sheet: 24 swapped images and 24 good ones with what was learned of them."""
    place = manifests.location(made.dataset, made.name)
    swapped = [n for n, entry in enumerate(made.images) if entry.content != entry.label][:24]
    good = [n for n, entry in enumerate(made.images) if entry.content == entry.label][::7][:24]
    rows = [
        (
            made.images[n],
            decoded(place.image(made.images[n].address)),
            float(decisions.weight[n].nan_to_num(1.0)),
            int(decisions.label[n]),
            float(decisions.share[n]),
        )
        for n in (*swapped, *good)
    ]
    title = f"STAND-IN images, {spec.row}, seed {spec.seed}, last decision. Green: found; red: "
    title += "missed; orange: a good image taken for swapped"
    page = sheets.learned(rows, made.class_names, title=title)
    # Apart from the figures: the pictures are the data set's, and not ours to publish.
    sheets.save(page, results / "sheets" / f"stand-in-{spec.row}.jpg")


def _share(part: Tensor, whole: Tensor) -> float | None:
    return part.sum().item() / whole.sum().item() if whole.any() else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
