"""SAFLEX in Lightning: a callback that owns the refiner. ``python examples/lightning_callback.py``

The callback builds the refiner when fitting starts, logs its diagnostics every epoch and keeps its
state in checkpoints; the training step calls it.
"""

from typing import Any

import lightning
import torch
from plain_loop import augment, spirals
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from saflex import Saflex


class SaflexCallback(lightning.Callback):
    """Gives a LightningModule with a ``model`` attribute its ``refine``."""

    def __init__(self, validation: Any, **settings: Any) -> None:
        self.validation, self.settings = validation, settings
        self.refine: Saflex | None = None
        self._waiting: dict[str, Any] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        # Under a distributed strategy, average g over the ranks.
        group = torch.distributed.group.WORLD if trainer.world_size > 1 else None
        self.refine = module.refine = Saflex(
            module.model,
            validation=self.validation,
            optimizer=trainer.optimizers[0],
            process_group=group,
            **self.settings,
        )
        if self._waiting is not None:
            self.refine.load_state_dict(self._waiting)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        found = self.refine.diagnostics(reset=True)
        module.log_dict({f"saflex/{name}": value for name, value in found.items()})

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            print(self.refine.report())

    def state_dict(self) -> dict[str, Any]:
        return {} if self.refine is None else self.refine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._waiting = state or None


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
        self.refine: Saflex | None = None

    def training_step(self, pair: tuple, _: int) -> torch.Tensor:
        batch = self.refine(*augment(*pair))
        return self.refine.loss(self.model, batch, clean=pair)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def main(epochs: int = 5, **trainer: Any) -> tuple[lightning.Trainer, SaflexCallback]:
    torch.manual_seed(0)
    callback = SaflexCallback(spirals(200), refresh_every=2)
    loader = DataLoader(TensorDataset(*spirals(400, noise=0.2)), batch_size=64, shuffle=True)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False} | trainer
    fit = lightning.Trainer(max_epochs=epochs, callbacks=[callback], **options)
    fit.fit(Classifier(), loader)
    print({name: round(float(value), 4) for name, value in fit.logged_metrics.items()})
    return fit, callback


if __name__ == "__main__":
    main()
