"""Every refiner: draws from its own streams, gives a batch the loss can take, resumes bit for bit."""

from __future__ import annotations

import io

import pytest
import torch
from worlds import KINDS, World, component, global_streams_untouched, spec, worlds

from benchmarks.errors import BenchmarkError
from benchmarks.train import Training

STEPS = 9


@pytest.fixture(params=KINDS)
def world(request) -> World:
    return worlds()[request.param]


def begun(world: World, refiner: str) -> Training:
    """A run of the refiner at its start."""
    return Training(spec(world, refiner=component(refiner)), world.data)


@pytest.fixture
def run(world, refiner) -> Training:
    """Its first step done; skipped where the refiner refuses such a run."""
    try:
        training = begun(world, refiner)
        training.run(after_step=_stop_after(1))
    except BenchmarkError as refusal:
        pytest.skip(f"{refiner} refuses: {refusal}")
    except _Stopped:
        pass
    return training


def test_some_kind_of_run_takes_it(refiner):
    refusals = []
    for world in worlds().values():
        try:
            begun(world, refiner).run(after_step=_stop_after(1))
        except BenchmarkError as refusal:
            refusals.append(str(refusal))
        except _Stopped:
            return
        else:
            return  # trains nothing
    pytest.fail(f"{refiner} refuses every kind of run: {refusals}; give it a world in worlds.py")


def test_it_draws_from_no_global_stream(run, world):
    index = torch.arange(16)
    _, augmented = run.inputs(index)
    with global_streams_untouched():
        run.refiner.begin_epoch(1)
        run.refiner(augmented)
        run.refiner.diagnostics()


def test_labels_are_distributions_and_weights_a_share_of_the_batch(run):
    _, augmented = run.inputs(torch.arange(16))
    batch = run.refiner(augmented)
    assert batch.y.shape[0] == batch.w.shape[0] == 16
    assert (batch.y >= 0).all()
    assert torch.allclose(batch.y.sum(1), torch.ones(16), atol=1e-5)
    assert (batch.w >= 0).all()
    assert batch.w.sum() <= 1 + 1e-5


def test_a_resumed_run_ends_in_the_same_bits(run, world, refiner):
    if not run.refiner.trains:
        pytest.skip(f"{refiner} trains nothing")
    whole = begun(world, refiner)
    whole.run()
    for step in (2, 6):  # within the first epoch, at the end of the second
        resumed = stopped_and_resumed(world, refiner, step)
        assert resumed.steps == whole.steps == STEPS
        ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
        different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
        assert not different, (
            f"{refiner} stopped at step {step} and resumed ends in other weights ({different[0]}): "
            "does `state_dict` hold everything it goes on from?"
        )
        assert torch.equal(resumed.seen[1].w, whole.seen[1].w)
        assert resumed.curves == whole.curves


def stopped_and_resumed(world: World, refiner: str, step: int) -> Training:
    """Stop a run at a step and take it up in another through a file, as a checkpoint does."""
    stopped = begun(world, refiner)
    with pytest.raises(_Stopped):
        stopped.run(after_step=_stop_after(step))
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = begun(world, refiner)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.run()
    return resumed


class _Stopped(Exception):
    """The run was stopped at a step."""


def _stop_after(step: int):
    def check(training: Training) -> None:
        if training.steps == step:
            raise _Stopped

    return check
