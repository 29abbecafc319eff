"""The causal language model whose head computes the objective instead of logits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from deft.objectives import (
    LinearObjectiveOutput,
    Objective,
    ReferenceHead,
    TokenStats,
    linear_objective,
)
from deft.objectives.head.interface import apply_objective, join_stats
from deft.objectives.head.linear import FiniteCheck
from deft.workers.common.example import IGNORE_INDEX
from deft.workers.modeling.attention import packed_keywords
from deft.workers.modeling.logit_transform import LogitTransform, layers_below_head, logit_transform
from deft.workers.modeling.lora import low_rank_update, unadapted, without_adapters

LOGGED_STATISTICS = ("concentration", "entropy")
"""What is logged of every token beside what the objective itself reads."""

VALIDATED_STATISTICS = (*LOGGED_STATISTICS, "top_logp")
"""What is asked of every token when the model is in evaluation mode."""

VERIFIED_ROWS = 256
"""Target rows whose statistics are recomputed to verify the objective."""

RECOMPUTED_ROWS = 16
"""Target rows whose logits are recomputed at once."""

AT_THRESHOLD = 0.1
"""Share of them that may be kept here and dropped there, or the other way round."""


class ObjectiveHead(nn.Module):
    """The objective in place of a model's `lm_head`, with the same parameters and names.

    The objective runs inside this module's forward because ZeRO-3 gathers a parameter only for the
    module that owns it. It returns plain tensors because DeepSpeed finds those, and nothing else,
    when it hooks into the backward pass.

    The first micro-batch that is trained on and says something proves that the objective is live.
    Logits that are not finite make loss and gradients NaN instead of raising: other ranks are in
    the middle of the same step, and DeepSpeed lets all of them skip it together. `checks` then say
    what was wrong. In evaluation mode the tokens of such a micro-batch have probability 0.
    """

    def __init__(
        self, lm_head: nn.Module, objective: Objective, softcap: float | None = None
    ) -> None:
        super().__init__()
        linear = unadapted(lm_head)
        assert isinstance(linear, nn.Linear)
        self.weight, self.bias = linear.weight, linear.bias
        self.update = low_rank_update(lm_head)
        if self.update is not None:
            # ZeRO-3 gathers what this very module owns.
            self.lora_A, self.lora_B = self.update.down, self.update.up
        self.objective = objective
        self.softcap = softcap
        self.verified = False
        self.checks: list[FiniteCheck] = []
        """Of the step's micro-batches; who trains clears them."""

    def problem(self) -> str | None:
        """Say what was not finite in the step; None if all was."""
        return next(filter(None, (check.problem() for check in self.checks)), None)

    def forward(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        reference: ReferenceHead | torch.Tensor | None = None,
        step_mean_p: torch.Tensor | None = None,
        context: Mapping[str, torch.Tensor | None] | None = None,
        target_rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the sum of token values, and the detached statistics of every token.

        Args:
            hidden: last hidden states [N, D].
            labels: int64 [N], already shifted; `IGNORE_INDEX` where there is no target.
            reference: the frozen model's last layer on the same tokens, if the objective needs it;
                where the frozen model is this one without adapters, its hidden states [N, D].
            step_mean_p: scalar mean p over the optimizer step; None takes the micro-batch's.
            context: what the objective reads beside the prediction, [N] each.
            target_rows: int64, the rows that have a target.

        Raises:
            RuntimeError: what is computed is not the objective.
        """
        weight = self.weight if self.update is None else self.update.add_to(self.weight)
        if isinstance(reference, torch.Tensor):
            reference = ReferenceHead(reference, self.weight, self.bias)
        statistics = LOGGED_STATISTICS if self.training else VALIDATED_STATISTICS

        output = linear_objective(
            hidden,
            weight,
            labels,
            self.objective,
            bias=self.bias,
            normalizer=1.0,
            softcap=self.softcap,
            reference=reference,
            step_mean_p=step_mean_p,
            context=context,
            statistics=statistics,
            target_rows=target_rows,
            raises=False,
        )
        stats, finite = output.stats, output.finite.passed
        if self.training and torch.is_grad_enabled():
            self.checks.append(output.finite)
            if not self.verified and bool(finite):
                self.verified = self.verify_against_reference(
                    output, weight, hidden, labels, reference, step_mean_p, context or {}
                )
        tokens = {
            "value": output.value,
            "gate": output.gate,
            "logp": stats.logp,
            "p": stats.p,
            "kept": output.kept,
            "target": stats.mask,
        }
        tokens |= {name: stats.require(name) for name in LOGGED_STATISTICS}
        if output.focus is not None:
            tokens["focus"] = output.focus
        if not self.training:
            tokens["correct"] = stats.correct
        # No token of such a micro-batch is counted, as if none had a target.
        tokens = {name: column.masked_fill(~finite, 0) for name, column in tokens.items()}
        if not self.training:
            is_lost = stats.mask & ~finite
            tokens |= {name: tokens[name] | is_lost for name in ("target", "kept")}
            tokens["value"] = tokens["value"].masked_fill(is_lost, math.inf)
            tokens["logp"] = tokens["logp"].masked_fill(is_lost, -math.inf)
        return output.loss, tokens

    @torch.no_grad()
    def verify_against_reference(
        self,
        output: LinearObjectiveOutput,
        weight: torch.Tensor,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        reference: ReferenceHead | None,
        step_mean_p: torch.Tensor | None,
        context: Mapping[str, torch.Tensor | None],
    ) -> bool:
        """Prove that ``output`` is the objective's, by recomputing it on materialized logits.

        Trainers elsewhere fall back to the plain NLL without a word when a kernel or a parallelism
        mode returns a loss of its own. The statistics of the first target rows are recomputed in
        float32, a few rows at a time, since the logits of a whole micro-batch would be the largest
        tensor of the training. Where a batch statistic is read, the other rows enter it as they
        are in ``output``.

        Returns whether there was a token to compare.

        Raises:
            RuntimeError: they differ, or different tokens are kept.
        """
        rows = output.stats.mask.nonzero().squeeze(-1)
        recomputed = [
            linear_objective(
                hidden[part],
                weight,
                labels[part],
                self.objective,
                bias=self.bias,
                softcap=self.softcap,
                reference=None
                if reference is None
                else reference._replace(hidden=reference.hidden[part]),
                step_mean_p=step_mean_p,
                context=_rows_of(context, part),
                backend="reference",
            ).stats
            for part in rows[:VERIFIED_ROWS].split(RECOMPUTED_ROWS)
        ]
        if self.objective.token_local:
            rows = rows[:VERIFIED_ROWS]
        stats = join_stats([*recomputed, output.stats.rows(rows[VERIFIED_ROWS:])])
        expected = apply_objective(self.objective, stats, _rows_of(context, rows))
        defect = f"the objective {self.objective.spec} is not what is being trained"
        kept = output.kept[rows]
        expected_kept = stats.mask if expected.keep is None else expected.keep
        both = kept & expected_kept
        # At a threshold the last bit of p decides whether a token counts at all.
        if (kept != expected_kept).sum() > max(1, AT_THRESHOLD * len(rows)):
            raise RuntimeError(
                f"{defect}: it keeps {int(kept.sum())} of {len(rows)} tokens where its definition "
                f"keeps {int(expected_kept.sum())}; this is a defect"
            )
        # bfloat16 products are rounded to 8 bits before they are summed up in float32.
        tolerance = 1e-3 if hidden.dtype == torch.float32 else 5e-2
        for name in ("value", "gate"):
            actual, true = getattr(output, name)[rows], getattr(expected, name)
            error = (actual - true)[both].abs()
            if (error > tolerance * (1 + true[both].abs())).any():
                raise RuntimeError(
                    f"{defect}: the {name} of a token is off by {error.max():.3g} from its "
                    "definition; this is a defect"
                )
        return bool(both.any())


def _rows_of(
    context: Mapping[str, torch.Tensor | None], rows: torch.Tensor
) -> dict[str, torch.Tensor | None]:
    return {name: None if column is None else column[rows] for name, column in context.items()}


class ObjectiveModel(nn.Module):
    """A model and its objective: from token ids to the sum of token values.

    An objective that is anchored to a frozen reference model gets it here. With adapters it is the
    model without them. Otherwise it is no submodule: DeepSpeed neither trains nor shards it, and
    every worker holds a whole copy.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        reference: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.logit_transform = logit_transform(model)
        model.set_output_embeddings(
            ObjectiveHead(model.get_output_embeddings(), objective, self.logit_transform.softcap)
        )
        self.model = model
        self.objective = objective
        self.references = [] if reference is None else [reference.eval().requires_grad_(False)]

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cu_seq_lens: torch.Tensor | None = None,
        target_rows: torch.Tensor | None = None,
        step_mean_p: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        **known_logp: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the model and its `ObjectiveHead` on a micro-batch as `collate` makes it.

        Position t predicts label t + 1; only positions with a target reach the head's products.
        Log-probabilities under other models that the objective reads are `known_logp`, each [T] of
        the T target tokens in order; in evaluation mode the model stands for those that are not
        given.
        """
        layout = (input_ids, position_ids, cu_seq_lens)
        scaled = self.logit_transform.scaled
        reference: ReferenceHead | torch.Tensor | None = None
        if self.objective.needs_reference:
            with torch.no_grad():
                if self.references:
                    (frozen,) = self.references
                    frozen_head = frozen.get_output_embeddings()
                    reference = ReferenceHead(
                        scaled(last_hidden(frozen, *layout)), frozen_head.weight, frozen_head.bias
                    )
                else:
                    with without_adapters(self.model):
                        reference = scaled(last_hidden(self.model, *layout))
        head: ObjectiveHead = self.model.get_output_embeddings()
        output: tuple[torch.Tensor, dict[str, torch.Tensor]] = head(
            scaled(last_hidden(self.model, *layout)),
            labels[:, 1:].flatten(),
            reference=reference,
            step_mean_p=step_mean_p,
            context=self.context_of(labels, cu_seq_lens, weights, known_logp),
            target_rows=target_rows,
        )
        return output

    def context_of(
        self,
        labels: torch.Tensor,
        cu_seq_lens: torch.Tensor | None,
        weights: torch.Tensor | None,
        known_logp: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor | None]:
        """Return what the objective reads beside the prediction, and weights, [B·(T − 1)] each.

        Raises:
            RuntimeError: training lacks a log-probability under another model.
        """
        context: dict[str, torch.Tensor | None] = {}
        if weights is not None:
            context["weight"] = weights[:, 1:].flatten()
        names = self.objective.context - {"weight"}
        if not names:
            return context
        targets = labels[:, 1:]
        is_target = (targets != IGNORE_INDEX).flatten()
        places = example_and_position(targets, cu_seq_lens)
        for name in names:
            if name in places:
                context[name] = places[name]
            elif name in known_logp:
                spread = torch.zeros(len(is_target), device=labels.device)
                context[name] = spread.masked_scatter_(is_target, known_logp[name])
            elif self.training:
                raise RuntimeError(f"{self.objective.spec} trains without {name}; this is a defect")
            else:
                context[name] = None
        return context


def example_and_position(
    targets: torch.Tensor, cu_seq_lens: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Count out the examples of a micro-batch and the targets within each, [B·T] each.

    Args:
        targets: int64 [B, T], what every position predicts; `IGNORE_INDEX` where that is nothing.
        cu_seq_lens: where examples begin in one packed row; None where a row is an example.
    """
    if cu_seq_lens is None:
        example = torch.arange(len(targets), device=targets.device)[:, None].expand_as(targets)
    else:
        predicted = torch.arange(1, targets.shape[1] + 1, device=targets.device)
        example = torch.searchsorted(cu_seq_lens.to(predicted), predicted, right=True)[None] - 1
    example = example.flatten()
    count = (targets.flatten() != IGNORE_INDEX).long().cumsum(0)
    before = torch.zeros(int(example.max()) + 1, dtype=torch.int64, device=targets.device)
    # A prefix sum: what was counted at the last position of the examples before.
    before.scatter_reduce_(0, example, count, "amax")
    before = torch.cat([before.new_zeros(1), before[:-1]])
    return {"example": example, "position": count - 1 - before[example]}


@torch.no_grad()
def target_statistics(
    model: PreTrainedModel,
    transform: LogitTransform,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    statistics: Collection[str] = (),
    position_ids: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
    target_rows: torch.Tensor | None = None,
) -> TokenStats:
    """Compute statistics of a batch's N target tokens under a model that is not trained, each [N].

    Args:
        model: with the head that it came with.
        transform: its `logit_transform`.
        input_ids: int64 [B, T], padded on the right.
        labels: int64 [B, T], not shifted; `IGNORE_INDEX` where there is no target.
        statistics: optional fields of `TokenStats` to compute.
        position_ids: see `deft.workers.training.batches.collate`.
        cu_seq_lens: likewise.
        target_rows: likewise.
    """
    head = model.get_output_embeddings()
    device = head.weight.device  # where several hold the model, not always that of the last layer
    targets = labels[:, 1:].flatten().to(device)
    hidden = last_hidden(model, input_ids, position_ids, cu_seq_lens).to(device)
    chosen = targets != IGNORE_INDEX if target_rows is None else target_rows.to(device)
    return linear_objective(
        transform.scaled(hidden[chosen]),
        head.weight,
        targets[chosen],
        "original",
        bias=head.bias,
        softcap=transform.softcap,
        statistics=statistics,
    ).stats


def last_hidden(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the last hidden states of all positions but each row's last, [B·(T − 1), D]."""
    packed = {}
    if position_ids is not None and cu_seq_lens is not None:
        packed = packed_keywords(cu_seq_lens, position_ids)
    states = layers_below_head(model)(
        input_ids=input_ids, use_cache=False, **packed
    ).last_hidden_state
    hidden: torch.Tensor = states[:, :-1]
    return hidden.flatten(0, 1)
