"""Algorithm 1: SAFLEX for one batch, as a callable beside any training loop."""

from typing import Any

import torch
from torch import Tensor, nn

from saflex.batch import Batch, soft_cross_entropy, soft_rows
from saflex.diagnostics import StepLog
from saflex.direction import ValidationDirection
from saflex.errors import SettingError, ShapeError
from saflex.forward import ModelView
from saflex.gradient import Loss, gradient_norm, validation_gradient
from saflex.labels import scaled_products, soft_labels
from saflex.memory import Memory
from saflex.products import inner_products, logit_derivatives
from saflex.settings import SaflexSettings
from saflex.validation import as_source
from saflex.weighting import normalised_weights, unnormalised_weights

__all__ = ["Saflex"]


class Saflex:
    """Refine augmented batches: ``(x_aug, y_aug) -> Batch(x_aug, y, w)`` (Equation 1).

    Parameters
    ----------
    model : nn.Module
        The model being trained; compiled and data-parallel wrappers are looked through. It is used
        in evaluation mode and left as found.
    validation
        A DataLoader or other iterable of ``(x, y)`` (cycled), a pair of tensors, a function of no
        arguments returning a pair, or a `saflex.Mixture`. Batches are moved to the model's device.
    settings : SaflexSettings, optional
        Base settings; ``**changes`` replace single ones by name.
    precondition : torch.optim.Optimizer, optional
        The training loop's optimiser: measure inner products in its metric.
    loss : callable, optional
        Validation loss ``(logits, y) -> scalar``; mean cross-entropy if not given.
    seed : int
        Of the Gumbel noise and of the validation draws; the loop's own streams are never used.
    process_group : optional
        Ranks to average the validation gradient over; taken from a DistributedDataParallel model.
    **changes
        Any field of `SaflexSettings`: ``beta``, ``tau``, ``estimator``, ``refresh_every``, ...

    Attributes
    ----------
    direction : ValidationDirection
        Line 1; may be replaced (a stack of models keeps its members' gradients apart).
    log : StepLog
        Sums behind `diagnostics`; ``log.each()`` gives them for every model of a stack.
    memory : Memory or None

    Raises
    ------
    SettingError, EmptyValidationError, NoTrainableParametersError

    Examples
    --------
    >>> refine = Saflex(model, validation=val_loader)                        # doctest: +SKIP
    >>> batch = refine(*augment(x, y))                                       # doctest: +SKIP
    >>> loss = soft_cross_entropy(model(batch.x), batch.y, batch.w)          # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        validation: Any,
        settings: SaflexSettings | None = None,
        precondition: torch.optim.Optimizer | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        process_group: Any = None,
        **changes: Any,
    ) -> None:
        optimizer = precondition if hasattr(precondition, "param_groups") else None
        if optimizer is not None:
            changes["precondition"] = True
        self.settings = (settings or SaflexSettings()).changed(**changes)
        if optimizer is None and (self.settings.precondition or precondition):
            raise SettingError(
                f"precondition={precondition!r}: the settings ask for the optimiser's metric, so "
                "pass the optimiser that steps the model, precondition=optimizer."
            )
        view = ModelView(model)
        view.require_trainable()
        self.model = view.model
        group = process_group if process_group is not None else _process_group(model)
        if group is not None:
            # Every rank draws its own validation rows and noise.
            seed += 104_729 * torch.distributed.get_rank(group)
        source = as_source(validation, batch_size=self.settings.validation_batch, seed=seed)
        self.direction = ValidationDirection(
            self.model,
            source,
            self.settings,
            optimizer=optimizer,
            loss=loss if loss is not None else self._validation_loss(),
            group=group,
        )
        self._seed = seed
        self._noise: dict[str, torch.Generator] = {}
        self.log = StepLog()
        self.memory = None if self.settings.memory is None else Memory(self.settings.memory)

    @classmethod
    def printed(cls, model: nn.Module, *, validation: Any, **overrides: Any) -> "Saflex":
        """Algorithm 1 as printed; see `SaflexSettings.printed`."""
        return cls._preset(SaflexSettings.printed(), model, validation, overrides)

    @classmethod
    def derived(cls, model: nn.Module, *, validation: Any, **overrides: Any) -> "Saflex":
        """Algorithm 1 as its derivation requires; see `SaflexSettings.derived`."""
        return cls._preset(SaflexSettings.derived(), model, validation, overrides)

    @classmethod
    def _preset(
        cls, settings: SaflexSettings, model: nn.Module, validation: Any, overrides: dict[str, Any]
    ) -> "Saflex":
        return cls(model, validation=validation, settings=settings, **overrides)

    def __call__(
        self,
        x_aug: Any,
        y_aug: Tensor,
        *,
        index: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Batch:
        """Refine one augmented batch.

        Parameters
        ----------
        x_aug
            B augmented inputs; returned as they are.
        y_aug : Tensor, shape (..., B) of integers or (..., B, K) of floats
            Upstream labels.
        index : Tensor of integers, shape (..., B), optional
            Which training row each sample is, 0 to N-1; required with ``memory``.
        logits : Tensor, shape (..., B, K), optional
            Evaluation-mode logits of `x_aug`, where already known (saves "finite-difference" one
            of its two forwards).

        Returns
        -------
        Batch
            y : (..., B, K) and w : (..., B), detached, in float32 or better.

        Raises
        ------
        LabelError, ShapeError, SettingError, NonFiniteGradientError, EstimatorError,
        EmptyValidationError
        """
        s = self.settings
        if self.memory is not None and index is None:
            raise SettingError(
                f"memory={s.memory} needs to know which training row each sample is: call "
                "refine(x, y, index=rows) with integers of shape (B,), or set memory=None."
            )
        tangent = self.direction()  # line 1
        z, dz = logit_derivatives(  # lines 2-3, the whole batch at once
            self.model,
            x_aug,
            tangent,
            estimator=s.estimator,
            classifier=self.direction.classifier,
            fd_step=s.fd_step,
            logits=logits,
        )
        gain = inner_products(z, dz, output="log-probabilities")
        pi = gain if s.output == "log-probabilities" else inner_products(z, dz, output=s.output)
        pi = -pi if s.sign == "printed" else pi
        upstream = self._upstream_rows(y_aug, pi)
        p = torch.softmax(z.to(pi.dtype), -1)
        score, scale, visit = pi, s.scale, {}
        if self.memory is not None:
            scaled, scale = scaled_products(pi, scale=scale, probabilities=p), None
            score = self.memory(index, scaled)
            visit = {"scaled": scaled, "averaged": score, "depth": self.memory.depth()}
        y = self._labels(score, upstream, y_aug, p, scale) if s.relabel else upstream  # line 4
        raw = unnormalised_weights(score, y, rule=s.rule)  # line 5
        w = normalised_weights(raw)  # line 6
        self.log.record(
            pi=pi,
            gain=gain,
            upstream=upstream,
            y=y,
            raw=raw,
            w=w,
            gradient_norm=self.direction.norm,
            **visit,
        )
        batch = Batch(x_aug, y, w)
        self._measure_cosine(batch)
        return batch  # line 7

    def diagnostics(self, *, reset: bool = False) -> dict[str, float]:
        """Means over the steps since the last reset (waits for the device once).

        Parameters
        ----------
        reset : bool
            Start anew afterwards.

        Returns
        -------
        dict of str to float
            ``steps``; ``pi_mean_abs``, ``pi_std``; ``label_unchanged`` (share with the upstream's
            arg max), ``label_entropy``; ``weight_mean`` (before normalising), ``accepted`` (share
            with w > 0), ``effective_share`` (1 / (B sum w^2)), ``all_rejected`` (share of steps);
            ``gain`` and ``gain_upstream`` (predicted fall of the validation loss per unit of step
            size, refined and as received); ``gradient_norm``; with ``memory`` also
            ``memory_agreement`` (share of rows where it prefers the label that this step's Pi does)
            and ``memory_depth`` (visits of a row so far); ``cosine`` where it was measured.
        """
        self.direction.raise_if_non_finite()
        found = self.log.means()
        if reset:
            self.log.reset()
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs.

        Not covered: a source that owns its randomness (a DataLoader with its own generator or with
        worker processes, a function that keeps state).
        """
        return {
            "direction": self.direction.state_dict(),
            "noise": {device: g.get_state() for device, g in self._noise.items()},
            "log": self.log.state_dict(),
            "memory": None if self.memory is None else self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; construct with the same settings and sources first."""
        self.direction.load_state_dict(state["direction"])
        for device, numbers in state["noise"].items():
            self._generator(torch.device(device)).set_state(numbers)
        device = next(self.model.parameters()).device
        self.log.load_state_dict(state["log"], device)
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"], device)

    # What `ContrastiveSaflex` replaces.

    def _validation_loss(self) -> Loss | None:
        return None

    def _upstream_rows(self, y_aug: Tensor, pi: Tensor) -> Tensor:
        # Looking at labels waits for the device: always on the CPU, else at the first step only.
        look = y_aug.device.type == "cpu" or self.direction.steps == 1
        rows = soft_rows(y_aug, pi.shape[-1], dtype=pi.dtype, check=look)
        if rows.shape != pi.shape:
            raise ShapeError(
                f"y_aug gives rows of shape {tuple(rows.shape)} and the model logits of shape "
                f"{tuple(pi.shape)}: every augmented input needs one label."
            )
        return rows

    def _labels(
        self,
        score: Tensor,
        upstream: Tensor,
        y_aug: Tensor,
        probabilities: Tensor,
        scale: str | float | None,
    ) -> Tensor:
        s = self.settings
        return soft_labels(
            score,
            upstream,
            beta=s.beta,
            tau=s.tau,
            gumbel=s.gumbel,
            prior=s.prior,
            scale=scale,
            eps=s.eps,
            probabilities=probabilities,
            generator=self._generator(score.device) if s.gumbel else None,
        )

    def _batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return soft_cross_entropy(logits, batch.y.to(logits.dtype), batch.w.to(logits.dtype))

    def _generator(self, device: torch.device) -> torch.Generator:
        if str(device) not in self._noise:
            self._noise[str(device)] = torch.Generator(device).manual_seed(self._seed)
        return self._noise[str(device)]

    def _measure_cosine(self, batch: Batch) -> None:
        every = self.settings.cosine_every
        if not every or (self.direction.steps - 1) % every:
            return
        g = self.direction.gradient
        own = validation_gradient(
            self.model,
            batch.x,
            batch.y,
            loss=lambda logits, _: self._batch_loss(logits, batch),
            parameters=list(g),
            check=False,
        )
        product = sum((g[name] * own[name]).sum() for name in g)
        norms = gradient_norm(g) * gradient_norm(own)
        self.log.record_cosine(product / norms.clamp_min(torch.finfo(norms.dtype).tiny))


def _process_group(model: nn.Module) -> Any:
    """The group of a DistributedDataParallel model, inside a compiled wrapper or not."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group
    return None
