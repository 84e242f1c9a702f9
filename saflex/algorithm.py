"""Algorithm 1: SAFLEX for one batch, as a callable beside any training loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saflex.batch import Batch
from saflex.calling import Adapted, Calling
from saflex.check import SelfCheck
from saflex.course import Course
from saflex.diagnostics import StepLog
from saflex.direction import ValidationDirection
from saflex.errors import SettingError, ShapeError
from saflex.forward import ModelView
from saflex.gradient import gradient_norm, validation_gradient
from saflex.halves import halves_agreement
from saflex.labels import scaled_products, soft_labels
from saflex.losses import CrossEntropy, Loss, Watched, as_loss
from saflex.memory import Memory
from saflex.products import inner_products, logit_derivatives
from saflex.report import Findings, report
from saflex.settings import SaflexSettings
from saflex.structures import map_tensors
from saflex.validation import Remembered, as_source
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
        A DataLoader or other iterable of ``(x, y)`` (cycled), a pair of tensors, a data set, a
        function of no arguments returning a pair, or a `saflex.Mixture`. Batches are moved to the
        model's device.
    settings : SaflexSettings, optional
        Base settings; ``**changes`` replace single ones by name.
    optimizer : torch.optim.Optimizer, optional
        The training loop's optimiser, in whose metric ``precondition=True`` measures.
    precondition : bool, optional
        As in `SaflexSettings`. An optimiser here stands for ``optimizer=`` and True.
    loss : nn.CrossEntropyLoss or callable, optional
        The task's loss: class weights, label smoothing and ``ignore_index`` enter g, Pi and
        `loss` alike. A callable ``(logits, y) -> scalar`` is the validation loss alone.
    logits_from : str, int or callable, optional
        Where the model's output has its logits, see `saflex.calling.Calling`.
    unpack : bool, optional
        Whether inputs are arguments, see there.
    check : "first", "always" or "never"
        When to compare the estimator's derivative with the gradient's, see `saflex.check.SelfCheck`:
        at the first step and when what is trained, the optimiser or the estimator changes; whenever
        g is renewed; or not at all.
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
    memory : Memory or None

    Raises
    ------
    SettingError, EmptyValidationError, NoTrainableParametersError

    Examples
    --------
    >>> refine = Saflex(model, validation=val_loader)                        # doctest: +SKIP
    >>> batch = refine(*augment(x, y))                                       # doctest: +SKIP
    >>> loss = refine.loss(model, batch, clean=(x, y))                       # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        validation: Any,
        settings: SaflexSettings | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        precondition: bool | torch.optim.Optimizer | None = None,
        loss: nn.CrossEntropyLoss | Loss | None = None,
        logits_from: str | int | Callable[[Any], Tensor] | None = None,
        unpack: bool | None = None,
        check: str = "first",
        seed: int = 0,
        process_group: Any = None,
        **changes: Any,
    ) -> None:
        optimizer, precondition = _optimizer(optimizer, precondition)
        if precondition is not None:
            changes["precondition"] = precondition
        self.settings = s = (settings or SaflexSettings()).changed(**changes)
        if s.precondition and optimizer is None:
            raise SettingError(
                "precondition=True asks for the optimiser's metric: pass the optimiser that steps "
                "the model, optimizer=optimizer."
            )
        view = ModelView(model)
        view.require_trainable()
        self._calling = Calling(logits_from, unpack)
        self.model = (
            view.model if self._calling == Calling() else Adapted(view.model, self._calling)
        )
        group = process_group if process_group is not None else _process_group(model)
        if group is not None:
            # Every rank draws its own validation rows and noise.
            seed += 104_729 * torch.distributed.get_rank(group)
        self.task, validation_loss = self._losses(loss)
        self._require_comparable()
        self._validation_loss = Watched(validation_loss)
        self._source = Remembered(
            as_source(
                validation,
                batch_size=s.validation_batch,
                seed=seed,
                dim=self.task.layout.batch_dimension,
            )
        )
        self.direction = ValidationDirection(
            self.model,
            self._source,
            s,
            optimizer=optimizer,
            loss=self._validation_loss,
            group=group,
        )
        self._check = SelfCheck(check)
        self._seed = seed
        self._noise: dict[str, torch.Generator] = {}
        self._log = StepLog()
        self.memory = None if s.memory is None else Memory(s.memory)
        self._course = Course()
        self._validation_value: Tensor | None = None
        self._last_x: Any = None

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
            Upstream labels, in the setting ``layout``'s shape.
        index : Tensor of integers, shape (..., B), optional
            Which training row each sample is, 0 to N-1; required with ``memory``.
        logits : Tensor, shape (..., B, K), optional
            Evaluation-mode logits of `x_aug`, where already known (saves "finite-difference" one
            of its two forwards).

        Returns
        -------
        Batch
            y : (..., B, K), shaped like the logits, and w : (..., B), without the classes;
            detached, in float32 or better.

        Raises
        ------
        LabelError, ShapeError, SettingError, NonFiniteGradientError, EstimatorError,
        CheckError, EmptyValidationError
        """
        s = self.settings
        if self.memory is not None and index is None:
            raise SettingError(
                f"memory={s.memory} needs to know which training row each sample is: call "
                "refine(x, y, index=rows) with integers of shape (B,), or set memory=None."
            )
        self._require_comparable()  # a loss may be given class weights on the way
        refreshes = self.direction.refreshes
        tangent = self.direction()  # line 1
        if self.direction.refreshes > refreshes:
            self._validation_value = self._validation_loss.last
        self._check(self.direction, x_aug, logits)
        z, dz = logit_derivatives(  # lines 2-3, the whole batch at once
            self.model,
            x_aug,
            tangent,
            estimator=s.estimator,
            classifier=self.direction.classifier,
            fd_step=self.direction.fd_step,
            logits=logits,
        )
        self._check.rows(self.direction, x_aug, dz)
        _require_rows(z)
        upstream, counted = self.task.targets(y_aug, z, check=self._looks_at(y_aug))
        shape, rows = z.shape, self.task.layout.rows
        z, dz = rows(z), rows(dz)
        gain = self.task.products(inner_products(z, dz, output="log-probabilities"))
        pi = gain
        if s.output != "log-probabilities":
            pi = self.task.products(inner_products(z, dz, output=s.output))
        pi = -pi if s.sign == "printed" else pi
        p = torch.softmax(z.to(pi.dtype), -1)
        if s.layout != "stack":  # there one model may diverge without ending the others
            pi, p = self.direction.without_non_finite(pi, p)
        score, scale, visit = pi, s.scale, {}
        if self.memory is not None:
            scaled = scaled_products(pi, scale=scale, probabilities=p, counted=counted)
            score, scale = self.memory(index, scaled), None
            visit = {"scaled": scaled, "averaged": score, "depth": self.memory.depth()}
        y = self._labels(score, upstream, counted, y_aug, p, scale) if s.relabel else upstream
        raw = unnormalised_weights(score, y, rule=s.rule)  # line 5
        if counted is not None:
            y = torch.where(counted.unsqueeze(-1), y, upstream)
            raw = raw * counted
        w = self.task.over_class_mass(normalised_weights(raw), upstream, counted)  # line 6
        self.log.record(
            pi=pi,
            gain=gain,
            upstream=upstream,
            y=y,
            raw=raw,
            w=w,
            even=self.task.even_weights(upstream, counted),
            counted=counted,
            gradient_norm=self.direction.norm,
            **visit,
        )
        self._course.add(self.log.last, self._validation_value)
        self._last_x = map_tensors(x_aug, Tensor.detach)
        layout = self.task.layout
        batch = Batch(x_aug, layout.as_given(y, shape), layout.weights_as_given(w, shape))
        self._measure_cosine(batch)
        return batch  # line 7

    @property
    def log(self) -> StepLog:
        """Sums behind `diagnostics`; ``log.each()`` gives them for every model of a stack."""
        return self._log

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

    def loss(
        self,
        model: Callable[..., Any] | Tensor,
        batch: Batch,
        *,
        clean: tuple[Any, Tensor] | None = None,
        share: float = 0.5,
    ) -> Tensor:
        """The training loss of a refined batch: Equation (7), with a clean batch Equation (3).

        Parameters
        ----------
        model : callable or Tensor
            The model to train, in its wrappers and its mode; or its logits for ``batch.x``.
        batch : Batch
            From this refiner.
        clean : (x, y), optional
            Rows that were not augmented, with their labels. They go through the model together
            with the augmented ones, as one batch.
        share : float in [0, 1]
            Their part of the loss.

        Returns
        -------
        Tensor, scalar
            With ``loss=nn.CrossEntropyLoss(...)`` its class weights, smoothing and ignored rows are
            in it.

        Raises
        ------
        SettingError, ShapeError, LabelError
        """
        if clean is not None:
            if not callable(model):
                raise SettingError(
                    "clean= needs the model itself, since clean rows pass it together with the "
                    "others: refine.loss(model, batch, clean=(x, y))."
                )
            layout = self.task.layout
            batch = Batch.joined(
                self.task.clean(*clean, batch), batch, share=share, dim=layout.batch_dimension
            )
        logits = self._calling(model, batch.x) if callable(model) else self._calling.read(model)
        return self.task.training_loss(logits, batch)

    def report(self) -> str:
        """What the run so far shows and what to try, in words.

        Costs two gradients and two derivatives of the last batch: Pi is measured once more with
        each half of the last validation batch. Nothing of the run changes.
        """
        self.direction.raise_if_non_finite()
        found: float | str = "not measured"
        if self._last_x is not None and self._source.last is not None:
            found = halves_agreement(self.direction, self._source.last, self._last_x)
        course = self._course.means()
        return report(
            Findings(
                steps=self._course.steps,
                settings=self.settings.as_dict(),
                mean=self._course.mean()
                | {k: v for k, v in self.log.means().items() if k == "cosine"},
                course=course,
                halves=found if isinstance(found, float) else None,
                halves_unknown=found if isinstance(found, str) else "",
                validation_rows=0 if self._source.last is None else len(self._source.last[1]),
            )
        )

    def __repr__(self) -> str:
        default = SaflexSettings().as_dict()
        changed = {k: v for k, v in self.settings.as_dict().items() if v != default[k]}
        optimizer = self.direction.optimizer
        said = [
            type(getattr(self.model, "adapted", self.model)).__name__,
            f"validation={self._source}",
            *([] if optimizer is None else [f"optimizer={type(optimizer).__name__}"]),
            *(f"{name}={value!r}" for name, value in changed.items()),
        ]
        return f"{type(self).__name__}({', '.join(said)}; {self.direction.steps} batches refined)"

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs.

        Not covered: a source that owns its randomness (a DataLoader with its own generator or with
        worker processes, a function that keeps state).
        """
        return {
            "direction": self.direction.state_dict(),
            "noise": {device: g.get_state() for device, g in self._noise.items()},
            "log": self.log.state_dict(),
            "course": self._course.state_dict() | {"validation_loss": self._validation_value},
            "memory": None if self.memory is None else self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; construct with the same settings and sources first.

        Where other parameters are trained by now, or with another estimator, the next step makes a
        direction anew.

        Raises
        ------
        SettingError
            A state with or without a memory, or of other validation sources.
        """
        if (state["memory"] is None) != (self.memory is None):
            raise SettingError(
                f"this refiner has memory={self.settings.memory} and the state was saved "
                f"{'without' if state['memory'] is None else 'with'} one: resume with the settings it "
                "was saved with, or begin with a new refiner."
            )
        self.direction.load_state_dict(state["direction"])
        for device, numbers in state["noise"].items():
            self._generator(torch.device(device)).set_state(numbers.cpu())
        device = next(self.model.parameters()).device
        self.log.load_state_dict(state["log"], device)
        self._course.load_state_dict(state["course"], device)
        value = state["course"]["validation_loss"]
        self._validation_value = None if value is None else value.to(device)
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"], device)

    # What `ContrastiveSaflex` replaces.

    def _losses(self, loss: Any) -> tuple[CrossEntropy, Loss]:
        return as_loss(loss, layout=self.settings.layout)

    def _require_comparable(self) -> None:
        if self.settings.scale == "cosine" and (
            self.task.weight is not None or self.task.label_smoothing
        ):
            raise SettingError(
                "scale='cosine' compares directions, in which class weights and label smoothing "
                "have no part: use scale='batch-std' with this loss."
            )

    def _looks_at(self, y_aug: Any) -> bool:
        # Looking at labels waits for the device: always on the CPU, else at the first step only.
        on_cpu = getattr(getattr(y_aug, "device", None), "type", "cpu") == "cpu"
        return on_cpu or self.direction.steps == 1

    def _labels(
        self,
        score: Tensor,
        upstream: Tensor,
        counted: Tensor | None,
        y_aug: Tensor,
        probabilities: Tensor,
        scale: str | float | None,
    ) -> Tensor:
        s = self.settings
        return self._chosen(
            score,
            upstream,
            y_aug,
            beta=s.beta,
            tau=s.tau,
            gumbel=s.gumbel,
            prior=s.prior,
            scale=scale,
            eps=s.eps,
            probabilities=probabilities,
            counted=counted,
            generator=self._generator(score.device) if s.gumbel else None,
        )

    def _chosen(self, score: Tensor, upstream: Tensor, y_aug: Tensor, **settings: Any) -> Tensor:
        return soft_labels(score, upstream, **settings)

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
            loss=lambda logits, _: self.task.training_loss(logits, batch),
            parameters=list(g),
            check=False,
        )
        product = sum((g[name] * own[name]).sum() for name in g)
        norms = gradient_norm(g) * gradient_norm(own)
        self.log.record_cosine(product / norms.clamp_min(torch.finfo(norms.dtype).tiny))


def _require_rows(logits: Tensor) -> None:
    if not logits.numel():
        raise ShapeError(
            f"the augmented batch is empty (its logits have shape {tuple(logits.shape)}): there is "
            "nothing to refine. Skip such batches, or use drop_last=True."
        )


def _optimizer(optimizer: Any, precondition: Any) -> tuple[Any, Any]:
    """The optimiser without the wrapper of a trainer, and whether its metric is asked for."""
    if hasattr(precondition, "param_groups"):  # the old spelling, precondition=optimizer
        if optimizer is not None and optimizer is not precondition:
            raise SettingError(
                "optimizer= and precondition= name two optimisers: pass one of them."
            )
        optimizer, precondition = precondition, True
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise SettingError(
            f"optimizer={optimizer!r}: expected the torch.optim.Optimizer that steps the model."
        )
    while hasattr(getattr(optimizer, "optimizer", None), "param_groups"):
        optimizer = optimizer.optimizer  # Accelerate and Lightning
    return optimizer, precondition


def _process_group(model: nn.Module) -> Any:
    """The group of a DistributedDataParallel model, inside a compiled wrapper or not."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group
    return None
