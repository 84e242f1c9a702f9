"""SAFLEX in a Hugging Face Trainer: one overridden method. ``python examples/huggingface_trainer.py``

A small BERT on token sequences; the upstream augmentation masks tokens at random. Inputs are the
usual dicts, and the validation source is the usual data set of dicts with "labels".
"""

import tempfile
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from saflex import Saflex, soft_cross_entropy

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


class SaflexTrainer(Trainer):
    """Masks tokens, refines, and trains on soft labels."""

    def __init__(self, *args: Any, validation: Dataset, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refine = Saflex(self.model, validation=DataLoader(validation, 16, shuffle=True))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        **_: Any,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        labels = inputs.pop("labels")
        tokens = inputs["input_ids"]
        hidden = torch.rand(tokens.shape, device=tokens.device) < 0.3
        batch = self.refine({**inputs, "input_ids": tokens.masked_fill(hidden, MASK)}, labels)
        outputs = model(**batch.x)
        loss = soft_cross_entropy(outputs.logits, batch.y, batch.w)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        found = self.refine.diagnostics(reset=True)
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
