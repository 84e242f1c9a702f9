"""What generation will take before it starts: weights, images, disk, time. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.generate import diffusion_weights as weights
from benchmarks.generate import manifest as manifests
from benchmarks.generate.diffusion_weights import Weights
from benchmarks.generate.pipelines import Recipe, recipe
from benchmarks.spec import RunSpec

# Images of a set of the paper: as many as the extra set; Text2Img at most 50 a class.
IMAGES = {
    ("cub", "text2img"): 1000,
    ("cub", "edit"): 1000,
    ("iwildcam-subset", "text2img"): 347,
    ("iwildcam-subset", "edit"): 2224,
}
DIFFUSION = ("text2img", "instructpix2pix", "img2img", "img2img-finetuned")

# Multiply-adds of Stable Diffusion v1's denoising network at 512 x 512, batch 1 (its 64 x 64 latents),
# and the rate a data-centre GPU sustains on it in float16. Both are assumptions, not measured here.
TERAMACS = 0.34
SUSTAINED_TERAFLOPS = 80.0
PASSES = {"text2img": 2, "instructpix2pix": 3, "img2img": 2, "img2img-finetuned": 2}
FINETUNING_PASSES = 3 * 4000 * 4  # forward and backward, steps, images a step
MEGABYTES_PER_IMAGE = 0.45  # a 512 x 512 PNG


@dataclass(frozen=True, kw_only=True)
class SetCost:
    """Estimate of one generated set.

    Attributes
    ----------
    at_hand : its weights are on this machine.
    gpu_hours : on one data-centre GPU, from `TERAMACS` and `SUSTAINED_TERAFLOPS` (assumed).
    made : the set is complete, nothing is left to do.
    """

    dataset: str
    name: str
    images: int
    weights: Weights
    at_hand: bool
    disk_gigabytes: float
    gpu_hours: float
    made: bool


def sets_of(specs: Iterable[RunSpec]) -> list[tuple[str, str]]:
    """Generated sets (data set, name) that runs need, each once, in the order of the suite."""
    found = {}
    for spec in specs:
        if spec.settings.upstream.name == "generated":
            dataset = spec.settings.dataset.name.removesuffix("-features")
            found[dataset, spec.settings.upstream.settings["images"]] = None
    return list(found)


def estimate(specs: Iterable[RunSpec]) -> list[SetCost]:
    """Estimate the diffusion sets of a suite's runs; stand-ins take a minute and no weights."""
    return [_estimate(dataset, name) for dataset, name in sets_of(specs) if name in DIFFUSION]


def missing(specs: Iterable[RunSpec]) -> list[Weights]:
    """Diffusion weights that sets still to be made need and this machine lacks, each once."""
    lacking = [own.weights for own in estimate(specs) if not own.made and not own.at_hand]
    return list(dict.fromkeys(lacking))


def unmade(specs: Iterable[RunSpec]) -> list[str]:
    """Sets that are not made yet, such as ``cub/img2img``; the workflow makes them before the runs."""
    return [
        f"{dataset}/{name}"
        for dataset, name in sets_of(specs)
        if not manifests.location(dataset, name).manifest.is_file()
    ]


def absent(wanted: Weights) -> str:
    """Say how big weights are, where they come from, and where to put a copy."""
    return (
        f"{wanted.repository} is not at hand ({wanted.gigabytes} GB): `generate` downloads it from the "
        f"hub, or put a snapshot of revision {wanted.revision[:8]} at weights/{wanted.folder} below "
        "SAFLEX_DATA"
    )


def render(sets: Iterable[SetCost]) -> list[str]:
    """Lay out an estimate for a terminal, one line a set and what it assumes; empty for no sets."""
    lines = [
        f"{own.dataset + '/' + own.name:<36} {own.images:>6,} images {own.gpu_hours:>6.1f} GPU h "
        f"{own.disk_gigabytes:>5.1f} GB on disk  {'made' if own.made else own.weights.folder}"
        for own in sets
    ]
    assumed = f"{TERAMACS} T multiply-adds a pass at {SUSTAINED_TERAFLOPS:g} TFLOP/s, assumed"
    return [*lines, f"({assumed}; made once, whatever runs use them)"] if lines else []


def _estimate(dataset: str, name: str) -> SetCost:
    chosen = recipe(name, dataset)
    images = IMAGES[dataset, "edit" if chosen.edits else "text2img"]
    made = manifests.location(dataset, name).manifest.is_file()
    return SetCost(
        dataset=dataset,
        name=name,
        images=images,
        weights=chosen.weights,
        at_hand=weights.local(chosen.weights) is not None,
        disk_gigabytes=images * MEGABYTES_PER_IMAGE / 1e3,
        gpu_hours=0.0 if made else _passes(chosen, images) * _seconds_per_pass() / 3600,
        made=made,
    )


def _passes(chosen: Recipe, images: int) -> float:
    """Evaluations of the denoising network: steps x guidance branches, plus fine-tuning."""
    steps = chosen.call["num_inference_steps"] * chosen.call.get("strength", 1.0)
    return images * steps * PASSES[chosen.name] + FINETUNING_PASSES * chosen.finetuned


def _seconds_per_pass() -> float:
    return 2 * TERAMACS / SUSTAINED_TERAFLOPS
