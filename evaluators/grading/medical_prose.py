"""The option that a response concludes with in free prose, without naming its letter.

Every place that speaks of an option is found by the option's distinctive words, and weighed by how
the sentence around it speaks: as a conclusion, as a plain statement, as one possibility among
others, or as something turned down. One option has to stand out; whatever is less clear than that
is no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from rapidfuzz.distance import Levenshtein

MIN_COVERAGE = 0.75
"""Share of an option's weight that must be said, between 0 and 1; for options of up to 4 words."""
MIN_COVERAGE_LONG = 0.67
"""The same for longer options, which are hardly ever repeated in full."""
MAX_SENTENCES = 200
"""Sentences from the end of a response that are looked at."""
MAX_SENTENCE = 2_000
"""Characters from the end of a sentence that are looked at."""
MIN_INEXACT = 8
"""Letters of a word in which one letter may differ, beside another word that fits exactly."""


class Standing(IntEnum):
    """How a sentence speaks of an option, from turned down to concluded."""

    rejected = 0
    aside = 1
    stated = 2
    suggested = 3
    concluded = 4


@dataclass(frozen=True)
class Mention:
    """One place that speaks of an option."""

    sentence: int
    letter: str
    standing: Standing
    exception: bool = False
    """Whether it is said not to belong where the others do."""
    summing_up: bool = False
    """Whether the sentence draws the conclusion of what stands before it."""


@dataclass(frozen=True)
class Token:
    """A word, normalised, with its place in the sentence (characters)."""

    word: str
    start: int
    end: int


def concluded(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option (letter to text) that the prose of ``text`` settles on."""
    sentences = _sentences(text)
    if not sentences:
        return None
    matcher = _Matcher(options, text)
    mentions = [
        mention
        for index, sentence in enumerate(sentences)
        for mention in _mentions(index, sentence, matcher)
    ]
    elsewhere = [
        index
        for index, sentence in enumerate(sentences)
        if _NAMES_ANSWER.search(sentence)
        and not any(m.sentence == index and m.standing >= Standing.stated for m in mentions)
    ]
    if _REFUSAL.search(sentences[-1]) or any(map(_DECLINED.search, sentences)):
        return None
    strong = [m for m in mentions if m.standing == Standing.concluded]
    if strong:
        return _settled(strong, mentions, elsewhere)
    excepted = _exception(mentions)
    if excepted:
        return excepted
    if elsewhere or any(map(_ODD_FRAME.search, sentences)):
        return None  # the answer it names is none of the options
    if any(map(_DEPENDS.search, sentences)):
        return None
    suggested = [m for m in mentions if m.standing == Standing.suggested]
    if suggested:
        return _settled(suggested, mentions, elsewhere)
    return _only_subject(mentions, len(sentences)) or _left_over(mentions, len(sentences) - 1)


def _settled(
    strong: Sequence[Mention], mentions: Sequence[Mention], elsewhere: Sequence[int]
) -> str | None:
    last = strong[-1]
    letters = {m.letter for m in strong}
    at_last = {m.letter for m in strong if m.sentence == last.sentence}
    if len(at_last) > 1 or (len(letters) > 1 and not last.summing_up):
        return None
    later = [m for m in mentions if m.sentence > last.sentence and m.letter == last.letter]
    if any(m.standing == Standing.rejected for m in later) and not last.exception:
        return None
    if any(index > last.sentence for index in elsewhere):
        return None
    return last.letter


def _exception(mentions: Sequence[Mention]) -> str | None:
    """The option that is said not to belong, where all the others are said to, or are left out."""
    odd = {m.letter for m in mentions if m.exception}
    if len(odd) != 1:
        return None
    letter = odd.pop()
    others = [m for m in mentions if m.letter != letter and m.standing != Standing.rejected]
    if any(m.letter == letter and m.standing >= Standing.stated for m in mentions):
        return None
    if any(m.letter != letter and m.standing == Standing.rejected for m in mentions):
        return None
    return letter if len({m.letter for m in others}) != 1 else None


def _only_subject(mentions: Sequence[Mention], sentences: int) -> str | None:
    """The only option that the text speaks of at all, if it opens or ends with stating it."""
    letters = {m.letter for m in mentions}
    places = {m.sentence for m in mentions if m.standing == Standing.stated}
    if len(letters) != 1 or not places & {0, sentences - 2, sentences - 1}:
        return None
    if any(m.standing == Standing.rejected for m in mentions):
        return None
    return letters.pop()


def _left_over(mentions: Sequence[Mention], end: int) -> str | None:
    """What the last sentence states, after the others that were spoken of were turned down."""
    last = [m for m in mentions if m.sentence == end]
    before = [m for m in mentions if m.sentence < end]
    letters = {m.letter for m in last}
    if len(letters) != 1 or any(m.standing != Standing.stated for m in last):
        return None
    letter = letters.pop()
    others = [m for m in before if m.letter != letter]
    turned_down = bool(others) and all(m.standing == Standing.rejected for m in others)
    kept = all(m.standing >= Standing.stated for m in before if m.letter == letter)
    return letter if turned_down and kept else None


_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|vs|etc|approx|cf|dr|no|fig"
    r"|(?<!vitamin )(?<!hepatitis )(?<!group )(?<!factor )[A-Z])\.$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\*\*|__|[`\"“”$]|^#+\s*", re.MULTILINE)
_ITEM = re.compile(
    r"^\W*(?:[-*•]\s|\d+[.)]\s|(?:option\s+|choice\s+)?\(?[A-Z]\)?\s*[:.)]|(?:first|second|third|"
    r"last)ly\b"
    r"|another\b|instead\b|for (?:example|instance)\b)",
    re.IGNORECASE,
)


def _sentences(text: str) -> list[str]:
    """Sentences in order; an item of a list keeps its mark."""
    found: list[str] = []
    for line in _MARKUP.sub("", text).split("\n"):
        start = 0
        for end in re.finditer(r"[.!?](?=\s+[A-Z(])", line):
            said = line[start : end.end()]
            if _ABBREVIATION.search(said) or re.fullmatch(r"\s*\d+\.", said):
                continue
            found.append(said.strip())
            start = end.end()
        found.append(line[start:].strip())
    kept = [sentence[-MAX_SENTENCE:] for sentence in found if re.search(r"\w", sentence)]
    return kept[-MAX_SENTENCES:]


_REFUSAL = re.compile(
    r"\b(?:cannot|can't|unable to|not possible to|impossible to|could not|"
    r"difficult to)\s+(?:\w+\s+)?"
    r"(?:determine|say|tell|answer|choose|decide|calculate|provide|identify|conclude|make|give)",
    re.IGNORECASE,
)
_DECLINED = re.compile(
    r"\b(?:I|we)(?:'m| am| are|'re)?\s+(?:cannot|can't|unable|not able|not sure|do not know|"
    r"don't know"
    r"|could not|would need)\b|\b(?:not enough|insufficient) information\b",
    re.IGNORECASE,
)
_DEPENDS = re.compile(
    r"\bdepend(?:s|ing)? (?:\w+ )?(?:up)?on\b|\b(?:weighed|individuali[sz]ed|tailored)\b",
    re.IGNORECASE,
)
_NAMES_ANSWER = re.compile(
    r"\b(?:(?:most|more)\s+(?:likely|probable|appropriate|suitable|fitting|common)|best|correct|"
    r"probable|likely|preferred|main|primary|underlying)\s+(?!to\b|due\b|has\b|have\b)"
    r"\w+\b[^.;]*?\b(?:is|are|would be|remains|appears to be|seems to be)\b"
    r"|\bdiagnosis\s+(?:is|of)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[;:,()—–]|\s-\s|\b(?:but|while|whereas|although|even though|though|however|because|since|"
    r"despite|unlike|which|so that|and\s+(?:is|are|does|do|it|this|not|has|can|would|should)"
    r")\b",
    re.IGNORECASE,
)
_CONCEDING = re.compile(
    r"\b(?:while|whereas|although|even though|though|despite|unlike|in contrast to|"
    r"compared (?:to|with)|"
    r"other than|apart from|besides|if|unless)\b",
    re.IGNORECASE,
)
_TURNED_DOWN = re.compile(
    r"\b(?:favou?r|prefer|choos|suggest)\w*\b[^,;]*\bover\b|"
    r"\b(?:rather than|instead of|as opposed to|unlike|not(?!\s+only)|never|neither|nor|than|"
    r"rul(?:e|es|ed|ing) out|exclud\w+|against|without|no|less likely|unlikely|other than|"
    r"except|absence of|in contrast to|compared (?:to|with)|contraindicated|inappropriate|"
    r"incorrect|avoid\w*|(?:distinguish|differentiat)\w*|cannot|mimic\w*|least|negative for|"
    r"replac\w+|exclusion of|(?:before|after)(?:\s+\w+)?\s*$)\b|n['’]t\b",
    re.IGNORECASE,
)
_TURNED_DOWN_BEHIND = re.compile(
    r"\b(?:withheld|withdrawn|stopped|discontinued|delayed|deferred|premature|later|unnecessary|"
    r"ineffective|insufficient|wors\w+|dismissed|"
    r"not(?!\s+only)|never|less|unlikely|least|ruled out|exclud\w+|contraindicated|"
    r"inappropriate|"
    r"incorrect|cannot|avoided|wrong|fails?|lacks?|would (?:show|have|present|cause|lead|produce|"
    r"be "
    r"expected (?:to|in|with)|typically|usually))\b|n['’]t\b",
    re.IGNORECASE,
)
_OPEN = re.compile(
    r"\b(?:could|may|might|possib\w+|perhaps|consider\w*|such as|includ\w+|like|e\.g|for example|"
    r"sometimes|or|combination of|either|if|whether|risk factors?|differential|question|"
    r"suspected|suspicion|can "
    r"also|also(?!\s+(?:called|known|termed|referred))|some|option|potential\w*|history of|"
    r"occasionally|in addition|reserved|mimic\w*|"
    r"initially|first sight)\b|\?",
    re.IGNORECASE,
)
_COMPLEMENT = re.compile(
    r"\b(?:is|are|be|was|being|remains|becomes|called|termed|named|"
    r"known as|referred to as|"
    r"described as|"
    r"(?<!such )as)\s+(?:(?:an?|the|most|likely|probably|typically|indeed|therefore|thus|"
    r"a case of|to|"
    r"classified|considered|clearly|generally|usually|often|called|termed|known as|due to|"
    r"caused by|"
    r"give|start|perform|obtain|begin|order|administer|initiate|her|his|their|high[- ]dose|"
    r"of)\s+)*$",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\b(?:most\s+(?:likely|probable|probably|appropriate|suitable|consistent|fitting|closely|"
    r"effective|"
    r"accurate|plausible|common\w*)|best|more likely|diagnosis|diagnosed|next step|of choice|"
    r"preferred|"
    r"therefore|thus|hence|consequently|in conclusion|in summary|to summarize|answer|"
    r"(?:is|are|be|commonly) (?:called|termed|known as|referred to as)|responsible for|conclude\w*|"
    r"(?:should|must|would) be(?!\s+(?:treated|tested|excluded|confirmed|monitored|evaluated|"
    r"assessed))|should (?:receive|undergo|start|get|have)|recommend\w*|"
    r"is indicated|first[- ]line|choice|term (?:used|for)|final|leads? to the conclusion|"
    r"priority|favou?red|preferable|superior|chosen|selected|warranted|greatest|highest|"
    r"key (?:player|enzyme|factor)|likely)\b",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"\b(?:suggest\w*|consistent with|indicat\w+|point\w* (?:strongly )?(?:to|towards?)|"
    r"characteri[sz]\w+|due to|caused by|attribut\w+|result\w* (?:from|of)|associated with|"
    r"typical\w*|"
    r"align\w*|fits?|match\w*|support\w*|correspond\w*|explain\w*|classic\w*|confirm\w*|strongly|"
    r"diagnostic|reflects?|suitable|helps?|effective|required|needed|used to|treated with|"
    r"is the|are the|ideal|appropriate|namely|i\.e|criteria for|doubt about|pathognomonic|"
    r"belongs? to|calls for|favou?rs?|(?:usual|common|"
    r"expected) (?:in|for)|affected|involved|injured|"
    r"compressed|damaged|occluded|present|to blame|accounts? for|suits?|locali[sz]es? to|"
    r"goes with|hallmark|"
    r"(?:seen|found|occurs) in|stems? from|comes? from|arises? from)\b",
    re.IGNORECASE,
)
_ODD_ONE = re.compile(
    r"\b(?:least likely|exception|except|odd one out|(?:is|are|would|does|do|has|have|can|should|"
    r"was|were)"
    r"\s*n[o'’]t\s+(?:be\s+|have\s+|directly\s+|specifically\s+|typically\s+|usually\s+|"
    r"generally\s+|"
    r"considered\s+|expected\s+|an?\s+|part\s+|one\s+|appear\s+to\s+(?:specifically\s+)?)*"
    r"(?:associat\w+|cause\w*|align\w*|contribut\w+|includ\w+|feature|characteristic|known|among|"
    r"of|"
    r"risk|indicat\w+|effective|used|recommended|belong|form|increase\w*|elevate\w*|seen|given|"
    r"occur|true|typical\w*|component|expected|needed|necessary|contraindicat\w+|related|involved|"
    r"supply|done|constitute|require\w*)|cannot be used)\b",
    re.IGNORECASE,
)


_ODD_FRAME = re.compile(
    r"\b(?:that|which|who|one)\s+(?:is|are|does|do|would|can|should|has|have|was)\s*n[o'’]t\b[^.]*?"
    r"\b(?:is|are|would be)\b|\bleast\s+(?:likely|common|probable|appropriate|effective|"
    r"associated)\b"
    r"[^.]*?\b(?:is|are|would be)\b",
    re.IGNORECASE,
)
_APPENDED = re.compile(
    r":\s*(?:an?\s+|the\s+)?$|,\s*(?:an?|the)\s+$"
    r"|(?<!follow)(?<!accompani)(?<!suppli)ed by\s+(?:the\s+)?$"
)
"""Ahead of what a sentence ends with: "one was missed, a type II error"."""
_SUPPOSED = re.compile(
    r"\bwould\s+(?:\w+\s+)?(?:favou?r|suggest|indicate|point|support|speak|involve|show|cause|"
    r"affect|imply|raise|mean|be expected in|be seen in)\b",
    re.IGNORECASE,
)
_OBSERVED = re.compile(
    r"\W*(?:this|these|her|his|the (?:findings?|presentation|combination|clinical|symptoms|"
    r"picture|results))\b",
    re.IGNORECASE,
)
_SOUGHT = re.compile(
    r"\b(?:look|looking|search|searching|screen|screening|evaluat\w+|assess\w*|monitor\w*|test|"
    r"testing|watch\w*|work-?up)\s+(?:for|of)\b[^,;]*$",
    re.IGNORECASE,
)
_ELLIPSIS = re.compile(r"\s*(?:does|is|would|will|did|can)\W*", re.IGNORECASE)
_PICKED_OUT = re.compile(
    r"\s*(?:is|are|would be|remains)\s+(?:thus\s+|therefore\s+)?the\s+(?:only\s+)?(?:one|drug|"
    r"option|agent|finding)\s+"
    r"(?:that|which|to|responsible|we)\b",
    re.IGNORECASE,
)
_PARENTHESIS = re.compile(
    r"\s*,\s*(?:in contrast|by contrast|however|on the other hand|though|instead|therefore)\s*,"
    r"|\s*,\s*(?:unlike|rather than|as opposed to|in contrast to)\b[^,]*,",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:if|unless|in case)\b[^,;]*,[^,;]*$", re.IGNORECASE)
_EXPLAINED = re.compile(
    r"\b(?:is|are|was|were)\s+(?:\w+\s+){0,3}(?:due to|caused by|attribut\w+|explained by|because|"
    r"a result of|secondary to)\b",
    re.IGNORECASE,
)
_GENERAL = re.compile(
    r"\b(?:is|are)\s+(?:only\s+)?(?:used|given|indicated|reserved|preferred|chosen)\s+(?:when|if|"
    r"only)\b",
    re.IGNORECASE,
)
_SUMMING_UP = re.compile(
    r"\W*(?:therefore|thus|hence|in summary|in conclusion|overall|so|consequently|ultimately|"
    r"taken (?:together|as a whole)|all in all|altogether)\b",
    re.IGNORECASE,
)


_LISTED = re.compile(r"(?:[\s,/&]|\b(?:or|and|an?|the|either|even|both)\b)+", re.IGNORECASE)


def _mentions(index: int, sentence: str, matcher: _Matcher) -> Iterator[Mention]:
    found = [
        (letter, start, end, *_standing(sentence, start, end))
        for letter, start, end in matcher.spans(sentence)
    ]
    listed = {
        place
        for (one, first, end, *_), (other, second, *_) in pairwise(found)
        if one != other
        and _LISTED.fullmatch(sentence, end, second)
        and not _CONCEDING.search(sentence, max(0, first - 20), first)
        for place in (first, second)
    }
    found = [(c, s, e, min(x, Standing.aside) if s in listed else x, o) for c, s, e, x, o in found]
    for level in (Standing.concluded, Standing.suggested):
        letters = {letter for letter, _, _, standing, _ in found if standing == level}
        if len(letters) > 1:  # two at once: neither is chosen
            found = [(c, s, e, min(x, Standing.aside), o) for c, s, e, x, o in found]
    for letter, _, _, standing, odd in found:
        yield Mention(index, letter, standing, odd, bool(_SUMMING_UP.match(sentence)))


def _standing(sentence: str, start: int, end: int) -> tuple[Standing, bool]:
    """How the sentence speaks of ``start`` to ``end`` (characters), and if as the odd one out."""
    marks = list(_CLAUSE.finditer(sentence))
    opening = max((m.end() for m in marks if m.end() <= start), default=0)
    closing = min((m.start() for m in marks if m.start() >= end), default=len(sentence))
    aside = _PARENTHESIS.match(sentence, end)
    if aside:
        closing = min((m.start() for m in marks if m.start() >= aside.end()), default=len(sentence))
    before, behind = sentence[opening:start], sentence[aside.end() if aside else end : closing]
    opener = [m for m in marks if m.end() == opening]
    lead = (opener[0].group() if opener else "") + before
    rest = sentence[end:]
    complement = _COMPLEMENT.search(sentence[:start]) or (
        _APPENDED.search(sentence[:start]) and not re.search(r"\w", rest)
    )
    denied = re.search(
        r"(?:\bnot|n['’]t|\bunlikely|\bless likely|\bnever|\bhardly)\s+(?:\w+\s+){0,2}$",
        sentence[:start],
        re.IGNORECASE,
    )
    framed = _ODD_FRAME.search(sentence[:start])
    if (
        framed
        and start - framed.end() < 40
        and not _TURNED_DOWN.search(sentence[framed.end() : start])
    ):
        return Standing.concluded, True
    if _PICKED_OUT.match(rest):
        return Standing.concluded, True
    if _CONCEDING.search(lead) or _CONDITION.search(sentence[:start]):
        return Standing.aside, False
    if denied:
        return Standing.rejected, bool(_ODD_ONE.search(before))
    unsure = re.search(
        r"\b(?:whether|if|unclear|not clear|(?<!little )(?<!no )doubt\w*)\b", before, re.IGNORECASE
    )
    if unsure:
        return Standing.aside, False
    if not complement and (_TURNED_DOWN.search(before) or re.search(r"\bnot an?\b", before)):
        return Standing.rejected, bool(re.search(r"\bleast\b|\bexcept", before, re.IGNORECASE))
    if _TURNED_DOWN_BEHIND.search(behind):
        odd = bool(_ODD_ONE.search(behind)) and not _ABOUT_PATIENT.search(rest)
        return Standing.rejected, odd
    general = _EXPLAINED.search(behind) or _GENERAL.search(behind)
    if (_ITEM.match(sentence) and start < 60) or general:
        return Standing.aside, False
    supposed = _SUPPOSED.search(before) and not _OBSERVED.match(sentence)
    if supposed or _SOUGHT.search(before):
        return Standing.aside, False
    clause = f"{before} {behind}"
    example = re.search(r"\b(?:like|such as)\s+$", before)
    preferred = example and _CONCLUSION.search(behind) and not _OPEN.search(behind)
    open_ahead = _OPEN.search(before[-60:]) if complement else _OPEN.search(clause)
    if open_ahead and not preferred:
        return Standing.aside, False
    if _CONCLUSION.search(clause) or (complement and _CONCLUSION.search(sentence[:start])):
        return Standing.concluded, False
    if _SUMMING_UP.match(sentence) or re.search(r"\b(?:should|must)\s+$", before):
        return Standing.concluded, False
    if _CUE.search(clause) or complement or _ELLIPSIS.fullmatch(behind):
        return Standing.suggested, False
    return Standing.stated, False


_ABOUT_PATIENT = re.compile(
    r"\b(?:th(?:is|ese) (?:patient|case|presentation|findings|symptoms|picture)|here|explain)\b",
    re.IGNORECASE,
)

_STOP_TEXT = (
    "a an the of in to and with for on by at from or this that is are be as its it their his her "
    "all "
    "none above both any these those due using into than only"
)
_STOP = frozenset(_STOP_TEXT.split())
_OPPOSITES = (
    "increase/decrease left/right upper/lower anterior/posterior medial/lateral superior/inferior "
    "proximal/distal acute/chronic primary/secondary systolic/diastolic afferent/efferent "
    "sensory/motor internal/external ascending/descending unilateral/bilateral positive/negative "
    "early/late central/peripheral before/after continue/discontinue maternal/paternal male/female "
    "direct/indirect active/passive competitive/noncompetitive reversible/irreversible "
    "dominant/recessive congenital/acquired benign/malignant sympathetic/parasympathetic "
    "series/parallel ventral/dorsal autosomal/linked presence/absence normal/abnormal "
    "inhibit/activate "
    "agonist/antagonist obstructive/restrictive open/closed dry/wet hot/cold arterial/venous "
    "metabolic/respiratory acidosis/alkalosis oral/intravenous"
)
_UP = "elevate raise rise high higher increase enhance greater"
_DOWN = "reduce low lower diminish fall decline decrease less"
_DIRECTIONS = dict.fromkeys(_UP.split(), "increase")
_DIRECTIONS |= dict.fromkeys(_DOWN.split(), "decrease")
_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())}
_NUMBERS |= {"i": "1", "ii": "2", "iii": "3", "iv": "4"}
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "κ": "kappa", "μ": "mu"}
_SUFFIX = re.compile(r"(?<=[a-z]{6})(?:al|ar|us|um|a|is|ic|iv|ion|ous|c|tic|sis|ary)$")
"""What tells a noun from its adjective behind a stem of 6 letters: meniscus, meniscal."""
_WORD = re.compile(r"\d+(?:[.,:/]\d+)*%?|[^\W\d_]+\d*|[<>≤≥]")


def _bare(word: str) -> str:
    return re.sub(r"(?<=[a-z]{4})(?:ing|ed|e)$", "", word)


_CANONICAL = {_bare(word): name for word, name in _DIRECTIONS.items()}


def _stem(word: str) -> str:
    """A word without inflection and spelling variants; not a dictionary form."""
    for greek, name in _GREEK.items():
        word = word.replace(greek, name)
    plain = unicodedata.normalize("NFKD", word.lower()).encode("ascii", "ignore").decode()
    if len(plain) > 4:  # questions of MedMCQA have lost every "rt": "hypeension", "aery"
        plain = plain.replace("rt", "")
    plain = plain.replace("ae", "e").replace("oe", "e").replace("our", "or")
    if plain in _NUMBERS:
        return _NUMBERS[plain]
    if plain in _DIRECTIONS:
        return _DIRECTIONS[plain]
    if len(plain) > 4 and plain.isalpha():
        plain = re.sub(r"ies$", "y", plain)
        plain = re.sub(r"(?<=[sxzh])es$|(?<![siu])s$", "", plain)
        plain = _bare(plain)
        plain = _CANONICAL.get(plain) or _SUFFIX.sub("", plain)
    return plain or word.lower()


_FILLER_TEXT = (
    "infection disease syndrome disorder therapy treatment administration test level serum injury "
    "condition use start perform obtain order begin administer give refer commence measurement "
    "examination evaluation initiate supplementation infusion exposure ingestion overdose patient "
    "acute chronic primary severe mild form simple mode phenomenon phase "
    "position immediate immediately routine reaction process finding"
)
_FILLER = frozenset(map(_stem, _FILLER_TEXT.split()))


def _tokens(text: str) -> list[Token]:
    text = re.sub(r"[-‐‑](?=\w)", " ", text)
    # The "A" of "vitamin A" is no article.
    return [
        Token(
            "letter-a" if m.start() and m.group() == "A" else _stem(m.group()), m.start(), m.end()
        )
        for m in _WORD.finditer(text)
    ]


_OPPOSITE: dict[str, str] = {}
for _pair in _OPPOSITES.split():
    _one, _other = (
        _stem(side) if side not in ("increase", "decrease") else side for side in _pair.split("/")
    )
    _OPPOSITE |= {_one: _other, _other: _one}
_DIRECTED = frozenset(("increase", "decrease"))


@dataclass(frozen=True)
class _Form:
    """One way of writing an option: its words with their weights."""

    letter: str
    words: tuple[str, ...]
    weights: dict[str, float]
    exact: bool
    """Whether the words must follow each other as they are: numbers, negations, single letters."""
    unique: frozenset[str]
    """Words that no other option has."""
    span: int
    """Words of text within which the option must be said."""


class _Matcher:
    """Finds the options in a sentence."""

    def __init__(self, options: Mapping[str, str], text: str) -> None:
        aliases = dict(_aliases([text, *options.values()]))
        said = [t.word for t in _tokens(text)]
        genera = frozenset(_stem(m[1]) for m in _GENUS.finditer(text))
        joined = {a + b: (a, b) for a, b in pairwise(said)}
        worded = {
            letter: [
                [w for w in form if w not in _STOP]
                for form in _variants(option, aliases, frozenset(said), joined, genera)
            ]
            for letter, option in options.items()
        }
        self.options = dict(options)
        self.forms: list[_Form] = []
        bags = {letter: {w for form in forms for w in form} for letter, forms in worded.items()}
        for letter, forms in worded.items():
            others = [bag for other, bag in bags.items() if other != letter]
            for form in forms:
                made = _form(letter, form, others)
                if made:
                    self.forms.append(made)

    def spans(self, sentence: str) -> list[tuple[str, int, int]]:
        """Letter, first and last character of every place that says an option."""
        tokens = [t for t in _tokens(sentence) if t.word not in _STOP]
        found = [
            (letter, a, b, weight)
            for form in self.forms
            for letter, a, b, weight in _found(form, tokens)
        ]
        # Of two options in one place the one of which more is said is meant.
        kept = [
            (letter, a, b)
            for letter, a, b, weight in found
            if not any(
                other != letter and c <= b and a <= d and more > weight + 0.05
                for other, c, d, more in found
            )
        ]
        unique = sorted(set(kept), key=lambda span: (span[1], -span[2]))
        result: list[tuple[str, int, int]] = []
        for letter, a, b in unique:
            option = self.options[letter]
            short = len(option.split()) <= 4 and not re.search("[,;:]", option)
            if short and re.search(r"[,;:]\s", sentence[tokens[a].start : tokens[b].end]):
                continue
            if not any(letter == other and a <= d and c <= b for other, c, d in result):
                result.append((letter, a, b))
        return [(letter, tokens[a].start, tokens[b].end) for letter, a, b in result]


def _aliases(texts: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Abbreviations that a text explains: ``myocardial infarction (MI)``."""
    for text in texts:
        for match in re.finditer(r"\(([A-Z][A-Za-z]{1,5})\)", text):
            size = len([c for c in match[1] if c.isupper()])
            words = re.findall(r"[A-Za-z]+", text[max(0, match.start() - 120) : match.start()])
            tail = words[-size:]
            if [w[0].upper() for w in tail] == [c for c in match[1] if c.isupper()]:
                yield _stem(match[1]), tuple(_stem(w) for w in tail)
        for match in re.finditer(r"\b([A-Z]{2,6})\s+\(([A-Za-z -]+)\)", text):
            words = re.findall(r"[A-Za-z]+", match[2])
            if "".join(w[0].upper() for w in words) == match[1]:
                yield _stem(match[1]), tuple(_stem(w) for w in words)


def _variants(
    option: str,
    aliases: Mapping[str, tuple[str, ...]],
    said: frozenset[str],
    joined: Mapping[str, tuple[str, str]],
    genera: frozenset[str],
) -> Iterator[list[str]]:
    words = [t.word for t in _tokens(option)]
    yield words
    if _SPECIES.fullmatch(option.strip()) and words[0] in genera:
        yield words[:1]
    for at, word in enumerate(words):
        if word not in said and word in joined:
            yield [*words[:at], *joined[word], *words[at + 1 :]]
        if at and words[at - 1] + word in said:
            yield [*words[: at - 1], words[at - 1] + word, *words[at + 1 :]]
    if any(w in aliases for w in words):
        yield [part for w in words for part in aliases.get(w, (w,))]
    for short, long in aliases.items():
        size = len(long)
        for at in range(len(words) - size + 1):
            if tuple(words[at : at + size]) == long:
                yield [*words[:at], short, *words[at + size :]]
    inside = re.search(r"^(.{4,}?)\s*\(([^)]*)\)\s*\W*$", option)
    if inside:
        yield [t.word for t in _tokens(inside[1])]


_SPECIES = re.compile(r"[A-Z][a-z]{3,} [a-z]{4,}", re.ASCII)
_GENUS = re.compile(r"(?<=[a-z,(] )([A-Z][a-z]{3,})(?! [a-z]+(?:us|um|ans|ens|ae|osa|ii?|is)\b)")
_ANSWER_WORDS = frozenset(map(_stem, ("yes", "no", "maybe", "true", "false", "not")))
_NEGATIVE = frozenset(("no", "not", "without", "never", "cannot"))


def _form(letter: str, words: Sequence[str], others: Sequence[set[str]]) -> _Form | None:
    if not words or "".join(words) in _ANSWER_WORDS:
        return None
    code = re.fullmatch(r"[a-z]+\d+|\d+%?", "".join(words))
    if len("".join(words)) < 3 and not code:
        return None
    exact = any(bag == set(words) for bag in others)
    weights = {}
    for word in set(words):
        shared = sum(word in bag for bag in others)
        weight = 0.0 if others and shared == len(others) else 1 / (1 + shared)
        weights[word] = weight * (0.3 if word in _FILLER else 1.0)
    if exact and not any(weights.values()):
        weights = dict.fromkeys(words, 1.0)  # the same words in another order
    if not any(weights.values()):
        return None
    numeric = any(w[0].isdigit() or w in "<>≤≥" or len(w) == 1 or w == "letter-a" for w in words)
    negative = any(w in _NEGATIVE for w in words)
    directed = sum(w in _DIRECTED for w in words) > 1
    exact = exact or negative or directed or (numeric and len(words) <= 3)
    unique = frozenset(w for w in words if not any(w in bag for bag in others))
    return _Form(letter, tuple(words), weights, exact, unique, 2 * len(words) + 4)


def _found(form: _Form, tokens: Sequence[Token]) -> Iterator[tuple[str, int, int, float]]:
    words = [t.word for t in tokens]
    size = len(form.words)
    total = sum(form.weights.values())
    if form.exact:
        for at in range(len(words) - size + 1):
            if tuple(words[at : at + size]) == form.words and not _in_range(words, at, size):
                yield form.letter, at, at + size - 1, total + 1
        return
    least = MIN_COVERAGE if size <= 4 else MIN_COVERAGE_LONG
    at = 0
    while at < len(words):
        here, later = _window(form, words, at), None
        if here is None:
            at += 1
            continue
        covered, end, missing = here
        for start in range(at + 1, end + 1):
            later = _window(form, words, start)
            if later and later[0] >= covered and later[1] - start <= end - at:
                break  # the option begins later
        else:
            start = at
        if start > at:
            at = start
        elif covered / total >= least and not _contradicted(form, words, at, end, missing):
            yield form.letter, at, end, covered
            at = end + 1
        else:
            at += 1


def _window(form: _Form, words: Sequence[str], at: int) -> tuple[float, int, set[str]] | None:
    """Of the form said from word ``at`` on: its weight, its last word, the words not said."""
    if words[at] not in form.weights:
        return None
    places: dict[str, int] = {}
    stop = min(len(words), at + form.span)
    for place in range(at, stop):
        if words[place] in form.weights:
            places.setdefault(words[place], place)
    for word in set(form.words) - set(places):
        near = [
            place
            for place in range(at, stop)
            if min(len(word), len(words[place])) >= MIN_INEXACT
            and words[place][:2] == word[:2]  # afferent is not efferent
            and Levenshtein.distance(words[place], word) == 1
        ]
        if near:
            places[word] = near[0]
    covered = sum(form.weights[word] for word in places)
    return covered, max(places.values()), set(form.words) - set(places)


def _contradicted(
    form: _Form,
    words: Sequence[str],
    at: int,
    end: int,
    missing: set[str],
) -> bool:
    """Whether a word that matters is missing, or its opposite is said."""
    inside = words[at : end + 1]
    said = set(inside) | set(words[max(0, at - 2) : at])
    for word in form.words:
        opposite = _OPPOSITE.get(word)
        if opposite and word in missing and opposite in said:
            return True
        if word in _DIRECTED and (
            word in missing
            or not any(
                abs(a - b) <= 2
                for a in range(at, end + 1)
                if words[a] == word
                for b in range(at, end + 1)
                if words[b] in form.weights and words[b] != word
            )
        ):
            return True
        if word in missing and (opposite or word[0].isdigit()) and not (form.unique - missing):
            return True
        if opposite and opposite in inside and opposite not in form.words:
            return True
    if missing and all(word in _OPPOSITE for word in set(form.words) - missing):
        return True
    return bool(missing) and not form.unique - missing


_BOUNDS = frozenset(("more", "increase", "decrease", "over", "under", "least"))


def _in_range(words: Sequence[str], at: int, size: int) -> bool:
    """Whether a number is the end of a range, or a bound: ``5 to 7 days``, ``more than 50%``."""
    before = words[at - 1] if at else ""
    if before[:1].isdigit() or (words[at][0].isdigit() and before in _BOUNDS):
        return True
    behind = words[at + size : at + size + 1]
    return bool(behind and words[at + size - 1][0].isdigit() and behind[0][0].isdigit())
