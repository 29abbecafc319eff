"""Run files, sweep files and names out of any bytes: a spec, or one message about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deft.platform.config import yaml_file
from deft.platform.config.loading import load_spec
from deft.platform.config.yaml_file import MAX_BYTES, parse_yaml, read_yaml
from deft.platform.errors import UserError
from deft.sweeps.cells import Plan, load_sweep
from deft.workers.common.text import has_surrogates

RUN = """\
name: mine
dataset: {name: figfont, size: 64, noise: 0.5}
model: tiny
objective: DEFT
training:
  learning_rate: 1.0e-3
  num_workers: 1
  deepspeed: {wall_clock_breakdown: true}
evaluation:
  benchmarks: [figfont, {name: gsm8k, samples: 4}]
seed: 0
"""
SWEEP = """\
name: mine
base: {dataset: figfont, model: tiny, training: {max_steps: 10}}
models: {strong: {objective: original, dataset: chain_sum}}
grid:
  objective: [original, p]
  seed: [0, 1]
  training.learning_rate: [1.0e-3, 2.0e-3]
exclude: [{objective: p, seed: 1}]
include: [{objective: DEFT, seed: 3, training.learning_rate: 1.0e-3}]
overrides: [{match: {objective: [p]}, set: {training.warmup_ratio: 0.2}}]
budget: {tokens: 100000}
select: {over: training.learning_rate}
"""
FRAGMENTS = [
    *("", "\n", " ", "\t", "\0", "\x1b[2J", "\ufeff", "é", "\u2028", "\x85", '"\\ud800"', '"\\0"'),
    *(":", "- ", "? ", "|", ">", "{", "}", "[", "]", "'", '"', "#", "%", "---\n", "...", "@", "`"),
    *("&a ", "*a", "<<: *a", "&a [*a]", "!!python/object/apply:os.system [true]", "!x "),
    *("!!bool x", "!!int x", "!!float x", "!!timestamp x", "!!binary x", "!!null x"),
    *("!!set {a, b}", "null", "true", "~", ".inf", "-.inf", ".nan", "1e999", "-1", "0"),
    "0x" + "f" * 9000,
    *("9" * 5000, "1:2:3", "2024-99-99", "2024-01-01", "0o9", "1_000", "+.e+", "010", "0o10"),
    *("1e-4", "-1E5", "1:30", "1:30.5", "08", "on", "Yes", "no", "OFF", "y", "0x1F", "0b11"),
    *("../../../etc/passwd", "/etc/passwd", "a" * 5000, "[" * 2000, "- " * 2000, "{a: " * 300),
    *("name: ", "grid: ", "base: ", "model: ", "dataset: ", "training: ", "1: 2", "[a]: b"),
]
EXPLODING = "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12)
)
"""A kilobyte of aliases that mean 9¹² texts."""


def edits(text: str) -> st.SearchStrategy[bytes]:
    """``text`` with some of it cut out and replaced, as UTF-8, at times with any bytes in it."""
    cut = st.tuples(
        st.integers(0, len(text)), st.integers(0, 30), st.sampled_from(FRAGMENTS) | st.text()
    )

    def apply(cuts: list[tuple[int, int, str]], noise: bytes) -> bytes:
        edited = text
        for start, length, new in cuts:
            edited = edited[:start] + new + edited[start + length :]
        return edited.encode() + noise

    return st.builds(apply, st.lists(cut, min_size=1, max_size=4), st.binary(max_size=4))


def trees(*keys: str) -> st.SearchStrategy[bytes]:
    """Well-formed YAML of any shape with these keys."""
    leaves = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(FRAGMENTS[:40])
    )
    names = st.sampled_from(keys) | st.text(max_size=3)
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=20,
    )
    return st.dictionaries(names, values, max_size=6).map(lambda tree: yaml.dump(tree).encode())


ANY_RUN = (
    edits(RUN)
    | st.binary(max_size=200)
    | trees("name", "dataset", "model", "objective", "training", "evaluation", "seed", "size")
)
ANY_SWEEP = (
    edits(SWEEP)
    | st.binary(max_size=200)
    | trees("name", "base", "grid", "models", "include", "exclude", "overrides", "set", "match")
)
per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(error: UserError) -> str:
    """Return the message, which must not be empty and must be possible to write anywhere."""
    said = str(error)
    assert said.strip()
    assert not has_surrogates(said)
    return said


@per_example
@given(content=ANY_RUN)
@example(content=EXPLODING.encode())
@example(content=b"a: &a {b: *a}")
@example(content=b"? [a]\n: b\n")
@example(content=b"training: {learning_rate: .inf}\n" + RUN.partition("training")[0].encode())
@example(content=RUN.replace("1.0e-3", "1e999").encode())
@example(content=b"seed: 0x" + b"f" * 9000)
@example(content=b"seed: !!bool x")
@example(content=b"seed: 2024-99-99")
@example(content=b'dataset: "\\ud800"')
@example(content=b"name: a\0b")
@example(content=b"dataset: " + b"a" * 5000)
def test_a_run_file_is_a_spec_or_one_message(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    try:
        spec = load_spec(file)
    except UserError as error:
        refusal(error)
        return
    assert (tmp_path / spec.run_name).resolve().parent == tmp_path
    again = json.loads(spec.model_dump_json())
    assert type(spec).model_validate(again) == spec


@per_example
@given(content=ANY_SWEEP)
@example(content=b"base: nothing.yaml\ngrid: {seed: [0]}")
@example(content=b"base: .\ngrid: {seed: [0]}")
@example(content=b'base: "' + b"a" * 300 + b'"\ngrid: {seed: [0]}')
@example(content=b"grid: {seed.x..: [0]}")
@example(content=b"grid: {'': [0]}")
def test_a_sweep_file_is_a_plan_or_one_message(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(content)
    try:
        plan: Plan = load_sweep(file, tmp_path)
    except UserError as error:
        refusal(error)
        return
    for cell in (*plan.cells, *plan.models.values()):
        assert (tmp_path / cell.run).resolve().parent == tmp_path


@given(key=st.sampled_from(["seed", "training.max_steps", "dataset", "a..b"]), value=st.text())
@example(key="seed", value="[" * 5000)
@example(key="name", value='"\\0"')
def test_a_setting_is_taken_or_refused(key: str, value: str) -> None:
    names = {"dataset": "figfont", "model": "tiny", "objective": "p"}
    try:
        load_spec(None, names, [f"{key}={value}"])
    except UserError as error:
        refusal(error)


@per_example
@given(
    rate=st.floats(1e-12, 1e3),
    on_axis=st.sampled_from(["{!r}", "{:.17e}", '"{!r}"', "{:.17E}"]),
    in_rule=st.sampled_from(["{!r}", "{:.17e}", "'{:.17e}'", "[7, {!r}]"]),
)
def test_a_rule_finds_a_number_however_it_is_spelled(
    rate: float, on_axis: str, in_rule: str, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    axis = "training.learning_rate"
    file.write_text(
        "base: {dataset: figfont, model: tiny, objective: p}\n"
        f"grid: {{{axis}: [2000, {on_axis.format(rate)}]}}\n"
        f"exclude: [{{{axis}: {in_rule.format(rate)}}}]\n"
    )
    (cell,) = load_sweep(file, tmp_path).cells
    assert cell.spec.training.learning_rate == 2000


@given(st.text("0123456789_:.eE+-ox", min_size=1, max_size=12))
@example("0100")
@example("1:30")
@example("1e-4")
@example("0x1F")
@example("1_000.5")
@example("190:20:30.15")
def test_a_number_is_what_it_looks_like(text: str) -> None:
    """Python reads no octal and no base 60 where there is no sign of it."""
    try:
        value, _ = parse_yaml(text, "value")
    except UserError as error:
        refusal(error)
        return
    if isinstance(value, int | float):
        plain = text.replace("_", "")
        assert value == (int(plain, 0) if isinstance(value, int) else float(plain))


@pytest.mark.parametrize(
    "name",
    [
        "../other",
        "/etc/passwd",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "a\n",
        "a" * 81,
        "",
        "a b",
        "é",
        "~",
    ],
)
def test_no_name_leads_out_of_the_run_root(tmp_path: Path, name: str) -> None:
    quoted = json.dumps(name)
    run = tmp_path / "run.yaml"
    run.write_text(f"name: {quoted}\ndataset: figfont\nmodel: tiny\nobjective: p\n")
    with pytest.raises(UserError, match=r"run\.yaml:1: name: "):
        load_spec(run)
    sweep = tmp_path / "sweep.yaml"
    base = "base: {dataset: figfont, model: tiny, objective: p}\ngrid: {seed: [0]}\n"
    sweep.write_text(f"name: {quoted}\n{base}")
    with pytest.raises(UserError, match=r"sweep\.yaml:1: name: "):
        load_sweep(sweep, tmp_path)
    sweep.write_text(f"models: {{{quoted}: {{}}}}\n{base}")
    with pytest.raises(UserError, match="name: "):
        load_sweep(sweep, tmp_path)


def test_names_made_of_paths_stay_in_the_run_root(tmp_path: Path) -> None:
    data = tmp_path / "..hidden"
    data.mkdir()
    (data / "x.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    names = {"dataset": str(data / "x.jsonl"), "model": "tiny", "objective": "p"}
    assert load_spec(None, names).run_name.startswith("x-tiny-p-")
    names["dataset"] = str(data)
    assert load_spec(None, names).run_name.startswith("hidden-tiny-p-")


def test_what_is_edited_is_valid_before(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    assert load_spec(tmp_path / "run.yaml").name == "mine"
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    plan = load_sweep(tmp_path / "sweep.yaml", tmp_path)
    assert (len(plan.cells), len(plan.models)) == (7, 1)


def refused(content: bytes, tmp_path: Path) -> str:
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    return refusal(caught.value).removeprefix(str(file))


def test_what_would_take_for_ever_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "more than 100,000 settings, aliases followed" in refused(EXPLODING.encode(), tmp_path)
    assert ":1: nested more than 50 deep" in refused(b"a: &a [*a]", tmp_path)
    assert "nested more than 50 deep" in refused(b"a: " + b"[" * 100_000, tmp_path)
    assert ":2: a number of 9,000 digits" in refused(b"\nseed: " + b"9" * 9000, tmp_path)
    monkeypatch.setattr(yaml_file, "_Loader", None)  # it is not even begun
    assert "larger than 1,048,576 bytes" in refused(b"#" * (MAX_BYTES + 1), tmp_path)


def test_a_grid_out_of_all_proportion_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    axes = {f"training.{name}": list(range(1, 100)) for name in ("max_steps", "epochs", "tokens")}
    file.write_text(yaml.dump({"base": {}, "grid": {**axes, "seed": list(range(100))}}))
    with pytest.raises(UserError, match="97,029,900 combinations"):
        load_sweep(file, tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\n1: 2\n", ":2: expected a text as key, got 1"),
        (b"a: 1\n[b]: 2\n", ":2: expected a text as key, got a sequence"),
        (b"a: .nan\n", ":1: expected a finite number, got .nan"),
        (b"a: 1\nb: -.inf", ":2: expected a finite number, got -.inf"),
        (b"a: 1e999", ":1: expected a finite number, got 1e999"),
        (b'\na: "\\ud800"', ":2: '\\ud800' is not text; remove NUL"),
        (b"a: !!bool x", ": not valid YAML: a value that does not go with its tag"),
        (b"a: 2024-99-99", ":1: a: 2024-99-99 is a date in YAML; write "),
        (b"a: {b: 0100}", ":1: a.b: 0100 is octal in YAML 1.1 and means 64; write 100 or 64"),
        (b"a:\n- -010", ":2: a.0: -010 is octal in YAML 1.1 and means -8; write -10 or -8"),
        (b"a: 0o10", ":1: a: 0o10 is a text in YAML 1.1; write 8, or"),
        (b"a: 089", ":1: a: 089 is a text in YAML 1.1; write 89, or"),
        (b"a: 1:30", ":1: a: 1:30 is a number of base 60 in YAML 1.1 and means 90; write 90"),
        (b"a: 1:30.5", ":1: a: 1:30.5 is a number of base 60 in YAML 1.1 and means 90.5"),
        (b"a: \0", ": not valid YAML: unacceptable character #x0000"),
    ],
)
def test_values_that_no_file_can_hold_are_named(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    assert refused(content, tmp_path).startswith(expected)
