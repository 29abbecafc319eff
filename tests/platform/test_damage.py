"""What was damaged on disk is named in one message or made anew; nothing wrong is shown.

Every file of a finished run and its sweep is cut off, emptied, changed, deleted, closed or replaced
by a folder, and every command that reads it is given.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deft.evaluators.generation.journal import read_responses
from deft.platform import cli
from deft.platform.console import RunConsole
from deft.platform.errors import UserError, warn_once
from deft.platform.records.manifests import PrepareManifest, require_manifest
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run import context
from deft.platform.run.evaluate_stage import _drop_damaged
from deft.sweeps.report import landscapes
from deft.workers.common.checksums import write_checksums
from deft.workers.common.files import DamageWarning

Command = Callable[..., tuple[int, str, str]]


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()


def close(file: Path) -> None:
    file.chmod(0)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (cut_off, empty, flip_bit, delete, close, become_a_folder)


@contextmanager
def damaged(file: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage ``file`` for as long as the block lasts."""
    content, status = file.read_bytes(), file.stat()
    damage(file)
    try:
        yield
    finally:
        if file.is_dir():
            file.rmdir()
        elif file.exists():
            file.chmod(0o600)
        file.write_bytes(content)
        file.chmod(status.st_mode)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def files_of(finished: Any) -> list[Path]:
    files = [*finished.run.rglob("*"), *finished.sweep.rglob("*")]
    return sorted(file for file in files if file.is_file() and file.name != ".lock")


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Any
) -> Command:
    """Run `deft` in this process: arguments → exit code, output, errors."""
    for function in ("handle_signals", "leave_signals_to_system"):
        monkeypatch.setattr(cli, function, lambda: None)

    @contextmanager
    def no_cluster(*, verbose: bool) -> Iterator[None]:
        raise UserError("what is missing is made again")
        yield

    def compute(model_dir: str, rows_dir: str, needs: Sequence[str]) -> dict[str, Any]:
        from deft.workers.modeling.token_statistics import token_statistics

        stats = vars(token_statistics(model_dir, rows_dir, needs, num_rows=4))
        return {name: column.numpy() for name, column in stats.items() if column is not None}

    # A run with a stage to do starts Ray; that it goes on from there is tested elsewhere.
    monkeypatch.setattr(context, "ray_cluster", no_cluster)
    monkeypatch.setattr(landscapes, "_compute", compute)
    monkeypatch.setenv("DEFT_ROOT", str(finished.root))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deft", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        warn_once.cache_clear()
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        output, errors = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, output, errors

    return run


def commands_on(finished: Any) -> dict[str, tuple[str, ...]]:
    """Every command that reads a finished run or its sweep."""
    run, sweep, spec = finished.run.name, finished.sweep.name, str(finished.spec_file)
    out = str(finished.root.parent / "written")
    return {
        "run": ("run", spec),
        "compare": ("compare", run),
        "evaluate": ("evaluate", "--model", str(finished.run), "--benchmarks", "figfont"),
        "view": ("view", run, "--no-browser", "--out", f"{out}/view.html"),
        "run --json": ("run", spec, "--json"),
        "run --dry-run": ("run", spec, "--dry-run"),
        "compare --sweep": ("compare", "--sweep", sweep, "--csv"),
        "sweep --dry-run": ("sweep", str(finished.root.parent / "sweep.yaml"), "--dry-run"),
        "view a sweep": ("view", sweep, "--no-browser", "--out", f"{out}/view.html"),
        "report": ("report", sweep),
        "report --json": ("report", sweep, "--json"),
        "plot sweep": ("plot", "sweep", sweep, "--out", out),
        "status": ("status", "--all"),
        "status --json": ("status", "--json"),
        "clean": ("clean",),
    }


@dataclass
class Fuzzer:
    """Gives commands on a damaged run, and counts what they do."""

    command: Command
    finished: Any
    counts: Counter[str] = field(default_factory=Counter)
    undamaged: dict[str, str] = field(default_factory=dict)
    """What each command writes where nothing is damaged."""

    def expect(self, name: str, file: Path, damage: Callable[[Path], None]) -> None:
        """Check that a command says what is wrong in one message, or does as if it were not."""
        if name not in self.undamaged:
            code, output, errors = self.give(name)
            assert code == 0, errors
            self.undamaged[name] = output
        with damaged(file, damage):
            code, output, errors = self.give(name)
        what = f"{damage.__name__} {file.relative_to(self.finished.root)}, deft {name}: {errors}"
        assert "Traceback" not in output + errors, what
        messages = [line for line in errors.splitlines() if line.startswith("error: ")]
        if code:
            assert code in (1, 2), what
            assert len(messages) == 1, what
            assert "; " in messages[0] or "made again" in messages[0], what
            self.counts["refused"] += 1
        else:
            assert messages == [], what
            # A stage without its manifest is done again, and a plan counts it.
            is_undone = file.parent.name == "stages" and damage in (delete, become_a_folder)
            if output != self.undamaged[name] and not is_undone and name not in UNSTEADY:
                assert "warning: " in output + errors, what + output
                assert file.name in output + errors, what + output
            self.counts["did as ever"] += 1

    def give(self, name: str) -> tuple[int, str, str]:
        """Give a command; what it wrote to files of text counts as its output."""
        arguments = commands_on(self.finished)[name]
        if name == "evaluate":
            arguments = (*arguments, "--dry-run")
        written = [self.finished.sweep / "report", self.finished.root.parent / "written"]
        code, output, errors = self.command(*arguments)
        for folder in written:
            texts = sorted(file for file in folder.rglob("*") if file.suffix in (".csv", ".md"))
            output += "".join(file.read_text() for file in texts)
            shutil.rmtree(folder, ignore_errors=True)
        return code, output, errors


CHEAP = ("run", "compare", "evaluate", "status", "clean")
UNSTEADY = ("status", "status --json", "clean")
"""Commands that show ages, sizes and states, which change with the damage and without it."""
DRAWING = ("view", "view a sweep", "report", "report --json", "plot sweep")


def test_each_file_damaged_in_one_way(command: Command, finished: Any) -> None:
    fuzzer = Fuzzer(command, finished)
    for file, damage in zip(files_of(finished), cycle(DAMAGES), strict=False):
        for name in CHEAP:
            fuzzer.expect(name, file, damage)
    assert fuzzer.counts["refused"] > 5
    assert fuzzer.counts["did as ever"] > 5


@pytest.mark.slow
def test_each_file_damaged_in_every_way(
    command: Command, finished: Any, fault: Callable[..., None]
) -> None:
    """Commands that draw and take seconds get each file damaged in one way."""
    fuzzer, files, failures = Fuzzer(command, finished), files_of(finished), []
    for file, one_damage in zip(files, cycle(DAMAGES), strict=False):
        for name in commands_on(finished):
            for damage in (one_damage,) if name in DRAWING else DAMAGES:
                try:
                    fuzzer.expect(name, file, damage)
                except AssertionError as failure:
                    failures.append(str(failure))
    assert failures == []
    fault(
        f"a file of a finished run or sweep is cut off, emptied, changed, deleted, closed or "
        f"replaced by a folder: {len(files)} files, {len(DAMAGES)} damages, "
        f"{len(commands_on(finished))} commands",
        f"{fuzzer.counts['refused']} of {fuzzer.counts.total()} times one message names it; else "
        "the command does not need it, or warns of what it leaves out",
        seconds="it is done",
    )


UNUSABLE = "one message names it and what is wrong; code 2"


@pytest.mark.parametrize("root", ["file", "below-a-file", "read-only", "too-long"])
def test_a_root_that_cannot_be_used_is_named(
    root: str, command: Command, finished: Any, tmp_path: Path, fault: Callable[..., None]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "read-only").mkdir(mode=0o555)
    path = {
        "file": tmp_path / "file",
        "below-a-file": tmp_path / "file" / "runs",
        "read-only": tmp_path / "read-only" / "runs",
        "too-long": tmp_path.joinpath(*(["x" * 200] * 20)),
    }[root]
    if root == "read-only" and os.access(path.parent, os.W_OK):
        pytest.skip("this user may write everywhere")
    for name in ("run", "evaluate"):
        code, _, errors = command(*commands_on(finished)[name], "--root", str(path))
        assert code == 2
        assert errors.startswith(f"error: --root {path}: "), errors
        assert errors.count("\n") == 1
    shutil.rmtree(tmp_path / "read-only")
    fault(f"a run root that is no folder to write in ({root})", UNUSABLE, seconds="it is mended")


def all_of(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def test_a_flipped_bit_in_a_base_evaluation_drops_its_results_but_not_its_responses(
    finished: Any, tmp_path: Path
) -> None:
    evaluation = tmp_path / "evaluation"
    shutil.copytree(finished.run / "predictions", evaluation / "predictions")
    shutil.copytree(finished.run / "responses", evaluation / "responses")
    shutil.copyfile(finished.run / "stages" / "evaluate.json", evaluation / "evaluate.json")
    write_checksums(evaluation, 0)
    console = RunConsole(Console(file=StringIO(), width=500))
    assert not _drop_damaged(evaluation, console)
    flip_bit(evaluation / "predictions" / "base-figfont.parquet")
    assert _drop_damaged(evaluation, console)
    left = {str(file.relative_to(evaluation)) for file in all_of(evaluation)}
    assert left == {"responses/base-figfont.jsonl", "responses/eval-figfont.jsonl"}


def test_a_flipped_bit_in_the_cache_is_named_and_what_it_is_in_made_anew(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of each kind: model, examples, tokens, rows, items."""
    from deft.platform.run import prepare_stage

    cache = finished.root / "cache"
    before = require_manifest(finished.run, PrepareManifest)
    monkeypatch.setattr(prepare_stage, "run_task", lambda work, **_: work())
    run: RunDirectory[Any] = RunDirectory(finished.root, finished.spec)
    assert prepare_stage.prepare_stage(run, finished.context) == before
    kinds = {file.relative_to(cache).parts[0]: [] for file in all_of(cache)}
    for file in all_of(cache):
        if "checksums" not in file.parts and file.stat().st_size:
            kinds[file.relative_to(cache).parts[0]].append(file)
    for kind in ("models", "examples", "tokenized", "rows", "items"):
        file = max(kinds[kind], key=lambda each: each.stat().st_size)
        content = file.read_bytes()
        flip_bit(file)
        with pytest.warns(DamageWarning, match="damaged") as told:
            again = prepare_stage.prepare_stage(run, finished.context)
        assert any(str(file) in str(warning.message) for warning in told), kind
        assert replace_time(again) == replace_time(before)
        assert file.read_bytes() == content, kind
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamageWarning)
        prepare_stage.prepare_stage(run, finished.context)


def replace_time(manifest: PrepareManifest) -> PrepareManifest:
    return manifest.model_copy(update={"finished_at": 0})


def test_damaged_lines_are_left_out_and_named(finished: Any, command: Command) -> None:
    events = finished.run / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    with damaged(events, lambda file: file.write_bytes(b"".join([lines[0], b"{\n", *lines[1:]]))):
        code, output, errors = command("run", str(finished.spec_file))
    assert code == 0
    assert output == command("run", str(finished.spec_file))[1]
    assert f"warning: {events}:2: damaged, so this line is left out" in errors
    (responses,) = finished.run.glob("responses/eval-figfont*")
    told: list[str] = []
    whole = read_responses(responses, told.append)
    with damaged(responses, lambda file: file.write_bytes(b"[1]\n" + file.read_bytes())):
        assert read_responses(responses, told.append) == whole
    assert [message.split(": ")[0] for message in told] == [f"{responses}:1"]
