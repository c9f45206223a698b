"""The settings of the re-weighting."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from simmst.errors import ConfigError
from simmst.foundation.bounds import MOST, at_most
from simmst.foundation.scalars import python_scalars

NORMS = ("l2", "l1")
STORAGES = ("float32", "bfloat16", "sign")
DERIVATIVES = ("auto", "forward", "difference", "double-backward")
STARTS = ("tracker", "current")
OPTIMIZERS = ("adam", "sgd")
MULTIPLIERS = ("ascent", "qp")
_MOST_NUMBER = 1e6  # a greater rate or penalty makes the model infinite


@dataclass(frozen=True)
class ReweightingConfig:
    r"""The settings of the solvers that weight simulated samples; the defaults are known to work (see the docs).

    Args:
        steps: outer steps.
        phase1_steps: T_1, outer steps before the planes are frozen and turned into a penalty (Phase 2 of the paper);
            None never freezes them.
        refresh_every: delta, steps between refreshes of the planes.
        inner_steps: K, gradient steps of psi.
        inner_lr: eta, learning rate of the inner steps.
        ridge: lambda, weight of the inner problem's ridge :math:`\lambda/2 |\phi|^2`.
        start: start of psi: "tracker" (theta, the psi of the last refresh) or "current" (phi).
        warmup_steps: steps of theta on uniform weights before the first outer step.
        norm: norm of the distance between phi and psi, "l2" or "l1".
        tolerance: epsilon per coordinate: the set is h <= tolerance * sqrt(N) for "l2", tolerance * N for "l1".
        normalize: whether planes are divided by the norm of their part for phi.
        max_planes: L_max; the oldest is evicted.
        max_age: number of refreshes for which a plane is kept.
        storage: storage of the planes: "float32", "bfloat16", or "sign" (one bit, with "l1").
        multipliers: update of the multipliers: "ascent" (projected) or "qp" (the dual of the step's quadratic problem).
        lr_multipliers: eta_mu, step size of the ascent.
        multiplier_decay: c_1, weight of the regulariser :math:`-c_1/2 |\mu|^2`.
        lr_model: eta_phi, learning rate of plain gradient descent on phi.
        lr_weights: learning rate of the optimiser on w.
        weight_optimizer: "adam", or "sgd" with lr_weights times the number of samples.
        weight_decay: decay of w towards uniform weights, with gradient weight_decay * w / n.
        share_decay: decay of sigma(w) towards uniform weights, with the gradient of
            ``share_decay / 2n * |sigma(w) - 1/2|^2``. It keeps the weights of samples that hardly matter near 1/2, and
            lets those of harmful samples go to 0.
        derivative: method that differentiates psi: "forward" mode, central "difference", "double-backward", or "auto":
            forward mode when it agrees with the difference at the start, else the difference, with a warning.
        simulated_batch: simulated samples per inner step; None uses all.
        real_batch: real samples per outer step; None uses all.
        chunk: number of samples whose losses are computed at once.
        lr_plain: learning rate of Adam in the references without weights and in the refit.
        refit_steps: steps of the model that is fitted again with the final weights, if there are validation samples to
            compare it on; 0 fits none.
        validate_every: steps between scores on the validation samples.
        checkpoint_every: steps between checkpoints.
        seed: seed of the draws of samples.

    Raises:
        ConfigError: a setting is out of range; the message names it.

    Example:
        >>> ReweightingConfig(max_planes=16).storage
        'float32'
        >>> ReweightingConfig(norm="l3")
        Traceback (most recent call last):
            ...
        simmst.errors.ConfigError: norm is 'l3'; it must be one of: l2, l1
    """

    steps: int = 1500
    phase1_steps: int | None = None
    refresh_every: int = 1
    inner_steps: int = 1
    inner_lr: float = 0.5
    ridge: float = 1e-3
    start: str = "tracker"
    warmup_steps: int = 0
    norm: str = "l2"
    tolerance: float = 1e-4
    normalize: bool = True
    max_planes: int = 8
    max_age: int = 20
    storage: str = "float32"
    multipliers: str = "ascent"
    lr_multipliers: float = 0.05
    multiplier_decay: float = 0.0
    lr_model: float = 0.05
    lr_weights: float = 0.05
    weight_optimizer: str = "adam"
    weight_decay: float = 0.0
    share_decay: float = 0.01
    derivative: str = "auto"
    simulated_batch: int | None = None
    real_batch: int | None = None
    chunk: int = 4096
    lr_plain: float = 0.01
    refit_steps: int = 0
    validate_every: int = 25
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every setting."""
        python_scalars(self)
        for name in ("steps", "refresh_every", "inner_steps", "max_planes", "max_age", "chunk", "validate_every"):
            self._check_whole(name, 1)
        for name in ("phase1_steps", "simulated_batch", "real_batch"):
            if getattr(self, name) is not None:
                self._check_whole(name, 1)
        for name in ("warmup_steps", "refit_steps", "seed"):
            self._check_whole(name, 0)
        self._check_whole("checkpoint_every", 1)
        for name in ("inner_lr", "lr_multipliers", "lr_model", "lr_weights", "lr_plain"):
            self._check_number(name, positive=True)
        for name in ("ridge", "tolerance", "multiplier_decay", "weight_decay", "share_decay"):
            self._check_number(name, positive=False)
        for name, choices in (
            ("norm", NORMS),
            ("storage", STORAGES),
            ("derivative", DERIVATIVES),
            ("start", STARTS),
            ("weight_optimizer", OPTIMIZERS),
            ("multipliers", MULTIPLIERS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of: {', '.join(choices)}")
        if self.storage == "sign" and self.norm != "l1":
            raise ConfigError("storage 'sign' keeps only signs, which are the planes of norm 'l1'; set norm='l1'")

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
        at_most(name, value, 2**63 - 1 if name in ("seed", "max_planes") else MOST)  # planes: see the solver

    def _check_number(self, name: str, *, positive: bool) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (positive and value == 0):
            raise ConfigError(
                f"{name} is {value!r}; it must be a finite number {'above' if positive else 'of at least'} 0"
            )
        at_most(name, value, _MOST_NUMBER)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)
