"""One thread (the machine is shared) and a fixed start of the global stream for every test."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("small", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("small")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
