"""First pass of `blocked`: the rows' statistics, one block of the vocabulary after the other.

Logits enter relative to the normalizer of the entries seen so far, which begin with the target,
whose logit is computed in float32. Where a block outweighs all before it, its logits are large
relative to that normalizer and rounding would show: it is recomputed in float32.

Shapes: M target rows, R of them at a time, D width, V vocabulary, B entries of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deft.objectives.base import Target, TokenStats
from deft.objectives.head.interface import HeadInputs, Wanted
from deft.objectives.head.matmul import fast_float32_products

# Width of the columns that carry normalizer and bias; bfloat16 units work in steps of 32.
_EXTRA = 32
# A block's Σ e^z, in units of the sum before it, from which on rounding its logits would show.
_OUTWEIGHS = 2.0
# A logit, relative to the normalizer, that adds 0 to every sum: e^z is 0 and so is z · e^z, which
# for −inf would be NaN.
_NOTHING = -1e4
# Candidates for the 20 largest logits: rounded logits decide which they are, so a few more.
_CANDIDATES = 24
# Rows whose candidates' weights, [rows, 24, D] in float32, are held at once.
_CANDIDATE_ROWS = 64


class Layer:
    """A last layer in bfloat16 whose products carry a normalizer and the bias in extra columns."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entries: int
    ) -> None:
        D = hidden.shape[1]
        self.weight, self.bias, self.width = weight, bias, D
        self.hidden = hidden.new_zeros(len(hidden), D + _EXTRA)
        """[M, D + 32]: hidden, the negative normalizer in three columns, ones for the bias."""
        self.hidden[:, :D] = hidden
        self.hidden[:, D + 3 : D + 6] = 1
        self.target = (hidden.float() * weight[labels]).sum(-1)
        """Logits of the targets, float32 [M]."""
        if bias is not None:
            self.target += bias[labels]
        self.block = weight.new_zeros(entries, D + _EXTRA)
        """[B, D + 32]: the block that `fill` was called for."""
        self.block[:, D : D + 3] = 1

    def fill(self, block: slice) -> Tensor:
        """Copy a block of the weight beside the columns that match those of `hidden`."""
        weight = self.block[: size(block)]
        weight[:, : self.width] = self.weight[block]
        if self.bias is not None:
            weight[:, self.width + 3 : self.width + 6] = _as_three(self.bias[block].float())
        return weight

    def set_normalizer(self, rows: slice | Tensor, normalizer: Tensor) -> None:
        """Let the logits of some rows be relative to a normalizer [R]."""
        self.hidden[rows, self.width : self.width + 3] = _as_three(-normalizer)

    def float32_logits(self, rows: Tensor, block: slice) -> Tensor:
        """Compute float32 logits [R, B], not relative to anything."""
        hidden, weight = self.hidden[rows, : self.width].float(), self.weight[block].float()
        with fast_float32_products(self.weight.dtype, self.weight.device):
            logits = hidden @ weight.T
        return logits if self.bias is None else logits.add_(self.bias[block])


class Seen:
    """Running sums over the entries so far, P being their shares of Σ e^z; all float32 [M].

    The target is the first entry, so log P = 0 and every sum is finite from the start.
    """

    def __init__(self, rows: int) -> None:
        self.log_sum = torch.zeros(rows)
        """log Σ e^z less the target's logit."""
        self.squares = torch.ones(rows)
        """Σ P²."""
        self.products = torch.zeros(rows)
        """Σ P log P."""
        self.top = torch.zeros(rows)
        """The largest log P."""

    def add(self, rows: slice, shift: Tensor, block: Tensor) -> Tensor:
        """Add a block's `_sums` [4, R], its z being relative to log Σ e^z + shift [R].

        Returns by how much log Σ e^z exceeds what z was relative to, [R].
        """
        sums, squares, products, top = block
        # With n the normalizer before, the block's sum s is relative to n + shift, and the new
        # normalizer is n + shift + growth, growth = log(e^(−shift) + s). Shares of the old and the
        # new entries shrink by `before` and `share`; log P falls by what the normalizer rises.
        growth = torch.log1p(sums + torch.expm1(-shift))
        share, before = torch.exp(-growth), torch.exp(-growth - shift)
        self.log_sum[rows] += shift + growth
        self.squares[rows] = before.square() * self.squares[rows] + share.square() * squares
        self.products[rows] = before * (self.products[rows] - shift - growth)
        self.products[rows] += share * (products - sums * growth)
        self.top[rows] = torch.maximum(self.top[rows] - shift, top) - growth
        return growth


class SeenTarget:
    """Running divergence of a second distribution T from P over the entries so far; float32 [M]."""

    def __init__(self, target: Target, rows: int) -> None:
        self.target = target
        self.reference = Seen(rows)
        """Of the reference model's logits, where T is its prediction."""
        self.sums = torch.ones(rows)
        """Tempered: Σ P^(1/β). Otherwise 1."""
        self.divergence = torch.zeros(rows)
        """Tempered: Σ P^(1/β) log P. Reference: Σ R log(R/P). Reversed: Σ P log(P/R)."""

    def block_sums(self, z: Tensor, other: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over a block; `other` [R, B] holds the reference's z, and is overwritten.

        Returns Σ T-like weights [R] (`sums` of the tempered, Σ e^z of the reference) and the
        weighted sum that `divergence` needs.
        """
        if self.target.kind == "tempered":
            weights = torch.mul(z, 1 / self.target.temperature, out=scratch).exp_()
            return weights.sum(-1).float(), weights.mul_(z).sum(-1).float()
        weights = torch.exp(other, out=scratch)
        sums = weights.sum(-1).float()
        if self.target.kind == "reference":
            return sums, other.sub_(z).mul_(weights).sum(-1).float()
        weights = torch.exp(z, out=scratch)
        return sums, other.neg_().add_(z).mul_(weights).sum(-1).float()

    def add(
        self,
        rows: slice,
        shifts: tuple[Tensor, Tensor],
        growth: Tensor,
        sums: Tensor,
        block: tuple[Tensor, Tensor],
    ) -> None:
        """Add `block_sums`, given the growth of P's normalizer and P's sums Σ e^z [R]."""
        (shift, shift_reference), (weights, products) = shifts, block
        old, seen = self.divergence[rows], self.sums[rows]
        if self.target.kind == "tempered":
            power = 1 / self.target.temperature
            before = torch.exp(-power * (shift + growth))
            share = torch.exp(-power * growth)
            self.divergence[rows] = before * (old - (shift + growth) * seen) + share * (
                products - growth * weights
            )
            self.sums[rows] = before * seen + share * weights
            return
        unused = torch.zeros_like(weights)
        growth_reference = self.reference.add(
            rows, shift_reference, torch.stack([weights, unused, unused, unused])
        )
        # log(R/P) of the entries so far changes by the difference of what the normalizers rise.
        rise = shift_reference + growth_reference - shift - growth
        rise_in_block = growth_reference - growth
        if self.target.kind == "reference":
            before = torch.exp(-shift_reference - growth_reference)
            share = torch.exp(-growth_reference)
            new = before * (old - rise) + share * (products - rise_in_block * weights)
        else:
            before, share = torch.exp(-shift - growth), torch.exp(-growth)
            new = before * (old + rise) + share * (products + rise_in_block * sums)
        self.divergence[rows] = new


class Candidates:
    """The entries with the largest logits so far: values relative to the target's, and places."""

    def __init__(self, labels: Tensor) -> None:
        self.values = torch.full((len(labels), _CANDIDATES), -torch.inf)
        self.values[:, 0] = 0
        self.entries = labels[:, None].repeat(1, _CANDIDATES)

    def add(self, rows: slice | Tensor, z: Tensor, log_sum: Tensor, block: slice) -> None:
        """Merge a block's largest z [R, B], relative to the target's logit + log_sum [R]."""
        values, places = z.topk(min(_CANDIDATES, z.shape[-1]), sorted=False)
        # The target is among the candidates from the start.
        values = values.float().masked_fill_(values <= _NOTHING / 2, -torch.inf)
        values = torch.cat([self.values[rows], values + log_sum[:, None]], -1)
        entries = torch.cat([self.entries[rows], places + block.start], -1)
        self.values[rows], kept = values.topk(_CANDIDATES, sorted=False)
        self.entries[rows] = entries.gather(1, kept)

    def entropy(self, inputs: HeadInputs) -> Tensor:
        """Compute the entropy [M] of the largest from float32 logits of all candidates."""
        parts = []
        for rows in slices(len(self.values), _CANDIDATE_ROWS):
            entries = self.entries[rows]
            weight = inputs.weight[entries].float()
            logits = (weight @ inputs.hidden[rows, :, None].float()).squeeze(-1)
            if inputs.bias is not None:
                logits += inputs.bias[entries]
            logits.masked_fill_(self.values[rows].isneginf(), -torch.inf)
            top = logits.topk(min(inputs.top_k, len(inputs.weight))).values.log_softmax(-1)
            parts.append(-(top.exp() * top.clamp(min=_NOTHING)).sum(-1))
        return torch.cat(parts) if parts else self.values.new_zeros(0)


class BlockedStatistics:
    """The pass, and what the second one needs of it."""

    def __init__(
        self, inputs: HeadInputs, target: Target | None, wanted: Wanted, rows: int, entries: int
    ) -> None:
        M, V = len(inputs.labels), len(inputs.weight)
        self.inputs, self.target, self.wanted = inputs, target, wanted
        self.rows, self.entries, self.most_entries = min(M, rows), min(V, entries), entries
        self.seen = Seen(M)
        self.model = Layer(inputs.hidden, inputs.weight, inputs.bias, inputs.labels, self.entries)
        self.reference: Layer | None = None
        if inputs.reference is not None:
            self.reference = Layer(*inputs.reference, inputs.labels, self.entries)
        self.seen_target: SeenTarget | None = None
        if target is not None and target.kind != "uniform":
            self.seen_target = SeenTarget(target, M)
        self.weight_sum = torch.zeros(inputs.weight.shape[1])
        """Σ_v weight[v], where T is uniform."""
        top20 = "entropy_top" in wanted.statistics
        self.candidates = Candidates(inputs.labels) if top20 else None

        def buffer() -> Tensor:
            return inputs.weight.new_empty(self.rows * self.entries)

        # Made once: fresh pages cost more than the product that fills them.
        self.logits = buffer()
        has_scratch = self.seen_target is not None or "entropy" in wanted.statistics
        self.scratch = buffer() if has_scratch else self.logits
        self.other = self.logits if self.seen_target is None else buffer()

    def run(self) -> TokenStats:
        """Compute the statistics [M]."""
        M, V = len(self.inputs.labels), len(self.inputs.weight)
        # The first blocks are short: while little has been seen, a block is likely to outweigh it.
        for block in _doubling_slices(V, self.most_entries):
            weight = self.model.fill(block)
            reference = None if self.reference is None else self.reference.fill(block)
            if self.target is not None and self.target.kind == "uniform":
                self.weight_sum += self.inputs.weight[block].float().sum(0)
            if not bool(weight.sum().isfinite()):
                # No sum would show a logit of −inf.
                self.seen.log_sum.fill_(torch.nan)
            for rows in slices(M, self.rows):
                self._add(rows, block, weight, reference)
        return self._result()

    def _add(self, rows: slice, block: slice, weight: Tensor, reference: Tensor | None) -> None:
        """Add a block of logits of some rows."""
        labels, seen, seen_target = self.inputs.labels[rows], self.seen, self.seen_target
        normalizer = self.model.target[rows] + seen.log_sum[rows]
        z = self._relative_logits(self.model, self.logits, rows, weight, normalizer)
        # The target has been counted already, in float32.
        at_target = targets(labels, block)
        z[at_target] = _NOTHING
        other_normalizer, other = normalizer, z
        if self.reference is not None and reference is not None and seen_target is not None:
            other_normalizer = self.reference.target[rows] + seen_target.reference.log_sum[rows]
            other = self._relative_logits(
                self.reference, self.other, rows, reference, other_normalizer
            )
            other[at_target] = _NOTHING
        if self.candidates is not None:
            before = self.candidates.values[rows].clone(), self.candidates.entries[rows].clone()
            self.candidates.add(rows, z, seen.log_sum[rows], block)
        divergence = None
        if seen_target is not None:
            divergence = seen_target.block_sums(z, other, view(self.scratch, *z.shape))
        sums = _sums(z, view(self.scratch, *z.shape), self.wanted.statistics)

        shift, other_shift = torch.zeros_like(normalizer), torch.zeros_like(normalizer)
        outweighs = sums[0] > _OUTWEIGHS
        if divergence is not None and self.reference is not None:
            outweighs |= divergence[0] > _OUTWEIGHS
        heavy = outweighs.nonzero().squeeze(-1)
        if len(heavy):
            exact, shift[heavy] = self._exact_logits(
                self.model, rows.start + heavy, normalizer[heavy], block
            )
            exact_other = exact
            if self.reference is not None:
                exact_other, other_shift[heavy] = self._exact_logits(
                    self.reference, rows.start + heavy, other_normalizer[heavy], block
                )
            if self.candidates is not None:
                self.candidates.values[rows.start + heavy] = before[0][heavy]
                self.candidates.entries[rows.start + heavy] = before[1][heavy]
                log_sum = seen.log_sum[rows][heavy] + shift[heavy]
                self.candidates.add(rows.start + heavy, exact, log_sum, block)
            scratch = torch.empty_like(exact)
            if divergence is not None and seen_target is not None:
                parts = seen_target.block_sums(exact, exact_other, scratch)
                divergence[0][heavy], divergence[1][heavy] = parts
            sums[:, heavy] = _sums(exact, scratch, self.wanted.statistics)
        growth = seen.add(rows, shift, sums)
        if divergence is not None and seen_target is not None:
            seen_target.add(rows, (shift, other_shift), growth, sums[0], divergence)

    def _relative_logits(
        self, layer: Layer, buffer: Tensor, rows: slice, weight: Tensor, normalizer: Tensor
    ) -> Tensor:
        layer.set_normalizer(rows, normalizer)
        logits = view(buffer, size(rows), len(weight))
        return torch.mm(layer.hidden[rows], weight.T, out=logits)

    def _exact_logits(
        self, layer: Layer, rows: Tensor, normalizer: Tensor, block: slice
    ) -> tuple[Tensor, Tensor]:
        """Compute float32 logits less normalizer and shift, and the shift.

        The shift [R] is the largest logit, or 0 if that is negative.
        """
        z = layer.float32_logits(rows, block)
        z -= normalizer[:, None]
        z[targets(self.inputs.labels[rows], block)] = _NOTHING
        shift = z.amax(-1).clamp_(min=0)
        z -= shift[:, None]
        return z, shift

    def _result(self) -> TokenStats:
        seen, wanted = self.seen, self.wanted.statistics
        logp = -seen.log_sum
        self.normalizer = self.model.target + seen.log_sum
        """log Σ e^z [M]."""
        return TokenStats(
            logp=logp,
            p=logp.exp(),
            mask=torch.ones(len(logp), dtype=torch.bool),
            concentration=seen.squares if "concentration" in wanted else None,
            entropy=-seen.products if "entropy" in wanted else None,
            entropy_top=None if self.candidates is None else self.candidates.entropy(self.inputs),
            top_logp=seen.top if "top_logp" in wanted else None,
            divergence=None if self.target is None else self._divergence(),
            step_mean_p=self.inputs.step_mean_p,
        )

    def _divergence(self) -> Tensor:
        """Compute D(T, P) [M]."""
        if self.seen_target is None:
            # −mean_v log P_v is log Σ e^z less the mean logit, which is one row times the mean
            # weight: no sum over the vocabulary's logits.
            inputs = self.inputs
            mean = inputs.hidden.float() @ (self.weight_sum / len(inputs.weight))
            if inputs.bias is not None:
                mean += inputs.bias.float().mean()
            return self.normalizer - mean
        if self.seen_target.target.kind == "tempered":
            return -self.seen_target.divergence / self.seen_target.sums
        return self.seen_target.divergence


def _sums(z: Tensor, scratch: Tensor, wanted: frozenset[str]) -> Tensor:
    """Compute Σ e^z, Σ e^2z, Σ z e^z and max z of the rows of z [R, B], as float32 [4, R].

    Sums that are not wanted are 0. PyTorch adds in float32 and rounds a block's sum once to the
    dtype of z. Overwrites z, and scratch, which may be z without entropy.
    """
    sums = torch.zeros(4, len(z))
    if "top_logp" in wanted:
        sums[3] = z.amax(-1)
    e = torch.exp(z, out=scratch)
    sums[0] = e.sum(-1)
    if "concentration" in wanted:
        # A norm squares and sums in float32, where e · e would be rounded and stored.
        sums[1] = torch.linalg.vector_norm(e, dim=-1).float().square()
    if "entropy" in wanted:
        sums[2] = z.mul_(e).sum(-1)
    return sums


def targets(labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Find the rows whose target lies in the block, and its place there."""
    rows = ((labels >= block.start) & (labels < block.stop)).nonzero().squeeze(-1)
    return rows, labels[rows] - block.start


def _as_three(values: Tensor) -> Tensor:
    """Split float32 [K] into bfloat16 [K, 3] that add up to it."""
    # 3 · 8 bits are float32's 24: each part is the rounding error of those before it.
    first = values.to(torch.bfloat16)
    second = (values - first).to(torch.bfloat16)
    return torch.stack([first, second, (values - first - second.float()).to(torch.bfloat16)], -1)


def view(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """View the start of a flat buffer as a matrix."""
    return buffer[: rows * columns].view(rows, columns)


def slices(length: int, step: int) -> list[slice]:
    """Split a length into slices of a step; none of an empty one."""
    return [slice(start, min(start + step, length)) for start in range(0, length, max(step, 1))]


def _doubling_slices(length: int, most: int) -> list[slice]:
    """Split a length into slices as long as all before them, from most / 8 (at least 1) to most."""
    slices: list[slice] = []
    start = 0
    while start < length:
        stop = min(length, start + min(most, max(start, most // 8, 1)))
        slices.append(slice(start, stop))
        start = stop
    return slices


def size(rows: slice) -> int:
    """Return the length of a slice."""
    return int(rows.stop - rows.start)
