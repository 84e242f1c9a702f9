"""CLIP (Radford et al. 2021) by open_clip: two towers and the head that class names make (Table 4)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks import sources
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.models import clip_pretraining
from benchmarks.registry import register
from benchmarks.tasks.image_text import ImageText
from saflex import ImageTextLogits

if TYPE_CHECKING:
    from benchmarks.datasets.image_text import ImageTextData

# For `benchmarks.forecast.cost`, which reads it without importing this module.
ESTIMATORS = {"clip-vit-b16": "clip"}

EVALUATION_BATCH = 512


class Clip(ImageTextLogits):
    """A CLIP model over a fixed set of captions: ``((images, captions)) -> logits`` (B, B).

    A caption is the index of its text in `tokens`, class times number of templates plus template.

    Parameters
    ----------
    towers : open_clip's `CLIP`.
    tokens : (K, T, L), the captions of K classes by T templates.
    micro_batch : rows encoded at a time in training, gradients as of the full batch; None: all.
    ensemble : mix the fine-tuned weights with the zero-shot ones and measure that too.
    """

    task = ImageText  # what the training loop does with it
    head: nn.Linear | None

    def __init__(
        self,
        towers: open_clip.CLIP,
        tokens: Tensor,
        *,
        micro_batch: int | None = None,
        ensemble: bool = False,
    ):
        super().__init__(towers)
        self.register_buffer("tokens", tokens, persistent=False)
        self.micro_batch, self.ensemble = micro_batch, ensemble
        self.head = None  # LP-FT sets it

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine similarities, a scalar > 0."""
        return self.towers.logit_scale.exp()

    def captions(self, classes: Tensor, templates: Tensor) -> Tensor:
        """Caption of each (class, template), both (B,)."""
        return classes * self.tokens.shape[1] + templates.to(classes.device)

    def images(self, x: Tensor) -> Tensor:
        """Unit features (B, D) of normalised images (B, 3, H, W)."""
        return self.towers.encode_image(x, normalize=True)

    def texts(self, captions: Tensor) -> Tensor:
        """Unit features (B, D) of captions (B,)."""
        return self.towers.encode_text(self.tokens.flatten(0, 1)[captions], normalize=True)

    def pair_logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits (B, B) of images in rows against texts in columns, from their features."""
        return self.scale * image @ text.T

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        images, captions = pair
        distinct, position = captions.unique(return_inverse=True)
        return self.pair_logits(self.images(images), self.texts(distinct)[position])

    def text_head(self) -> Tensor:
        """Zero-shot head (K, D): per class the normalised mean over templates, times the scale."""
        classes, templates, _ = self.tokens.shape
        every = torch.arange(classes * templates, device=self.tokens.device)
        texts = self.texts(every).unflatten(0, (classes, templates))
        return self.scale * normalize(texts.mean(1), dim=-1)

    def features(self, images: Any, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        """Unit features (N, D) of raw images in evaluation mode, float32 in host memory.

        Parameters
        ----------
        prepare : maps raw images to what the tower takes.
        """
        training = self.training
        self.eval()
        with torch.no_grad():
            parts = [
                self.images(prepare(images[start : start + EVALUATION_BATCH])).float().cpu()
                for start in range(0, len(images), EVALUATION_BATCH)
            ]
        self.train(training)
        return torch.cat(parts)


NEEDS = {"clip-vit-b16": {"dataset": "captions"}, "clip-tiny": {"dataset": "pretraining"}}
REFUSES = {"upstream": "mixed labels"}
OFFERS = ("pairs",)
PASSES_ON = "Clip"
LIMITS = {
    "micro_batch": {"ge": 1},
    "width": {"multiple_of": 32, "ge": 32},
    "layers": {"ge": 1},
    "patch": {"ge": 1},
    "pretraining_epochs": {"ge": 0},
}


@register("clip-vit-b16")
def build_vit_b16(
    data: ImageTextData,
    *,
    weights: str = "openai",
    architecture: str = "ViT-B-16",
    gradient_checkpointing: bool = False,
    **fine_tuning: Any,
) -> Clip:
    """Build a CLIP that open_clip knows by name.

    Parameters
    ----------
    weights : a tag of open_clip, downloaded from its hub unless `local_weights` finds a file; the
        path of a file in open_clip's format; or ``random``, for measuring time and memory.
    gradient_checkpointing : recompute activations in the backward pass.
    fine_tuning : `micro_batch`, `ensemble`, see `Clip`.
    """
    require_captions(data, architecture)
    path = local_weights(architecture, weights)
    try:
        towers = open_clip.create_model(
            architecture,
            pretrained=None if weights == "random" else str(path or weights),
            # OpenAI's models were trained with QuickGELU; a file does not say so, the tag does.
            force_quick_gelu=weights == "openai",
        )
    except Exception as error:  # whatever the hub client or the unpickler stumbles over
        said = " ".join(str(error).split())[:200] or type(error).__name__
        kind = path and sources.foreign(path)
        reason = f"{path} is {kind}" if kind else said
        raise DataError(
            f"CLIP weights {weights!r} of {architecture} could not be loaded ({reason}): put "
            f"open_clip's file at weights/{_file_name(architecture, weights)} below SAFLEX_DATA or "
            f"{sources.home() / 'raw'}"
        ) from error
    if gradient_checkpointing:
        towers.set_grad_checkpointing()
    tokenizer = open_clip.get_tokenizer(architecture)
    return Clip(towers, _tokens(data, tokenizer), **fine_tuning)


@register("clip-tiny")
def build_tiny(
    data: ImageTextData,
    *,
    width: int = 64,
    layers: int = 2,
    mlp_ratio: float = 2.0,
    patch: int = 7,
    pretraining_epochs: int = 8,
    gradient_checkpointing: bool = False,
    **fine_tuning: Any,
) -> Clip:
    """Build a CLIP small enough to be pre-trained here, on the data set's own pre-training part.

    The pre-trained weights are one file, the same for every seed, as downloaded ones would be.

    Parameters
    ----------
    width, layers, mlp_ratio, patch : of the vision transformer; the text tower shares the first three.
    pretraining_epochs : 0 leaves the random initial weights.
    """
    require_captions(data, "clip-tiny")
    if data.pretraining is None:
        raise BenchmarkError(f"{data.name} has no pre-training part: clip-tiny needs one")
    side = data.pretraining.split.x.shape[-1]
    tokenizer = open_clip.get_tokenizer("ViT-B-16", context_length=40)
    before = _tokens(data, tokenizer, data.pretraining.templates)
    tuning = _tokens(data, tokenizer)
    # The vocabulary is that of the captions; the order of its ids, whose last ends a text, is kept.
    vocabulary = torch.cat([before.flatten(), tuning.flatten()]).unique()
    before, tuning = (torch.searchsorted(vocabulary, tokens) for tokens in (before, tuning))
    config = {
        "embed_dim": width,
        "vision_cfg": open_clip.CLIPVisionCfg(
            layers=layers,
            width=width,
            head_width=32,
            mlp_ratio=mlp_ratio,
            patch_size=patch,
            image_size=side,
        ),
        "text_cfg": open_clip.CLIPTextCfg(
            context_length=tuning.shape[-1],
            vocab_size=len(vocabulary),
            width=width,
            heads=width // 32,
            layers=layers,
            mlp_ratio=mlp_ratio,
        ),
    }
    build = partial(open_clip.CLIP, **config)
    towers = clip_pretraining.pretrained(
        lambda tokens=before: Clip(build(), tokens), data, epochs=pretraining_epochs, config=config
    ).towers
    if gradient_checkpointing:
        towers.set_grad_checkpointing()
    return Clip(towers, tuning, **fine_tuning)


def local_weights(architecture: str, weights: str) -> Path | None:
    """Look for a weights file: a path, or the name of architecture and tag below ``weights/``."""
    if weights == "random":
        return None
    name = _file_name(architecture, weights)
    local = os.environ.get("SAFLEX_DATA")
    places = [Path(weights)] if Path(weights).suffix else []
    places += [Path(local) / "weights" / name] if local else []
    places.append(sources.home() / "raw" / "weights" / name)
    return next((path for path in places if path.is_file()), None)


def require_captions(data: ImageTextData, model: str) -> None:
    """Refuse data without captions."""
    if not hasattr(data, "captions"):
        raise BenchmarkError(
            f"{model} is fine-tuned on images with captions, and {data.name} has none: use "
            "iwildcam-wilds or captioned-bloodmnist"
        )


def _file_name(architecture: str, weights: str) -> str:
    return f"{architecture.lower()}-{weights}.safetensors"


def _tokens(
    data: ImageTextData,
    tokenizer: Callable[[list[str]], Tensor],
    templates: tuple[str, ...] | None = None,
) -> Tensor:
    """Tokens (K, T, L) of every class by every template."""
    templates = templates or data.templates
    texts = [template.format(name) for name in data.class_names for template in templates]
    return tokenizer(texts).unflatten(0, (len(data.class_names), len(templates)))
