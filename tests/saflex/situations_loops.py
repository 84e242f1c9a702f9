"""Training loops and trainers that were tried, with the real thing, small."""

import contextlib
import copy
import importlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from reference_models import K, inputs
from situations import refused, situation
from torch import nn
from torch.nn import functional as F
from two_processes import two_processes

from saflex import Saflex, soft_cross_entropy
from saflex import errors as e

LOOPS, TRAINERS = "Training loops", "Trainers"
Y, YV = torch.arange(8) % K, torch.arange(12) % K


def example(name):
    folder = str(Path(__file__).parents[2] / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def small(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, K)).to(dtype)
    return model, inputs("mlp", 8).to(dtype), inputs("mlp", 12).to(dtype)


def close(found, expected, **tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance)


# Plain loops


@situation(
    LOOPS, "clean and augmented rows, half the loss each: `refine.loss(model, batch, clean=(x, y))`"
)
def _():
    model, x, xv = small()
    refine = Saflex(model, validation=(xv, YV))
    batch = refine(x, Y)
    found = refine.loss(model, batch, clean=(xv[:8], Y))
    z = model(x)
    expected = (
        F.cross_entropy(model(xv[:8]), Y) - (batch.w[:, None] * batch.y * z.log_softmax(-1)).sum()
    )
    torch.testing.assert_close(found, expected / 2)
    return "right: half of torch's cross-entropy, half of Equation (7)"


@situation(LOOPS, "the same with BatchNorm in training mode")
def _():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, K)).double()
    x, xv = inputs("mlp", 8), inputs("mlp", 12)
    refine = Saflex(model, validation=(xv, YV))
    batch = refine(x, Y)
    twin = copy.deepcopy(model)
    found = refine.loss(model.train(), batch, clean=(xv[:8], Y))
    z = twin.train()(torch.cat([xv[:8], x]))
    expected = F.cross_entropy(z[:8], Y) + soft_cross_entropy(z[8:], batch.y, batch.w)
    torch.testing.assert_close(found, expected / 2)
    close(dict(model.named_buffers()), dict(twin.named_buffers()))
    return "right: one forward over the union, as in the measured row"


@situation(LOOPS, "`clean=` with logits in place of the model")
def _():
    model, x, xv = small()
    refine = Saflex(model, validation=(xv, YV))
    batch = refine(x, Y)
    return refused(
        e.SettingError,
        lambda: refine.loss(model(x), batch, clean=(x, Y)),
        naming="needs the model itself",
    )


@situation(LOOPS, "the loss of another batch")
def _():
    model, x, xv = small()
    refine = Saflex(model, validation=(xv, YV))
    batch = refine(x, Y)
    return refused(
        e.ShapeError, lambda: refine.loss(model(xv), batch), naming="that those inputs belong to"
    )


@situation(LOOPS, "gradient accumulation over four micro-batches")
def _():
    model, x, xv = small()
    refine = Saflex(model, validation=(xv, YV))
    parts = [(x[i : i + 2], Y[i : i + 2]) for i in range(0, 8, 2)]
    before = {n: p.clone() for n, p in model.named_parameters()}
    for part in parts:
        (refine.loss(model, refine(*part)) / 4).backward()
    close(dict(model.named_parameters()), before)
    expected = [Saflex(model, validation=(xv, YV))(*part).y for part in parts]
    again = [refine(*part).y for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    return "right: gradients add up, refining leaves them alone"


@situation(LOOPS, "bfloat16 autocast around the whole step")
def _():
    model, x, xv = small(torch.float32)
    plain = Saflex(model, validation=(xv, YV))(x, Y)
    refine = Saflex(model, validation=(xv, YV))
    with torch.autocast("cpu", torch.bfloat16):
        batch = refine(x, Y)
        loss = refine.loss(model, batch, clean=(x, Y))
    loss.backward()
    assert loss.dtype == batch.y.dtype == torch.float32
    assert (batch.y - plain.y).abs().max() < 0.1
    return "right: labels within 0.1 of float32's"


@situation(LOOPS, "a compiled model")
def _():
    model, x, xv = small()
    compiled = torch.compile(model, backend="eager")
    refine = Saflex(compiled, validation=(xv, YV))
    batch = refine(x, Y)
    found = refine.loss(compiled, batch)
    torch.testing.assert_close(found, refine.loss(model, batch))
    torch.compiler.reset()
    return "right: refined as the original"


@situation(LOOPS, "interrupted and resumed")
def _():
    def run(steps, state=None):
        model, x, xv = small()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        refine = Saflex(
            model, validation=(xv, YV), validation_batch=5, ema=0.5, optimizer=optimizer,
            precondition=True,
        )  # fmt: skip
        parts = model, optimizer, refine
        for part, saved in zip(parts, state or (), strict=bool(state)):
            part.load_state_dict(saved)
        for _ in range(steps):
            loss = refine.loss(model, refine(x, Y), clean=(x, Y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [copy.deepcopy(part.state_dict()) for part in parts], refine.report()

    (whole, said), (half, _) = run(6), run(3)
    resumed, said_again = run(3, half)
    assert all(
        torch.equal(a, b) for a, b in zip(*(m[0].values() for m in (whole, resumed)), strict=True)
    )
    assert said == said_again
    return "right: parameters and report equal to the last bit"


@situation(LOOPS, "`refine.report()` after every step")
def _():
    def run(talk):
        model, x, xv = small()
        refine = Saflex(model, validation=(xv, YV), validation_batch=5, refresh_every=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            loss = refine.loss(model, refine(x, Y), clean=(x, Y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if talk:
                refine.report()
        return model.state_dict()

    assert all(
        torch.equal(a, b) for a, b in zip(run(True).values(), run(False).values(), strict=True)
    )
    return "right: not a bit of the run changes"


@situation(LOOPS, "DistributedDataParallel, two processes, own batches and validation rows")
def _():
    def work(rank):
        model = nn.parallel.DistributedDataParallel(small()[0])
        torch.manual_seed(rank + 1)
        x, xv, y = inputs("mlp", 8), inputs("mlp", 12), torch.randint(0, K, (8,))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        refine = Saflex(model, validation=(xv, YV))
        batch = refine(x, y)
        own = torch.autograd.grad(
            F.cross_entropy(model.module(xv), YV), list(model.module.parameters())
        )
        refine.loss(model, batch, clean=(x, y)).backward()
        optimizer.step()
        return {
            "g": dict(refine.direction.gradient),
            "own": dict(zip(refine.direction.gradient, own, strict=True)),
            "parameters": {n: p.detach() for n, p in model.module.named_parameters()},
        }

    one, two = two_processes(work)
    close(one["g"], two["g"], rtol=0, atol=0)
    close(one["g"], {n: (one["own"][n] + two["own"][n]) / 2 for n in one["own"]})
    close(one["parameters"], two["parameters"], rtol=0, atol=0)
    return "right: one averaged validation gradient, parameters stay equal"


@situation(LOOPS, "FSDP2: `fully_shard(model)`")
def _():
    def work(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model, _, xv = small()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        return refused(
            e.SettingError, lambda: Saflex(model, validation=(xv, YV)), naming="is sharded"
        )

    one, two = two_processes(work)
    assert one == two
    return one


# Trainers


@situation(TRAINERS, "Lightning: a callback, its state in checkpoints")
def _():
    module = example("lightning_callback")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer, callback = module.main(epochs=2, **LIGHTNING)
        trainer.save_checkpoint(f"{folder}/last.ckpt")
        saved = torch.load(f"{folder}/last.ckpt", weights_only=True)["callbacks"]["SaflexCallback"]
        again = module.SaflexCallback(module.spirals(200))
        again.load_state_dict(saved)
        fresh = module.Classifier()
        trainer.strategy._optimizers = [fresh.configure_optimizers()]
        again.on_fit_start(trainer, fresh)
    assert saved["direction"]["steps"] == callback.refine.direction.steps == 14
    assert again.refine.direction.steps == 14
    return "right: resumed where it was saved"


@situation(TRAINERS, 'Lightning with `precision="bf16-mixed"`')
def _():
    module = example("lightning_callback")
    with quiet():
        trainer, callback = module.main(epochs=1, precision="bf16-mixed", **LIGHTNING)
    found = callback.refine.diagnostics()
    assert found["steps"] == 0  # read and reset at the end of the epoch
    assert trainer.logged_metrics["saflex/gain"] > trainer.logged_metrics["saflex/gain_upstream"]
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    return "right: trains, gain above that of the labels as received"


def tiny_bert(dropout=0.0):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=8, num_labels=2,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def hugging_face(folder, *, model=None, steps=2, resume=None, **changes):
    from transformers import TrainingArguments

    module = example("huggingface_trainer")
    options = {
        "per_device_train_batch_size": 16, "logging_steps": 1, "save_strategy": "no",
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False,
        "max_grad_norm": 1e9, "max_steps": steps,
    }  # fmt: skip
    with quiet():
        trainer = module.SaflexTrainer(
            model or tiny_bert(),
            TrainingArguments(folder, **options | changes),
            train_dataset=module.Sequences(64, 1),
            validation=module.Sequences(32, 2),
        )
        trainer.train(resume_from_checkpoint=resume)
    return trainer


@situation(TRAINERS, "Hugging Face Trainer, gradient accumulation over 1 or 4 micro-batches")
def _():
    found = {}
    for parts in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            trainer = hugging_face(
                folder,
                steps=1,
                per_device_train_batch_size=16 // parts,
                gradient_accumulation_steps=parts,
            )
        found[parts] = trainer.state.log_history[0]
    for name in ("loss", "grad_norm"):
        assert abs(found[4][name] / found[1][name] - 1) < 0.3, found
    return "right: loss and gradient of one size, not four times as large"


@situation(TRAINERS, "Hugging Face Trainer, stopped and resumed from a checkpoint")
def _():
    with tempfile.TemporaryDirectory() as folder:
        options = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        whole = hugging_face(folder + "/whole", steps=4, **options)
        hugging_face(folder + "/half", steps=2, **options)
        half = hugging_face(folder + "/half", steps=4, resume=True, **options)
    assert half.refine.direction.steps == whole.refine.direction.steps == 4
    close(half.refine.direction.gradient, whole.refine.direction.gradient)
    close(dict(half.model.named_parameters()), dict(whole.model.named_parameters()))
    return "right: the refiner goes on with its own state, parameters as without the stop"


@situation(TRAINERS, "Hugging Face Trainer on two processes")
def _():
    def work(rank):
        with tempfile.TemporaryDirectory() as folder:
            trainer = hugging_face(folder, steps=2, ddp_backend="gloo")
        assert trainer.accelerator.num_processes == 2
        assert trainer.refine.direction.group is not None
        return {n: g.clone() for n, g in trainer.refine.direction.gradient.items()}

    import transformers  # noqa: F401 (before forking)

    reset_accelerate()
    one, two = two_processes(work, group=False)
    close(one, two, rtol=0, atol=0)
    return "right: the refiner is made when the model is wrapped, one gradient for all ranks"


@situation(TRAINERS, "Accelerate with bfloat16, model and optimiser prepared")
def _():
    from accelerate import Accelerator

    reset_accelerate()
    model, x, xv = small(torch.float32)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    plain, own = copy.deepcopy(model), torch.optim.AdamW(model.parameters(), 1e-2)
    model, optimizer = accelerator.prepare(model, own)
    assert optimizer is not own
    refine = Saflex(model, validation=(xv, YV), optimizer=optimizer, precondition=True)
    for _ in range(3):
        batch = refine(x, Y)
        plain.load_state_dict(model.state_dict())
        state = copy.deepcopy(own.state_dict())
        accelerator.backward(refine.loss(model, batch, clean=(x, Y)))
        optimizer.step()
        optimizer.zero_grad()
    reset_accelerate()
    twin = torch.optim.AdamW(plain.parameters(), 1e-2)
    twin.load_state_dict(state)
    exact = Saflex(plain, validation=(xv, YV), optimizer=twin, precondition=True)(x, Y)
    assert (batch.y - exact.y).abs().max() < 0.1
    return "right: labels within 0.1 of float32's, in the metric of the wrapped optimiser"


LIGHTNING = {"enable_progress_bar": False, "enable_model_summary": False}


def reset_accelerate():
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
