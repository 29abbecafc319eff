"""How a sentence speaks of an option: as a conclusion, in passing, or to turn it down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from deft.evaluators.grading.choice.option_matching import OptionMatcher

MAX_MENTIONS = 40
"""Places in a sentence that are looked at, from the last one back."""
MAX_FRAME_GAP = 40
"""Characters between "the one that is not … is" and what it leads to."""
MAX_ITEM = 60
"""Characters from the start of a list's item in which the option stands that it is about."""
MAX_COMPLEMENT = 200
"""Characters ahead of an option in which "is", "is called", "is most likely due to" stands."""
MAX_HEDGE = 60
"""Characters ahead of "… is X" in which a "may" or "perhaps" concerns X."""
_ITEM = re.compile(
    r"^\W*(?:[-*•]\s|\d+[.)]\s"
    r"|(?:option\s+|choice\s+)?\(?[A-Z]\)?\s*(?:[:)]|\.(?!\s(?-i:[a-z])))"  # but P. vivax
    r"|(?:first|second|third|last)ly\b|another\b|instead\b|for (?:example|instance)\b)",
    re.IGNORECASE,
)
NAMES_ANSWER = re.compile(
    r"\b(?:(?:most|more)\s+(?:likely|probable|appropriate|suitable|fitting|common)|best|correct|"
    r"probable|likely|preferred|main|primary|underlying)\s+(?!to\b|due\b|has\b|have\b)"
    r"\w+\b[^.;]*?\b(?:is|are|would be|remains|appears to be|seems to be)\b"
    r"|\bdiagnosis\s+(?:is|of)\b",
    re.IGNORECASE,
)
_COMPLEMENT = re.compile(
    r"(?:\b(?:is|are|be|was|being|remains|becomes|called|termed|named|known as|referred to as"
    r"|described as|(?<!such )as)|['’]s)\s+"
    r"(?:(?:an?|the|most|likely|probably|typically|indeed|therefore|thus|a case of|to|classified"
    r"|considered|clearly|generally|usually|often|called|termed|known as|due to|caused by|give"
    r"|start|perform|obtain|begin|order|administer|initiate|her|his|their|high[- ]dose|of)\s+)*$",
    re.IGNORECASE,
)
ODD_FRAME = re.compile(
    r"\b(?:that|which|who|one)\s+(?:is|are|does|do|would|can|should|has|have"
    r"|was)\s*n[o'’]t\b[^.]*?\b(?:is|are|would be)\b|\bleast\s+(?:likely|common|probable"
    r"|appropriate|effective|associated)\b[^.]*?\b(?:is|are|would be)\b",
    re.IGNORECASE,
)
_APPENDED = re.compile(
    r":\s*(?:an?\s+|the\s+)?$|,\s*(?:an?|the)\s+$|^\W*(?:[Ff]or|[Ii]n)\b[^,;]*,\s+$"
    r"|(?<!follow)(?<!accompani)(?<!suppli)ed by\s+(?:the\s+)?$"
)
"""Ahead of what a sentence ends with: "one was missed, a type II error"."""
_SOUGHT = re.compile(
    r"\b(?:look|looking|search|searching|screen|screening|evaluat\w+|assess\w*|monitor\w*|test|"
    r"testing|watch\w*|work-?up)\s+(?:for|of)\b[^,;]*$",
    re.IGNORECASE,
)
_PICKED_OUT = re.compile(
    r"\s*(?:is|are|would be|remains)\s+(?:thus\s+|therefore\s+)?the\s+(?:only\s+)?(?:one|drug"
    r"|option|agent|finding)\s+(?:that|which|to|responsible|we)\b|\s+it\s+is\b|\s+(?:is"
    r"|are)\s+what\s+(?:should|must|is|we|i|has)\b",
    re.IGNORECASE,
)
_PARENTHESIS = re.compile(
    r"\s*,\s*(?:in contrast|by contrast|however|on the other hand|though|instead|therefore)\s*,"
    r"|\s*\([^()]{0,200}\)|\s*,\s*(?:unlike|rather than|as opposed to|in contrast to)\b[^,]*,",
    re.IGNORECASE,
)
_CONTRASTED = re.compile(r"\s*,\s*(?:in|by)\s+contrast\s*,", re.IGNORECASE)
_CONDITION = re.compile(
    r"\b(?:if|unless(?! contraindicated)|in case)\b[^,;]*,[^,;]*$", re.IGNORECASE
)
_INSTRUCTION = re.compile(
    r"\W*(?:start|give|treat(?: (?:her|him|this patient))? with|use|prescribe|administer|begin)\s+"
    r"(?:with\s+)?(?:oral\s+|intravenous\s+|IV\s+|a\s+course\s+of\s+)?",
    re.IGNORECASE,
)
"""Ahead of what the patient shall get, as a sentence of its own."""
_DIAGNOSED = re.compile(
    r"\b(?:this|the|our)\b[^,;]*\b(?:patient|man|woman|child|boy|girl|infant|\w+ic)\b[^,;]*"
    r"\b(?:has|have)\s+(?:an?\s+)?(?:\w+\s+)?$",
    re.IGNORECASE,
)
_IT_IS = re.compile(r"\b(?:it|this)(?:['’]s| is)\s+(?:an?\s+|the\s+)?$", re.IGNORECASE)
LETTER_BEHIND = re.compile(r"\s*\([A-Z]\)\W*$")
"""Behind an option, at the end: ``gingival hyperplasia (E).``"""
_SUMMING_UP = re.compile(
    r"\W*(?:therefore|thus|hence|in summary|in conclusion|overall|so|consequently|ultimately|"
    r"taken (?:together|as a whole)|all in all|altogether|by (?:elimination|exclusion))\b",
    re.IGNORECASE,
)
_LED_IN = re.compile(r"\W*(?:before|after|following)\s+(?:an?\s+|the\s+)?", re.IGNORECASE)
_LISTED = re.compile(r"(?:[\s,/&]|\b(?:or|and|an?|the|either|even|both)\b)+", re.IGNORECASE)
_ASIDE = re.compile(
    r"\((?!\s*(?:option|choice|answer|i\.e|that is|also|or)\b)[^()]*(?:: |\w \w+ \w)[^()]*\)",
    re.IGNORECASE,
)
"""Parentheses that say something of their own: ``(V1-V4 would be the left one)``."""
_BRACKETS = re.compile(r"\([^()]*\)")
_IN_OTHERS = re.compile(r"\bin (?:most |many |all |the )?others?\b", re.IGNORECASE)
_COORDINATE = re.compile(r"and\s+(?:is|are|should|would|has)\b[^,;:()]*")
_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bunlikely|\bless likely|\bnever|\bhardly)\s+(?:[\w'’]+\s+){0,2}$"
    r"|^\W*neither\b[^,;]*$",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\W*(?!(?:this|that|it|he|she|they|what)\b)(?!.*\b(?:step|diagnosis|answer|option|choice|best"
    r"|most|likely)\b).*\bwould (?:be|have been)\s+(?:an?\s+|the\s+)?$",
    re.IGNORECASE,
)
"""Ahead of what another case would be: ``vaccination would be primary prevention``."""
_QUALIFIES = re.compile(r"\b(?:of|for|in|to|with|behind|causing|that|which)\b")
_ENUMERATED = re.compile(r"\s*,[^.;:]*?\s(?:and|or)\s")
_OFFERED = re.compile(
    r"\b(?:options|choices) (?:are|include)\b|\b(?:so|nor|neither) (?:is|are|does|would)\s+$"
    r"|\b(?:unlike|rather than|as opposed to|in contrast to)\b[^;.]*,\s*which\b[^;.,]*$",
    re.IGNORECASE,
)
_NOT_HERE = re.compile(
    r"[^.;]*?\b(?:but|though) not "
    r"(?:here|(?:in |for )?this|in (?:her|his)|appropriate|indicated)\b",
    re.IGNORECASE,
)


def any_of(*alternatives: str, also: str = "") -> re.Pattern[str]:
    """Compile phrases that match as whole words, in either case; ``also`` may match anywhere."""
    words = rf"\b(?:{'|'.join(alternatives)})\b"
    return re.compile(f"{words}|{also}" if also else words, re.IGNORECASE)


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
    start: int
    letter: str
    standing: Standing
    exception: bool = False
    """Whether it is said not to belong where the others do."""


_CLAUSE = any_of(
    r"but|while|whereas|although|even though|though|however|because|since|despite|unlike|which",
    r"so that|and\s+(?:is|are|does|do|it|this|not|has|can|would|should)",
    also=r"[;:,()—–→]|\s-\s",
)
_CONCEDING = any_of(
    r"while|whereas|although|even though|though|despite|unlike|in contrast to",
    r"compared (?:to|with)|other than|apart from|besides|if|unless",
    r"had (?:it|this|he|she|there|the \w+) been|were (?:it|this|there)",
)
_TURNED_DOWN = any_of(
    r"(?:favou?r|prefer|choos|suggest)\w*\b[^,;]*\bover|rather than|instead of",
    r"as opposed to|unlike|not(?!\s+only)|never|neither|nor|than|rul(?:e|es|ed|ing) out",
    r"exclud\w+|against|less likely|unlikely|other than|except|in contrast to",
    r"compared (?:to|with)|contraindicated|inappropriate|incorrect|avoid\w*",
    r"(?:distinguish|differentiat)\w*|cannot|mimic\w*|least",
    r"(?:without|no|absence of|negative for)(?=(?:\W+\w+){0,3}\W*$)|replac(?:es|ed|ing)",
    r"exclusion of|(?:before|after)(?:\s+\w+)?\s*$|\w*n['’]t",
)
_TURNED_DOWN_BEHIND = any_of(
    r"withheld|withdrawn|stopped|discontinued|delayed|deferred|premature|later|unnecessary",
    r"ineffective|insufficient|wors\w+|dismissed|not(?!\s+only)|never|less|unlikely|least",
    r"ruled out|exclud\w+|contraindicated|inappropriate|incorrect|cannot|avoided|wrong",
    r"fails?|lacks?|used to be",
    r"(?:we|you|one|i)(?:['’]d| would) (?:expect|see|find)",
    r"would (?:show|have|present|cause|lead|produce|be expected (?:to|in|with)|typically|usually)",
    r"\w*n['’]t",
)
_OPEN = any_of(
    r"could|may|might|possib\w+|perhaps|consider\w*|such as|includ\w+|(?<!-)like|e\.g",
    r"for example|sometimes|or|combination of|either|if|whether|risk factors?|differential",
    r"question|suspected|(?<!strong )suspicion|can also",
    r"also(?!\s+(?:called|known|termed|referred))|some|(?:one|an|another|other) option",
    r"potential\w*|history of|occasionally|in addition|reserved|mimic\w*|initially|first sight",
    also=r"\?",
)
_CONCLUSION = any_of(
    r"most\s+(?:likely|probab(?:le|ly)|appropriate|suitable|consistent|fitting|closely|effective"
    r"|accurate|plausible|common\w*)",
    r"(?:is|seems|looks|sounds) (?:right|correct)|best|more likely|more probable|diagnosis",
    r"diagnosed|next step|of choice|preferred",
    r"therefore|thus|hence|consequently|in conclusion|in summary|to summarize|answer",
    r"(?:is|are|be|commonly) (?:called|termed|known as|referred to as)|responsible for",
    r"conclude\w*|would be (?:the|to|my|ideal|indicated|given|used)",
    r"(?:should|must|ha[sv]e? to) be(?!\s+(?:treated|tested|excluded|confirmed|monitored|evaluated"
    r"|assessed))",
    r"should (?:receive|undergo|start|begin|get|have)|recommend\w*|is indicated",
    r"first[- ]line|choice|to choose|le(?:aves?|aving|ft)|remaining|better",
    r"term (?:used|for)|final|leads? to the conclusion|gold standard|priority|favou?red",
    r"preferable|definitive|superior|chosen|selected|warranted|greatest|highest",
    r"key (?:player|enzyme|factor)|likely",
)
_CUE = any_of(
    r"suggest\w*|consistent with|indicat\w+|point\w* (?:strongly )?(?:to|towards?)",
    r"characteri[sz]\w+|due to|caused by|attribut\w+|result\w* (?:from|of|in)|associated with",
    r"typical\w*|align\w*|fits?|match\w*|support\w*|correspond\w*|explain\w*|classic\w*",
    r"confirm\w*|strongly|diagnostic|expects?|reflects?|suitable|helps?|effective|required",
    r"needed|used to|treated with|is the|are the|ideal|appropriate|adequate|establish\w*",
    r"namely|i\.e|criteria for|doubt about|pathognomonic|belongs? to|calls for|favou?rs?",
    r"(?:usual|common|expected) (?:in|for)|(?:known|notorious|famous) for|defines?|means|affected"
    r"|involved|injured|compressed|damaged",
    r"occluded|present|to blame|accounts? for|strong suspicion|suits?|locali[sz]es? to|goes with",
    r"speaks? for|hallmark|(?:seen|found|occurs) in|stems? from|comes? from|arises? from",
)
_EXAMPLES = re.compile(r"\b(?:such as|like|e\.g|including|for example)\b.*")
"""Behind an option: what it is said of, not the option, is exemplified."""
_ODD_ONE = any_of(
    r"least likely|exception|except|odd one out|cannot be used",
    r"(?:is|are|would|does|do|has|have|can|should|was|were)\s*n[o'’]t\s+(?:(?:be|have|directly"
    r"|specifically|typically|usually|generally|considered|expected|an?|part|one"
    r"|appear\s+to)\s+)*(?:associat\w+|cause\w*|align\w*|contribut\w+|includ\w+|feature"
    r"|characteristic|known|among|of|risk|indicat\w+|effective|used|recommended|belong|form"
    r"|increase\w*|elevate\w*|seen|given|occur|true|typical\w*|component|expected|needed|necessary"
    r"|contraindicat\w+|related|involved|supply|done|constitute|require\w*)",
)
_EXPLAINED = any_of(
    r"(?:is|are|was|were)\s+(?:\w+\s+){0,3}(?:due to|caused by|mediated by|attribut\w+"
    r"|explained by|because|a result of|secondary to)"
)


def mentions_in(index: int, sentence: str, matcher: OptionMatcher) -> Iterator[Mention]:
    places = [
        (letter, start, end, *_standing(_place(sentence, start, end)))
        for letter, start, end in matcher.spans(sentence)[-MAX_MENTIONS:]
    ]
    listed = {
        place
        for (one, first, end, *_), (other, second, *_) in pairwise(places)
        if one != other
        and _LISTED.fullmatch(sentence, end, second)
        and not _CONCEDING.search(sentence, max(0, first - 20), first)
        and not _LED_IN.fullmatch(sentence, 0, first)
        for place in (first, second)
    }
    asides = [m.span() for m in _ASIDE.finditer(sentence)]
    inside = {s for _, s, e, *_ in places if any(a < s and e <= b for a, b in asides)}
    if any(x >= Standing.stated for _, s, _, x, _ in places if s not in inside):
        places = [place for place in places if place[1] not in inside]
    places = [
        (c, s, e, min(x, Standing.aside) if _is_outdone(sentence, c, e, places) else x, o)
        for c, s, e, x, o in places
    ]
    shared = Standing.aside
    for at in range(len(places) - 1, -1, -1):
        letter, start, end, standing, odd = places[at]
        if start not in listed:
            shared = Standing.aside
            continue
        # "A, B and C will not work" turns all of them down.
        shared = min(standing, shared)
        places[at] = (letter, start, end, shared, odd)
    for level in (Standing.concluded, Standing.suggested):
        letters = {letter for letter, _, _, standing, _ in places if standing == level}
        if len(letters) > 1:  # two at once: neither is chosen, but for what the sentence ends in
            last = places[-1][1] if _ends(sentence, *places[-1][1:4]) else -1
            places = [
                (c, s, e, x if s == last else min(x, Standing.aside), o) for c, s, e, x, o in places
            ]
    for letter, start, _, standing, odd in places:
        yield Mention(index, start, letter, standing, odd)


def _is_outdone(
    sentence: str, letter: str, end: int, places: list[tuple[str, int, int, Standing, bool]]
) -> bool:
    """Check whether another option follows behind a "but" that is more than stated."""
    return any(
        start > end and re.search(r",\s*but\b", sentence[end:start]) is not None
        for other, start, _, standing, _ in places
        if other != letter and standing >= Standing.suggested
    )


def _ends(sentence: str, start: int, end: int, standing: Standing) -> bool:
    """Check whether a sentence ends by saying that something is this: "... is a <text>"."""
    ends = not re.search(r"\w", sentence[end:]) and _COMPLEMENT.search(sentence[:start])
    return bool(ends) and standing >= Standing.suggested


@dataclass(frozen=True)
class _Place:
    """A place in a sentence, with the words around it."""

    sentence: str
    ahead: str
    """All of the sentence before the place, and ``rest`` all of it behind."""
    rest: str
    opener: str
    """What opened the clause of the place: a comma, "because"."""
    before: str
    """The clause before the place, and ``behind`` what the clause goes on to say."""
    behind: str

    @property
    def is_complement(self) -> bool:
        """Check whether the sentence says that something is this."""
        ends = not re.search(r"\w", re.sub(r"\([^()]*\)", "", self.rest))
        tail = self.ahead[-MAX_COMPLEMENT:]
        return bool(_COMPLEMENT.search(tail) or (ends and _APPENDED.search(tail)))


def _place(sentence: str, start: int, end: int) -> _Place:
    # What stands in brackets ahead of the place opens no clause: "while TP / (TP + FP) is the …".
    plain = _BRACKETS.sub(
        lambda m: " " * len(m.group()) if m.end() <= start else m.group(), sentence
    )
    marks = list(_CLAUSE.finditer(plain))
    opener = max((m for m in marks if m.end() <= start), key=re.Match.end, default=None)
    opening = opener.end() if opener else 0
    aside = _PARENTHESIS.match(sentence, end)
    resumed = aside.end() if aside else end
    closing = min((m.start() for m in marks if m.start() >= resumed), default=len(sentence))
    coordinate = _COORDINATE.match(sentence, closing)
    behind = sentence[resumed:closing] + (f" {coordinate.group()}" if coordinate else "")
    opened = opener.group() if opener else ""
    return _Place(
        sentence, sentence[:start], sentence[end:], opened, sentence[opening:start], behind
    )


def _standing(place: _Place) -> tuple[Standing, bool]:
    """Return how the sentence speaks of the place, and whether as of the odd one out."""
    if _is_framed(place) or _PICKED_OUT.match(place.rest):
        return Standing.concluded, True
    if _is_conceded(place):
        return Standing.aside, False
    if _DENIED.search(place.ahead):
        return Standing.rejected, bool(_ODD_ONE.search(place.before))
    if not place.is_complement and _TURNED_DOWN.search(place.before):
        return Standing.rejected, bool(
            re.search(r"\bleast\b|\bexcept", place.before, re.IGNORECASE)
        )
    if _TURNED_DOWN_BEHIND.search(place.behind) or _NOT_HERE.match(place.rest):
        return Standing.rejected, bool(_ODD_ONE.search(place.behind))
    if _is_left_open(place) or _SUPPOSED.match(place.before):
        return Standing.aside, False
    clause = f"{place.before} {place.behind}"
    if (
        _CONCLUSION.search(clause)
        or (place.is_complement and _CONCLUSION.search(place.ahead))
        or _SUMMING_UP.match(place.sentence)
        or _INSTRUCTION.fullmatch(place.ahead)
        or _DIAGNOSED.search(place.before)
        or re.match(r"\s*(?:is|are) given\b", place.behind)
        or LETTER_BEHIND.fullmatch(place.rest)
        or (place.ahead.endswith("(") and re.fullmatch(r"\)\W*", place.rest))
        or (_IT_IS.search(place.before) and not re.search(r"\w", place.rest))
        or re.search(r"\b(?:should|must)\s+$", place.before)
        or (re.search(r"\bso\s+$", place.before) and not re.search(r"\w", place.behind))
    ):
        return Standing.concluded, False
    if _CUE.search(clause) or place.is_complement or re.search(r"\bw(?:ill|ould) $", place.before):
        return Standing.suggested, False
    if re.search(r",\s*$", place.ahead) and _ENUMERATED.match(place.rest):
        return Standing.aside, False
    return Standing.stated, False


def _is_framed(place: _Place) -> bool:
    """Check whether the place is what "the one that is not … is" leads to."""
    frame = ODD_FRAME.search(place.ahead)
    if frame is None or len(place.ahead) - frame.end() >= MAX_FRAME_GAP:
        return False
    return not _TURNED_DOWN.search(place.ahead[frame.end() :])


def _is_conceded(place: _Place) -> bool:
    """Check for a condition, a concession, an open question, or a part of another name."""
    subject = NAMES_ANSWER.search(place.sentence)
    start = len(place.ahead)
    qualifies = (
        subject is not None
        and len(place.sentence) - len(place.rest) <= subject.end()
        and _QUALIFIES.search(place.sentence, subject.start(), start)
    )
    return bool(
        qualifies
        or _OFFERED.search(place.ahead)
        or _CONCEDING.search(place.opener + place.before)
        or _CONDITION.search(place.ahead)
        or _UNSURE.search(place.before)
    )


def _is_left_open(place: _Place) -> bool:
    """Check for a list item, a definition, something sought, or one possibility of several."""
    if _ITEM.match(place.sentence) and len(place.ahead) < MAX_ITEM:
        return True
    if _EXPLAINED.search(place.behind) or _CONTRASTED.match(place.rest):
        return True
    if _SOUGHT.search(place.before) or _IN_OTHERS.search(place.behind):
        return True
    if place.is_complement:
        return _OPEN.search(place.before[-MAX_HEDGE:]) is not None
    example = re.search(r"\b(?:like|such as)\s+$", place.before)
    chosen = _CONCLUSION.search(place.behind) or _CUE.search(place.behind)
    if example and chosen and not _OPEN.search(place.behind):
        return False  # "a macrolide such as azithromycin is preferred"
    behind = _EXAMPLES.sub("", place.behind)
    return _OPEN.search(f"{place.before} {behind}") is not None


_UNSURE = any_of(r"whether|if|unclear|not clear|(?<!little )(?<!no )doubt\w*")
