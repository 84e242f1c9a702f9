"""Every example runs, and does what its text says."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


def test_plain_loop(example):
    results = example("plain_loop").main(epochs=12)
    # Under label noise and with clean validation data the gain is large (docs/method.md).
    assert results["saflex"]["test_loss"] < results["clean+aug"]["test_loss"] - 0.02
    assert results["saflex"]["label_unchanged"] < 1


def test_lightning_callback(example, tmp_path):
    pytest.importorskip("lightning")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    module = example("lightning_callback")
    trainer, callback = module.main(epochs=2, **quiet)
    assert trainer.logged_metrics["saflex/steps"] == 7
    assert 0 < trainer.logged_metrics["saflex/label_unchanged"] <= 1
    # Its state travels in checkpoints, and a new callback takes it up.
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["SaflexCallback"]
    assert saved["direction"]["steps"] == callback.refine.direction.steps == 14
    again = module.SaflexCallback(module.spirals(200))
    again.load_state_dict(saved)
    again.on_fit_start(trainer, module.Classifier())
    assert again.refine.direction.steps == 14


def test_hugging_face_trainer(example):
    pytest.importorskip("transformers")
    trainer = example("huggingface_trainer").main(steps=4)
    logged = [entry for entry in trainer.state.log_history if "saflex_steps" in entry]
    assert logged[0]["saflex_steps"] == 2
    assert logged[0]["saflex_gain"] > logged[0]["saflex_gain_upstream"]
