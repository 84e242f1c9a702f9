"""Faults planted in a model, and sound models of thirty kinds, under the self-check."""

import pytest
import torch
from healthy_models import MODELS, inputs_of
from reference_models import K, brute_force_products
from situations import situation
from test_check import FAULTS, refine_three_steps
from test_check import X as ROWS
from test_check import Y as LABELS

from saflex import Saflex, gradient_products, validation_gradient
from saflex import errors as e


def planted(make, settings, says):
    def run():
        torch.manual_seed(0)
        # Not the message itself: it has measured numbers, which differ between machines.
        with pytest.raises(e.CheckError, match=says):
            Saflex(make(), validation=(ROWS, LABELS), **settings)(ROWS, LABELS)
        return "refused: CheckError, the part that is off is named"

    return run


def sound(name, kind, make):
    def run():
        refine_three_steps(name, {}, torch.float32)
        torch.manual_seed(len(kind))
        model = make().double().eval()
        x, xv = inputs_of(kind, 5, torch.float64), inputs_of(kind, 7, torch.float64)
        model(xv), model(x)  # an embedding with max_norm settles
        g = validation_gradient(model, xv, torch.arange(7) % K)
        torch.manual_seed(1)  # the same noise, in a model that draws some
        expected = brute_force_products(model, x, g, "log-probabilities")
        torch.manual_seed(1)
        torch.testing.assert_close(gradient_products(model, x, g), expected, rtol=1e-7, atol=1e-9)
        return "right: Pi as by K x B backward passes, nothing accused in three steps of float32"

    return run


for _name, _fault in FAULTS.items():
    situation("Planted faults", _name)(planted(*_fault))

for _name, (_kind, _make) in MODELS.items():
    situation("Sound models", _name)(sound(_name, _kind, _make))
