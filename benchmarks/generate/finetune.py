"""Img2Img "w/ finetune" of Table 3: LoRA of the denoising network on the training set.

No recipe was published; this is DreamBooth-LoRA without prior images: every training image with the
prompt that names its class, mean squared error on the added noise (Ho et al. 2020; Hu et al. 2022).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from benchmarks.datasets.image_files import Index, decoded
from benchmarks.generate import diffusion_weights as weights
from benchmarks.generate import manifest as manifests
from benchmarks.generate import prompts
from benchmarks.record import replacing
from benchmarks.seeds import derive

FILE = "pytorch_lora_weights.safetensors"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings; all of them are choices.

    Attributes
    ----------
    steps : optimiser steps of `batch_size` images; CUB sees each image about 3 times by default.
    save_every : steps between two saved states, what a killed run loses at most.
    """

    rank: int = 8
    lr: float = 1e-4
    steps: int = 4000
    batch_size: int = 4
    size: int = 512
    save_every: int = 200
    seed: int = 0


def adapter_path(index: Index, folder: Path, settings: FineTuning) -> Path:
    """Place of the adapter, named by what it is trained from."""
    decisive = {k: v for k, v in asdict(settings).items() if k != "save_every"}
    listed = [str(file.relative_to(index.root)) for file in index.splits["train"].files]
    content = json.dumps([weights.digest(folder), decisive, listed], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return manifests.location(index.name, "adapters").folder / name / FILE


def finetune(
    index: Index,
    folder: Path,
    settings: FineTuning,
    *,
    device: str = "cuda",
    report: Callable[[str], None] = print,
    after_step: Callable[[int], None] = lambda step: None,
) -> Path:
    """Train the adapter, or find it trained, and give its path.

    Resumes from the last saved state; noise, time steps and order are functions of the step, so a
    resumed training ends in the weights of one that was never stopped.
    """
    target = adapter_path(index, folder, settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            training = _Training(index, folder, settings, device=device)
            training.resume(target.with_name("state.pt"))
            for step in training.run(target.with_name("state.pt")):
                if step % settings.save_every == 0:
                    report(f"{index.name}: fine-tuning step {step} of {settings.steps}")
                after_step(step)
            training.export(target)
            target.with_name("state.pt").unlink(missing_ok=True)
    return target


class _Training:
    """Network, adapter and optimiser of one fine-tuning."""

    def __init__(self, index: Index, folder: Path, settings: FineTuning, *, device: str):
        from diffusers import DDPMScheduler, StableDiffusionPipeline
        from peft import LoraConfig

        self.index, self.settings, self.device = index, settings, device
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            requires_safety_checker=False,
        ).to(device)
        self.pipeline, self.unet = pipeline, pipeline.unet
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False)
        torch.manual_seed(derive(index.name, settings.seed, "finetune/init"))
        self.unet.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.rank,
                init_lora_weights="gaussian",
                target_modules=list(TARGETS),
            )
        )
        self.parameters = {n: p for n, p in self.unet.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.lr)
        self.step = 0

    def run(self, state: Path) -> Iterator[int]:
        """Take the remaining steps, yielding the number of each after it is taken."""
        self.unet.train()
        while self.step < self.settings.steps:
            loss = self._loss(self._generator())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            if self.step % self.settings.save_every == 0:
                self._save(state)
            yield self.step

    def resume(self, state: Path) -> None:
        if not state.is_file():
            return
        saved = torch.load(state, map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, value in saved["adapter"].items():
                self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]

    def export(self, target: Path) -> None:
        """Write the adapter in diffusers' own format, by rename."""
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        with replacing(target) as fresh:
            StableDiffusionPipeline.save_lora_weights(
                fresh.parent,
                unet_lora_layers=layers,
                weight_name=fresh.name,
                safe_serialization=True,
            )

    def _save(self, state: Path) -> None:
        content: dict[str, Any] = {
            "adapter": {name: p.detach().clone() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        with replacing(state) as fresh:
            torch.save(content, fresh)

    def _loss(self, generator: torch.Generator) -> Tensor:
        images, texts = self._batch(generator)
        with torch.no_grad():
            posterior = self.pipeline.vae.encode(images).latent_dist
            clean = posterior.mode() * self.pipeline.vae.config.scaling_factor
            context = self.pipeline.text_encoder(self._tokens(texts))[0]
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        steps = self.noise.config.num_train_timesteps
        times = torch.randint(0, steps, (len(clean),), generator=generator).to(self.device)
        noisy = self.noise.add_noise(clean, noise, times)
        predicted = self.unet(noisy, times, encoder_hidden_states=context).sample
        wanted = (
            self.noise.get_velocity(clean, noise, times)
            if self.noise.config.prediction_type == "v_prediction"
            else noise
        )
        return torch.nn.functional.mse_loss(predicted.float(), wanted.float())

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Images (B, 3, S, S) in [-1, 1] and the prompts that name their classes."""
        listed = self.index.splits["train"]
        size, words = self.settings.size, prompts.of(self.index.name)
        rows = torch.randint(0, len(listed), (self.settings.batch_size,), generator=generator)
        pictures = [decoded(listed.files[row]).resize((size, size)) for row in rows.tolist()]
        array = np.stack([np.asarray(picture) for picture in pictures])
        images = torch.from_numpy(array).permute(0, 3, 1, 2).float().to(self.device) / 127.5 - 1
        names = [self.index.class_names[listed.labels[row]] for row in rows.tolist()]
        return images, [words.subject.format(words.name(name)) for name in names]

    def _tokens(self, texts: list[str]) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        return tokenizer(
            texts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)

    def _generator(self) -> torch.Generator:
        seed = derive(self.index.name, self.settings.seed, f"finetune/{self.step}")
        return torch.Generator().manual_seed(seed)
