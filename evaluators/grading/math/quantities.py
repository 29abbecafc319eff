"""Numbers and units: how a rational number is written, and which units are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from deft.evaluators.grading.brackets import is_balanced
from deft.evaluators.grading.math.nodes import Scalar

UNIT_LETTERS = "mgsLJNWVAKh"
"""Letters that are read as a unit behind a number when the gold answer has no variables."""
_SPELLINGS = {
    "cm": "centimeter centimeters centimetre centimetres cm cms",
    "mm": "millimeter millimeters millimetre millimetres mm", "m": "meter meters metre metres m",
    "km": "kilometer kilometers kilometre kilometres km kms", "in": "inch inches in",
    "ft": "foot feet ft", "yd": "yard yards yd yds", "mi": "mile miles mi",
    "s": "second seconds sec secs s", "min": "minute minutes min mins", "h": "hour hours hr hrs h",
    "day": "day days", "week": "week weeks wk wks", "month": "month months",
    "year": "year years yr yrs", "g": "gram grams gramme grammes g gm gms",
    "kg": "kilogram kilograms kilo kilos kg kgs", "mg": "milligram milligrams mg",
    "lb": "pound pounds lb lbs", "oz": "ounce ounces oz", "L": "liter liters litre litres l L",
    "mL": "milliliter milliliters millilitre millilitres ml mL",
    "dollar": "dollar dollars usd buck bucks", "cent": "cent cents", "euro": "euro euros",
    "rad": "radian radians rad", "J": "joule joules J", "N": "newton newtons N",
    "W": "watt watts W", "V": "volt volts V", "K": "kelvin kelvins K", "Hz": "hertz Hz", "eV": "eV",
    "A": "ampere amperes amp amps A", "mol": "mole moles mol", "celsius": "celsius °C",
    "fahrenheit": "fahrenheit °F", "C": "coulomb coulombs C", "F": "farad farads F",
    "dozen": "dozen dozens", "unit": "unit units un", "mi/h": "mph", "km/h": "kph kmh kmph",
    "am": "am a.m. a.m", "pm": "pm p.m. p.m", "angstrom": "angstrom angstroms",
    "pc": "parsec parsecs pc", "erg": "erg ergs", "solarmass": "solar-mass",
}  # fmt: skip
_CANONICAL = {
    spelling: canonical for canonical, line in _SPELLINGS.items() for spelling in line.split()
}
_POWERS = {"square": "^2", "squared": "^2", "sq": "^2", "cubic": "^3", "cubed": "^3", "cu": "^3"}
_FILLER = frozenset(
    ("of", "the", "a", "an", "in", "long", "total", "approximately", "about", "each")
)
_ONES_TEXT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES, _TENS = _ONES_TEXT.split(), _TENS_TEXT.split()
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
_SIZES = {
    "length": {"mm": 1, "cm": 10, "m": 1000, "km": 10**6},
    "imperial length": {"in": 1, "ft": 12, "yd": 36, "mi": 63360},
    "time": {"s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800},
    "mass": {"mg": 1, "g": 1000, "kg": 10**6},
    "imperial mass": {"oz": 1, "lb": 16},
    "volume": {"mL": 1, "L": 1000},
    "money": {"cent": 1, "dollar": 100},
}
_DIMENSION = {unit: (kind, size) for kind, sizes in _SIZES.items() for unit, size in sizes.items()}
POWER = r"(?:\^\{?-?\d\}?)?"
NUMERIC = r"-?(?:\d|\\frac|\\sqrt|\\pi|\\cdot|[{}.^()+/\s-])+"
_DECIMAL = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")
_SCIENTIFIC = re.compile(r"(-?(?:\d+(?:\.\d+)?\\cdot ?)?)10\^\{?\(?(-?\d{1,4})\)?\}?")
_FRACTION = re.compile(r"(-?)(\d*)\\frac\{(-?\d+)\}\{(-?\d+)\}|(-?\d+)/(-?\d+)")


def number_word(words: str) -> Fraction | None:
    """Read the number that ``words`` spells, ``two million`` or ``three quarters``, if any."""
    parts = [w for w in words.lower().replace("-", " ").split() if w != "and"]
    if not parts or (parts[0] in _PARTS and len(parts) > 1):
        return None
    denominator = _PARTS.get(parts[-1].removesuffix("s")) if len(parts) > 1 else None
    if denominator:
        top = Fraction(1) if parts[:-1] in (["a"], ["an"]) else number_word(" ".join(parts[:-1]))
        return top / denominator if top else None
    total, current = 0, 0
    for part in parts:
        if part in _ONES:
            current += _ONES.index(part)
        elif part in _TENS:
            current += 20 + 10 * _TENS.index(part)
        elif part == "a" and part is parts[0] and len(parts) > 1:
            current = 1
        elif part == "hundred":
            current = (current or 1) * 100
        elif part in SCALES:
            total, current = total + (current or 1) * SCALES[part], 0
        else:
            return None
    return Fraction(total + current)


def is_unit(words: str) -> bool:
    """Check that every word is a known unit, and not merely something that is counted."""
    parts = [part for part in _tokens(words) if not re.fullmatch(r"[/·^]|\^-?\d|-?\d", part)]
    return bool(parts) and all(
        part in _CANONICAL or part.lower() in _CANONICAL or part.lower() in (*_POWERS, "per")
        for part in parts
    )


def canonical_unit(words: str) -> str:
    """Spell a unit or a counted thing in the normal way: ``square centimetres`` is ``cm^2``."""
    result: list[str] = []
    power = ""
    for part in _tokens(words):
        low = part.lower()
        if low in _FILLER and len(_tokens(words)) > 1 and part != "in":
            continue
        if low in ("squared", "cubed") and result:
            result[-1] += _POWERS[low]
        elif low in _POWERS:
            power = _POWERS[low]
        elif low == "per":
            result.append("/")
        elif part.startswith("^") and result:
            result[-1] += part
        else:
            result.append((_CANONICAL.get(part) or _CANONICAL.get(low) or _singular(low)) + power)
            power = ""
    return " ".join(result).replace(" / ", "/").replace(" ^", "^")


def compatible(left: str, right: str) -> bool:
    """Check that two canonical units do not contradict each other."""
    if not left or not right or left == right:
        return True
    first, second = left.split(), right.split()
    units = set(_SPELLINGS)
    if any(re.split(r"[\^/]", part)[0] in units for part in (*first, *second)):
        return sorted(first) == sorted(second)
    # "marble" and "red marble" are the same count; "apple" and "orange" are not.
    return set(first) <= set(second) or set(second) <= set(first)


def conversion(unit: str, target: str) -> Fraction | None:
    """Return the factor from one unit to another of the same kind: 1/1000 from g to kg."""
    if unit == target:
        return Fraction(1)
    sizes = [_size(unit), _size(target)]
    if sizes[0] is None or sizes[1] is None or sizes[0][0] != sizes[1][0]:
        return None
    return sizes[0][1] / sizes[1][1]


def _size(unit: str) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
    """Split a unit into its dimensions with their exponents, and its size."""
    dimensions: dict[str, int] = {}
    size = Fraction(1)
    for sign, factors in zip((1, -1), unit.split("/"), strict=False):
        for factor in factors.split():
            name, _, power = factor.partition("^")
            if name not in _DIMENSION or unit.count("/") > 1:
                return None
            kind, scale = _DIMENSION[name]
            exponent = sign * int(power or 1)
            dimensions[kind] = dimensions.get(kind, 0) + exponent
            size *= Fraction(scale) ** exponent
    return tuple(sorted(dimensions.items())), size


def _tokens(words: str) -> list[str]:
    words = re.sub(r"\^\{?(-?\d)\}?", r" ^\1 ", words)
    words = re.sub(r"\\cdot|[·*()]", " ", words).replace("/", " / ")
    return [part.strip(".,;:") or part for part in words.split() if part.strip(".,;:")]


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-3] + "y" if word.endswith("ies") else word[:-1]
    return word


@dataclass(frozen=True)
class Number:
    """A rational number as it was written."""

    value: Fraction
    decimals: int | None = None
    """Digits behind the decimal point, trailing zeros included; None if there is no point."""
    digits: int = 0
    """Significant digits, of decimals only."""
    scientific: bool = False
    place: Fraction = Fraction(1)
    """What one in the last digit is worth."""


@lru_cache(maxsize=8192)
def number(latex: str) -> Number | None:
    """Read a rational number that ``latex`` writes directly; None for any other expression."""
    latex = latex.strip()
    if latex.startswith("(") and latex.endswith(")") and is_balanced(latex[1:-1]):
        latex = latex[1:-1]
    if not latex or len(latex) > 3000:
        return None
    if _DECIMAL.fullmatch(latex):
        return _decimal(latex)
    scientific = _SCIENTIFIC.fullmatch(latex)
    if scientific:
        front = re.sub(r"\\cdot ?", "", scientific[1])
        base = _decimal(front if front.strip("-") else f"{front}1")
        power = Fraction(10) ** int(scientific[2])
        return replace(base, value=base.value * power, place=base.place * power, scientific=True)
    fraction = _FRACTION.fullmatch(latex)
    return _fraction(fraction) if fraction else None


def _decimal(text: str) -> Number:
    # Python refuses to read more than 4300 digits, by design; so do we, below that.
    whole, _, behind = text.lstrip("-").partition(".")
    digits = len((whole + behind).lstrip("0"))
    decimals = len(behind) if behind.strip("0") else None
    return Number(Fraction(text), decimals, digits, place=Fraction(1, 10 ** len(behind)))


def _fraction(match: re.Match[str]) -> Number | None:
    sign, mixed, *parts = match.groups()
    top, bottom = (int(part) for part in parts if part is not None)
    if bottom == 0 or (mixed and min(top, bottom) < 0):
        return None
    value = int(mixed or 0) + Fraction(top, bottom)
    return Number(-value if sign else value)


def without_unit_letter(scalar: Scalar) -> Scalar | None:
    """Read ``5m`` as five meters, where nothing else in it is a variable."""
    match = re.fullmatch(rf"(-?\d+(?:\.\d+)?)\s?([{UNIT_LETTERS}])({POWER})", scalar.latex)
    if match is None or scalar.unit:
        return None
    return replace(scalar, latex=match[1].strip(), unit=canonical_unit(match[2] + match[3]))
