"""One spelling for the many ways in which people and models write the same mathematics.

`normalize_latex` turns Unicode, plain text, Python spellings and LaTeX's synonyms into one small
LaTeX without spacing, sizing or font commands. Words survive only inside ``\\text{…}``.
"""

from __future__ import annotations

import re
import unicodedata

from deft.evaluators.grading.brackets import read_group

MAX_ANSWER = 5000
"""Characters of an answer that is looked at; whatever is longer is nobody's answer."""
_UNICODE = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣－", "-"), "＋": "+", **dict.fromkeys("⋅·∙•", r"\cdot "),
        **dict.fromkeys("÷∕⁄", "/"), **dict.fromkeys("°º∘", "°"), **dict.fromkeys("μµ", r"\mu "),
        **dict.fromkeys("≤⩽", r"\leq "), **dict.fromkeys("≥⩾", r"\geq "),
        **dict.fromkeys("≈≅", r"\approx "), **dict.fromkeys("≡＝", "="), "（": "(", "）": ")",
        "，": ",", "。": ".", "：": ":", "；": ";", "％": "%",
        **dict.fromkeys("\u00a0\u202f\u2009", " "), **dict.fromkeys("\u200b\ufeff\u0000", ""),
        "’": "'", **dict.fromkeys("“”", '"'), "∗": "*", "×": r"\times ", "±": r"\pm ",
        "∓": r"\mp ", "√": r"\sqrt ", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "λ": r"\lambda ",
        "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ", "ε": r"\epsilon ", "ρ": r"\rho ",
        "τ": r"\tau ", "Δ": r"\Delta ", "Ω": r"\Omega ", "≠": r"\neq ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus ", "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
        "⟨": r"\langle ", "⟩": r"\rangle ", "∠": r"\angle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
        "⌈": r"\lceil ", "⌉": r"\rceil ",
        **{digit: str(i) for i, digit in enumerate("０１２３４５６７８９")},
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₋₊ₙ", "0123456789-+n")
_SPACING = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|allowbreak|noindent|hfill|centering)"
    r"(?![a-zA-Z])|\\(?:quad|qquad|enspace|thinspace|hspace\*?\{[^{}]*\})(?![a-zA-Z])"
)
_LAYOUT = re.compile(r"\\(?:begin|end)\{(?:align|aligned|gather|gathered|split|equation)\*?\}")
_SIZING = re.compile(
    r"\\(?:left|right|middle|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg)"
    r"(?![a-zA-Z])\s*\.?(?<!\d\.)"
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sc)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt"
    r"|operatorname\*?|boldsymbol|bm|emph|underline|mathnormal|pmb)(?![a-zA-Z])\s*"
)
_OLD_FONT = re.compile(r"\\(?:rm|bf|it|sf|tt|cal)(?![a-zA-Z])\s*")
_SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:d|t)binom(?![a-zA-Z])", r"\\binom"),
        (r"\\leqslant(?![a-zA-Z])|\\le(?![a-zA-Z])|<=|=<", r"\\leq "),
        (r"\\geqslant(?![a-zA-Z])|\\ge(?![a-zA-Z])|>=", r"\\geq "),
        (r"\\ne(?![a-zA-Z])|!=|\\not\s*=", r"\\neq "),
        (r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])", "|"),
        (r"\\(?:R|Reals|reals)(?![a-zA-Z])", r"\\mathbb{R}"),
        (r"\\mathbb\s*([A-Z])(?![a-zA-Z])", r"\\mathbb{\1}"),
        (r"\^\s*\{\s*\\(?:circ|degree)\s*\}|\^\s*\\(?:circ|degree)(?![a-zA-Z])", "°"),
        (r"\\(?:degree|degrees|deg)(?![a-zA-Z])|\^\s*\{?°\}?", "°"),
        (r"\\(?:simeq|sim|thickapprox)(?![a-zA-Z])", r"\\approx "),
        (r"\\(?:ldots|cdots|dots|dotsc|dotsb)(?![a-zA-Z])|…|\.\.\.", r"\\ldots "),
        (r"\\(?:colon)(?![a-zA-Z])|\{\s*:\s*\}", ":"),
        (r"\\(?:pounds|euro|texteuro)(?![a-zA-Z])|[£€₹¥]|\\£|\\€", ""),
        (r"\\\$", ""),
        (r"\\(?:vec|overrightarrow|hat|widehat)(?![a-zA-Z])\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:overset|underset|stackrel)\s*\{[^{}]*\}\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:phantom|hphantom|vphantom|label|tag\*?)\s*\{[^{}]*\}", ""),
        (r"\{([^{}]+?)\\choose\s*([^{}]+?)\}", r"\\binom{\1}{\2}"),
        (r"\\pmod\s*(?:\{([^{}]*)\}|(\w))", r"\\text{mod \1\2}"),
        (r"\\(?:mod|bmod)(?![a-zA-Z])", r"\\text{mod}"),
    ]
]
_COMMANDS = {
    "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "backslash": r"\setminus ", "varepsilon": r"\epsilon ", "ast": "*", "div": "/", "equiv": "=",
    "lg": r"\log_{10}", "imath": "i", "jmath": "j", "prime": "'", "over": "/",
}  # fmt: skip
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![a-zA-Z])")
_PYTHON = re.compile(r"(?<![a-zA-Z\\])(?:np|numpy|math|sympy|sp)\.(?=[a-zA-Z])")
_FUNCTION_WORDS = (
    *("arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh"),
    *("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "max", "min", "gcd", "lcm"),
)
_FUNCTION_WORD = re.compile(
    rf"(?<![a-zA-Z\\])({'|'.join(_FUNCTION_WORDS)})(?=\s*[\^_]?\s*[(\d\\{{]|\s+[a-zA-Z](?![a-zA-Z]))"
)
_INVERSE_WORD = re.compile(r"(?<![a-zA-Z\\])a(sin|cos|tan)(?=\s*\()")
_GREEK_WORD = re.compile(
    r"(?<![a-zA-Z\\])(pi|theta|alpha|beta|gamma|delta|lambda|sigma|omega|phi|mu|rho|tau|epsilon)"
    r"(?![a-zA-Z])"
)
_INFINITY_WORD = re.compile(r"(?<![a-zA-Z\\])(?:[Ii]nfinity|oo|inf|INFINITY)(?![a-zA-Z])")
_E_NOTATION = re.compile(r"(?<![a-zA-Z\d.])(\d+(?:\.\d*)?|\.\d+)\s?[eE]\s?([+-]?\d+)(?![a-zA-Z\d])")
_REPEATING = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))(?![\d\\])"
)
_CONTINUED = re.compile(
    r"(?<![\d.])(\d*)\.(\d{0,10}?)(?:(?:(\d)\3{2,15})|(\d{2,6})\4{1,15})\s*\\ldots"
)
_NOTATIONS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # colors, sizes and other decoration
        (r"\\(?:textcolor|colorbox|color|fcolorbox\s*\{[^{}]*\})\s*\{[^{}]*\}"
         r"|\\bbox\s*(?:\[[^\[\]]*\])?", ""),
        (r"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bold|mathstrut)(?![a-zA-Z])", ""),
        (r"^\s*\\?#\s*(?=[\d-])", ""),
        (r"\(\s*\\(?:text|mathrm)\s*\{([a-z ]*)\}\s*\)\s*$", r"\\text{ \1}"),
        # digits in groups: 1.234.567, 1_234_567, 1'234'567, 12,34,567; 4{2}
        (r"^\s*(\d{1,3})[.](\d{3})[.](\d{3})\s*$", r"\1\2\3"),
        (r"(?<=\d)(?:\\?_|')(?=\d{3}(?!\d))(?<!_\d_)", ""),
        (r"^\s*(\d{1,2}),(\d\d),(\d{3})\s*$", r"\1\2\3"),
        (r"^\s*(\d+)\{(\d+)\}\s*$", r"\1\2"),
        # fractions, combinations, bases, exponents, degrees
        (r"(?:\{\})?\^\{?(\d+)\}?\s*/\s*_\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        (r"(?:\{\}\s*)?[_^]\{?(\w)\}?\s*(?:C|\\mathrm\{C\})_\{?(\w)\}?", r"\\binom{\1}{\2}"),
        (r"^\s*\((\w+)\)_", r"\1_"),
        (r"^\s*(?:\\(?:text|mathrm)\{)?0x([\dA-Fa-f]+)\}?\s*$", r"\1_{16}"),
        (r"^\s*(?:\\(?:text|mathrm)\{)?0b([01]+)\}?\s*$", r"\1_{2}"),
        (r"(?<=\d)\s*\\(?:text|mathrm)\{\s*[eE]\s*([-+]?\d*)\}\s*(?=\d|$)", r"e\1"),
        (r"(?<=\d)\s*\^\s*\{?\s*(?:\\(?:text|mathrm)\s*\{\s*o\s*\}|o(?![a-z]))\s*\}?", "°"),
        (r"\\frac\s*\{\s*\\(?:text|mathrm)\{([a-zA-Z ]+)\}\s*\}\s*\{\s*\\(?:text"
         r"|mathrm)\{([a-zA-Z ]+)\}\s*\}",
         r"\\text{ \1/\2}"),
        # functions and sets
        (r"\\(max|min)\s*(?:\\left)?\s*\\\{(.*?)(?:\\right)?\s*\\\}", r"\\\1(\2)"),
        (r"\\(?:operatorname|text|mathrm)\s*\{\s*cis\s*\}\s*(?:\\left)?\(?(-?\d+(?:\.\d+)?)\s*(?:°|\^\{?\\circ\}?)(?:\\right)?\)?",
         r"(\\cos(\1°)+i\\sin(\1°))"),
        (r"\\(?:operatorname|text|mathrm)\s*\{\s*cis\s*\}\s*(?:\\left)?(?:\((.*?)(?:\\right)?\)|(\\frac\{[^{}]*\}\{[^{}]*\}))",
         r"(\\cos(\1\2)+i\\sin(\1\2))"),
        (r"\\varphi(?![a-zA-Z])", r"\\phi"),
        (r"([a-zA-Z])\s*\\(?:neq?|not\s*=)\s*\\pm\s*(\w+)\s*$", r"\1\\neq \2,\1\\neq -\2"),
        (r"\\mathbb\s*\{?R\}?\s*(?:\^\s*\{?\+\}?|_\{?\s*(?:>\s*0|\+)\s*\}?)", r"(0,\\infty)"),
        (r"\\mathbb\s*\{?R\}?\s*(?:\^\s*\{?-\}?|_\{?\s*<\s*0\s*\}?)", r"(-\\infty,0)"),
        (r"(\\mathbb\s*\{?R\}?)\s*(?:-|\\backslash|\\)\s*(?=\\\{|\[|\()", r"\1\\setminus "),
        # intervals in the French manner: ]a, b[
        (r"(?<![\w)}\]])\]([^\[\](){};]+?[,;][^\[\](){};,]+)\[(?!\w)", r"(\1)"),
        (r"(?<![\w)}\]])\]([^\[\](){};]+?[,;][^\[\](){};,]+)\](?!\w)", r"(\1]"),
        (r"\[([^\[\](){};]+?[,;][^\[\](){};,]+)\[(?!\w)", r"[\1)"),
    ]
]  # fmt: skip
"""Notations that occur seldom, brought to the common one before anything else is done."""
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞]")
_GROUP = r"\{[^{}]*\}"
for _ in range(4):  # braces within braces
    _GROUP = rf"\{{[^{{}}]*(?:{_GROUP}[^{{}}]*)*\}}"
_BARE = rf"(\\sqrt\s*{_GROUP}|\\[a-zA-Z]+|[^\s{{}}\\])"
_TOP = re.compile(rf"\\(frac|binom)(?![a-zA-Z])\s*{_BARE}")
_BOTTOM = re.compile(rf"(\\(?:frac|binom)\s*{_GROUP})\s*{_BARE}")
_ROOT = re.compile(
    r"\\sqrt(?![a-zA-Z])\s*(\[[^\[\]]*\])?\s*(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\)"
    rf"|(\\(?:frac|binom)\s*{_GROUP}\s*{_GROUP}|\d+|\\[a-zA-Z]+|[^\s{{}}\[(\\]))"
)


def normalize_latex(text: str, *, thousands: bool = True) -> str:
    """Spell one answer in the normal way; ``\\text{…}`` keeps its case and spaces.

    Args:
        text: the answer as it was written.
        thousands: whether 1,234 is one number; else it is two.

    Raises:
        ValueError: the answer is longer than `MAX_ANSWER`.
    """
    if len(text) > MAX_ANSWER:
        raise ValueError("too long for an answer")
    text = _plain_characters(text)
    for pattern, replacement in _NOTATIONS:
        text = pattern.sub(replacement, text)
    if "matrix" not in text and _LAYOUT.search(text):
        text = _LAYOUT.sub(" ", text).replace("&", "").strip().removesuffix(r"\\")
        text = text.replace(r"\\", ",")
    text = _without_dollars(text)
    text = _OLD_FONT.sub("", text)
    text = _texts(text)
    return "".join(
        part if part.startswith(r"\text{") else _normalize_formula(part, thousands)
        for part in split_texts(text)
    ).strip()


def split_texts(text: str) -> list[str]:
    """Cut into formulas and ``\\text{…}`` pieces, in order; texts hold no braces."""
    return [part for part in re.split(r"(\\text\{[^{}]*\})", text) if part]


def _plain_characters(text: str) -> str:
    text = _VULGAR_FRACTION.sub(_spelled_fraction, text).translate(_UNICODE)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m.group().translate(_SUPERSCRIPTS)}}}", text)
    return re.sub("[₀₁₂₃₄₅₆₇₈₉₋₊ₙ]+", lambda m: f"_{{{m.group().translate(_SUBSCRIPTS)}}}", text)


def _spelled_fraction(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKC", match.group()).split("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _without_dollars(text: str) -> str:
    # A dollar before a digit may be money or a delimiter; the value is the same either way.
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    return re.sub(r"(?<!\\)\$", " ", text).replace(r"\$", " ")


def _texts(text: str) -> str:
    """Bring every font command to ``\\text{…}`` without braces inside, or to its bare letter."""
    pieces, position = [], 0
    while match := _TEXT_COMMAND.search(text, position):
        pieces.append(text[position : match.start()])
        if text.startswith("{", match.end()):
            content, position = read_group(text, match.end())
        else:
            content, position = text[match.end() : match.end() + 1], match.end() + 1
        inner = re.sub(r"[{}$]", "", _TEXT_COMMAND.sub("", content))
        inner = re.sub(r"\\[,;:! ]|~", " ", inner)
        pieces.append(_one_text(inner, command=match.group().strip()))
    pieces.append(text[position:])
    return "".join(pieces)


def _one_text(inner: str, command: str) -> str:
    bare = inner.strip()
    if not bare:
        return " "
    if command.startswith(r"\operatorname") and bare.rstrip("*") in _FUNCTION_WORDS:
        return rf"\{bare.rstrip('*')} "
    # Digits and formulas in a text, and single letters in a font, mean what they would outside.
    if not re.search(r"[a-zA-Z]{2}", re.sub(r"\\[a-zA-Z]+", "", bare)) and (
        not command.startswith((r"\text", r"\mbox")) or not re.search("[a-zA-Z]", bare)
    ):
        return f" {bare} " if len(bare) > 1 else bare
    return rf"\text{{{bare}}}"


def _normalize_formula(text: str, thousands: bool) -> str:
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", "{,}", text)
    text = re.sub(r"(?<!\\)\\(?:[,;:!>]|\s)|~", " ", text)
    text = _SPACING.sub(" ", text)
    text = _SIZING.sub("", text)
    text = _COMMAND.sub(lambda m: _COMMANDS[m[1]], text.replace("&lt;", "<").replace("&gt;", ">"))
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = _PYTHON.sub("", text)
    text = text.replace("**", "^")
    text = _INVERSE_WORD.sub(r"\\arc\1", text)
    text = _FUNCTION_WORD.sub(r"\\\1", text)
    text = re.sub(r"(?<![a-zA-Z\\])sqrt(?=\s*[({\d\\])", r"\\sqrt", text)
    text = re.sub(r"(?<![a-zA-Z\\])cbrt(?=\s*[({\d])", r"\\sqrt[3]", text)
    text = _GREEK_WORD.sub(r"\\\1 ", text)
    text = _INFINITY_WORD.sub(r"\\infty ", text)
    text = re.sub(r"\\%|%|(?<![a-zA-Z])(?:percent|per cent|pct)(?![a-zA-Z])", "%", text)
    text = re.sub(r"(?<![a-zA-Z\\])(?:degrees?|deg)(?![a-zA-Z])", "°", text)
    text = _E_NOTATION.sub(r"\1\\cdot 10^{\2}", text)
    text = _digits(text, thousands)
    text = _roots_and_fractions(text)
    text = re.sub(r"(?<![\d\w}])\.(?=\d)", "0.", text)
    text = re.sub(r"(?<=\d)\.(?=\s*(?:[-+*/^)\]}]|\\cdot|\\times|$))", "", text)
    text = re.sub(r"\\times(?![a-zA-Z])", r"\\cdot ", text)
    text = re.sub(r"\*", r"\\cdot ", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{(\1)}", text)
    text = re.sub(r"([_^])\s*\{\s*([^{}\s])\s*\}", r"\1{\2}", text)
    text = re.sub(r"([_^])\s*([a-zA-Z\d])", r"\1{\2}", text)
    text = re.sub(r"\^\s*(-(?:\d+|[a-zA-Z]))", r"^{\1}", text)
    text = re.sub(r"\s+", " ", text)
    # Spaces matter only after a command, before a letter, and between digits.
    return re.sub(r" (?![a-zA-Z\d])|(?<![a-zA-Z\d}]) ", "", text)


def _digits(text: str, thousands: bool) -> str:
    """Remove what groups the digits of one number, and write repeating decimals as fractions."""
    text = re.sub(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)", "⸴", text)
    text = re.sub(r"(?<!\d)(?<!\.)\d{1,3}(?:⸴\d{3})+(?!\d)", lambda m: m[0].replace("⸴", ""), text)
    if thousands:
        text = re.sub(
            r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text
        )
    text = re.sub(r"(?<=\d)⸴(?=\d)", ".", text)  # 3{,}5 is a decimal comma
    text = re.sub(
        r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d,])", lambda m: m[0].replace(" ", ""), text
    )
    if r"\ldots" in text:
        text = _CONTINUED.sub(_repeating_fraction, text)
    return _REPEATING.sub(_repeating_fraction, text)


def _repeating_fraction(match: re.Match[str]) -> str:
    whole, head, tail, single = match.groups()
    tail = tail or single
    if len(head) + len(tail) > 60:
        return match.group()
    nines = (10 ** len(tail) - 1) * 10 ** len(head)
    numerator = int(f"{whole or 0}{head}{tail}") - int(f"{whole or 0}{head}" or 0)
    return rf"\frac{{{numerator}}}{{{nines}}}"


def _roots_and_fractions(text: str) -> str:
    r"""Put what fractions and roots are of into braces; ``\sqrt15`` is the root of fifteen."""
    text = _TOP.sub(r"\\\1{\2}", text)
    for _ in range(4):
        text = _BOTTOM.sub(r"\1{\2}", text)
    return _ROOT.sub(lambda m: rf"\sqrt{m[1] or ''}{{{m[2] or m[3]}}}", text)
