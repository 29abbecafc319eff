"""Settings over settings: what is silent above stays, what is said above wins."""

from __future__ import annotations

from deft.workers.common.mappings import deep_merge


def test_deep_merge_keeps_what_the_upper_mapping_does_not_name() -> None:
    below = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
    assert deep_merge(below, {"a": {"c": {"f": 3}}, "e": [2]}) == {
        "a": {"b": 1, "c": {"d": 2, "f": 3}},
        "e": [2],
    }
    assert deep_merge(below, {"a": None}) == {"a": None, "e": [1]}
    assert below == {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}


def test_deep_merge_reads_a_bare_string_as_a_name_where_asked() -> None:
    below, above = {"dataset": {"size": 3}}, {"dataset": "a"}
    assert deep_merge(below, above, bare_names=True) == {"dataset": {"size": 3, "name": "a"}}
    assert deep_merge(below, above) == above
