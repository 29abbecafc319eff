"""`linear_objective`: from hidden states to an objective's loss, without the [N, V] logits.

Every objective here has the logit gradient gate · (P − e_y), so a backend computes value, gate and
all gradients while the weight is at hand, in the forward; autograd then multiplies them by the
upstream gradient. Nothing is kept of the weight, neither saved tensor nor view: under DeepSpeed's
ZeRO-3 its storage is gone after the forward of the module that owns it.

Shapes: N rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deft.objectives.base import STATISTICS, Objective, TokenStats, get_objective
from deft.objectives.head.interface import (
    Backend,
    HeadInputs,
    HeadResult,
    ReferenceHead,
    Wanted,
    accumulation_dtype,
)
from deft.objectives.spec import ObjectiveSpec

BackendName = Literal["auto", "reference", "torch", "triton"]
HeadName = Literal["reference", "chunked", "blocked", "gpu_blocks", "triton"]
"""The module of this folder that computes a head."""


class NonFiniteLogitsError(FloatingPointError):
    """Some logits, or some objective's value or gate, are NaN or infinite."""


class FiniteCheck(NamedTuple):
    """What must be finite; nobody waits for the device before the answer is asked for."""

    subjects: tuple[tuple[str, Tensor], ...]
    """What it is called, and its values [M]."""
    target_rows: Tensor
    """int64 [M]: their places among all rows."""

    @property
    def passed(self) -> Tensor:
        """bool scalar: whether all of it is finite."""
        return torch.stack([values.isfinite().all() for _, values in self.subjects]).all()

    def problem(self) -> str | None:
        """Name the rows that are not finite; None if there are none."""
        for subject, values in self.subjects:
            finite = values.isfinite()
            if not bool(finite.all()):
                rows = self.target_rows[~finite].tolist()
                shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
                return f"the {subject} not finite in {len(rows)} of {len(finite)} rows: {shown}"
        return None


@dataclass(frozen=True)
class LinearObjectiveOutput:
    """The loss and the statistics of every token; only `loss` has a gradient."""

    loss: Tensor
    """Scalar: Σ value over kept tokens / normalizer."""
    stats: TokenStats
    """[N]; zero where the label is ignored."""
    value: Tensor
    """[N]; zero where not kept."""
    gate: Tensor
    """[N]; zero where not kept."""
    focus: Tensor | None
    """[N], for objectives that have a focus; zero where not kept."""
    kept: Tensor
    """bool [N]: rows with a target that the objective did not drop."""
    finite: FiniteCheck


def linear_objective(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    objective: str | Mapping[str, Any] | ObjectiveSpec | Objective,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    normalizer: float | Tensor | None = None,
    softcap: float | None = None,
    reference: ReferenceHead | None = None,
    step_mean_p: float | Tensor | None = None,
    context: Mapping[str, Tensor | None] | None = None,
    statistics: Collection[str] = (),
    target_rows: Tensor | None = None,
    raises: bool = True,
    backend: BackendName = "auto",
) -> LinearObjectiveOutput:
    """Compute the objective of `hidden @ weight.T + bias` against `labels`.

    Gradients flow to hidden, weight and bias. With no kept token the loss is 0 and so are they.

    Args:
        hidden: last hidden states [N, D], floating point.
        weight: head weight [V, D], in the same dtype (or any, under autocast).
        labels: int64 [N], each in [0, V) or `ignore_index`.
        objective: a name, a spec, or what `get_objective` returned.
        bias: [V].
        ignore_index: label of rows without a target; they have no part in anything.
        normalizer: what the sum of values is divided by; the number of kept tokens if not given.
        softcap: logits are softcap · tanh(z / softcap).
        reference: the frozen model's last layer, for objectives that are anchored to one.
        step_mean_p: mean p over the optimizer step, for objectives that read a batch mean
            (Cayley_Trans) and should not depend on how the step was cut.
        context: what the objective reads beside the prediction, [N] each, by its name in
            `TokenStats`; None for a log-probability stands for the model's own. `weight` multiplies
            value, gate and mix of each token, and the normalizer stays the number of tokens.
        statistics: statistics to compute for logging, beyond those that the objective needs.
        target_rows: int64, the rows that have a target, if they are known and their labels in
            range: otherwise the host waits for the device to find them.
        raises: whether to wait for the device and raise where something is not finite. If not, the
            loss and all gradients are NaN then, and `finite` says why.
        backend: `reference` materializes the logits, `torch` works in chunks or blocks on any
            device, `triton` in tiles on CUDA; `auto` takes the best that the device has.

    Raises:
        ValueError: shapes, dtypes, labels or options that do not fit together.
        NonFiniteLogitsError: naming the rows.
    """
    objective = get_objective(objective)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    _check(hidden, weight, labels, bias, softcap, statistics)
    if objective.needs_reference and reference is None:
        raise ValueError(f"{objective.spec} is anchored to a frozen model: give `reference`")
    if missing := sorted(objective.context - {"weight", *(context or {})}):
        raise ValueError(f"{objective.spec} reads {missing[0]}: give it in `context`")
    if target_rows is None:
        target_rows = (labels != ignore_index).nonzero().squeeze(-1)
        _check_labels(labels[target_rows], weight.shape[0], ignore_index)
    inputs = HeadInputs(
        hidden=_rows(hidden, target_rows),
        weight=weight.detach(),
        bias=None if bias is None else bias.detach(),
        labels=_rows(labels, target_rows),
        softcap=softcap,
        reference=_reference_rows(reference, target_rows) if objective.needs_reference else None,
        step_mean_p=None if step_mean_p is None else torch.as_tensor(step_mean_p).to(hidden.device),
        context=_context_rows(objective, context or {}, target_rows, hidden.dtype),
        top_k=objective.top_k,
    )
    grad = torch.is_grad_enabled()
    wanted = Wanted(
        statistics=objective.needs | frozenset(statistics),
        hidden=grad and hidden.requires_grad,
        weight=grad and weight.requires_grad,
        bias=grad and bias is not None and bias.requires_grad,
    )
    # Autocast off: backends choose the precision of every product themselves.
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        result = _backend(backend, inputs, objective)(inputs, objective, wanted)
        finite = FiniteCheck(
            (
                ("logits are", result.stats.logp),
                (f"value of {objective.spec} is", result.output.value),
                (f"gate of {objective.spec} is", result.output.gate),
            ),
            target_rows,
        )
        if raises and (problem := finite.problem()) is not None:
            raise NonFiniteLogitsError(problem)
        value_sum = result.output.value.sum()
        # 1, or NaN: what any factor of a gradient turns it into.
        factor = None if raises else value_sum.new_ones(()).masked_fill_(~finite.passed, torch.nan)
        value_sum = value_sum if factor is None else value_sum * factor
    total = _AttachGradients.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, value_sum, target_rows, result, factor
    )
    return _output(total, result, target_rows, len(labels), normalizer, finite)


def _rows(tensor: Tensor, target_rows: Tensor) -> Tensor:
    """Select the target rows; no copy if that is all of them."""
    tensor = tensor.detach()
    return tensor if len(target_rows) == len(tensor) else tensor[target_rows]


def _context_rows(
    objective: Objective,
    context: Mapping[str, Tensor | None],
    target_rows: Tensor,
    dtype: torch.dtype,
) -> dict[str, Tensor | None]:
    """Select the target rows of what the objective reads, in the dtype that it computes in.

    Weights are among them where there are any.
    """
    chosen: dict[str, Tensor | None] = {}
    for name in sorted(objective.context | ({"weight"} & set(context))):
        column = context.get(name)
        if column is not None:
            column = _rows(column, target_rows)
            if column.is_floating_point():
                column = column.to(accumulation_dtype(dtype))
        chosen[name] = column
    return chosen


def _output(
    total: Tensor,
    result: HeadResult,
    target_rows: Tensor,
    num_rows: int,
    normalizer: float | Tensor | None,
    finite: FiniteCheck,
) -> LinearObjectiveOutput:
    """Normalize the summed value and put every token's statistics back in its row."""

    def spread(tensor: Tensor) -> Tensor:
        if len(target_rows) == num_rows:
            return tensor
        return tensor.new_zeros(num_rows).index_copy_(0, target_rows, tensor)

    stats, output = result.stats, result.output
    kept = spread(stats.mask if output.keep is None else output.keep)
    if normalizer is None:
        normalizer = kept.sum().clamp(min=1)
    return LinearObjectiveOutput(
        loss=total / normalizer,
        stats=_map_stats(stats, spread),
        value=spread(output.value),
        gate=spread(output.gate),
        focus=None if output.focus is None else spread(output.focus),
        kept=kept,
        finite=finite,
    )


class _AttachGradients(torch.autograd.Function):
    """Autograd node for a scalar whose gradients were computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        value_sum: Tensor,
        target_rows: Tensor,
        result: HeadResult,
        factor: Tensor | None,
    ) -> Tensor:
        ctx.factor = factor
        ctx.gradients = (result.grad_hidden, result.grad_weight, result.grad_bias)
        ctx.target_rows, ctx.num_rows = target_rows, hidden.shape[0]
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return value_sum.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of linear_objective can be taken only once")
        if ctx.factor is not None:
            upstream = upstream * ctx.factor
        grad_hidden, grad_weight, grad_bias = (
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        # Dropping the last reference lets autograd hand the tensors on without copying them.
        ctx.gradients = None
        if grad_hidden is not None and len(grad_hidden) != ctx.num_rows:
            shape = (ctx.num_rows, grad_hidden.shape[1])
            grad_hidden = grad_hidden.new_zeros(shape).index_copy_(0, ctx.target_rows, grad_hidden)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _backend(name: BackendName, inputs: HeadInputs, objective: Objective) -> Backend:
    head = head_for(name, inputs, objective, inputs.hidden.device.type)
    if head == "reference":
        from deft.objectives.head.reference import reference_head

        return reference_head
    if head == "chunked":
        from deft.objectives.head.chunked import chunked_head

        return chunked_head
    if head == "blocked":
        from deft.objectives.head.blocked import blocked_head

        return blocked_head
    if head == "gpu_blocks":
        from deft.objectives.head.gpu_blocks import gpu_blocks_head

        return gpu_blocks_head
    from deft.objectives.head.triton_head import triton_head

    return triton_head


def head_for(
    name: BackendName, inputs: HeadInputs, objective: Objective, device_type: str
) -> HeadName:
    """Choose who computes a request on a kind of device: cpu, cuda or another GPU."""
    if name not in get_args(BackendName):
        raise ValueError(f"unknown backend {name!r}; expected auto, reference, torch or triton")
    if name in ("reference", "triton"):
        return name
    if device_type != "cpu":
        in_tiles = name == "auto" and device_type == "cuda" and _triton_fits(inputs, objective)
        return "triton" if in_tiles else "gpu_blocks"
    from deft.objectives.head.blocked import fits

    return "blocked" if fits(inputs, objective) else "chunked"


def _triton_fits(inputs: HeadInputs, objective: Objective) -> bool:
    """Tell whether the tile-wise kernels can run here and support the request."""
    if find_spec("triton") is None:
        return False
    from deft.objectives.head.triton_head import unsupported

    return unsupported(inputs, objective) is None


def _map_stats(stats: TokenStats, spread: Callable[[Tensor], Tensor]) -> TokenStats:
    mapped: dict[str, Tensor | None] = {}
    for field in fields(stats):
        tensor = getattr(stats, field.name)
        per_token = tensor is not None and field.name != "step_mean_p"
        mapped[field.name] = spread(tensor) if per_token else tensor
    return TokenStats(**mapped)  # type: ignore[arg-type]


def _reference_rows(reference: ReferenceHead | None, rows: Tensor) -> ReferenceHead | None:
    if reference is None:
        return None
    bias = None if reference.bias is None else reference.bias.detach()
    return ReferenceHead(_rows(reference.hidden, rows), reference.weight.detach(), bias)


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    statistics: Collection[str],
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden must be [N, D] and weight [V, D]; "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels must be [{hidden.shape[0]}], got {list(labels.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(
            "hidden and weight must have one floating-point dtype outside autocast; "
            f"got {hidden.dtype} and {weight.dtype}"
        )
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, got {softcap}")
    if unknown := sorted(set(statistics) - set(STATISTICS[:-1])):
        raise ValueError(
            f"unknown statistic {unknown[0]!r}; expected some of {', '.join(STATISTICS[:-1])}"
        )


def _check_labels(targets: Tensor, vocabulary: int, ignore_index: int) -> None:
    if len(targets) == 0:
        return
    lowest, highest = (int(extreme) for extreme in targets.aminmax())
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(
            f"labels must lie in [0, {vocabulary}) or be ignore_index = {ignore_index}; "
            f"got values from {lowest} to {highest}"
        )
