"""A checkpoint is taken up whole, undamaged and by the source that wrote it, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_runs import blobs, spec

from benchmarks.running.checkpoint import Checkpoint
from benchmarks.train import Training

SPEC = spec(dataset="breast-cancer")


@pytest.fixture
def saved(tmp_path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path, SPEC)
    training = Training(SPEC, blobs())
    training.step(torch.arange(32))
    checkpoint.save(training)
    return checkpoint


def resumed(checkpoint: Checkpoint) -> int | None:
    """Steps that the run goes on from; None where it starts over."""
    training = Training(SPEC, blobs())
    return training.steps if checkpoint.resume(training) else None


def test_taken_up(saved):
    assert resumed(saved) == 1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_one_flipped_byte_anywhere_is_found(saved, share):
    content = bytearray(saved.path.read_bytes())
    content[int(share * len(content))] ^= 0xFF
    saved.path.write_bytes(content)
    with pytest.warns(UserWarning, match="set aside"):
        assert resumed(saved) is None


def test_not_taken_up_by_another_source(saved):
    saved.source = "another"
    assert resumed(saved) is None
    assert not saved.path.exists()


def test_not_taken_up_on_other_data(saved):
    training = Training(SPEC, replace(blobs(), content={"data": "others"}))
    assert not saved.resume(training)
    assert not saved.path.exists()
