"""Pre-training of a CLIP small enough for one core, in place of weights that must be downloaded.

The loss is CLIP's own. Colours are jittered widely, as the web's are: fine-tuning afterwards on
images of one laboratory then trades robustness for accuracy, as it does for the real CLIP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import sources
from benchmarks.record import replacing
from benchmarks.seeds import derive
from saflex import contrastive_cross_entropy

if TYPE_CHECKING:
    from benchmarks.datasets.image_text import ImageTextData
    from benchmarks.models.clip import Clip

FORMAT = 1
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
JITTER = (0.5, 1.5)


def pretrained(
    build: Callable[[], Clip], data: ImageTextData, *, epochs: int, config: dict[str, Any]
) -> Clip:
    """Give the pre-trained model: from its file in the data folder, or trained now and kept there.

    The file's name is a hash of everything that decides its content; processes that start together
    train once.

    Parameters
    ----------
    build : makes the model with random weights, over the pre-training captions.
    config : decides the model, for the name of the file.
    """
    seed = derive(data.name, 0, "pretraining")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    if epochs == 0:
        return model
    key = _key(data, epochs=epochs, config=config)
    path = sources.home() / "weights" / f"clip-tiny-{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            _train(model, data, epochs=epochs, seed=seed)
            with replacing(path) as fresh:
                save_file(model.towers.state_dict(), fresh)
    model.towers.load_state_dict(load_file(path))
    return model


def jittered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each colour channel of each image (B, 3, H, W) by its own factor in [0.5, 1.5)."""
    low, high = JITTER
    factor = torch.rand((len(x), 3, 1, 1), generator=generator) * (high - low) + low
    return (x * factor).round().clamp(0, 255).to(torch.uint8)


def _train(model: Clip, data: ImageTextData, *, epochs: int, seed: int) -> None:
    """Train on host memory and processor: minutes, whatever device the run is for."""
    split = data.pretraining.split
    generator = torch.Generator().manual_seed(seed)
    images, classes = split.x.cpu(), split.y.cpu()
    templates = model.tokens.shape[1]
    size = min(BATCH, len(split))
    steps = epochs * (len(split) // size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(split), generator=generator)
        for index in order.split(size)[: len(split) // size]:
            x = jittered(data.training_images(images, index, generator), generator)
            template = torch.randint(templates, (len(index),), generator=generator)
            logits = model((data.normalize(x), model.captions(classes[index], template)))
            loss = contrastive_cross_entropy(logits, torch.eye(len(index))) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _key(data: ImageTextData, *, epochs: int, config: dict[str, Any]) -> str:
    split = data.pretraining.split
    content = hashlib.sha256(split.x.cpu().numpy().tobytes())
    content.update(split.y.cpu().numpy().tobytes())
    captions = [data.class_names, data.templates, data.pretraining.templates]
    recipe = [FORMAT, BATCH, LEARNING_RATE, WEIGHT_DECAY, JITTER, epochs, data.name]
    # Compiled kernels differ between versions, and with them the last digits of the weights.
    text = json.dumps([recipe, captions, config, torch.__version__], default=str)
    content.update(text.encode())
    return content.hexdigest()[:16]
