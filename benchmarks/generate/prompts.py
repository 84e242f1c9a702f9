"""Prompts of Table 3's generation, those of ALIA's code (Dunlap et al. 2023). Imports no torch.

Its configs name the folders of edited images after their prompts, with the full stops dropped. It has
none for InstructPix2Pix on CUB: there the places of Img2Img are used (choice).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.errors import UnknownName


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is asked for, per data set.

    Attributes
    ----------
    edits : of Img2Img, one per place; ``{}`` is the class.
    instructions : of InstructPix2Pix; without ``{}`` the class is not named.
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
PROMPTS = {
    "cub": Prompts(
        edits=tuple(f"a photo of a {{}} bird {place}." for place in _BIRD_PLACES),
        instructions=tuple(f"put the {{}} bird {place}" for place in _BIRD_PLACES),
        text="a iNaturalist photo of a {} bird.",
        subject="a photo of a {} bird.",
        # Two species by the names that ALIA writes, the others as CUB has them.
        names={"Whip poor Will": "Eastern whip-poor-will", "Geococcyx": "Roadrunner"},
    ),
    "iwildcam-subset": Prompts(
        edits=(
            "a photo of a {} in a grassy field with trees and bushes.",
            "a photo of {} in a forest in the dark.",
            "a photo of {} near a large body of water in the middle of a field.",
            "a photo of {} walking on a dirt trail with twigs and branches.",
        ),
        instructions=(
            "put the {} in a grassy field with trees and bushes",
            "put the animal in the middle of a forest at night",
            "put the animal near a lake",
            "put the animal in a field with twigs",
        ),
        text="a camera trap photo of {} in the wild.",
        subject="a camera trap photo of {}.",
        names={"empty": "background"},
    ),
}


def of(dataset: str) -> Prompts:
    """Prompts of a data set, or `UnknownName` with the nearest one that has prompts."""
    if dataset not in PROMPTS:
        raise UnknownName("data set with prompts", dataset, PROMPTS)
    return PROMPTS[dataset]
