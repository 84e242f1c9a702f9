"""Image runs stopped at a step and taken up from their checkpoint: the same record, bit for bit."""

from __future__ import annotations

import pytest
from image_runs import image_spec

from benchmarks.checkpoint import Checkpoint
from benchmarks.execute import execute
from benchmarks.record import canonical
from benchmarks.spec import Component
from benchmarks.train import Interrupted

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
def test_an_interrupted_resnet18_run_on_bloodmnist_ends_in_the_same_record(tmp_path):
    few = {"limit": 256, "validation_limit": 64}
    spec = image_spec(dataset=Component(name="bloodmnist", settings=few), batch_size=128, epochs=2)
    network = spec.settings.model_copy(update={"model": Component(name="resnet18-28")})
    spec = spec.model_copy(update={"settings": network})
    whole = execute(spec)
    with pytest.raises(Interrupted):
        execute(spec, checkpoint=Checkpoint(tmp_path, spec, stop=_StopAt(3)))
    resumed = execute(spec, checkpoint=Checkpoint(tmp_path, spec))
    assert canonical(resumed) == canonical(whole)
    assert whole.data["rows"] == {"train": 256, "validation": 64, "test": 3_421}
