r"""The option that the paper's script would have taken a response to choose (arXiv 2602.11424).

It never abstains. After the last heading ``## Final Response`` it takes the last capital behind
``answer is``, or else the last letter of an option that stands alone, or else the option whose text
occurs last, or else the one that difflib finds most like the whole response.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher

FINAL_RESPONSE = "## Final Response\n\n"
_ANSWER_IS = re.compile(r"answer is\s*([A-N])")


def choose_as_the_paper(response: str, options: Mapping[str, str]) -> str:
    """Return a letter of ``options`` (letter to text), or one beyond them behind "answer is"."""
    text = response.rpartition(FINAL_RESPONSE)[2]
    letters = "".join(chr(ord("A") + place) for place in range(len(options)))
    alone = rf"(?:is |[\u4e00-\u9fff]|\W)(?!A )([{letters}])(?:\W|[\u4e00-\u9fff]|$)"
    chosen = _ANSWER_IS.findall(text) or re.findall(alone, text)
    if chosen:
        return str(chosen[-1])
    folded = text.lower()
    last = {letter: folded.rfind(option.lower()) for letter, option in options.items()}
    if max(last.values()) >= 0:
        return max(last, key=last.__getitem__)
    # The second sequence is indexed once; of equals the later option is taken.
    matcher = SequenceMatcher(None, "", folded)
    likeness = {}
    for letter, option in options.items():
        matcher.set_seq1(option.lower())
        likeness[letter] = matcher.ratio()
    return max(reversed(list(options)), key=likeness.__getitem__)
