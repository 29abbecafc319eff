"""Objectives as data: a pure function from per-token statistics to a value and a gate.

Shapes: N target tokens, V vocabulary. Every tensor here is float32 (or float64 in the reference
backend), of shape [N], and detached: the head turns gates into gradients, autograd does not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from deft.objectives.catalog import CATALOG
from deft.objectives.spec import ObjectiveSpec
from deft.workers.common.names import describe_import_error

STATISTICS = ("concentration", "entropy", "entropy_top", "top_logp", "divergence")
"""What the head computes of the prediction where an objective reads it."""
CONTEXT = ("example", "position", "weight", "reference_logp", "initial_logp", "old_logp")
"""What the trainer knows of a token beside the prediction, and hands in where an objective reads
it."""
TOP_K = 20
"""Logits that `entropy_top` is taken over unless an objective says otherwise."""

TargetKind = Literal["uniform", "tempered", "reference", "reference_reverse"]


class Target(NamedTuple):
    """A second distribution T that an objective pulls the prediction P towards.

    Each kind defines a divergence D with logit gradient P − T:
    `uniform` cross-entropy −mean_v log P_v; `tempered` cross-entropy −Σ_v q_v log P_v with
    q = sg softmax(z/temperature); `reference` KL[R ‖ P] and `reference_reverse` KL[P ‖ R] with R
    the prediction of a frozen model.
    """

    kind: TargetKind
    temperature: float = 1.0


@dataclass(frozen=True)
class TokenStats:
    """The model's prediction at each target position, in a few numbers."""

    logp: Tensor
    """Log-probability of the target, in nats."""
    p: Tensor
    """Probability of the target."""
    mask: Tensor
    """bool: positions that have a target. Batch statistics must be taken over these."""
    concentration: Tensor | None = None
    """Σ_v P_v² = exp(−H₂): from 1/V (uniform) to 1 (certain)."""
    entropy: Tensor | None = None
    """Shannon entropy of P, in nats."""
    entropy_top: Tensor | None = None
    """Shannon entropy, in nats, of the largest logits renormalized among themselves: of 20, or as
    many as `@objective(top_k=…)` says."""
    top_logp: Tensor | None = None
    """Log-probability of the most probable token, in nats."""
    divergence: Tensor | None = None
    """D(T, P) of the objective's target distribution; see `Target`."""
    step_mean_p: Tensor | None = None
    """Scalar: mean p over the whole optimizer step, where the caller knows it."""
    example: Tensor | None = None
    """int64: number of the example that the token belongs to, within the micro-batch. All target
    tokens of an example are in one micro-batch."""
    position: Tensor | None = None
    """int64: number of the token among the target tokens of its example, from 0."""
    weight: Tensor | None = None
    """Weight of the token's turn or record in the data, 1 where it has none. The head multiplies
    value, gate and mix by it, whether or not an objective reads it."""
    reference_logp: Tensor | None = None
    """Log-probability of the target under the frozen reference model, in nats: the model before
    training, or `training.reference`. Computed once for each token, whatever the epochs."""
    initial_logp: Tensor | None = None
    """The same under the model before training, whatever the reference is."""
    old_logp: Tensor | None = None
    """Log-probability of the target under the model as it was at the last refresh, in nats: every
    `training.old_policy_every` steps. Equal to logp while it is evaluated."""

    @property
    def correct(self) -> Tensor:
        """bool: where the target is the most probable token; needs `top_logp`."""
        # Backends compute the two log-probabilities by different products.
        return self.logp >= self.require("top_logp") - 1e-4

    def rows(self, rows: slice | Tensor) -> TokenStats:
        """Select the statistics of some rows."""
        parts = {
            field.name: value if value is None or value.dim() == 0 else value[rows]
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        return TokenStats(**parts)

    def require(self, statistic: str) -> Tensor:
        """Return a statistic that the objective declared as needed.

        Raises:
            ValueError: it was not computed, because the objective did not declare it.
        """
        value: Tensor | None = getattr(self, statistic)
        if value is None:
            raise ValueError(
                f"the statistic {statistic!r} was not computed; an objective names what it reads "
                f"in @objective(needs={{{statistic!r}}})"
            )
        return value


class ObjectiveOutput(NamedTuple):
    """An objective's value and gate at each token; tensors of shape [N].

    The gradient of the summed value in the logits is gate · (P − e_y) + mix · (P − T).
    """

    value: Tensor
    """What is summed into the loss."""
    gate: Tensor
    """−∂value/∂logp with every detached quantity held fixed; see `deft.objectives.check`."""
    keep: Tensor | None = None
    """bool: tokens that count at all; the others leave the loss and its normalizer."""
    focus: Tensor | None = None
    """The exponent α of a deformed-log objective, from 0 (cover) to 1 (sharpen)."""
    mix: Tensor | None = None
    """Weight of the second error P − T; only for an objective with a target distribution."""

    def rows(self, rows: slice) -> ObjectiveOutput:
        """Select the output of some rows."""
        return ObjectiveOutput._make(None if tensor is None else tensor[rows] for tensor in self)


ObjectiveFunction = Callable[..., ObjectiveOutput]


class Declaration(NamedTuple):
    """What the head must compute for an objective's function, and may assume about it."""

    needs: frozenset[str]
    token_local: bool
    drops_tokens: bool
    target: Callable[..., Target] | None
    top_k: Callable[..., int] | None = None


def objective(
    *,
    needs: frozenset[str] | set[str] = frozenset(),
    token_local: bool = True,
    drops_tokens: bool = False,
    target: Callable[..., Target] | None = None,
    top_k: Callable[..., int] | None = None,
) -> Callable[[ObjectiveFunction], ObjectiveFunction]:
    """Declare what a function `(TokenStats, **params) -> ObjectiveOutput` needs.

    Args:
        needs: what it reads beyond logp and p, of `STATISTICS` and of `CONTEXT`; nothing else is
            computed.
        token_local: False if it reads a statistic over tokens, such as a mean.
        drops_tokens: True if it returns `keep`.
        target: for an objective that returns `mix`: its parameters → the distribution T.
        top_k: for one that reads `entropy_top`: its parameters → the number of largest logits.
    """
    known = (*STATISTICS, *CONTEXT)
    if unknown := sorted(set(needs) - set(known)):
        raise ValueError(
            f"unknown statistic {unknown[0]!r}; an objective may need {', '.join(known)}"
        )

    def declare(function: ObjectiveFunction) -> ObjectiveFunction:
        declaration = Declaration(frozenset(needs), token_local, drops_tokens, target, top_k)
        function.__deft_objective__ = declaration  # type: ignore[attr-defined]
        return function

    return declare


# A function that declares nothing reads logp and p; it may read them across tokens and drop some.
_UNDECLARED = Declaration(frozenset(), token_local=False, drops_tokens=True, target=None)


@dataclass(frozen=True)
class Objective:
    """An objective with its parameters bound, ready to be applied to statistics."""

    spec: ObjectiveSpec
    function: ObjectiveFunction
    needs: frozenset[str]
    """Statistics that it reads beyond logp and p, and that the head computes."""
    context: frozenset[str]
    """What it reads beside, and the trainer hands in."""
    token_local: bool
    """Whether each token's output depends on that token alone."""
    drops_tokens: bool
    """Whether it may leave target tokens out of the loss and its normalizer."""
    target: Target | None
    """The second distribution of an objective that mixes one in."""
    top_k: int = TOP_K
    """Number of largest logits that `entropy_top` is taken over."""

    def __call__(self, stats: TokenStats) -> ObjectiveOutput:
        return self.function(stats, **self.spec.params)

    @property
    def is_described_by_gate(self) -> bool:
        """Tell whether the prediction alone decides the gate, and the gate alone the gradient."""
        return self.target is None and not self.context

    @property
    def needs_reference(self) -> bool:
        """Tell whether a frozen reference model must be given to the head."""
        return self.target is not None and self.target.kind.startswith("reference")


def get_objective(spec: str | Mapping[str, Any] | ObjectiveSpec | Objective) -> Objective:
    """Load the objective that a name or a spec describes.

    Raises:
        ValueError: unknown name, parameter out of range, or an import path that leads nowhere.
    """
    if isinstance(spec, Objective):
        return spec
    if not isinstance(spec, ObjectiveSpec):
        try:
            spec = ObjectiveSpec.model_validate(spec)
        except ValidationError as error:
            reasons = (item["msg"].removeprefix("Value error, ") for item in error.errors())
            raise ValueError("; ".join(reasons)) from None
    function = _load(spec)
    declared: Declaration = getattr(function, "__deft_objective__", _UNDECLARED)
    try:
        target = declared.target(**spec.params) if declared.target is not None else None
    except Exception as error:
        raise ValueError(
            f"{spec}: its target distribution raises {describe_import_error(error)}; "
            "@objective(target=…) takes a function of the objective's parameters"
        ) from None
    top_k = TOP_K if declared.top_k is None else declared.top_k(**spec.params)
    return Objective(
        spec,
        function,
        needs=declared.needs & set(STATISTICS),
        context=declared.needs & set(CONTEXT),
        token_local=declared.token_local,
        drops_tokens=declared.drops_tokens,
        target=target,
        top_k=top_k,
    )


def _load(spec: ObjectiveSpec) -> ObjectiveFunction:
    path = CATALOG[spec.name].implementation if spec.name in CATALOG else spec.name
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # A module of the user's may raise anything while it is imported.
        raise ValueError(
            f"objective {spec.name!r} cannot be imported: {describe_import_error(error)}"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        objectives = [name for name, item in vars(module).items() if _is_declared(item)]
        hint = f"its objectives are {', '.join(objectives)}" if objectives else "it has none"
        raise ValueError(
            f"objective {spec.name!r} cannot be imported: {module_name} has no attribute "
            f"{attribute!r}; {hint}"
        )
    if not callable(function):
        raise ValueError(
            f"objective {spec.name!r} is {type(function).__name__}; name a function "
            "(TokenStats, **params) -> ObjectiveOutput"
        )
    return function  # type: ignore[no-any-return]


def _is_declared(item: Any) -> bool:
    return hasattr(item, "__deft_objective__")
