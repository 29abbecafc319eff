"""MLflow: parameters, curves, results and everything needed to reproduce a run.

Metric names and tags are an interface: people filter and group by them in the MLflow UI. Nothing
here waits for MLflow but the end of a run, for a limited time; see `deft.platform.tracking.outbox`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deft.evaluators.spec import HELDOUT
from deft.platform.config.spec import ExperimentSpec, ModelEvaluationSpec
from deft.platform.errors import UserError, describe
from deft.platform.tracking.outbox import Courier, Destination, Outbox
from deft.platform.tracking.provenance import git_state, package_versions
from deft.workers.catalogs.datasets import DATASETS
from deft.workers.common.files import write_atomic
from deft.workers.common.names import unknown_name
from deft.workers.common.secrets import has_secret, without_secrets
from deft.workers.data.prepare import SourceCounts
from deft.workers.spec import SourceSpec

if TYPE_CHECKING:
    from deft.platform.records.run_directory import RunDirectory

PATIENCE = 60.0
"""Seconds that the end of a run waits for an MLflow that takes nothing."""

PATIENCE_WITH_FAILURE = 15.0
"""The same where the run itself failed."""

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Databases that MLflow can use."""

Say = Callable[[str], None]


def default_tracking_uri(root: Path) -> str:
    """An SQLite database under the run root."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"


def require_no_secret(uri: str) -> None:
    """Raise UserError if there is a password in the tracking URI ``uri``."""
    if has_secret(uri) or re.match(r"https?://[^/]*@", uri):
        raise UserError(
            f"tracking URI {without_secrets(uri)}: a password in it would reach logs and files. "
            "Give it by the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN, for a server; PGPASSWORD for PostgreSQL. Put an MLflow "
            "server before other databases that ask for one"
        )


def require_tracking_uri(uri: str) -> None:
    """Raise UserError if ``uri`` can never be one of MLflow's, whoever is up or down."""
    require_no_secret(uri)
    shown = without_secrets(uri)
    expected = "expected http(s)://HOST:PORT, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    try:
        parts = urlsplit(uri)
        scheme, host, _ = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError(f"tracking URI {shown}: {error}; {expected}") from None
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    known = {"http", "https", "databricks", *DATABASES, *plugins}
    name = scheme.partition("+")[0] or uri
    if name not in known:
        raise UserError(f"tracking URI {shown}: {unknown_name('scheme', name, known)} {expected}")
    if scheme in ("http", "https") and not re.fullmatch(r"[\w.-]+|[0-9a-f:.%]+", host):
        raise UserError(f"tracking URI {shown}: no host can have such a name; {expected}")
    if name in DATABASES:
        try:
            _import_driver(uri)
        except ModuleNotFoundError as error:
            raise UserError(
                f"tracking URI {shown}: needs the Python package {error.name}, not installed here"
            ) from None
        except ValueError as error:
            raise UserError(f"tracking URI {shown}: {error}; {expected}") from None


def _import_driver(uri: str) -> None:
    """Import what a database is talked to with; ModuleNotFoundError or ValueError if one cannot."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ValueError(str(error).replace(uri, "it")) from None


class _Queue:
    """An outbox and the courier that delivers it to MLflow, for as long as a block runs."""

    def __init__(self, directory: Path, name: str, tracking_uri: str, say: Say) -> None:
        require_tracking_uri(tracking_uri)
        _let_courier_retry()
        self._outbox = Outbox(directory, name)

        def connect() -> Destination:
            # Importing MLflow takes seconds, which nobody has to wait for.
            from deft.platform.tracking.mlflow_run import MlflowRun

            return MlflowRun(self._outbox, tracking_uri)

        self._courier = Courier(self._outbox, connect, say)

    def _start(self, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        self._outbox.append({"status": "RUNNING", "time": _now()})
        self._outbox.append({"tags": {**tags, **_origin()}})
        self._outbox.append({"params": dict(params)})
        self._courier.start()

    def __exit__(self, *error: object) -> None:
        self._courier.stop()

    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with its cause as a tag."""
        self._outbox.append({"tags": {"deft.error": describe(error)[:4000]}})
        self._end("FAILED", PATIENCE_WITH_FAILURE)

    def _send_files(self, path: Path, folder: str | None = None) -> None:
        """Queue a file, or every file below a directory, by paths that outlive a move of it."""
        if path.is_dir():
            for child in sorted(path.iterdir()):
                self._send_files(child, f"{folder}/{path.name}" if folder else path.name)
        elif path.exists():
            inside = path.is_relative_to(self._outbox.directory)
            kept = path.relative_to(self._outbox.directory) if inside else path.absolute()
            self._outbox.append({"artifact": str(kept), "folder": folder})

    def _end(self, status: str, patience: float, time: int | None = None) -> str | None:
        """Queue the end of the run; its MLflow id, or None if not all could be delivered."""
        self._outbox.append({"status": status, "time": time or _now()})
        return self._outbox.delivered.run_id if self._courier.flush(patience) else None


class Recorder(_Queue):
    """The MLflow run of one run directory, for as long as the block runs.

    Everything it is told is on disk when a method returns. MLflow gets it when it can.
    """

    def __init__(
        self, run: RunDirectory, tracking_uri: str, say: Say, *, sweep: str | None = None
    ) -> None:
        """Nothing is sent before the block is entered.

        Args:
            run: whose it is; the caller holds its lock.
            tracking_uri: of MLflow.
            say: told once that MLflow takes nothing, and why.
            sweep: name of the sweep that the run is a cell of.

        Raises:
            UserError: the URI can never be used.
        """
        super().__init__(run.path, run.path.name, tracking_uri, say)
        assert isinstance(run.spec, ExperimentSpec | ModelEvaluationSpec)
        self.run = run
        self.spec: ExperimentSpec | ModelEvaluationSpec = run.spec
        self.sweep = sweep

    def __enter__(self) -> Recorder:
        spec = self.spec
        kind = "evaluation" if isinstance(spec, ModelEvaluationSpec) else "run"
        tags = {
            "deft.run": self.run.path.name,
            "deft.kind": kind,
            "deft.directory": str(self.run.path.resolve()),
            "mlflow.source.name": "deft evaluate" if kind == "evaluation" else "deft run",
            "mlflow.note.content": describe_run(self.run),
        }
        params = flatten(spec.model_dump(mode="json"))
        if isinstance(spec, ExperimentSpec):
            # Numbers on an axis of their own: what parallel coordinates are drawn by.
            params["objective.family"] = spec.objective.name
            params |= {f"objective.{key}": value for key, value in spec.objective.params.items()}
        self._start(tags, params)
        if self.sweep is not None:
            self._outbox.append({"sweep": self.sweep})
        return self

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        time: int,
        *,
        dataset: Mapping[str, str] | None = None,
        of_model: bool = False,
    ) -> None:
        """Log metrics of one step.

        Args:
            step: the optimiser step.
            metrics: name → value.
            time: when they were measured, in milliseconds since the epoch.
            dataset: name and digest of what they were measured on.
            of_model: whether they are of the model that this run trained or evaluates.
        """
        entry = {"step": step, "time": time, "metrics": dict(metrics), "of_model": of_model}
        self._outbox.append({**entry, "dataset": dict(dataset)} if dataset else entry)

    def log_result(
        self, step: int, label: str, benchmark: str, metrics: Mapping[str, float], time: int
    ) -> None:
        """Log ``<label>/<benchmark>/<metric>``, linked to the data and, if trained, the model."""
        named = {f"{label}/{benchmark}/{name}": value for name, value in metrics.items()}
        self.log(step, named, time, dataset=self._data_of(benchmark), of_model=label == "eval")

    def _data_of(self, benchmark: str) -> dict[str, str] | None:
        """Name and digest of the dataset that a benchmark, or the loss, is measured on."""
        prepared = self.run.manifest("prepare")
        with_items = prepared or self.run.manifest("evaluate")
        assert with_items is not None
        for file in with_items["items"].values():
            if _items_key(file)["name"] == benchmark:
                return _items_key(file)
        spec, heldout = self.spec, self.spec.evaluation.heldout
        own_rows = heldout is not None and heldout.file is None
        if benchmark == HELDOUT and own_rows and prepared and isinstance(spec, ExperimentSpec):
            return _rows_key(spec, prepared, "validation")
        return None

    def describe_data(self) -> None:
        """Log what the prepare stage found: counts, the prompt format, and the datasets."""
        prepared, spec = self.run.manifest("prepare"), self.spec
        assert prepared is not None
        assert isinstance(spec, ExperimentSpec)
        counts = {f"data/{key}": n for key, n in prepared.items() if key.startswith("num_")}
        bad = {
            f"data/bad_records/{kind.replace(' ', '_')}": count
            for kind, count in prepared["bad_records"].items()
        }
        shared = {f"data/overlap/{name}": x["share"] for name, x in prepared["overlap"].items()}
        by_source = {
            f"data/source/{_metric_name(source['name'])}/{key}": number
            for source in prepared["sources"]
            if spec.dataset.mixture
            for key, number in source.items()
            if key.startswith("num_")
        }
        self.log(0, {**counts, **by_source, **bad, **shared}, prepared["finished_at"])
        tags = {
            "deft.prompt_style": prepared["prompt_style"],
            "deft.prompt_hash": prepared["format_hash"],
        }
        # The description knows the data now.
        self._outbox.append({"tags": {**tags, "mlflow.note.content": describe_run(self.run)}})
        rows = _rows_datasets(spec, prepared)
        items = map(_items_dataset, prepared["items"].values())
        self._outbox.append({"datasets": [*rows, *items]})
        for file in (self.run.path / "stages" / "prepare.json", Path(prepared["bad_records_file"])):
            self._send_files(file, "data")

    def describe_evaluation(self, model_dir: str, items: Mapping[str, str]) -> None:
        """Log what an evaluation of a model asks, and which run trained the model, if one did."""
        self._outbox.append({"datasets": list(map(_items_dataset, items.values()))})
        training = Path(model_dir).parent
        if (training / "stages" / "train.json").is_file():
            self._outbox.append({"tags": {"deft.trained_by": training.name}})
            self._outbox.append({"evaluates": str(training.resolve())})

    def log_model(self) -> None:
        """Log the model that was trained, by where it is: its weights are not copied."""
        train, spec = self.run.manifest("train"), self.spec
        assert train is not None
        assert isinstance(spec, ExperimentSpec)
        tags = {
            "deft.run": self.run.path.name,
            "deft.directory": str((self.run.path / train["model"]).resolve()),
        }
        params = {"objective": str(spec.objective), "base_model": spec.model.name}
        params |= {"dataset": spec.dataset.name, "seed": str(spec.seed)}
        model = {"name": _model_name(self.run.path.name), "tags": tags, "params": params}
        self._outbox.append({"model": {**model, "step": train["metrics"]["step"]}})

    def finish(self) -> str | None:
        """Queue files, environment and the end of the run, and wait for MLflow to take them.

        Returns:
            Id of the MLflow run; None if MLflow took nothing for `PATIENCE` seconds.
        """
        for name in ("spec.json", "events.jsonl", "code.diff", "packages.txt"):
            self._send_files(self.run.path / name)
        for name in ("figures", "predictions"):
            self._send_files(self.run.path / name)
        last = self.run.manifest("evaluate")
        return self._end("FINISHED", PATIENCE, last["finished_at"] if last else None)

    def describe_code(self) -> None:
        """Log the commit, the uncommitted diff and the packages of the process that does it."""
        git = git_state()
        if git:
            self._outbox.append({"tags": {"mlflow.source.git.commit": git["commit"]}})
            write_atomic(self.run.path / "code.diff", git["diff"])
        write_atomic(self.run.path / "packages.txt", package_versions())


class SweepRecorder(_Queue):
    """The MLflow run of a sweep, parent of its cells' runs, for as long as the block runs.

    One process holds it. Cells record themselves, each in its own process, by
    ``run_experiment(…, sweep=name)``.
    """

    def __init__(self, directory: Path, name: str, tracking_uri: str, say: Say) -> None:
        """Nothing is sent before the block is entered.

        Args:
            directory: of the sweep.
            name: of the sweep: what `run_experiment` gets as ``sweep``.
            tracking_uri: of MLflow.
            say: told once that MLflow takes nothing, and why.

        Raises:
            UserError: the URI can never be used.
        """
        super().__init__(directory, name, tracking_uri, say)
        self.directory = directory
        self.name = name

    def __enter__(self) -> SweepRecorder:
        tags = {
            "deft.sweep": self.name,
            "deft.kind": "sweep",
            "deft.directory": str(self.directory.resolve()),
            "mlflow.source.name": "deft sweep",
        }
        self._start(tags, {"sweep": self.name})
        return self

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings of the sweep, such as its axes; nested ones become dotted keys."""
        self._outbox.append({"params": flatten(params)})

    def log_note(self, markdown: str) -> None:
        """Describe the sweep where MLflow shows it."""
        self._outbox.append({"tags": {"mlflow.note.content": markdown}})

    def add_cell(self, run: Path) -> None:
        """Make the run in directory ``run`` a child, whichever sweep it was of before.

        Called when a cell has ended, or was found finished.
        """
        self._outbox.append({"child": str(run.resolve()), "sweep": self.name})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers of the sweep as a whole."""
        self._outbox.append({"step": step, "time": _now(), "metrics": dict(metrics)})

    def log_artifacts(self, path: Path) -> None:
        """Log a file, or a directory under its own name, such as the report's."""
        self._send_files(path)

    def finish(self) -> str | None:
        """End the run; returns its MLflow id, None if MLflow took nothing for `PATIENCE` s."""
        return self._end("FINISHED", PATIENCE)


def _let_courier_retry() -> None:
    """Let MLflow's client give up soon and say little: the courier comes back, and says it once."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # What was sent may have been done: the courier looks before it asks for a run a second time.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    # Read when mlflow is imported; what it would log it also raises.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _origin() -> dict[str, str]:
    origin = {"mlflow.source.type": "LOCAL"}
    # In a container the user may have no name.
    with contextlib.suppress(KeyError, OSError):
        origin["mlflow.user"] = getpass.getuser()
    return origin


def _now() -> int:
    return time.time_ns() // 1_000_000


def _model_name(name: str) -> str:
    """``name`` without what MLflow allows in no model's name."""
    return re.sub(r"[/:.%\"']", "_", name)


def _metric_name(name: str) -> str:
    """Replace the characters of ``name`` that MLflow allows in no metric's name, and slashes."""
    return re.sub(r"[^\w. -]+", "_", name, flags=re.ASCII).strip()


def _rows_key(spec: ExperimentSpec, prepared: Mapping[str, Any], context: str) -> dict[str, str]:
    """Name and digest of the rows of a run; the digest covers tokenizer, length and split."""
    name = spec.dataset.name.rstrip("/").rsplit("/", 1)[-1]
    return {"name": name, "digest": f"{Path(prepared['rows_dir']).parent.name}-{context}"}


def _rows_datasets(spec: ExperimentSpec, prepared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Describe the rows that are trained on, and those that are held out, by data set."""
    datasets = []
    for source, counts in zip(spec.dataset.sources, prepared["sources"], strict=True):
        profiles = {
            "training": {
                "num_rows": counts["num_examples"],
                "num_tokens": counts["num_tokens"],
                "num_target_tokens": counts["num_target_tokens"],
            },
            "validation": {"num_rows": counts["num_validation_examples"]},
        }
        for context, profile in profiles.items():
            key = _rows_key(spec, prepared, context)
            if spec.dataset.mixture and context == "training":
                key["name"] = counts["name"]
            if profile["num_rows"]:
                datasets.append(
                    {
                        **key,
                        "context": context,
                        **_source(source, counts["revision"]),
                        "profile": json.dumps(profile),
                    }
                )
    return datasets


def _source(spec: SourceSpec, revision: str | None) -> dict[str, str]:
    """Say where the examples of a data set come from, as MLflow does."""
    path = spec.local_path
    source: dict[str, Any]
    if path is not None:
        source_type, source = "local", {"uri": str(path.absolute())}
    elif spec.hub_id is None:
        source_type = "code"
        source = {"tags": {"mlflow.source.name": DATASETS[spec.name].source}}
    else:
        source_type, source = "hugging_face", {"path": spec.hub_id, "split": spec.split}
        pins = {"config_name": spec.config, "revision": revision}
        source |= {key: value for key, value in pins.items() if value is not None}
    return {"source_type": source_type, "source": json.dumps(source)}


def _items_key(file: str) -> dict[str, str]:
    """Name and digest of the items in a file that `prepare_items` named by its content."""
    name, _, digest = Path(file).stem.rpartition("-")
    return {"name": name, "digest": digest}


def _items_dataset(file: str) -> dict[str, Any]:
    with Path(file).open("rb") as lines:
        profile = {"num_rows": sum(1 for _ in lines)}
    return {
        **_items_key(file),
        "context": "evaluation",
        "source_type": "local",
        "source": json.dumps({"uri": file}),
        "profile": json.dumps(profile),
    }


def describe_run(run: RunDirectory) -> str:
    """A few lines of Markdown about a run, for people who find it in MLflow."""
    spec = run.spec
    if isinstance(spec, ModelEvaluationSpec):
        asked = ", ".join(benchmark.name for benchmark in spec.evaluation.suite) or HELDOUT
        return f"Evaluation of **{spec.model.name}** on {asked}.\n\nDirectory: `{run.path}`"
    assert isinstance(spec, ExperimentSpec)
    training, info = spec.training, spec.objective.info
    lines = [
        f"**{spec.model.name}** fine-tuned on **{spec.dataset.name}** with **{spec.objective}**, "
        f"seed {spec.seed}."
    ]
    if info is not None:
        lines.append(
            f"Per token `{info.value}`, gate `{info.gate}`: {info.summary} ({info.source})"
        )
    settings = [
        f"batches of {training.batch_size} examples, learning rate {training.learning_rate:g}, "
        f"{training.num_workers} workers, ZeRO-{training.resolved_zero_stage}"
    ]
    prepared = run.manifest("prepare")
    if prepared is not None:
        data = [
            f"{prepared['num_examples']:,} examples with {prepared['num_target_tokens']:,} target "
            f"tokens, {prepared['num_validation_examples']:,} held out"
        ]
        if spec.dataset.mixture:
            data += [f"  of them {SourceCounts(**source)}" for source in prepared["sources"]]
        settings = data + settings
    lines.append("\n".join(f"- {setting}" for setting in settings))
    lines.append(f"Directory: `{run.path}`")
    return "\n\n".join(lines)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; ``x.name`` is called ``x``, so that people can filter by it.

    Items of a list are keyed by their names, as in ``evaluation.benchmarks.figfont.size``.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = prefix if key == "name" and prefix else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat
