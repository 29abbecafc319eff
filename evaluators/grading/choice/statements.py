"""Patterns of sentences that name an option as the answer, and of what takes that back."""

from __future__ import annotations

import re

_IS = (
    r"\b(?:is|are|was|would\s+be|will\s+be|should\s+be|must\s+be|seems\s+to\s+be|appears\s+to\s+be"
    r"|remains|becomes)"
)
_KIND = (
    r"(?:final|correct|best|right|most\s+likely|most\s+appropriate|most\s+accurate|likely|single|"
    r"probable|appropriate|only|overall|proper|my|ideal|preferred|(?:first|top)(?=\s+choice\b))"
)
_ADVERBS = (
    r"(?:(?:therefore|thus|then|clearly|probably|likely|indeed|definitely|most\s+likely)\b\W*)*"
)
_NOUN = r"(?:answer|option|choice|response|selection|letter|decision|verdict|guess|pick)"
LEADS = re.compile(
    rf"""
    \b(?:{_KIND}\s+){{0,3}}(?:answer|ans(?=\s*[.:=-])|conclusion(?=\W{{0,4}}:|\s+is\b)|{_KIND}\s+{_NOUN})
        (?:\s+(?:choice|option|letter|idx))?
        (?P<about>\s+(?:to|for|among|here|in|from|of)\b(?!\s+{_IS})[^.:\n]{{0,80}}?)?
        \s*(?:\*\*|__|"|')?\s*(?:{_IS}\b\s*{_ADVERBS}:?|[:：=]|(?<=ans)[.-]|→|->|\s[-–—]\s)
    | \b(?:i|we)\s*(?:would|will|'ll|'d|shall|must|have\s+to|am|'m)?\s*(?:therefore\s+|thus\s+)?
        (?:choose|choosing|chose|select|pick|(?:go|going|went)\s+with|switch\s+to|opt\s+for|answer
           |settle\s+on|conclude\s+(?:that\s+)?(?:it\s+is|it's))
        (?:\s+(?:with|for|that))?\s*:?
    | \b(?:wait|actually|rather|correction|no|instead|hmm|scratch\s+that|on\s+reflection
           |on\s+second\s+thought)\s*[,.:;—–-]*\s*
        (?:(?:actually|i\s+think|no|but|then|so)\s*[,.]?\s*)*
        (?:it\s+(?:{_IS}|has\s+to\s+be)|it's|that's|this\s+is|should\s+be|make\s+that|i\s+mean
           |the\s+\w+\s+{_IS})\s*:?
    | \b(?:most\s+likely(?:\s+(?:diagnosis|cause|option|choice))?|(?:first|1st|top)\s+choice)\s*:
    | \bless\s+(?:likely|appropriate|suitable|probable)\s+than\b
    | \bit(?:'s|\s+is)(?=\s+not\b[^.\n]{{1,80}}\bbut\b)
    | \b(?:replace|switch(?:\s+from)?|change)\b[^.\n]{{1,60}}?\b(?:with|by|to)\b
    | (?:答案|选项)\s*(?:应该?)?(?:是|为|选)?\s*[：:]?|选(?=\s*[A-Z])
    | \bthe\s+(?:\w+\s+){{0,3}}(?:choice|option|statement)\s+{_IS}\s*:?
    | \b(?:so|thus|therefore|hence)\s*,?\s+
        (?:it\s+{_IS}|it's|the\s+(?:correct\s+|best\s+)?(?:choice|option)\s+{_IS})\s*:?
    """,
    re.IGNORECASE | re.VERBOSE,
)
TRAILS = re.compile(
    r"""
    \b(?P<letter>[A-Z]|[b-hj-z](?=\s+is\s+the\s))\b[)*_]*(?P<text>[^.\n]{0,120}?|\.[^.\n]{1,120}?)
    \s*[,—–-]?\s+(?:is|would\s+be|remains|must\s+be|should\s+be|appears\s+to\s+be)\s+
    (?:(?:therefore|thus|clearly|indeed|definitely)\s+)*(?:the\s+)?(?:single\s+)?
    (?:(?:correct|best|right|most\s+(?:likely|appropriate|accurate|probable|suitable))\b
         (?!(?:\s+(?:answer|option|choice))?\s+(?:when|if|only|in\s+patients|for\s+patients|that|about|but))
       |(?:only|ideal|preferred|proper|appropriate)\s+(?:option|choice|answer|one|correct)\b)
    """,
    re.VERBOSE,
)
BAD_AHEAD = re.compile(
    r"(?:n't|\b(?:not|never|if|whether|why|would\s+have\s+been|unless|could|might|may|cannot"
    r"|suppose|which|neither)\b|\bassum\w+|\bno\s+(?:single\s+)?\w*|\bask\w*)\s*(?:\w+\s+){0,2}$",
    re.IGNORECASE,
)
SECOND = re.compile(
    r"\b(?:second|2nd|third|3rd|fourth|4th|next|less|least|other|another|alternative|previous|"
    r"not|former)\W{1,3}$",
    re.IGNORECASE,
)
"""Ahead of "choice: B": it is not the first one."""
SUPPOSED = re.compile(r"\b[Ii]f\s[^.?!\n]+$|\bHad\s[^.?!\n]+$")
NEGATED = re.compile(
    r"^\W*(?:definitely\s+|clearly\s+|probably\s+|certainly\s+)?(?:not\b|n't\b|never\b|neither\b"
    r"|going\s+to\b|unlikely|incorrect|wrong|un\w*clear|uncertain|unknown|none\b|impossible"
    r"|difficult|hard\b|beyond|depend)",
    re.IGNORECASE,
)
REASON = re.compile(
    r"\s*(?:,?\s*\b(?:rather\s+than|and\s+not|not|instead\s+of|as\s+opposed\s+to|because|since|"
    r"unlike|but|due\s+to|given|while|whereas|although|though|over|as\s+(?:it|this|the)|so\s+that|"
    r"which(?!\s+(?:is|are|points?|suggests?|indicates?|means?|leads?|fits|matches))|based\s+on|"
    r"considering|in\s+contrast|compared|for\s+(?:this|the)|where)\b).*$",
    re.IGNORECASE | re.DOTALL,
)
FURTHER_VERB = re.compile(rf"{_IS}\b\W*", re.IGNORECASE)
BARE_LETTER = re.compile(
    r"\b(?:wait|actually|correction|scratch that|on reflection|on second thought|so|thus|therefore"
    r"|hence|(?:looks|sounds|seems)\s+like|probably|definitely|i\s+(?:think|believe|guess)|i(?:'d"
    r"|\s+would)\s+say|(?:^|(?<=[.!?]\s))it(?:'s|\s+is)|chang(?:e|ing)\s+(?:that|it"
    r"|my\s+answer)(?:\s+to)?)\b\s*[,.:;—–-]*\s*(?:option\s+)?[(*]*(?-i:([A-Z]))[)*]*\s*(?:$"
    r"|[.!;](?=\s+(?-i:[^a-z\s])|\s*$))",
    re.IGNORECASE | re.MULTILINE,
)
"""A letter that is all a sentence says: "Correction: C."; but not "so B. subtilis"."""
SHARED = re.compile(
    r"\b(?:and|or|nor|both|to|through)\s*$|\b(?-i:[A-Z])\s*[,/&–-]\s*$", re.IGNORECASE
)
