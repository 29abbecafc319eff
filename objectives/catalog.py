"""Every objective of the platform: its name, formula, gate, source and parameter.

Notation, per target token: p is its probability and ℓ = log p; P the full softmax and e_y the
one-hot target; c = Σ_v P_v²; H̃ an entropy; sg(·) is held fixed in differentiation. The value is
what is summed into the loss. The gradient in the logits is gate · (P − e_y), for a few objectives
plus mix · (P − T) with a target distribution T.

This table is what `deft list objectives` and `docs/objectives.md` print, and what a spec is checked
against. It needs pydantic and the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from deft.workers.common.settings import Settings


class Parameters(Settings):
    """Parameters of an objective that has none; the base of all others."""


def _nonzero(value: float) -> float:
    if value == 0:
        raise ValueError("it must not be 0; the limit α → 0 is the objective 'original'")
    return value


class Alpha(Parameters):
    alpha: Annotated[float, Field(ge=-16, le=64), AfterValidator(_nonzero)]
    """Exponent of the deformed logarithm; 1 is `p`, towards 0 it becomes `original`."""


class LowerThreshold(Parameters):
    q: float = Field(ge=0, lt=1)
    """Tokens whose probability is at least q are kept."""


class UpperThreshold(Parameters):
    q: float = Field(gt=0, le=1)
    """Tokens whose probability is at most q are kept."""


class Share(Parameters):
    q: float = Field(gt=0, le=1)
    """Share of the micro-batch's target tokens that is kept."""


class EntropyExponent(Parameters):
    a: float = Field(default=1.0, ge=0, le=16)
    """Exponent of the entropy."""


class Floor(Parameters):
    floor: float = Field(default=0.1, ge=0, le=1)
    """Least weight of a token."""


class FocusingExponent(Parameters):
    gamma: float = Field(default=2.0, ge=0, le=16)
    """Exponent of 1 − p; 0 is `original`."""


class Smoothing(Parameters):
    epsilon: float = Field(default=0.1, ge=0, lt=1)
    """Probability mass moved from the target to the uniform distribution."""


class Temperature(Parameters):
    beta: float = Field(default=0.7, gt=0, le=1)
    """Temperature of the distribution that the target competes with."""


class TopEntropy(EntropyExponent):
    k: int = Field(default=20, ge=2, le=1000)
    """Number of largest logits that the entropy is taken over."""


class Polylog(Parameters):
    beta: float = Field(default=1.0, gt=0, le=100)
    """Temperature of the centered log-likelihood ℓ + H."""
    gamma_min: float = Field(default=0.1, ge=0, le=16)
    """Least exponent."""
    gamma_max: float = Field(default=2.0, ge=0, le=16)
    """Largest exponent."""


class Band(Parameters):
    q: float = Field(default=0.3, ge=0, le=1)
    """Tokens whose probability is at least q keep their loss."""
    most: float = Field(default=1.0, ge=0, le=1)
    """And at most this."""


class ClippedRatio(Parameters):
    low: float = Field(default=0.2, ge=0, le=1)
    """Least weight."""
    high: float = Field(default=1.8, ge=1, le=100)
    """Largest weight."""


class SequenceRatio(Parameters):
    temperature: float = Field(default=1.0, gt=0, le=100)
    """Factor of the mean log-ratio of an example."""
    high: float = Field(default=16.0, gt=0, le=1000)
    """Largest weight."""


class Proximity(Parameters):
    high: float = Field(default=0.28, gt=0, le=100)
    """How far above 1 a ratio may rise and still have a gradient."""


class CleanShare(Parameters):
    q: float = Field(default=0.6, gt=0, le=1)
    """Share of an example's target tokens that is kept."""


class WeightFloor(Parameters):
    floor: float = Field(default=0.01, ge=0, le=1)
    """Least weight of a token."""


class Anchor(Parameters):
    lam: float = Field(default=0.1, ge=0, le=100)
    """Weight λ of the divergence from the frozen reference model."""


@dataclass(frozen=True)
class ObjectiveInfo:
    """One row of the catalog."""

    name: str
    """Canonical name, as users of the original code know it."""
    aliases: tuple[str, ...]
    """Other accepted spellings."""
    value: str
    """What is summed into the loss, per token."""
    gate: str
    """The weight of the error P − e_y in the logit gradient."""
    source: str
    """Paper or code that defines it."""
    summary: str
    """What it does to which tokens, in one line."""
    implementation: str
    """`module:function`, loaded when the objective is used."""
    parameters: type[Parameters] = Parameters
    """Schema of the parameter, with its default and bounds."""

    @property
    def parameter(self) -> str | None:
        """Name of the parameter that follows a dash, the first one; None if there is none."""
        return next(iter(self.parameters.model_fields), None)

    @property
    def default(self) -> float | None:
        """Default of that parameter, or None where it must be given."""
        return self.defaults.get(self.parameter or "")

    @property
    def defaults(self) -> dict[str, float]:
        """Defaults of the parameters that have one."""
        fields = self.parameters.model_fields.items()
        return {name: field.default for name, field in fields if not field.is_required()}

    @property
    def signature(self) -> str:
        """Spelling in a run file: `GeneralFamily-α`, `EAFT[-a]`, with names if there are more."""
        if self.parameter is None:
            return self.name
        if len(self.parameters.model_fields) > 1:
            given = [f"{name}={default:g}" for name, default in self.defaults.items()]
            return f"{self.name}({', '.join(given)})"
        symbol = _SYMBOLS.get(self.parameter, self.parameter)
        return f"{self.name}-{symbol}" if self.default is None else f"{self.name}[-{symbol}]"

    @property
    def example(self) -> str:
        """Spelling that validates."""
        return f"{self.name}-0.5" if self.parameter and self.default is None else self.name


_SYMBOLS = {"alpha": "α", "beta": "β", "gamma": "γ", "epsilon": "ε", "lam": "λ", "floor": "f"}
_FAMILY = "arXiv 2510.00526"
_DEFT = "arXiv 2602.11424"
_QUANTILE = "this platform, after the thresholds of arXiv 2510.00526"
_ASFT = "arXiv 2509.23753, as in its code (zhuchichi56/ASFT)"


def _table(*rows: ObjectiveInfo) -> dict[str, ObjectiveInfo]:
    return {row.name: row for row in rows}


CATALOG: dict[str, ObjectiveInfo] = _table(
    ObjectiveInfo(
        name="original",
        aliases=("logp", "nll"),
        value="−ℓ",
        gate="1",
        source="standard SFT",
        summary="Negative log-likelihood: every token weighs the same.",
        implementation="deft.objectives.functions.deformed:original",
    ),
    ObjectiveInfo(
        name="p",
        aliases=("prob",),
        value="1 − p",
        gate="p",
        source=_FAMILY,
        summary="Sharpens what is known; tokens of low probability hardly count.",
        implementation="deft.objectives.functions.deformed:probability",
    ),
    ObjectiveInfo(
        name="GeneralFamily",
        aliases=("general_family", "tsallis"),
        value="(1 − p^α)/α",
        gate="p^α",
        source=_FAMILY,
        summary="Deformed logarithm between original (α → 0) and p (α = 1), and beyond.",
        implementation="deft.objectives.functions.deformed:general_family",
        parameters=Alpha,
    ),
    ObjectiveInfo(
        name="Cayley_Trans",
        aliases=("cayley",),
        value="−(exp(αℓ) − 1)/(α + 1e-8)",
        gate="α/(α + 1e-8) · p^α",
        source=_DEFT,
        summary=(
            "Focus α = sg(clamp(f + (1 − f)·p/(2 − p), 0.001, 1)) from the token's own p, "
            "lifted by f, half the batch's mean p."
        ),
        implementation="deft.objectives.functions.deformed:cayley",
    ),
    ObjectiveInfo(
        name="DEFT",
        aliases=("deft",),
        value="−(exp(αℓ) − 1)/(α + 1e-6)",
        gate="α/(α + 1e-6) · p^α",
        source=_DEFT,
        summary=(
            "Focus α = sg(c) from the concentration of the whole prediction: confident conflicts "
            "are damped, open questions are learned."
        ),
        implementation="deft.objectives.functions.deformed:deft",
    ),
    ObjectiveInfo(
        name="DEFT_exact",
        aliases=("deft_exact",),
        value="(1 − p^α)/α",
        gate="p^α",
        source=f"{_DEFT}, without its 1e-6",
        summary="DEFT in the limit form: α = sg(c) and no constant beside it.",
        implementation="deft.objectives.functions.deformed:deft_exact",
    ),
    ObjectiveInfo(
        name="OnlyTopP",
        aliases=("only_top_p",),
        value="(1 − p)·1[p ≥ q]",
        gate="p·1[p ≥ q]",
        source=_FAMILY,
        summary="p on the tokens that the model trusts; the others are dropped.",
        implementation="deft.objectives.functions.thresholds:only_top_p",
        parameters=LowerThreshold,
    ),
    ObjectiveInfo(
        name="OnlyBottomP",
        aliases=("only_bottom_p",),
        value="(1 − p)·1[p ≤ q]",
        gate="p·1[p ≤ q]",
        source=_FAMILY,
        summary="p on the tokens that the model distrusts; the others are dropped.",
        implementation="deft.objectives.functions.thresholds:only_bottom_p",
        parameters=UpperThreshold,
    ),
    ObjectiveInfo(
        name="OnlyTopLogP",
        aliases=("only_top_logp",),
        value="−ℓ·1[p ≥ q]",
        gate="1[p ≥ q]",
        source=_FAMILY,
        summary="NLL on the tokens that the model trusts; the others are dropped.",
        implementation="deft.objectives.functions.thresholds:only_top_logp",
        parameters=LowerThreshold,
    ),
    ObjectiveInfo(
        name="OnlyBottomLogP",
        aliases=("only_bottom_logp",),
        value="−ℓ·1[p ≤ q]",
        gate="1[p ≤ q]",
        source=_FAMILY,
        summary="NLL on the tokens that the model distrusts; the others are dropped.",
        implementation="deft.objectives.functions.thresholds:only_bottom_logp",
        parameters=UpperThreshold,
    ),
    ObjectiveInfo(
        name="TopQuantileP",
        aliases=("top_quantile_p",),
        value="(1 − p)·1[p in the top share q]",
        gate="p·1[p in the top share q]",
        source=_QUANTILE,
        summary="p on the micro-batch's share q of most trusted tokens.",
        implementation="deft.objectives.functions.thresholds:top_quantile_p",
        parameters=Share,
    ),
    ObjectiveInfo(
        name="BottomQuantileP",
        aliases=("bottom_quantile_p",),
        value="(1 − p)·1[p in the bottom share q]",
        gate="p·1[p in the bottom share q]",
        source=_QUANTILE,
        summary="p on the micro-batch's share q of least trusted tokens.",
        implementation="deft.objectives.functions.thresholds:bottom_quantile_p",
        parameters=Share,
    ),
    ObjectiveInfo(
        name="TopQuantileLogP",
        aliases=("top_quantile_logp",),
        value="−ℓ·1[p in the top share q]",
        gate="1[p in the top share q]",
        source=_QUANTILE,
        summary="NLL on the micro-batch's share q of most trusted tokens.",
        implementation="deft.objectives.functions.thresholds:top_quantile_logp",
        parameters=Share,
    ),
    ObjectiveInfo(
        name="BottomQuantileLogP",
        aliases=("bottom_quantile_logp",),
        value="−ℓ·1[p in the bottom share q]",
        gate="1[p in the bottom share q]",
        source=_QUANTILE,
        summary="NLL on the micro-batch's share q of least trusted tokens.",
        implementation="deft.objectives.functions.thresholds:bottom_quantile_logp",
        parameters=Share,
    ),
    ObjectiveInfo(
        name="DFT",
        aliases=("dft",),
        value="−sg(p)·ℓ",
        gate="sg(p)",
        source="arXiv 2508.05629",
        summary="NLL weighed by the token's probability: the gradient of p.",
        implementation="deft.objectives.functions.weighted:dft",
    ),
    ObjectiveInfo(
        name="DFT_floor",
        aliases=("dft_floor",),
        value="−sg(max(p, f))·ℓ",
        gate="sg(max(p, f))",
        source="github.com/yongliang-wu/DFT/issues/1",
        summary="DFT in which no token weighs less than f.",
        implementation="deft.objectives.functions.weighted:dft_floor",
        parameters=Floor,
    ),
    ObjectiveInfo(
        name="EAFT",
        aliases=("eaft",),
        value="−sg(H̃^a)·ℓ",
        gate="sg(H̃^a)",
        source="arXiv 2601.02151, LLaMA-Factory",
        summary="NLL weighed by the entropy of the top 20 logits / 3.0: open questions count most.",
        implementation="deft.objectives.functions.weighted:eaft",
        parameters=EntropyExponent,
    ),
    ObjectiveInfo(
        name="EAFT_axolotl",
        aliases=("eaft_axolotl",),
        value="−sg(H^a)·ℓ",
        gate="sg(H^a)",
        source="arXiv 2601.02151, Axolotl (its eaft_alpha and eaft_k)",
        summary="EAFT with the entropy of the top k not divided: at a = 1 and k = 20 every gate is "
        "three times EAFT's.",
        implementation="deft.objectives.functions.weighted:eaft_unscaled",
        parameters=TopEntropy,
    ),
    ObjectiveInfo(
        name="CHORD",
        aliases=("chord", "chord_phi"),
        value="−sg(p(1 − p))·ℓ",
        gate="p(1 − p)",
        source="arXiv 2508.11408 (the weight φ, detached)",
        summary="NLL weighed towards tokens that the model is undecided about.",
        implementation="deft.objectives.functions.weighted:chord_phi",
    ),
    ObjectiveInfo(
        name="Focal",
        aliases=("focal",),
        value="−(1 − p)^γ·ℓ",
        gate="(1 − p)^γ − γ·p·(1 − p)^(γ−1)·ℓ",
        source="arXiv 1708.02002, equation 4",
        summary="Focal loss, its weight not detached: hard tokens count most.",
        implementation="deft.objectives.functions.weighted:focal",
        parameters=FocusingExponent,
    ),
    ObjectiveInfo(
        name="IDFT",
        aliases=("idft", "polylog"),
        value="−p^γ·ℓ",
        gate="p^γ·(1 + γ·ℓ)",
        source="arXiv 2602.12222, as in its code without the warm-up",
        summary=(
            "γ = sg(clamp(exp(−(ℓ + H)/β), γ_min, γ_max)): what is out of the model's distribution "
            "is damped; p^γ has its own gradient."
        ),
        implementation="deft.objectives.functions.weighted:idft",
        parameters=Polylog,
    ),
    ObjectiveInfo(
        name="ProFit",
        aliases=("profit",),
        value="−ℓ·1[q ≤ p ≤ most]",
        gate="1[q ≤ p ≤ most]",
        source="arXiv 2601.09195, as in its code",
        summary="OnlyTopLogP whose mean is over all target tokens, also those that are masked.",
        implementation="deft.objectives.functions.thresholds:profit",
        parameters=Band,
    ),
    ObjectiveInfo(
        name="TALR",
        aliases=("talr",),
        value="−sg(max(p^(1/τ), f))·ℓ",
        gate="sg(max(p^(1/τ), f))",
        source="arXiv 2509.20758, which published no code; the floor f as others re-implement it",
        summary="τ = sg(median over the micro-batch's examples of their mean NLL): hard tokens "
        "count less.",
        implementation="deft.objectives.functions.ratios:talr",
        parameters=WeightFloor,
    ),
    ObjectiveInfo(
        name="iwSFT",
        aliases=("iw_sft", "iw-sft"),
        value="−sg(w)·ℓ, w = clip(exp(T·mean(ℓ − ℓ_R)), 0, high)",
        gate="sg(w)",
        source="arXiv 2507.12856, as its code runs",
        summary="NLL weighed by how much likelier the whole example is than under the reference.",
        implementation="deft.objectives.functions.ratios:iw_sft",
        parameters=SequenceRatio,
    ),
    ObjectiveInfo(
        name="iwSFT_token",
        aliases=("iw_sft_token",),
        value="−sg(w)·ℓ, w = clip(p/p_R, low, high)",
        gate="sg(w)",
        source="arXiv 2507.12856, its code's variant per token",
        summary="NLL weighed by how much likelier the token is than under the reference.",
        implementation="deft.objectives.functions.ratios:iw_sft_token",
        parameters=ClippedRatio,
    ),
    ObjectiveInfo(
        name="PSFT",
        aliases=("psft",),
        value="−min(r, 1 + high), r = p/p_old",
        gate="r·1[r ≤ 1 + high]",
        source="arXiv 2508.17784 (PPO's clip at advantage 1)",
        summary="A token has no gradient once it is this much likelier than under the old policy.",
        implementation="deft.objectives.functions.ratios:psft",
        parameters=Proximity,
    ),
    ObjectiveInfo(
        name="TokenCleaning",
        aliases=("token_cleaning",),
        value="−ℓ·1[ℓ_R − ℓ_0 in its example's top share q]",
        gate="1[ℓ_R − ℓ_0 in its example's top share q]",
        source="arXiv 2502.01968, its fixed-model cleaning per sample",
        summary="NLL on the tokens that the reference (training.reference) knows better than the "
        "model did before training; the others are dropped.",
        implementation="deft.objectives.functions.ratios:token_cleaning",
        parameters=CleanShare,
    ),
    ObjectiveInfo(
        name="LabelSmoothing",
        aliases=("label_smoothing",),
        value="−(1 − ε)·ℓ − ε·mean_v log P_v",
        gate="1 − ε; mix ε, T uniform",
        source="arXiv 1512.00567, section 7",
        summary="NLL against a target that leaves ε to the whole vocabulary.",
        implementation="deft.objectives.functions.mixed:label_smoothing",
        parameters=Smoothing,
    ),
    ObjectiveInfo(
        name="GEM",
        aliases=("gem",),
        value="−Σ_v q_v·(ℓ − log P_v), q = sg softmax(z/β)",
        gate="1; mix −1, T = q",
        source="arXiv 2408.16673, linear h",
        summary="NLL that keeps diversity: the target competes with the sharpened prediction.",
        implementation="deft.objectives.functions.mixed:gem",
        parameters=Temperature,
    ),
    ObjectiveInfo(
        name="ASFT",
        aliases=("asft",),
        value="−sg(p)·ℓ + λ·KL[R ‖ P]",
        gate="sg(p); mix λ, T = R",
        source=_ASFT,
        summary="DFT anchored to a frozen model R by the forward KL divergence.",
        implementation="deft.objectives.functions.mixed:asft",
        parameters=Anchor,
    ),
    ObjectiveInfo(
        name="ASFT_reverse",
        aliases=("asft_reverse",),
        value="−sg(p)·ℓ + λ·KL[P ‖ R]",
        gate="sg(p); mix λ, T = P·(1 − log(P/R) + KL)",
        source=f"{_ASFT}, with the KL turned round",
        summary="DFT anchored to a frozen model R by the reverse KL divergence.",
        implementation="deft.objectives.functions.mixed:asft_reverse",
        parameters=Anchor,
    ),
    ObjectiveInfo(
        name="SFT_KL",
        aliases=("sft_kl",),
        value="−ℓ + λ·KL[R ‖ P]",
        gate="1; mix λ, T = R",
        source=_ASFT,
        summary="NLL anchored to a frozen model R by the forward KL divergence.",
        implementation="deft.objectives.functions.mixed:sft_kl",
        parameters=Anchor,
    ),
    ObjectiveInfo(
        name="SFT_KL_reverse",
        aliases=("sft_kl_reverse",),
        value="−ℓ + λ·KL[P ‖ R]",
        gate="1; mix λ, T = P·(1 − log(P/R) + KL)",
        source=f"{_ASFT}, with the KL turned round",
        summary="NLL anchored to a frozen model R by the reverse KL divergence.",
        implementation="deft.objectives.functions.mixed:sft_kl_reverse",
        parameters=Anchor,
    ),
)
