"""The four diffusion pipelines of Table 3 behind one interface (diffusers; protocol, Table 3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from benchmarks.datasets.image_files import Index, decoded
from benchmarks.errors import BenchmarkError, UnknownName
from benchmarks.generate import diffusion_weights as weights
from benchmarks.generate import plan
from benchmarks.generate.diffusion_weights import INSTRUCT_PIX2PIX, STABLE_DIFFUSION, Weights
from benchmarks.generate.plan import Request

STRENGTH = {"cub": 0.6, "iwildcam-subset": 0.5}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a pipeline is: its diffusers class, its weights, and the arguments of a call.

    Attributes
    ----------
    edits : takes a source image.
    finetuned : loads LoRA weights trained on the training set.
    """

    name: str
    class_name: str
    weights: Weights
    call: dict[str, Any]
    edits: bool
    finetuned: bool = False


def recipe(name: str, dataset: str) -> Recipe:
    """Recipe of a pipeline for a data set, with the strengths and guidances of the protocol."""
    image = {"guidance_scale": 7.5, "num_inference_steps": 50, "strength": STRENGTH.get(dataset)}
    img2img = {
        "class_name": "StableDiffusionImg2ImgPipeline",
        "weights": STABLE_DIFFUSION,
        "call": image,
        "edits": True,
    }
    known = {
        "text2img": Recipe(
            name="text2img",
            class_name="StableDiffusionPipeline",
            weights=STABLE_DIFFUSION,
            call={"guidance_scale": 7.5, "num_inference_steps": 50},
            edits=False,
        ),
        "instructpix2pix": Recipe(
            name="instructpix2pix",
            class_name="StableDiffusionInstructPix2PixPipeline",
            weights=INSTRUCT_PIX2PIX,
            # 100 steps: the pipeline's default, which ALIA's script leaves alone.
            call={"guidance_scale": 5.0, "image_guidance_scale": 1.3, "num_inference_steps": 100},
            edits=True,
        ),
        "img2img": Recipe(name="img2img", **img2img),
        "img2img-finetuned": Recipe(name="img2img-finetuned", finetuned=True, **img2img),
    }
    if name not in known:
        raise UnknownName("pipeline", name, known)
    if known[name].call.get("strength", 0) is None:
        raise UnknownName("data set with an Img2Img strength", dataset, STRENGTH)
    return known[name]


@dataclass(kw_only=True)
class Diffusion:
    """A pipeline with its weights loaded on first use.

    Attributes
    ----------
    folder : of the weights, in diffusers' layout, see `weights.folder`.
    size : side of the square images in pixels; 512 is what Stable Diffusion v1 was trained on.
    adapter : LoRA weights of `finetune`, for ``img2img-finetuned``.
    dtype : of the network; float16 halves memory and needs a GPU.
    call : arguments over the recipe's, such as fewer steps in a test; part of the address.
    """

    recipe: Recipe
    folder: Path
    size: int = 512
    batch_size: int = 8
    dtype: str = "float16"
    device: str = "cuda"
    adapter: Path | None = None
    call: dict[str, Any] = field(default_factory=dict)
    stand_in: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.recipe.finetuned and self.adapter is None:
            raise BenchmarkError(
                f"{self.recipe.name} needs fine-tuned weights: give the adapter that "
                "`benchmarks.generate.finetune` trains"
            )
        if self.dtype not in ("float16", "bfloat16", "float32"):
            raise BenchmarkError(f"dtype {self.dtype!r}: expected float16, bfloat16 or float32")
        if self.device == "cpu" and self.dtype == "float16":
            raise BenchmarkError(
                "float16 needs a GPU and none is here: run on a GPU node, or with --dtype float32 "
                "(the data type is part of what addresses an image)"
            )

    def identity(self) -> dict[str, Any]:
        found = {
            "pipeline": self.recipe.name,
            "class": self.recipe.class_name,
            "weights": weights.digest(self.folder),
            "call": {**self.recipe.call, **self.call},
            "size": self.size,
            "dtype": self.dtype,
        }
        if self.adapter is not None:
            content = hashlib.sha256(self.adapter.read_bytes()).hexdigest()
            found["adapter"] = f"sha256:{content}"
        return found

    def requests(self, index: Index) -> list[Request]:
        if not self.recipe.edits:
            return plan.text_requests(index)
        return plan.edit_requests(index, instructions=self.recipe.name == "instructpix2pix")

    def make(self, requests: list[Request], index: Index) -> list[Image.Image]:
        import torch

        # Drawn on the CPU, one stream an image: a seed gives the same noise on every device.
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        arguments: dict[str, Any] = {**self.recipe.call, **self.call}
        if self.recipe.edits:
            arguments["image"] = [self._source(request, index) for request in requests]
        else:
            arguments |= {"height": self.size, "width": self.size}
        prompts = [request.prompt for request in requests]
        return self.pipeline(prompt=prompts, generator=generators, **arguments).images

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline on its device."""
        import diffusers
        import torch

        pipeline = getattr(diffusers, self.recipe.class_name).from_pretrained(
            self.folder,
            dtype=getattr(torch, self.dtype),
            use_safetensors=True,
            local_files_only=True,
            # It blackens what it takes for indecent, birds among it, and nobody sees these images.
            safety_checker=None,
            requires_safety_checker=False,
        )
        if self.adapter is not None:
            pipeline.load_lora_weights(self.adapter.parent, weight_name=self.adapter.name)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device)

    def _source(self, request: Request, index: Index) -> Image.Image:
        image = decoded(index.root / request.source)
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC)
