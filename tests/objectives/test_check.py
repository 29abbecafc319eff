"""An author's mistakes are refused before anything trains, each in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft.objectives import CATALOG, get_objective
from deft.objectives.check import check_objective, check_own_objective
from deft.platform.cli import app
from deft.platform.errors import UserError

MODULE = """
import numpy as np
import torch
from deft.objectives import ObjectiveOutput as Output, Target, objective

@objective(needs={"entropy"})
def doubt(stats):
    weight = 1 - torch.exp(-stats.require("entropy"))
    return Output(value=-weight * stats.logp, gate=weight)

def half(stats, *, weight=0.5):
    return Output(-weight * stats.logp, weight * torch.ones_like(stats.logp))

def probability_by_p(stats):
    return Output(1 - stats.p, stats.p)

def entangled(stats):  # sg(p) · (1 − p)
    return Output(stats.p.detach() * (1 - stats.p), stats.p * stats.p)

def by_numpy(stats):
    logp = stats.logp.numpy()
    return Output(torch.from_numpy(-np.expm1(logp)), stats.p)

@torch.no_grad()
def without_grad(stats):
    return Output(-stats.p * stats.logp, stats.p)

def batch_mean_by_numpy(stats):
    mean = float(stats.p.detach().mean()) if len(stats.p) else 0.0
    return Output(-torch.expm1(mean * torch.from_numpy(stats.logp.numpy())) * 2,
                  2 * mean * (mean * stats.logp).exp())

def wrong_sign(stats):
    return Output(-stats.logp, -torch.ones_like(stats.logp))

def wrong_where_hopeless(stats):
    return Output(-stats.logp, (stats.logp > -30).to(stats.logp))

def wrong_beyond_a_bound(stats):
    return Output(-stats.logp.clamp(min=-5), torch.ones_like(stats.logp))

def exits(stats):
    raise SystemExit(3)

def wrong_factor(stats):
    return Output(1 - stats.p**2, stats.p**2)

def wrong_size(stats):
    return Output(1 - stats.p**2, stats.p)

def detached_in_the_gate_only(stats):
    weight = 1 - stats.logp.exp()
    return Output(-weight * stats.logp, weight)

def detached_in_the_value_only(stats):
    weight = (1 - stats.logp.exp()).detach()
    return Output(-weight * stats.logp, weight - stats.p * stats.logp)

def wrong_by_numpy(stats):
    return Output(torch.from_numpy(-stats.logp.numpy()), stats.p)

@objective(needs={"entropy"})
def wrong_with_entropy(stats):
    return Output(-stats.require("entropy") * stats.logp, 2 + 0 * stats.p)

def scalar(stats):
    return Output(-stats.logp.mean(), torch.ones_like(stats.logp))

def summed_gate(stats):
    return Output(-stats.logp, torch.ones(1))

def double(stats):
    return Output(-stats.logp, torch.ones(len(stats.logp), dtype=torch.float64))

def boolean_gate(stats):
    return Output(-stats.logp * (stats.p > 0.5), stats.p > 0.5)

def number_for_gate(stats):
    return Output(-stats.logp, 1.0)

def float_keep(stats):
    return Output(-stats.logp, torch.ones_like(stats.logp), keep=stats.p)

def log_of_p(stats):
    return Output(-stats.p.log(), torch.ones_like(stats.logp))

def certain_is_infinite(stats):
    return Output(-torch.log1p(-stats.p), -stats.p / (1 - stats.p))

def plain_tensor(stats):
    return -stats.logp

def changes_p(stats):
    return Output(-stats.logp, stats.p.fill_(1))

def undeclared(stats):
    return Output(-stats.entropy * stats.logp, stats.entropy)

def undeclared_by_require(stats):
    return Output(-stats.logp * stats.require("entropy"), stats.require("entropy"))

def empty(stats):
    return Output(-stats.logp, torch.ones_like(stats.logp) * (stats.p.max() <= 1))

@objective()
def of_the_batch(stats):
    return Output(-stats.p.mean() * stats.logp, stats.p.mean().expand(len(stats.p)))

@objective()
def drops(stats):
    return Output(-stats.logp, torch.ones_like(stats.logp), keep=stats.p > 0.5)

def mixes(stats):
    return Output(-stats.logp, torch.ones_like(stats.logp), mix=torch.ones_like(stats.logp))

@objective(target=lambda: Target("uniform"))
def forgets_mix(stats):
    return Output(-stats.logp, torch.ones_like(stats.logp))

@objective(target=lambda: Target("uniform"))
def wrong_mix(stats):
    one = torch.ones_like(stats.logp)
    return Output(-stats.logp + 0.1 * stats.require("divergence"), one, mix=one)

@objective(target=lambda strength: Target("uniform"))
def target_of_another(stats, *, lam=1.0):
    one = torch.ones_like(stats.logp)
    return Output(-stats.logp + lam * stats.require("divergence"), one, mix=lam * one)

def no_statistics(*, alpha):
    return None

number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def own_objectives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "checked_objectives.py").write_text(MODULE)
    (folder / "unparsable.py").write_text("def nll(stats)\n    return 1\n")
    (folder / "unimportable.py").write_text("import no_such_package\n")
    (folder / "failing.py").write_text("\n\ntable = {}\nobjective = table['nll']\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.mark.parametrize("name", CATALOG)
def test_every_objective_of_the_catalog_passes(name: str) -> None:
    check_objective(get_objective(CATALOG[name].example))


@pytest.mark.parametrize("name", [name for name, info in CATALOG.items() if info.parameter])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_parameter_in_range_passes(name: str, data: st.DataObject) -> None:
    fields = CATALOG[name].parameters.model_fields
    parameter = data.draw(st.sampled_from(sorted(fields)))
    field = fields[parameter]
    constraints = {
        attribute: getattr(constraint, attribute)
        for constraint in field.metadata
        for attribute in ("ge", "gt", "le", "lt")
        if hasattr(constraint, attribute)
    }
    lowest = constraints.get("ge", constraints.get("gt"))
    highest = constraints.get("le", constraints.get("lt"))
    excluded = {
        0 if name == "GeneralFamily" else None,
        constraints.get("gt"),
        constraints.get("lt"),
    }
    numbers = st.integers if field.annotation is int else st.floats
    value = data.draw(numbers(lowest, highest).filter(lambda drawn: drawn not in excluded))
    check_objective(get_objective({"name": name, "params": {parameter: value}}))


@pytest.mark.parametrize(
    "name",
    [
        "doubt",
        "half",
        "half(weight=2)",
        "probability_by_p",
        "entangled",
        "by_numpy",
        "without_grad",
        "batch_mean_by_numpy",
    ],
)
def test_a_right_objective_passes_however_it_is_written(name: str) -> None:
    check_own_objective(f"checked_objectives:{name}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wrong_sign", r"gate is -1 where −∂value/∂log p is 1 \(the sign is wrong\), at a token"),
        ("wrong_where_hopeless", "gate is 0 where −∂value/∂log p is 1, at a token with log p = -"),
        ("wrong_beyond_a_bound", r"gate is 1 where −∂value/∂log p is -?0, at a token"),
        ("exits", r"it raises SystemExit: 3"),
        ("wrong_factor", r"\(a factor of 0.5\), at a token with log p = .*, p = "),
        ("wrong_size", "gate is .* where −∂value/∂log p is .*, at a token with log p = "),
        ("detached_in_the_gate_only", "gate is .* where .* read what is held fixed off stats.p"),
        ("detached_in_the_value_only", "gate is .* where −∂value/∂log p is "),
        ("wrong_by_numpy", "gate is .* where −∂value/∂log p is 1"),
        ("wrong_with_entropy", "gate is 2 where .* at a token with .*, entropy = "),
        ("half(wight=1)", r"unexpected keyword argument 'wight'; the function is half\(stats, \*"),
        ("no_statistics(alpha=1)", "too many positional arguments; the function is"),
        ("scalar", r"value has the shape \[\] for 100 tokens; return one entry a token"),
        ("summed_gate", r"gate has the shape \[1\]"),
        ("double", "gate is torch.float64; return torch.float32"),
        ("boolean_gate", "gate is torch.bool; return torch.float32"),
        ("number_for_gate", "gate is float; return a tensor"),
        ("float_keep", "keep is torch.float64; return torch.bool"),
        ("log_of_p", "value is inf at a token with log p = -110, p = .*; it must be finite"),
        ("certain_is_infinite", "value is inf at a token with log p = 0, p = 1"),
        ("plain_tensor", r"it returns Tensor; return an ObjectiveOutput\(value, gate\)"),
        ("changes_p", "it changes stats.p in place; work on a copy"),
        ("undeclared", r"it raises TypeError: .*NoneType.* \(checked_objectives.py, line \d+\)"),
        ("undeclared_by_require", r"'entropy' was not computed; .*@objective\(needs="),
        ("empty", "without target tokens, it raises "),
        ("of_the_batch", r"depends on other tokens; .*@objective\(token_local=False\)"),
        ("drops", r"it returns keep; declare it by @objective\(drops_tokens=True\)"),
        ("mixes", "it returns mix; declare the distribution"),
        ("forgets_mix", "declares a target distribution; return its weight as mix"),
        ("wrong_mix", "mix is 1 where ∂value/∂divergence is 0.1, at a token"),
        ("target_of_another", "its target distribution raises TypeError: .*'strength'"),
        ("number", "is int; name a function"),
        ("dubt", "checked_objectives has no attribute 'dubt'; its objectives are doubt, "),
    ],
)
def test_a_wrong_objective_is_refused_in_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        check_own_objective(f"checked_objectives:{name}")
    assert "\n" not in str(refusal.value)
    assert name.partition("(")[0] in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("unparsable:nll", r"SyntaxError: expected ':' \(unparsable.py, line 1\)"),
        ("unimportable:nll", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("failing:nll", r"KeyError: 'nll' \(failing.py, line 4\)"),
        ("not_there:nll", "ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_a_module_that_fails_is_one_sentence_with_its_line(path: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        check_own_objective(path)
    assert str(refusal.value).startswith(f"objective: objective {path!r} cannot be imported: ")


WRONG = """
from deft.objectives import ObjectiveOutput

def ascent(stats):
    return ObjectiveOutput(-stats.logp, stats.logp * 0 - 3)
"""
REFUSAL = (
    "objective: wrong_objectives:ascent: gate is -3 where −∂value/∂log p is 1 (a factor of -3), "
    "at a token with log p = "
)
RUN_FILE = "dataset: figfont\nmodel: llama-3.2-3b\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wrong_objectives.py").write_text(WRONG)
    (tmp_path / "run.yaml").write_text(RUN_FILE + "objective: wrong_objectives:ascent\n")
    grid = "grid: {objective: [DEFT, 'wrong_objectives:ascent']}\n"
    (tmp_path / "sweep.yaml").write_text("base:\n" + indent(RUN_FILE, "  ") + grid)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["run", "run.yaml", "--dry-run"],
        ["sweep", "sweep.yaml"],
        ["sweep", "sweep.yaml", "--dry-run"],
    ],
)
def test_every_command_refuses_it_before_anything_starts(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "wrong_objectives", raising=False)
    with pytest.raises(UserError, match=re.escape(REFUSAL)):
        app(command, standalone_mode=False)
    assert not (folder / "runs").exists()


def test_refusal_is_exit_code_2_without_a_traceback(folder: Path) -> None:
    program = "from deft.platform.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "run.yaml"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {REFUSAL}")
    assert "Traceback" not in done.stderr
