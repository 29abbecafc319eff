"""The `torch` backend on a CPU: the head in chunks of rows, with library products only.

A chunk's logits are turned into their softmax in place, a few rows at a time while they are in
cache. If the objective is token-local its gates are known at once, and the chunk yields its share
of the gradients there and then: three products. If it reads a batch statistic, a second round
recomputes all chunks but the last: nearly four.

Two sizes are at work. A chunk bounds the memory and must be large enough for efficient products; a
tile of its rows bounds what the passes of the softmax touch, so that they run in cache.

Shapes: M target rows, R rows of a chunk, D width, V vocabulary. All but the products' operands is
float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import Objective, ObjectiveOutput, Target, TokenStats
from deft.objectives.head.interface import (
    HeadInputs,
    HeadResult,
    Wanted,
    accumulation_dtype,
    apply_objective,
    join_outputs,
    join_stats,
)
from deft.objectives.head.matmul import fast_float32_products, gradients_into, logits_into
from deft.objectives.head.softmax_stats import soft_cap_, softmax_with_statistics_

# Rows whose logits are held at once; more would only cost memory.
_CHUNK_ROWS = 384
# Memory for all [R, V] buffers together, in bytes: a second distribution or a soft cap needs more
# of them, and then fewer rows are held. Fewer than the least number make inefficient products.
_CHUNK_BYTES = 2**30
_LEAST_CHUNK_ROWS = 256
# Logits per core that stay in its cache over the passes of `softmax_with_statistics_`.
_CACHED_LOGITS = 2**19
# From this share of gated-off rows on, copying the others out costs less than multiplying all.
_WORTH_DROPPING = 0.1


@torch.no_grad()
def chunked_head(inputs: HeadInputs, objective: Objective, wanted: Wanted) -> HeadResult:
    """Compute value, gate and gradients with one chunk's logits at a time."""
    chunks = _even_chunks(len(inputs.labels), _rows_at_once(inputs, objective.target, wanted))
    head = _ChunkedHead(inputs, objective.target, wanted, max_rows=_length(chunks[0]))
    stats: list[TokenStats] = []
    outputs: list[ObjectiveOutput] = []
    with fast_float32_products(inputs.hidden.dtype, inputs.hidden.device):
        for chunk in chunks:
            stats.append(head.softmax(chunk))
            if objective.token_local:
                outputs.append(apply_objective(objective, stats[-1], inputs.context, chunk))
                head.add_gradients(chunk, stats[-1], outputs[-1])
        if objective.token_local:
            return head.result(join_stats(stats), join_outputs(outputs))

        # A batch statistic is complete only now, when the chunks' softmax has been overwritten.
        output = apply_objective(objective, join_stats(stats), inputs.context)
        if wanted.gradients:
            # Backwards, because the softmax of the last chunk is still there.
            for index in reversed(range(len(chunks))):
                if index < len(chunks) - 1:
                    head.softmax_again(chunks[index])
                head.add_gradients(chunks[index], stats[index], output.rows(chunks[index]))
        return head.result(join_stats(stats), output)


def _keeps_distribution(target: Target | None) -> bool:
    return target is not None and target.kind != "uniform"


def _keeps_slope(inputs: HeadInputs, wanted: Wanted) -> bool:
    return inputs.softcap is not None and wanted.gradients


def _rows_at_once(inputs: HeadInputs, target: Target | None, wanted: Wanted) -> int:
    """Choose the rows of a chunk, so that its buffers fit `_CHUNK_BYTES` where that is possible."""
    buffers = 1 + _keeps_distribution(target) + _keeps_slope(inputs, wanted)
    row_bytes = accumulation_dtype(inputs.hidden.dtype).itemsize * len(inputs.weight) * buffers
    return min(_CHUNK_ROWS, max(_LEAST_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))


class _ChunkedHead:
    """The buffers that all chunks share, and the two steps for a chunk: softmax, gradients.

    Buffers are made once: to a CPU the fresh pages of a chunk's logits cost as much as the product
    that fills them.
    """

    def __init__(
        self, inputs: HeadInputs, target: Target | None, wanted: Wanted, max_rows: int
    ) -> None:
        self.inputs, self.target, self.wanted = inputs, target, wanted
        self.has_grad_weight = False
        M, (V, D) = len(inputs.labels), inputs.weight.shape
        dtype = accumulation_dtype(inputs.hidden.dtype)

        def buffer(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype)

        cached_rows = torch.get_num_threads() * max(1, _CACHED_LOGITS // V)
        self.tile_rows = max(1, min(max_rows, cached_rows))
        self.probs = buffer(max_rows, V)
        self.scratch = buffer(self.tile_rows, V)
        self.distribution = buffer(max_rows, V) if _keeps_distribution(target) else None
        self.slope = buffer(max_rows, V) if _keeps_slope(inputs, wanted) else None
        self.grad_hidden = buffer(M, D) if wanted.hidden else None
        self.grad_weight = buffer(V, D) if wanted.weight else None
        self.grad_bias = buffer(V).zero_() if wanted.bias else None

    def softmax(self, chunk: slice) -> TokenStats:
        """Compute a chunk's statistics [R]; leaves its softmax in `probs` [R, V]."""
        self._logits(chunk)
        labels = self.inputs.labels[chunk]
        return join_stats(
            [
                softmax_with_statistics_(
                    self.probs[tile],
                    labels[tile],
                    self.wanted.statistics,
                    self.target,
                    distribution=None if self.distribution is None else self.distribution[tile],
                    scratch=self.scratch[: _length(tile)],
                    step_mean_p=self.inputs.step_mean_p,
                    top_k=self.inputs.top_k,
                )
                for tile in self._tiles(_length(chunk))
            ]
        )

    def softmax_again(self, chunk: slice) -> None:
        """Restore what `softmax` left behind, without the statistics where that is less work."""
        if self.target is not None:
            # T is needed again, and comes with its divergence.
            self.softmax(chunk)
            return
        self._logits(chunk)
        for tile in self._tiles(_length(chunk)):
            torch.softmax(self.probs[tile], dim=-1, out=self.probs[tile])

    def _logits(self, chunk: slice) -> None:
        inputs, rows = self.inputs, _length(chunk)
        logits_into(self.probs[:rows], inputs.hidden[chunk], inputs.weight, inputs.bias)
        if inputs.reference is not None and self.distribution is not None:
            hidden, weight, bias = inputs.reference
            logits_into(self.distribution[:rows], hidden[chunk], weight, bias)
        if inputs.softcap is None:
            return
        for tile in self._tiles(rows):
            slope = None if self.slope is None else self.slope[tile]
            soft_cap_(self.probs[tile], inputs.softcap, slope)
            if inputs.reference is not None and self.distribution is not None:
                soft_cap_(self.distribution[tile], inputs.softcap, None)

    def _tiles(self, rows: int) -> list[slice]:
        """Split rows into those that stay in cache together; at least one slice."""
        starts = range(0, max(rows, 1), max(self.tile_rows, 1))
        return [slice(at, min(at + self.tile_rows, rows)) for at in starts]

    def add_gradients(self, chunk: slice, stats: TokenStats, output: ObjectiveOutput) -> None:
        """Add the chunk whose softmax is in `probs` to the gradients."""
        if not self.wanted.gradients:
            return
        error = self._logit_errors(chunk, stats, output)
        hidden = self.inputs.hidden[chunk]
        # An objective that mixes in a second error has its gates in `error` already.
        # For all others the gate scales the narrow side of the products, see `gradients_into`.
        gate = None if output.mix is not None else output.gate
        active: Tensor | None = None
        if gate is not None and int((gate == 0).sum()) > _WORTH_DROPPING * len(gate):
            active = gate.nonzero().squeeze(-1)
            error, hidden, gate = error[active], hidden[active], gate[active]

        grad_hidden = None if self.grad_hidden is None else self.grad_hidden[chunk]
        out = grad_hidden
        if grad_hidden is not None and active is not None:
            out = torch.empty_like(grad_hidden[: len(active)])
        if len(hidden):
            gradients_into(
                out,
                self.grad_weight,
                error,
                hidden,
                self.inputs.weight,
                gate,
                accumulate=self.has_grad_weight,
            )
            self.has_grad_weight = True
        if grad_hidden is not None and out is not None and active is not None:
            grad_hidden.zero_().index_copy_(0, active, out)
        if self.grad_bias is not None:
            self.grad_bias += error.sum(0) if gate is None else gate @ error

    def _logit_errors(self, chunk: slice, stats: TokenStats, output: ObjectiveOutput) -> Tensor:
        """P − e_y [R, V]; or gate · (P − e_y) + mix · (P − T), where there is a T."""
        error = self.probs[: _length(chunk)]
        labels = self.inputs.labels[chunk][:, None]
        # In place over P, with the target's entry written last: p − 1 as expm1(logp) keeps the
        # digits of an almost certain token, which subtracting 1 from a rounded p would lose.
        at_target = torch.expm1(stats.logp)[:, None]
        if output.mix is not None:
            # gate · (P − e_y) + mix · (P − T) = (gate + mix) · P − mix · T − gate · e_y.
            gate, mix = output.gate[:, None], output.mix[:, None]
            if self.distribution is None:
                uniform = 1 / error.shape[1]
                at_target = gate * at_target + mix * (stats.p[:, None] - uniform)
                error.mul_(gate + mix).sub_(mix * uniform)
            else:
                other = self.distribution[: len(error)]
                at_target = gate * at_target + mix * (stats.p[:, None] - other.gather(1, labels))
                error.mul_(gate + mix).sub_(other.mul_(mix))
        error.scatter_(1, labels, at_target)
        if self.slope is not None:
            error.mul_(self.slope[: len(error)])
        return error

    def result(self, stats: TokenStats, output: ObjectiveOutput) -> HeadResult:
        """Hand over the gradients; zeros where every row was gated off."""
        if self.grad_weight is not None and not self.has_grad_weight:
            self.grad_weight.zero_()
        return HeadResult(stats, output, self.grad_hidden, self.grad_weight, self.grad_bias)


def _even_chunks(rows: int, most: int) -> list[slice]:
    """Split rows into slices of nearly one size, at least one; the first is the largest."""
    count = max(1, -(-rows // most))
    size = -(-rows // count)
    return [slice(i * size, min((i + 1) * size, rows)) for i in range(count)]


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)
