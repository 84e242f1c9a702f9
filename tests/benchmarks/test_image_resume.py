"""Image runs stopped at a step and taken up from their checkpoint: the same record, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from image_runs import image_spec

from benchmarks.data import Split
from benchmarks.record import canonical
from benchmarks.registry import load
from benchmarks.running.checkpoint import Checkpoint
from benchmarks.running.execute import execute
from benchmarks.spec import Component
from benchmarks.train import Interrupted, Training

ROWS = {
    "none": {},
    "randaugment": {"upstream": "randaugment", "clean_share": 0.5},
    "mixup": {"upstream": "mixup"},
    "soft-augmentation": {"upstream": "crop", "refiner": "soft-augmentation"},
    "lp-a3": {"refiner": "lp-a3", "settings": {"warm_up": 1}},
    "saflex-printed": {"upstream": "mixup", "refiner": "saflex-printed", "clean_share": 0.5},
    "saflex": {"upstream": "randaugment", "refiner": "saflex", "clean_share": 0.5},
    "weights-only": {"upstream": "pad-crop", "refiner": "weights-only", "clean_share": 0.5},
}


class _StopAt:
    """Ask a run to stop at one step, as SIGTERM does."""

    def __init__(self, step: int):
        self.left = step

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("step", [3, 8])  # within the first epoch of 5 steps, and the second
def test_an_interrupted_run_ends_in_the_same_record(row, step, tmp_path):
    few = Component(name="digits-images", settings={"limit": 80})
    spec = image_spec(dataset=few, schedule="milestones", channels_last=True, **ROWS[row])
    whole = execute(spec)
    assert whole.status == "complete"
    interrupted = Checkpoint(tmp_path, spec, stop=_StopAt(step))
    with pytest.raises(Interrupted, match=f"stopped at step {step}"):
        execute(spec, checkpoint=interrupted)
    resumed = execute(spec, checkpoint=Checkpoint(tmp_path, spec))
    assert canonical(resumed) == canonical(whole)
    assert resumed.diagnostics["optimizer_steps"] == 15


@pytest.mark.slow
@pytest.mark.data
def test_an_interrupted_resnet18_run_on_bloodmnist_ends_in_the_same_weights(tmp_path):
    spec = image_spec(batch_size=32, epochs=2, schedule="milestones")
    network = spec.settings.model_copy(update={"model": Component(name="resnet18-28")})
    spec = spec.model_copy(update={"settings": network})
    data = load("datasets", "bloodmnist")("bloodmnist", seed=0, limit=128, validation_limit=32)
    data = replace(data, test=Split(data.test.x[:32], data.test.y[:32]))

    whole = Training(spec, data)
    whole.run()
    with pytest.raises(Interrupted):
        Training(spec, data).run(after_step=Checkpoint(tmp_path, spec, stop=_StopAt(3)))
    resumed = Training(spec, data)
    assert Checkpoint(tmp_path, spec).resume(resumed)
    resumed.run()
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.curves == whole.curves
    assert resumed.steps == 8
