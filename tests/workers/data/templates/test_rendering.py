"""Templates as untrusted programs: limits of time and memory, one message for any error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from deft.workers.data.templates.rendering import (
    MAX_MEMORY,
    MAX_SECONDS,
    MAX_STRIKES,
    Beginning,
    RenderingProcess,
)

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}"
)


@pytest.fixture
def process() -> Iterator[RenderingProcess]:
    renderer = RenderingProcess(seconds=0.3, memory_mib=64)
    yield renderer
    renderer.close()


def rendered(process: RenderingProcess, template: str, *contents: str) -> list[str]:
    """Render conversations of one turn by ``template``: texts or errors."""
    requests = [request(text) for text in contents]
    replies = process.ask({False: template}, {"bos_token": "<s>"}, requests)
    return [str(reply.get("rest", reply.get("error"))) for (reply,) in replies]


def request(*contents: str, beginnings: Sequence[Beginning] = ((1, False),)) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in contents]
    return {"messages": messages, "tools": None, "beginnings": beginnings}


def test_conversations_are_rendered_in_order_with_a_fixed_date(process: RenderingProcess) -> None:
    template = "{{ bos_token }}{{ strftime_now('%d %B %Y') }} {{ messages[0].content }}"
    assert rendered(process, template, "a", "é\ud800") == [
        "<s>26 July 2024 a",
        "<s>26 July 2024 é\ud800",
    ]


def test_generated_parts_have_their_places(process: RenderingProcess) -> None:
    template = (
        "a{% generation %}b{{ messages[0].content }}{% endgeneration %}d"
        "{% generation %}e{% endgeneration %}"
    )
    ((reply,),) = process.ask({False: template}, {}, [request("c")])
    assert reply == {"num_shared": 0, "rest": "abcde", "blocks": [[1, 3], [4, 5]]}


def test_beginnings_are_told_by_what_they_share_with_the_whole(process: RenderingProcess) -> None:
    template = "{% for m in messages %}{{ '^' if loop.last else '' }}{{ m.content }}.{% endfor %}"
    asked = request("a", "b", "c", beginnings=[(3, False), (1, False), (2, True), (3, False)])
    (replies,) = process.ask({False: template}, {}, [asked])
    assert [(reply["num_shared"], reply["rest"]) for reply in replies] == [
        (0, "a.b.^c."),
        (0, "^a."),
        (2, "^b."),
        (7, ""),
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: maximum recursion"),
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ messages[3].content }}", "no element 3"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 | nonesuch }}", "No filter named 'nonesuch'"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ 'a' * 10**10 }}", "it needs too much memory"),
        ("{{ '%999999999d' % 1 }}", "it needs too much memory"),
        (DOUBLING, "it needs too much memory"),
        ("{{ 'a' * 11000000 }}", "it writes 11,000,000 characters"),
        (ENDLESS, "it takes more than 0.3 seconds"),
    ],
)
def test_what_goes_wrong_is_one_message_and_the_next_template_is_rendered(
    process: RenderingProcess, template: str, expected: str
) -> None:
    (reply,) = rendered(process, template, "a")
    assert expected in reply
    assert rendered(process, "{{ messages[0].content }}", "a", "b") == ["a", "b"]


def test_one_conversation_over_the_limit_leaves_the_others(process: RenderingProcess) -> None:
    template = "{% if messages[0].content == 'x' %}" + ENDLESS + "{% endif %}ok"
    assert rendered(process, template, "a", "x", "b") == [
        "ok",
        "it takes more than 0.3 seconds",
        "ok",
    ]


def test_template_that_is_always_over_the_limit_is_given_up(
    process: RenderingProcess, fault: Callable[..., None]
) -> None:
    started = time.monotonic()
    replies = rendered(process, ENDLESS, *["a"] * 1000)
    assert set(replies) == {"it takes more than 0.3 seconds"}
    seconds = time.monotonic() - started
    assert seconds < 20 * 0.3 * MAX_STRIKES
    fault(
        "a chat template that does not end or takes memory without end",
        f"after {MAX_SECONDS:.0f} s or {MAX_MEMORY} MiB its conversation is refused and named; "
        f"after {MAX_STRIKES} it is given up ({seconds:.0f} s in the test, which gives 0.3 s)",
        seconds="another model is chosen",
    )


def test_fork_has_a_process_of_its_own(process: RenderingProcess) -> None:
    assert rendered(process, "{{ messages[0].content }}", "a") == ["a"]
    child = os.fork()
    if child == 0:
        good = rendered(process, "{{ messages[0].content }}", "b") == ["b"]
        process.close()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert rendered(process, "{{ messages[0].content }}", "c") == ["c"]
