"""The option that a response concludes with in free prose.

Every place that speaks of an option is found, by the option's distinctive words or by its letter,
and weighed by how the sentence around it speaks: as a conclusion, as a plain statement, as one
possibility among others, or as something turned down. One option has to stand out; whatever is less
clear than that is no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
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
MAX_MENTIONS = 40
"""Places in a sentence that are looked at, from the last one back."""
MAX_FRAME_GAP = 40
"""Characters between "the one that is not … is" and what it leads to."""
MAX_ITEM = 60
"""Characters from the start of a list's item in which the option stands that it is about."""
MAX_HEDGE = 60
"""Characters ahead of "… is X" in which a "may" or "perhaps" concerns X."""
MAX_RANGE_GAP = 6
"""Characters between the ends of a range (``5 to 7``), or between a bound and its number."""
MIN_INEXACT = 8
"""Letters of a word in which one letter may differ, beside another word that fits exactly."""


def _phrases(*alternatives: str, also: str = "") -> re.Pattern[str]:
    """Any of the phrases, in either case, as whole words; ``also`` needs no such ends."""
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


@dataclass(frozen=True)
class Token:
    """A word, normalised, with its place in the sentence (characters)."""

    word: str
    start: int
    end: int


def abridged(said: str, options: Mapping[str, str]) -> str | None:
    """The letter of the one option (letter to text) of whose words ``said`` consists."""
    capitals = re.fullmatch(r"\W*(?:an?\s+|the\s+)?([A-Z]{2,6})\W*", said)
    if capitals:
        named = [c for c, text in options.items() if capitals[1] in _all_initials(text)]
        if len(named) == 1:
            return named[0]
    words = {t.word for t in _tokens(said)} - _STOP
    found = [c for c, text in options.items() if words and _within(words, text)]
    if len(found) > 1:  # both are true
        every = {t.word for t in _tokens(said)}
        found = [c for c in found if every <= {t.word for t in _tokens(options[c])}]
    return found[0] if len(found) == 1 else None


def _all_initials(option: str) -> tuple[str, str]:
    """The initials of an option, of all its words and of the main ones: MI."""
    words, main = _main_words(option)
    return "".join(w[0].upper() for w in words), "".join(w[0].upper() for w in main)


def _main_words(option: str) -> tuple[list[str], list[str]]:
    """All words of an option, and those that carry its meaning."""
    words = re.findall(r"[A-Za-z]+", option)
    return words, [w for w in words if w.lower() not in _STOP]


def _within(words: Iterable[str], option: str) -> bool:
    """Whether an option has all the words, give or take a letter in long ones, and "%"."""
    own = [t.word.rstrip("%") for t in _tokens(option)]
    return all(
        word.rstrip("%") in own
        or (len(word) >= 3 and any(o.startswith(word) for o in own))
        or (len(word) >= MIN_INEXACT - 1 and any(Levenshtein.distance(word, o) == 1 for o in own))
        for word in words
    )


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
        return _settled(strong, mentions, elsewhere, len(sentences) - 1)
    excepted = _exception(mentions, len(options))
    if excepted:
        return excepted
    if elsewhere or any(map(_ODD_FRAME.search, sentences)):
        return None  # the answer it names is none of the options
    if any(map(_DEPENDS.search, sentences)):
        return None
    suggested = [m for m in mentions if m.standing == Standing.suggested]
    if suggested:
        return _settled(suggested, mentions, elsewhere, len(sentences) - 1)
    return _only_subject(mentions, len(sentences)) or _left_over(mentions, len(sentences) - 1)


def _settled(
    strong: Sequence[Mention], mentions: Sequence[Mention], elsewhere: Sequence[int], end: int
) -> str | None:
    """The option that the ``strong`` mentions speak for.

    Where they differ, that of the last sentence (number ``end``), or else the first: an answer is
    given at the end, or at once and then explained.
    """
    differ = len({m.letter for m in strong}) > 1
    said = strong[0] if differ and strong[-1].sentence < end else strong[-1]
    if any(m.sentence == said.sentence and m.letter != said.letter for m in strong):
        return None
    later = [m for m in mentions if m.sentence > said.sentence and m.letter == said.letter]
    if any(m.standing == Standing.rejected for m in later) and not said.exception:
        return None
    if any(index > said.sentence for index in elsewhere):
        return None
    return said.letter


def _exception(mentions: Sequence[Mention], size: int) -> str | None:
    """The option that is said not to belong, where all the others are said to, or are left out."""
    rejected = {m.letter for m in mentions if m.standing == Standing.rejected}
    granted = {m.letter for m in mentions} - rejected
    odd = {m.letter for m in mentions if m.exception}
    if len(rejected) == 1 and len(granted) >= 2 and len(granted) == size - 1:
        odd = rejected
    if len(odd) != 1:
        return None
    letter = odd.pop()
    others = [m for m in mentions if m.letter != letter and m.standing != Standing.rejected]
    times = sum(m.exception for m in mentions)
    if times == 1 and any(m.letter == letter and m.standing >= Standing.stated for m in mentions):
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
    """What is stated where the others that were spoken of were turned down.

    That is said in the last sentence, or of two others at least.
    """
    letters = {m.letter for m in mentions}
    stated = {m.letter for m in mentions if m.standing >= Standing.stated}
    others = {m.letter for m in mentions if m.standing == Standing.rejected} - stated
    if len(letters - others) != 1:
        return None
    letter = (letters - others).pop()
    own = [m for m in mentions if m.letter == letter]
    apart = all(m.sentence < end or m.start > own[-1].start for m in mentions if m.letter in others)
    enough = len(others) > 1 or (len(others) == 1 and own[-1].sentence == end and apart)
    return letter if enough and all(m.standing >= Standing.stated for m in own) else None


_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|vs|etc|approx|cf|dr|no|fig)\.$|^\W*(?:option\s+)?\(?[A-Z]\)?\.$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\*\*|__|[`\"“”$]|^#+\s*", re.MULTILINE)
_ITEM = re.compile(
    r"^\W*(?:[-*•]\s|\d+[.)]\s"
    r"|(?:option\s+|choice\s+)?\(?[A-Z]\)?\s*(?:[:)]|\.(?!\s(?-i:[a-z])))"  # but P. vivax
    r"|(?:first|second|third|last)ly\b|another\b|instead\b|for (?:example|instance)\b)",
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
    return [_PREFACE.sub("", sentence) for sentence in kept[-MAX_SENTENCES:]]


_PREFACE = re.compile(
    r"^[^;]*?\b(?:not (?:\w+ )?(?:sure|certain)|unsure|difficult|hard|cannot|can't)\b[^;]*?[,;]\s*"
    r"(?:but|however|yet|still)\b\W*|^\W*if I (?:had|have|were|am) (?:forced )?to \w+,\s*",
    re.IGNORECASE,
)
"""A doubt that is overcome in the same sentence."""
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
_CLAUSE = _phrases(
    r"but|while|whereas|although|even though|though|however|because|since|despite|unlike|which",
    r"so that|and\s+(?:is|are|does|do|it|this|not|has|can|would|should)",
    also=r"[;:,()—–→]|\s-\s",
)
_CONCEDING = _phrases(
    r"while|whereas|although|even though|though|despite|unlike|in contrast to",
    r"compared (?:to|with)|other than|apart from|besides|if|unless",
)
_TURNED_DOWN = _phrases(
    r"(?:favou?r|prefer|choos|suggest)\w*\b[^,;]*\bover|rather than|instead of",
    r"as opposed to|unlike|not(?!\s+only)|never|neither|nor|than|rul(?:e|es|ed|ing) out",
    r"exclud\w+|against|less likely|unlikely|other than|except|in contrast to",
    r"compared (?:to|with)|contraindicated|inappropriate|incorrect|avoid\w*",
    r"(?:distinguish|differentiat)\w*|cannot|mimic\w*|least",
    r"(?:without|no|absence of|negative for)(?=(?:\W+\w+){0,3}\W*$)|replac(?:es|ed|ing)",
    r"exclusion of|(?:before|after)(?:\s+\w+)?\s*$|\w*n['’]t",
)
_TURNED_DOWN_BEHIND = _phrases(
    r"withheld|withdrawn|stopped|discontinued|delayed|deferred|premature|later|unnecessary",
    r"ineffective|insufficient|wors\w+|dismissed|not(?!\s+only)|never|less|unlikely|least",
    r"ruled out|exclud\w+|contraindicated|inappropriate|incorrect|cannot|avoided|wrong",
    r"fails?|lacks?",
    r"would (?:show|have|present|cause|lead|produce|be expected (?:to|in|with)|typically|usually)",
    r"\w*n['’]t",
)
_OPEN = _phrases(
    r"could|may|might|possib\w+|perhaps|consider\w*|such as|includ\w+|(?<!-)like|e\.g",
    r"for example|sometimes|or|combination of|either|if|whether|risk factors?|differential",
    r"question|suspected|(?<!strong )suspicion|can also",
    r"also(?!\s+(?:called|known|termed|referred))|some|(?:one|an|another|other) option",
    r"potential\w*|history of|occasionally|in addition|reserved|mimic\w*|initially|first sight",
    also=r"\?",
)
_COMPLEMENT = re.compile(
    r"(?:\b(?:is|are|be|was|being|remains|becomes|called|termed|named|known as|referred to as"
    r"|described as|(?<!such )as)|['’]s)\s+"
    r"(?:(?:an?|the|most|likely|probably|typically|indeed|therefore|thus|a case of|to|classified"
    r"|considered|clearly|generally|usually|often|called|termed|known as|due to|caused by|give"
    r"|start|perform|obtain|begin|order|administer|initiate|her|his|their|high[- ]dose|of)\s+)*$",
    re.IGNORECASE,
)
_CONCLUSION = _phrases(
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
    r"preferable|superior|chosen|selected|warranted|greatest|highest",
    r"key (?:player|enzyme|factor)|likely",
)
_CUE = _phrases(
    r"suggest\w*|consistent with|indicat\w+|point\w* (?:strongly )?(?:to|towards?)",
    r"characteri[sz]\w+|due to|caused by|attribut\w+|result\w* (?:from|of|in)|associated with",
    r"typical\w*|align\w*|fits?|match\w*|support\w*|correspond\w*|explain\w*|classic\w*",
    r"confirm\w*|strongly|diagnostic|expects?|reflects?|suitable|helps?|effective|required",
    r"needed|used to|treated with|is the|are the|ideal|appropriate|adequate|establish\w*",
    r"namely|i\.e|criteria for|doubt about|pathognomonic|belongs? to|calls for|favou?rs?",
    r"(?:usual|common|expected) (?:in|for)|affected|involved|injured|compressed|damaged",
    r"occluded|present|to blame|accounts? for|strong suspicion|suits?|locali[sz]es? to|goes with",
    r"speaks? for|hallmark|(?:seen|found|occurs) in|stems? from|comes? from|arises? from",
)
_ODD_ONE = _phrases(
    r"least likely|exception|except|odd one out|cannot be used",
    r"(?:is|are|would|does|do|has|have|can|should|was|were)\s*n[o'’]t\s+"
    r"(?:(?:be|have|directly|specifically|typically|usually|generally|considered|expected|an?|part"
    r"|one|appear\s+to)\s+)*"
    r"(?:associat\w+|cause\w*|align\w*|contribut\w+|includ\w+|feature|characteristic|known|among"
    r"|of|risk|indicat\w+|effective|used|recommended|belong|form|increase\w*|elevate\w*|seen|given"
    r"|occur|true|typical\w*|component|expected|needed|necessary|contraindicat\w+|related|involved"
    r"|supply|done|constitute|require\w*)",
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
_SOUGHT = re.compile(
    r"\b(?:look|looking|search|searching|screen|screening|evaluat\w+|assess\w*|monitor\w*|test|"
    r"testing|watch\w*|work-?up)\s+(?:for|of)\b[^,;]*$",
    re.IGNORECASE,
)
_PICKED_OUT = re.compile(
    r"\s*(?:is|are|would be|remains)\s+(?:thus\s+|therefore\s+)?the\s+(?:only\s+)?(?:one|drug|"
    r"option|agent|finding)\s+"
    r"(?:that|which|to|responsible|we)\b|\s+it\s+is\b|\s+(?:is|are)\s+what\s+(?:should|must|is|we|has)\b",
    re.IGNORECASE,
)
_PARENTHESIS = re.compile(
    r"\s*,\s*(?:in contrast|by contrast|however|on the other hand|though|instead|therefore)\s*,"
    r"|\s*,\s*(?:unlike|rather than|as opposed to|in contrast to)\b[^,]*,",
    re.IGNORECASE,
)
_CONTRASTED = re.compile(r"\s*,\s*(?:in|by)\s+contrast\s*,", re.IGNORECASE)
_CONDITION = re.compile(
    r"\b(?:if|unless(?! contraindicated)|in case)\b[^,;]*,[^,;]*$", re.IGNORECASE
)
_EXPLAINED = _phrases(
    r"(?:is|are|was|were)\s+(?:\w+\s+){0,3}(?:due to|caused by|mediated by|attribut\w+"
    r"|explained by|because|a result of|secondary to)"
)
_SUMMING_UP = re.compile(
    r"\W*(?:therefore|thus|hence|in summary|in conclusion|overall|so|consequently|ultimately|"
    r"taken (?:together|as a whole)|all in all|altogether|by (?:elimination|exclusion))\b",
    re.IGNORECASE,
)


_LISTED = re.compile(r"(?:[\s,/&]|\b(?:or|and|an?|the|either|even|both)\b)+", re.IGNORECASE)


def _mentions(index: int, sentence: str, matcher: _Matcher) -> Iterator[Mention]:
    found = [
        (letter, start, end, *_standing(_place(sentence, start, end)))
        for letter, start, end in matcher.spans(sentence)[-MAX_MENTIONS:]
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
        if len(letters) > 1:  # two at once: neither is chosen, but for what the sentence ends in
            last = found[-1][1] if _ends(sentence, *found[-1][1:4]) else -1
            found = [
                (c, s, e, x if s == last else min(x, Standing.aside), o) for c, s, e, x, o in found
            ]
    for letter, start, _, standing, odd in found:
        yield Mention(index, start, letter, standing, odd)


def _ends(sentence: str, start: int, end: int, standing: Standing) -> bool:
    """Whether a sentence comes to its end in saying that something is this: "... is a <text>"."""
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
        """Whether the sentence says that something is this."""
        ends = not re.search(r"\w", self.rest)
        return bool(_COMPLEMENT.search(self.ahead) or (ends and _APPENDED.search(self.ahead)))


def _place(sentence: str, start: int, end: int) -> _Place:
    marks = list(_CLAUSE.finditer(sentence))
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
    """How the sentence speaks of the place, and whether as of the odd one out."""
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
    if _TURNED_DOWN_BEHIND.search(place.behind):
        return Standing.rejected, bool(_ODD_ONE.search(place.behind))
    if _is_left_open(place):
        return Standing.aside, False
    clause = f"{place.before} {place.behind}"
    if (
        _CONCLUSION.search(clause)
        or (place.is_complement and _CONCLUSION.search(place.ahead))
        or _SUMMING_UP.match(place.sentence)
        or re.search(r"\b(?:should|must)\s+$", place.before)
        or (re.search(r"\bso\s+$", place.before) and not re.search(r"\w", place.behind))
    ):
        return Standing.concluded, False
    if _CUE.search(clause) or place.is_complement:
        return Standing.suggested, False
    if re.search(r",\s*$", place.ahead) and _ENUMERATED.match(place.rest):
        return Standing.aside, False
    return Standing.stated, False


def _is_framed(place: _Place) -> bool:
    """Whether it is what "the one that is not … is" leads to."""
    frame = _ODD_FRAME.search(place.ahead)
    if frame is None or len(place.ahead) - frame.end() >= MAX_FRAME_GAP:
        return False
    return not _TURNED_DOWN.search(place.ahead[frame.end() :])


def _is_conceded(place: _Place) -> bool:
    """Whether it is a condition, a concession, an open question, or part of another's name."""
    subject = _NAMES_ANSWER.search(place.sentence)
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
    """Whether it is an item, a definition, something looked for, or one possibility of several."""
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
    return _OPEN.search(f"{place.before} {place.behind}") is not None


_IN_OTHERS = re.compile(r"\bin (?:most |many |all |the )?others?\b", re.IGNORECASE)
_COORDINATE = re.compile(r"and\s+(?:is|are|should|would|has)\b[^,;:()]*")
_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bunlikely|\bless likely|\bnever|\bhardly)\s+(?:[\w'’]+\s+){0,2}$"
    r"|^\W*neither\b[^,;]*$",
    re.IGNORECASE,
)
_UNSURE = _phrases(r"whether|if|unclear|not clear|(?<!little )(?<!no )doubt\w*")
_QUALIFIES = re.compile(r"\b(?:of|for|in|to|with|behind|causing|that|which)\b")
_ENUMERATED = re.compile(r"\s*,[^.;:]*?\s(?:and|or)\s")
_OFFERED = re.compile(r"\b(?:options|choices) (?:are|include)\b", re.IGNORECASE)

_STOP_TEXT = (
    "a an the of in to and with for on by at from or this that is are be as its it their his her "
    "all none above both any these those due using into than only will"
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
    "inhibit/activate agonist/antagonist obstructive/restrictive open/closed dry/wet hot/cold "
    "arterial/venous metabolic/respiratory acidosis/alkalosis oral/intravenous"
)
_UP = "elevate raise raises rise rises rising high higher increase enhance greater"
_DOWN = "falls reduce low lower diminish fall decline decrease less"
_DIRECTIONS = dict.fromkeys(_UP.split(), "increase")
_DIRECTIONS |= dict.fromkeys(_DOWN.split(), "decrease")
_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())}
_ROMAN = "i ii iii iv v vi vii viii ix x xi xii xiii"
_NUMBERS |= {numeral: str(number) for number, numeral in enumerate(_ROMAN.split(), 1)}
_GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "κ": "kappa", "μ": "mu"}
_SUFFIX = re.compile(
    r"(?<=[a-z]{6})(?:e?al|ar|or|us|um|i?a|is|ic|iv|(?:at)?ion|ous|[ae]nc|c|tic|sis|ary|y|gram?"
    r"|graphy)$"
    r"|(?<=block)ade?$|(?<=drain)ag$"
)
"""What tells a noun from its adjective behind a stem of 6 letters: meniscus, meniscal."""
_SYNONYMS = {
    "renal": "kidney",
    "hepatic": "liver",
    "cardia": "heart",
    "pulmon": "lung",
    "cerebr": "brain",
    "lymphocyt": "cell",
    "correct": "true",
    "incorrect": "false",
}
"""Stems of Latin names and of verdicts, with the plain word."""
_WORD = re.compile(r"\d+(?:[.,:/]\d+)*(?:%|\s?per\s?cent\b)?|(?<!['’])[^\W\d_]+\d*|[<>≤≥]")


def _bare(word: str) -> str:
    return re.sub(r"(?<=[a-z]{4})(?:ing|ed|e)$", "", word)


_CANONICAL = {_bare(word): name for word, name in _DIRECTIONS.items()}


@lru_cache(maxsize=10_000)
def _stem(word: str) -> str:
    """A word without inflection and spelling variants; not a dictionary form."""
    word = re.sub(r"\s?per\s?cent$", "%", word)
    for greek, name in _GREEK.items():
        word = word.replace(greek, name)
    plain = unicodedata.normalize("NFKD", word.lower()).encode("ascii", "ignore").decode()
    if plain in _NUMBERS:
        return _NUMBERS[plain]
    if len(plain) > 4:  # questions of MedMCQA have lost every "rt": "hypeension", "aery"
        plain = plain.replace("rt", "")
    plain = plain.replace("ae", "e").replace("oe", "e").replace("our", "or")
    if plain in _DIRECTIONS:
        return _DIRECTIONS[plain]
    if len(plain) > 4 and plain.isalpha():
        plain = re.sub(r"ies$", "y", plain)
        plain = re.sub(r"(?<=[sxzh])es$|(?<![siu])s$", "", plain)
        plain = _bare(re.sub(r"(?<=[a-z]{5})ly$", "", plain))
        plain = _CANONICAL.get(plain) or _SUFFIX.sub("", plain)
    return _SYNONYMS.get(plain, plain) or word.lower()


_FILLER_TEXT = (
    "infection disease syndrome disorder therapy treatment administration test level serum injury "
    "condition use start perform obtain order begin administer give refer commence measurement "
    "examination evaluation initiate supplementation infusion exposure ingestion overdose patient "
    "acute chronic primary severe mild form simple mode phenomenon phase "
    "study cement position immediate immediately routine reaction process finding"
)
_FILLER = frozenset(map(_stem, _FILLER_TEXT.split()))


_INTRAVENOUS = re.compile(
    r"(?<!ype )(?<!tage )(?<!rade )(?<!ctor )(?<!lass )(?<!CN )(?<!erve )(?<!roup )(?<!hase )"
    r"(?:\bIV\b|\bi\.v\.)(?=\s+[a-z])"
)
"""``IV`` that is no numeral."""


def _tokens(text: str) -> list[Token]:
    text = _INTRAVENOUS.sub("intravenous", re.sub(r"[-‐‑](?=\w)", " ", text))
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
        aliases |= dict(_initials(text, options.values()))
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
        self.collective = {
            letter: _COLLECTIVE[match[1].lower()]
            for letter, option in options.items()
            if (match := _ALL_OR_NONE.match(option))
        }
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
        worded = [(letter, tokens[a].start, tokens[b].end) for letter, a, b in result]
        spans = [*worded, *self._named(sentence)]
        # What stands behind a closing bracket still speaks of what is in the brackets.
        return sorted(
            ((letter, a, b + sentence.startswith(")", b)) for letter, a, b in spans),
            key=lambda span: span[1],
        )

    def _named(self, sentence: str) -> Iterator[tuple[str, int, int]]:
        """The places that name an option by its letter, or say "all of the above"."""
        for match in _BY_LETTER.finditer(sentence):
            group = match.lastindex or 0
            ahead = sentence[: match.start(group)].split()[-1:]
            if match[group] in self.options and not _LETTERED & {w.lower() for w in ahead}:
                yield match[group], *match.span(group)
        for letter, pattern in self.collective.items():
            for match in pattern.finditer(sentence):
                yield letter, *match.span()


_LETTERED_TEXT = (
    "vitamin vit hepatitis hep type grade group factor stage class protein influenza strep phase "
    "category schedule hemophilia haemophilia hemoglobin haemoglobin immunoglobulin complement "
    "coenzyme cytochrome bipolar angiotensin"
)
_LETTERED = frozenset(_LETTERED_TEXT.split())
"""What is itself told apart by letters: vitamin C is not option C."""
_ALL_OR_NONE = re.compile(r"\W*(all|none)(?:\s+of)?\s+(?:the\s+)?(?:above|these)\b", re.IGNORECASE)
_COLLECTIVE = {
    word: re.compile(
        rf"\b{word}\s+(?:of\s+)?(?:the\s+)?(?:above|these|them|three|four|options|listed)\b",
        re.IGNORECASE,
    )
    for word in ("all", "none")
}
"""How prose says "all of the above"."""
_BY_LETTER = re.compile(
    r"""
    \b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)s?\s+\(?([A-Z])\b
    | \(([A-Z])\)
    | (?<!\S)((?!I\s+(?:was|would|must|should|can|could|may|might)\b)[A-Z])
      (?=\W*$|[.!?]\s+(?![a-z])|[,;:)]|\s+(?:is|was|are|would|must|should|seems?|appears?|remains|fits
          |matches|makes|stands|looks|sounds|explains|describes|corresponds|has|can|could|may|might
          |because|since|as|and|or|nor|but|over|rather|than|it|the)\b)
    """,
    re.VERBOSE,
)
"""An option named by its letter; not the article, a vitamin, a B cell or *E. coli*."""


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


def _initials(text: str, options: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Abbreviations that a text uses for options: ``an RCT``, ``the LAD``."""
    used = set(re.findall(r"\b[A-Z]{2,6}\b", text.replace("-", "")))
    if not used:
        return
    for option in options:
        words, main = _main_words(option)
        parts = [words[a : a + n] for n in (3, 4, 5, 6) for a in range(len(words) - n + 1)]
        for short in used if 1 < len(main) < 5 else ():
            if len(short) > 2 and _shortens(short.lower(), " ".join(main).lower()):
                yield _stem(short), tuple(map(_stem, main))
        for spelt in (words, main, *parts, main[:-1] if len(main) > 3 else main):
            initials = "".join(w[0].upper() for w in spelt)
            if initials in used:
                yield _stem(initials), tuple(_stem(w) for w in spelt if w in main)


def _shortens(short: str, name: str) -> bool:
    """Whether ``short`` takes letters from every word of a name, its first at least: DHFR."""
    if not name.startswith(short[0]) or short in name.split():
        return False
    letters = "".join(f"(?:[a-z]*?|[a-z]* ){letter}" for letter in short[1:])
    return re.fullmatch(rf"{short[0]}{letters}[a-z]*", name) is not None


def _variants(
    option: str,
    aliases: Mapping[str, tuple[str, ...]],
    said: frozenset[str],
    joined: Mapping[str, tuple[str, str]],
    genera: frozenset[str],
) -> Iterator[list[str]]:
    words = [t.word for t in _tokens(option) if t.word not in _STOP]
    yield words
    if _SPECIES.fullmatch(option.strip()) and len(words) == 2:
        genus, species = words
        if genus[0] + species in joined:
            yield [genus[0], species]
        if genus[:5] in said:
            yield [genus[:5], species]  # Staph aureus
        if genus in genera:
            yield [genus]
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
    outside = re.sub(r"\([^)]*\)", " ", option)
    if outside != option and len(outside.strip()) >= 4:
        yield [t.word for t in _tokens(outside)]


_SPECIES = re.compile(r"[A-Z][a-z]{3,} [a-z]{4,}", re.ASCII)
_GENUS = re.compile(
    r"(?:^|(?<=[a-z,:(] ))([A-Z][a-z]{3,})(?! [a-z]+(?:us|um|ans|ens|ae|osa|ii?|is)\b)",
    re.MULTILINE,
)
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
    core = list(words)
    while core and (core[-1] in _FILLER or not weights[core[-1]]):
        core.pop()
    if exact and len(core) > 1 and not any(set(core) <= bag for bag in others):
        words = core
    unique = frozenset(w for w in words if not any(w in bag for bag in others))
    return _Form(letter, tuple(words), weights, exact, unique, 2 * len(words) + 4)


def _found(form: _Form, tokens: Sequence[Token]) -> Iterator[tuple[str, int, int, float]]:
    words = [t.word for t in tokens]
    size = len(form.words)
    total = sum(form.weights.values())
    if form.exact:
        for at in range(len(words) - size + 1):
            if tuple(words[at : at + size]) == form.words and not _in_range(tokens, at, size):
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
    if form.weights.get(words[at], 0) < 0.3 * max(form.weights.values()):
        return None  # an option's place begins where something particular to it is said
    places: dict[str, int] = {}
    stop = min(len(words), at + form.span)
    for place in range(at, stop):
        if words[place] in _CONTRASTS and words[place] not in form.words:
            stop = place
            break
        if form.weights.get(words[place]):
            places.setdefault(words[place], place)
    for word in set(form.words) - set(places):
        near = [
            place
            for place in range(at, stop)
            if max(len(word), len(words[place])) >= MIN_INEXACT
            and words[place][:2] == word[:2]  # afferent is not efferent
            and Levenshtein.distance(words[place], word) == 1
        ]
        if near:
            places[word] = near[0]
    covered = sum(form.weights[word] for word in places)
    missing = {word for word, weight in form.weights.items() if weight} - set(places)
    return covered, max(places.values()), missing


def _contradicted(form: _Form, words: Sequence[str], at: int, end: int, missing: set[str]) -> bool:
    """Whether a word that matters is missing, or its opposite is said."""
    if missing and not form.unique - missing:
        return True
    for word in form.words:
        opposite = _OPPOSITE.get(word)
        if opposite and opposite not in form.words and opposite in words[max(0, at - 2) : end + 1]:
            return True
        if word in _DIRECTED and not any(
            other in form.weights and other != word
            for place in range(at, end + 1)
            if words[place] == word
            for other in words[max(0, place - 2) : place + 3]
        ):
            return True  # it is not said of the same thing
    return False


_CONTRASTS = frozenset(("rather", "not", "or", "but", "versus", "vs", "instead", "unlike"))
_BOUNDS = frozenset(("more", "increase", "decrease", "over", "under", "least"))


def _in_range(tokens: Sequence[Token], at: int, size: int) -> bool:
    """Whether a number is the end of a range, or a bound: ``5 to 7 days``, ``more than 50%``."""
    first, last = tokens[at], tokens[at + size - 1]
    if at and first.start - tokens[at - 1].end <= MAX_RANGE_GAP:
        before = tokens[at - 1].word
        if before[0].isdigit() or (first.word[0].isdigit() and before in _BOUNDS):
            return True
    behind = tokens[at + size : at + size + 1]
    return bool(behind and last.word[0].isdigit() and behind[0].word[0].isdigit())
