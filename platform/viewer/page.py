"""The page of single responses: one file of HTML that needs nothing but itself.

Responses come from models and data from anywhere. They are in the page as JSON and are shown as
text only, and the page's content security policy lets no script run but its own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path

from deft.platform.viewer.responses import as_json, gather_responses, shown_models
from deft.platform.viewer.tokens import tokens_as_json
from deft.workers.common.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"


def write_view(runs: Sequence[Path], title: str, out: Path) -> int:
    """Write responses and held-out tokens of finished runs to a page; return its number of items.

    Raises:
        UserError: an evaluation has not finished.
    """
    models = shown_models(runs)
    responses = gather_responses(models)
    data = as_json(responses) | {"tokens": tokens_as_json(models)}
    write_atomic(out, render(title, json.dumps(data, ensure_ascii=False, allow_nan=False)))
    return len(responses.items)


def render(title: str, data: str) -> str:
    """Put ``data``, JSON, and the script into the page."""
    script = (TEMPLATES / "view.js.j2").read_text(encoding="utf-8")
    page = (TEMPLATES / "view.html.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Apart from each other: data may contain what looks like a place for something else.
    head, tail = page.split("{{ data }}")
    head = head.replace("{{ digest }}", digest).replace("{{ title }}", html.escape(title))
    return head + _inside_script(data) + tail.replace("{{ script }}", script)


def _inside_script(data: str) -> str:
    """Escape JSON so that nothing in it can end the element that it stands in."""
    for letter in "<>&\u2028\u2029":
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    # Half of a surrogate pair has no place in UTF-8.
    return data.encode("utf-8", "backslashreplace").decode()
