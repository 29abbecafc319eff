r"""The ways in which a response announces its final answer, rewritten into one.

`announced` turns tags, JSON, headings and the words of twenty languages into lines
``Answer: …``; what is neither a number nor a letter (emoji, quotes, code fences) is dropped, and
displayed formulas come to stand on one line. The graders read that one form.
"""

from __future__ import annotations

import json
import re
import unicodedata

MAX_FORMULA = 3_000
"""Characters of a displayed formula."""

_TAG = re.compile(r"[<\[](?P<tag>(?:final[_ -]?)?answer|final)[>\]]\s*(?:[<\[]/)?", re.IGNORECASE)
_TAG_END = re.compile(r"[<\[]/(?:(?:final[_ -]?)?answer|final)[>\]]", re.IGNORECASE)
_JSON = re.compile(
    r'"(?:final|correct|best)?[ _]?(?:answer|result|choice|option|solution)"\s*:\s*'
    r'(?P<value>"(?:\\.|[^"\\]){0,2000}"|[^",}\n]{1,200})(?:\s*\})?',
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*```[\w+-]{0,20}[ \t]*$", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]*)+(?=\S)", re.MULTILINE)
_HEADING = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*|\*\*|__)?(?:\d{1,2}[.)][ \t]*)?(?:the[ \t]+)?"
    r"(?:(?:final|correct|right|best)[ \t]+(?:answer|result|response|choice|option)|answer)"
    r"[ \t]*:?[ \t]*(?:\*\*|__)?[ \t]*:?[ \t]*\n\s*",
    re.IGNORECASE | re.MULTILINE,
)
_COLON_BEFORE_DISPLAY = re.compile(r":[ \t*_]{0,6}\n\s*(?=\\\[|\$\$)")
_ENVIRONMENT = re.compile(
    r"(?:\$\$\s*)?\\(begin|end)\{(?:align|equation|gather|multline)\*?\}(?:\s*\$\$)?"
)
_DISPLAY = re.compile(
    rf"\$\$((?:(?!\$\$|\n\n).){{0,{MAX_FORMULA}}})\$\$"
    rf"|\\\[((?:(?!\\[\[\]]|\n\n).){{0,{MAX_FORMULA}}})\\\]",
    re.DOTALL,
)
_BULLET = r"(?:[-*•‣◦][ \t]+|(?:→|⇒|➡️?|=>|->)[ \t]*)?"

# "The answer is" in the languages of MGSM, and those beside them.
_IS = (
    r"(?:\s*\b(?:ist|lautet|es|son|est|sont|é|è|ni|kati|jest|är|is|adalah|là|равен|равна|равно)\b"
    r"(?:\s*[:：])?|\s*(?:হল|হলো|হচ্ছে|คือ|是|为|為|选择|選擇|は|이|은|는|هو|هي|है)(?:\s*[:：])?"
    r"|\s*[:：=]|\s*[—–]|\s*-(?=\s))\s*"
)
_WORDS = [
    # German, Spanish, French, Portuguese, Italian, Dutch, Polish, Swahili, Indonesian, Vietnamese
    r"(?:(?:die|la|a|het|de)\s+)?(?:(?:richtige|korrekte|endgültige|bonne|juiste|ostateczna)\s+)?"
    r"(?:antwort|lösung|respuesta|réponse|resposta|risposta|antwoord|odpowiedź|jibu|jawaban(?:nya)?"
    r"|đáp án)(?:\s+(?:final(?:e)?|correcta|correcte|correta|corretta|la mwisho|sahihi|akhir))?",
    # Russian, Ukrainian
    r"(?:(?:правильный|верный|итоговый|окончательный)\s+)?(?:ответ|відповідь)",
    # Chinese
    r"(?:所以|因此|故|则)?(?:最终|最後|最后|正确|正確)?(?:的)?(?:答案|选项|選項)(?:应该|應該|选择|選擇)?",
    r"(?<![\w])答(?=\s*[:：])",
    # Japanese, Korean
    r"(?:最終的な|正しい)?(?:答え|正解|解答|回答)",
    r"(?:최종\s*)?(?:정답|답)",
    # Thai, Bengali, Telugu, Hindi, Arabic
    r"(?:คำตอบ(?:สุดท้าย|ที่ถูกต้อง)?|ตอบ)",
    r"(?:চূড়ান্ত\s*|সঠিক\s*)?উত্তর(?:টি)?",
    r"(?:తుది\s*|సరైన\s*)?(?:సమాధానం|జవాబు)",
    r"(?:सही\s*|अंतिम\s*)?उत्तर",
    r"(?:ال)?(?:جواب|إجابة)(?:\s+(?:النهائية|النهائي|الصحيحة|الصحيح))?",
]
_FOREIGN = re.compile(
    rf"(?<![A-Za-zÀ-ÿ])(?:{'|'.join(_WORDS)}){_IS}(?=\S)|(?:คำตอบคือ|ตอบ|సమాధానం|జవాబు)\s*(?=[-\d$A-Z])"
    r"|(?:结果|結果)(?:为|是|為)\s*(?=[-\d$\\])",
    re.IGNORECASE,
)
_FOREIGN_BEHIND = re.compile(
    r"(?<![A-Za-z\d])(?:(?:ist|Option|opción|opção|option|la|le|Antwort"
    r"|ข้อ)\s+)?([A-Z])\)?\s*(?:(?:ist )?die (?:richtige|korrekte|beste) (?:Antwort|Option)"
    r"|ist (?:richtig|korrekt)\b|ถูก(?:ต้อง)?|qui est (?:juste|correcte|la bonne)|(?:es|é) (?:la "
    r"|a )?(?:respuesta |resposta )?corre(?:c)?ta"
    r"|(?:选项|選項|项|項)?(?:才)?(?:是|为)?(?:正确|正確)(?!吗)|(?:が|は)(?:正解|正しい)|(?:번)?(?:이|가)?\s*(?:정답|맞))",
)
_KEYWORDS_TEXT = (
    "richtig korrekt die_beste qui_est correct 正确 正確 correta 正しい 정답 맞 antwort lösung "
    "respuesta réponse resposta risposta antwoord odpowied jibu jawaban đáp_án ответ відпов 答 "
    "选项 選項 结果 結果 正解 답 ตอบ ถูก উত্তর సమాధానం జవాబు उत्तर جواب إجابة"
)
_KEYWORDS = [word.replace("_", " ") for word in _KEYWORDS_TEXT.split()]
_OTHER_SCRIPT = r"\u0400-\u1fff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff"
_INTO_SCRIPT = re.compile(rf"(?<=[A-Za-z\d$%}})\]*])(?=[{_OTHER_SCRIPT}])")
_OUT_OF_SCRIPT = re.compile(rf"(?<=[{_OTHER_SCRIPT}])(?=[-A-Za-z\d$\\(\[*])")
_DECORATION = re.compile(
    "[\u2714\u2713\u2705\u25a0\u25a1\u25aa\u25fb\u220e\u2610-\u2612\ufe0f\u200d]"
)


def announced(text: str) -> str:
    """Rewrite every announcement of a final answer as a line ``Answer: …``."""
    text = plain_characters(text)
    text = _JSON.sub(_from_json, text)
    text = _TAG_END.sub("\n", _TAG.sub("\nAnswer: ", text))
    text = _QUOTE.sub("", _FENCE.sub("", text))
    text = _ENVIRONMENT.sub(lambda m: r"\[" if m[1] == "begin" else r"\]", text)
    text = _DISPLAY.sub(_on_one_line, text)
    text = _COLON_BEFORE_DISPLAY.sub(": ", text)
    text = _HEADING.sub(lambda _: "Answer: ", text)
    text = re.sub(rf"(?<=^Answer: ){_BULLET}", "", text, flags=re.MULTILINE)
    lowered = text.lower()
    if any(word in lowered for word in _KEYWORDS):  # the pattern is slow, and hardly ever needed
        text = _FOREIGN.sub(" Answer: ", _FOREIGN_BEHIND.sub(r" Answer: \1.\n", text))
    return text if text.isascii() else _OUT_OF_SCRIPT.sub(" ", _INTO_SCRIPT.sub(" ", text))


def plain_characters(text: str) -> str:
    """Replace letters and digits of other fonts, scripts and widths."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    return "".join(_plain_character(c) if ord(c) > 0x2BF else c for c in text)


def _plain_character(character: str) -> str:
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    code = ord(character)
    if 0x1D400 <= code <= 0x1D7FF or 0xFF01 <= code <= 0xFF5E:
        return unicodedata.normalize("NFKC", character)
    return character


def without_emoji(text: str) -> str:
    """Drop emoji, check marks and the box that ends a proof."""
    if text.isascii():
        return text
    text = _DECORATION.sub("", text)
    return "".join(c for c in text if ord(c) < 0x2600 or unicodedata.category(c) != "So")


def _from_json(match: re.Match[str]) -> str:
    value = match["value"].strip()
    if value.startswith('"'):
        try:
            value = str(json.loads(value, strict=False))
        except ValueError:
            value = value.strip('"').replace("\\\\", "\\")
        if any(c in value for c in "\f\b\t\r"):  # "\frac", written without escaping
            value = match["value"].strip('"')
    return f"\nAnswer: {value}\n"


def _on_one_line(display: re.Match[str]) -> str:
    """Join the lines of a formula; those of an array are told apart by ``\\\\`` anyway."""
    opening, closing = ("$$", "$$") if display[1] is not None else (r"\[", r"\]")
    return f"{opening}{' '.join((display[1] or display[2] or '').split())}{closing}"
