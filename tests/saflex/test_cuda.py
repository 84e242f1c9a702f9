"""What only a GPU can show; `test_other_models.py` says on `meta` what a machine without one can."""

import io

import pytest
import torch
from healthy_models import MODELS, inputs_of
from reference_models import K
from torch import nn

from saflex import Saflex
from saflex import errors as e

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
Y = torch.arange(16) % K


def on_gpu(name: str, **settings):
    kind, make = MODELS[name]
    model, x = make().cuda(), inputs_of(kind, 16, torch.float32).cuda()
    return model, x, Saflex(model, validation=(x, Y), **settings)


@pytest.mark.parametrize("name", MODELS)
def test_a_sound_model_is_not_accused(name):
    model, x, refine = on_gpu(name, check="always")
    batch = refine(x, Y)  # labels on the CPU
    assert batch.y.device == next(model.parameters()).device


def test_no_step_but_the_first_waits_for_the_device():
    model, x, refine = on_gpu("convolutions, batch norm", ema=0.5, validation_batch=8)
    y = Y.cuda()
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    preconditioned = Saflex(model, validation=(x, y), optimizer=optimizer, precondition=True)
    for refiner in (refine, preconditioned):
        for _ in range(2):
            batch = refiner(x, y)
            optimizer.zero_grad()
            refiner.loss(model, batch).backward()
            optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            refiner(x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_state_may_be_loaded_to_the_gpu_or_not():
    _, x, refine = on_gpu("tanh", gumbel=True, prior="label", ema=0.5)
    refine(x, Y)
    for location in ("cuda", "cpu"):
        file = io.BytesIO()
        torch.save(refine.state_dict(), file)
        file.seek(0)
        refine.load_state_dict(torch.load(file, map_location=location, weights_only=True))
        refine(x, Y)


def test_inputs_elsewhere_and_graphs_are_refused_by_name():
    _, x, refine = on_gpu("tanh")
    refine(x, Y)
    with pytest.raises(e.SettingError, match="move them before refining"):
        refine(x.cpu(), Y)
    with (
        pytest.raises(e.SettingError, match="CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        refine(x, Y)


def test_recurrent_nets_in_evaluation_mode_have_gradients():
    net, head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, K)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = net, head

        def forward(self, x):
            return self.head(self.net(x)[0][:, -1])

    x = torch.randn(16, 3, 8, device="cuda")
    for estimator in ("finite-difference", "last-layer"):
        Saflex(Net().cuda(), validation=(x, Y), estimator=estimator)(x, Y)
