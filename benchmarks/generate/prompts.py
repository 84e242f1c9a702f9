"""Prompts of Table 3's generation (protocol; wording of ALIA, Dunlap et al. 2023). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.errors import UnknownName


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is asked for, per data set.

    Attributes
    ----------
    edits : of Img2Img, one per place; ``{}`` is the class.
    instructions : of InstructPix2Pix, for the same places.
    text : of Text2Img.
    subject : of fine-tuning, where only the class is described.
    names : how a class is written in a prompt, where its name does not fit.
    """

    edits: tuple[str, ...]
    instructions: tuple[str, ...]
    text: str
    subject: str
    names: dict[str, str]

    def name(self, class_name: str) -> str:
        return self.names.get(class_name, class_name)


_BIRD_PLACES = (
    "flying",
    "interacting with flowers",
    "in the water",
    "on a branch",
    "on rocks",
    "perched on a birdfeeder",
    "perched on a fence",
)
_CAMERA_PLACES = (
    "in a grassy field with trees and bushes",
    "in a forest in the dark",
    "near a large body of water in the middle of a field",
    "walking on a dirt trail with twigs and branches",
)

PROMPTS = {
    "cub": Prompts(
        edits=tuple(f"a photo of a {{}} bird {place}." for place in _BIRD_PLACES),
        instructions=tuple(f"put the {{}} bird {place}" for place in _BIRD_PLACES),
        text="a iNaturalist photo of a {} bird.",
        subject="a photo of a {} bird.",
        names={},
    ),
    "iwildcam-subset": Prompts(
        edits=tuple(f"a camera trap photo of {{}} {place}." for place in _CAMERA_PLACES),
        instructions=tuple(f"put the {{}} {place}" for place in _CAMERA_PLACES),
        text="a camera trap photo of {} in the wild.",
        subject="a camera trap photo of {}.",
        # Nothing to put anywhere: the background itself is asked for.
        names={"empty": "the background"},
    ),
}


def of(dataset: str) -> Prompts:
    """Prompts of a data set, or `UnknownName` with the nearest one that has prompts."""
    if dataset not in PROMPTS:
        raise UnknownName("data set with prompts", dataset, PROMPTS)
    return PROMPTS[dataset]
