"""SAFLEX in a Hugging Face Trainer: an overridden loss. ``python examples/huggingface_trainer.py``

A small BERT on token sequences; the upstream augmentation masks tokens at random. Inputs are the
usual dicts, and the validation source is the usual data set of dicts with "labels".
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from saflex import Saflex

MASK, VOCABULARY, LENGTH = 1, 40, 8


class Sequences(Dataset):
    """The label says whether a sequence has more high than low tokens."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[i]
        label = ((tokens > VOCABULARY // 2).float().mean() > 0.5).long()
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": label}


class SaveRefiner(TrainerCallback):
    """Puts the refiner's state beside the model's in every checkpoint."""

    def __init__(self, trainer: "SaflexTrainer") -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save(self.trainer.refine.state_dict(), self.trainer.saved_refiner(folder))


class SaflexTrainer(Trainer):
    """Masks tokens, refines, and trains on clean and masked sequences, half the loss each.

    The refiner is made at the first step, when the model has its wrappers: it looks through them and
    takes the process group of DistributedDataParallel from there. Its state is saved in checkpoints.
    """

    refine: Saflex | None = None

    def __init__(self, *args: Any, validation: Dataset, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Our loss is a mean over the batch: the Trainer must divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.validation = validation
        self.add_callback(SaveRefiner(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        self.resumed_from = resume_from_checkpoint
        if resume_from_checkpoint is True:
            self.resumed_from = get_last_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        **_: Any,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        if self.refine is None:
            self.refine = self.refiner(model)
        labels = inputs.pop("labels")
        tokens = inputs["input_ids"]
        hidden = torch.rand(tokens.shape, device=tokens.device) < 0.3
        batch = self.refine({**inputs, "input_ids": tokens.masked_fill(hidden, MASK)}, labels)
        return self.refine.loss(model, batch, clean=(inputs, labels))

    def refiner(self, model: torch.nn.Module) -> Saflex:
        refine = Saflex(model, validation=DataLoader(self.validation, 16, shuffle=True))
        if self.resumed_from:
            refine.load_state_dict(torch.load(self.saved_refiner(self.resumed_from)))
        return refine

    def saved_refiner(self, folder: str) -> Path:
        """Each rank has its own stream of validation rows."""
        return Path(folder) / f"saflex-{self.args.process_index}.pt"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        found = {} if self.refine is None else self.refine.diagnostics(reset=True)
        super().log(
            logs | {f"saflex_{name}": value for name, value in found.items()}, *args, **kwargs
        )


def main(steps: int = 20) -> SaflexTrainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            logging_steps=max(steps // 2, 1),
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = SaflexTrainer(
            BertForSequenceClassification(config),
            arguments,
            train_dataset=Sequences(256, seed=1),
            validation=Sequences(64, seed=2),
        )
        trainer.train()
    return trainer


if __name__ == "__main__":
    main()
