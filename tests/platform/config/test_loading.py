"""Run files: what becomes of them, and what a person is told about mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deft.platform.config.loading import load_spec
from deft.platform.config.spec import ExperimentSpec, model_identity
from deft.platform.errors import UserError
from deft.workers.spec import ModelSpec
from helpers import ROOT

QUICKSTART = "dataset: figfont\nmodel: tiny\nobjective: DEFT\n"
EXAMPLES = ROOT / "examples"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


def message(tmp_path: Path, text: str, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        load_spec(write(tmp_path, text), settings=settings)
    return str(caught.value).replace(str(tmp_path), "DIR")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_valid(file: Path) -> None:
    assert load_spec(file).run_name


@pytest.mark.parametrize(
    ("file", "dataset", "objective", "epochs"),
    [("quickstart.yaml", "chain_sum", "original", 1), ("figfont.yaml", "figfont", "DEFT", 2)],
)
def test_names_alone_mean_the_same_run_as_the_file(
    file: str, dataset: str, objective: str, epochs: int
) -> None:
    names = {"dataset": dataset, "model": "tiny", "objective": objective.lower()}
    by_names = load_spec(None, names)
    assert by_names == load_spec(EXAMPLES / file)
    assert by_names.run_name == load_spec(EXAMPLES / file).run_name
    assert by_names.name == f"{dataset}-tiny-{objective}"
    assert by_names.training.epochs == epochs


def test_names_override_the_file_and_settings_override_both(tmp_path: Path) -> None:
    spec = load_spec(
        write(tmp_path, QUICKSTART + "training: {learning_rate: 0.1}\n"),
        {"objective": "original"},
        ["training.learning_rate=0.2", "objective=p", "dataset.size=64"],
    )
    assert str(spec.objective) == "p"
    assert spec.training.learning_rate == 0.2
    assert spec.dataset.name == "figfont"
    assert spec.dataset.size == 64


def test_preset_fills_in_only_what_is_not_said(tmp_path: Path) -> None:
    quickstart = load_spec(write(tmp_path, QUICKSTART))
    spec = load_spec(write(tmp_path, QUICKSTART + "training: {batch_size: 32}\n"))
    assert spec.training.batch_size == 32
    assert spec.training.max_length == quickstart.training.max_length
    assert spec.evaluation == quickstart.evaluation


def test_hash_changes_with_any_setting_and_with_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    file = write(tmp_path, f"dataset: {data}\nmodel: tiny\nobjective: DEFT\n")
    first = load_spec(file).content_hash()
    assert first == load_spec(file).content_hash()
    assert first != load_spec(file, settings=["seed=1"]).content_hash()
    data.write_text('{"prompt": "a", "response": "c"}\n')
    assert first != load_spec(file).content_hash()


def with_model(model: Path) -> ExperimentSpec:
    return load_spec(None, {"dataset": "figfont", "model": str(model), "objective": "DEFT"})


def test_hash_follows_the_content_of_a_model_and_not_its_place(tmp_path: Path) -> None:
    models = [tmp_path / place / "strong" for place in ("here", "there")]
    for model in models:
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(b"weights")
    here, there = (with_model(model).run_name for model in models)
    assert here == there
    (models[1] / "model.safetensors").write_bytes(b"Weights")
    assert here == with_model(models[0]).run_name != with_model(models[1]).run_name


def test_model_of_a_run_is_known_by_the_run_before_it_is_there(tmp_path: Path) -> None:
    runs = [tmp_path / root / "strong-0123456789" for root in ("here", "there")]
    planned = {model_identity(ModelSpec.model_construct(name=str(r / "model"))) for r in runs}
    assert planned == {"strong-0123456789/model"}
    for run, weights in zip(runs, (b"weights", b"others"), strict=True):
        (run / "model").mkdir(parents=True)
        (run / "model" / "model.safetensors").write_bytes(weights)
        (run / "spec.json").write_text("{}")
    here, there = (with_model(run / "model") for run in runs)
    assert {model_identity(here.model), model_identity(there.model)} == planned
    assert here.run_name == there.run_name
    assert here.name == "figfont-strong-0123456789-DEFT"
    # It is no run's if there is no run: then its content counts.
    (runs[0] / "spec.json").unlink()
    assert model_identity(here.model) not in planned


def test_list_of_datasets_is_a_mixture_with_settings_for_all(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "?", "response": "!"}\n')
    text = (
        f"dataset: [{{name: {tmp_path}/a.jsonl, weight: 2}}, {{name: {tmp_path}/b.jsonl, size: 9}},"
        " figfont]\nmodel: tiny\nobjective: p\n"
    )
    spec = load_spec(write(tmp_path, text), settings=["dataset.validation=3"])
    assert spec.name == "a-b-figfont-tiny-p"
    assert [source.name.rsplit("/")[-1] for source in spec.dataset.sources] == [
        "a.jsonl",
        "b.jsonl",
        "figfont",
    ]
    assert spec.dataset.validation == 3
    assert ExperimentSpec.model_validate_json(spec.model_dump_json()) == spec
    before = spec.run_name
    (tmp_path / "b.jsonl").write_text('{"prompt": "?", "response": "?"}\n')
    assert spec.run_name != before
    assert "did you mean weight?" in message(tmp_path, text.replace("weight", "wieght"))


def test_noise_is_part_of_the_hash(tmp_path: Path) -> None:
    file = write(tmp_path, QUICKSTART)
    hashes = {
        load_spec(file, settings=[f"dataset.noise={noise}"]).content_hash()
        for noise in (0, 0.3, 0.4)
    }
    assert len(hashes) == 3
    said = message(tmp_path, QUICKSTART, "dataset.noise=30")
    assert said.startswith("--set dataset.noise=30: dataset.noise: ")


def test_unknown_key_names_line_and_nearest_key(tmp_path: Path) -> None:
    text = QUICKSTART + "training:\n  lerning_rate: 0.1\n"
    assert message(tmp_path, text).startswith(
        "DIR/run.yaml:5: training.lerning_rate: unknown key; did you mean learning_rate?"
    )


def test_wrong_type_names_line_expectation_and_value(tmp_path: Path) -> None:
    said = message(tmp_path, QUICKSTART + "training:\n  batch_size: many\n")
    assert said.startswith("DIR/run.yaml:5: training.batch_size: ")
    assert "valid integer" in said
    assert "'many'" in said


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("objective", "DEFFT", "Did you mean DEFT?"),
        ("model", "tinny", "tiny"),
        ("dataset", "figfnt", "figfont"),
    ],
)
def test_unknown_name_says_the_nearest(tmp_path: Path, key: str, value: str, nearest: str) -> None:
    lines = dict(line.split(": ") for line in QUICKSTART.splitlines()) | {key: value}
    said = message(tmp_path, "".join(f"{k}: {v}\n" for k, v in lines.items()))
    line = list(lines).index(key) + 1
    assert said.startswith(f"DIR/run.yaml:{line}: {key}")
    assert nearest in said


def test_unknown_benchmark_says_the_nearest(tmp_path: Path) -> None:
    said = message(tmp_path, QUICKSTART + "evaluation:\n  benchmarks:\n    - figfonts\n")
    assert said.startswith("DIR/run.yaml:6: evaluation.benchmarks.0")
    assert "figfont" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset: figfont\nmodel: tiny\n", "DIR/run.yaml: objective: is missing"),
        (QUICKSTART + "seed: 1\nseed: 2\n", "DIR/run.yaml:5: seed is given twice"),
        (QUICKSTART + "training: [\n", "DIR/run.yaml:5: not valid YAML"),
        ("- figfont\n", "DIR/run.yaml: expected a mapping of settings, got a list"),
        ("", "DIR/run.yaml: expected a mapping of settings, got nothing"),
        ("{a: !!python/object/apply:os.system [true]}", "DIR/run.yaml:1: not valid YAML"),
        (QUICKSTART.replace("figfont", "none.jsonl"), "DIR/run.yaml:1: dataset: there is no file"),
        (QUICKSTART.replace("tiny", "./none"), "DIR/run.yaml:2: model: there is no directory"),
        (QUICKSTART + "name: ../../etc\n", "DIR/run.yaml:4: name: "),
        (
            QUICKSTART + "training: {batch_size: 10, packing: false}\n",
            "DIR/run.yaml:4: training: batch_size must be a multiple of",
        ),
    ],
)
def test_bad_files_say_where_and_what(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text).startswith(expected)


def test_bad_settings_are_named_as_they_were_given(tmp_path: Path) -> None:
    assert message(tmp_path, QUICKSTART, "seed").startswith("--set seed: expected key=value")
    assert message(tmp_path, QUICKSTART, "seed=-1").startswith("--set seed=-1: seed: ")
    assert message(tmp_path, QUICKSTART, "training.x=1").startswith("--set training.x=1: ")


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.learning_rate", '"1e-4"', 1e-4),
        ("training.learning_rate", "1.0e-4", 1e-4),
        ("training.max_steps", "1e3", 1000),
        ("training.max_steps", "1_000", 1000),
        ("training.max_steps", "~", None),
        ("training.packing", "off", False),
        ("training.packing", "yes", True),
        ("training.betas", "[0, 0.95]", (0.0, 0.95)),
        (
            "training.deepspeed.zero_optimization",
            "{reduce_bucket_size: 5e8}",
            {"reduce_bucket_size": 5e8},
        ),
        ("dataset.validation", "1e-1", 0.1),
        ("name", '"on"', "on"),
        ("name", '"0100"', "0100"),
    ],
)
def test_values_are_what_they_look_like(
    tmp_path: Path, setting: str, value: str, expected: object
) -> None:
    """In the file and on the command line alike."""
    *sections, key = setting.split(".")
    indents = ["  " * depth for depth in range(len(sections) + 1)]
    lines = [f"{i}{s}:\n" for i, s in zip(indents, sections, strict=False)]
    nested = "".join([*lines, f"{indents[-1]}{key}: {value}\n"])
    text = QUICKSTART.replace("dataset: figfont", "dataset: {name: figfont}")
    if setting.startswith("dataset"):
        nested, text = "", text.replace("figfont}", f"figfont, {key}: {value}}}")
    specs = [load_spec(write(tmp_path, text + nested))]
    specs += [load_spec(write(tmp_path, QUICKSTART), settings=[f"{setting}={value}"])]
    for spec in specs:
        read: object = spec
        for part in setting.split("."):
            read = read[part] if isinstance(read, dict) else getattr(read, part)
        assert read == expected
        assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.batch_size=0100", "0100 is octal in YAML 1.1 and means 64; write 100 or 64"),
        ("seed=010", "010 is octal in YAML 1.1 and means 8; write 10 or 8"),
        ("training.max_steps=1:30", "1:30 is a number of base 60 in YAML 1.1 and means 90"),
        ("training.max_steps=0o10", "0o10 is a text in YAML 1.1; write 8"),
        ("name=2024-01-01", '2024-01-01 is a date in YAML; write "2024-01-01"'),
        (
            "name=on",
            'name: Input should be a valid string, got True; YAML 1.1 reads on as true; write "on"',
        ),
        ("name=1e5", 'name: Input should be a valid string, got 100000.0; write "1e5", in quotes'),
        (
            "dataset.split=no",
            'got False; YAML 1.1 reads no as false; write "no", in quotes',
        ),
        (
            "seed=yes",
            "seed: expected a number, got true; write the number; YAML 1.1 reads yes as true",
        ),
        ("dataset=1e5", 'got 100000.0; write "1e5", in quotes, for the text'),
        ("seed=true", "seed: expected a number, got true; write the number"),
        ("dataset.validation=true", "dataset.validation: expected a number, got true"),
        ("training.zero_stage=on", "training.zero_stage: expected a number, got true"),
        ("training.betas=[true, 0.9]", "training.betas: expected a number, got [true, 0.9]"),
        ("training.betas=[1.5, 0.95]", "training.betas.0: Input should be less than 1, got 1.5"),
        ("training.betas=[0.9, 1]", "training.betas.1: Input should be less than 1, got 1"),
        (
            "training.betas=[-0.1, 0.9]",
            "training.betas.0: Input should be greater than or equal to 0",
        ),
        ("training.betas=[0.9]", "training.betas.1: is missing; the list is too short"),
        ("training.lora=8", "training.lora: expected settings (rank, alpha, dropout, targets"),
        ("dataset.validation=5%", "give a number of examples, or a share such as 0.05, got '5%'"),
        ("training.dtype=off", "got False; YAML 1.1 reads off as false"),
        (
            "objective={name: GeneralFamily, alpha: on}",
            "parameter 'alpha' is True; expected a number",
        ),
    ],
)
def test_surprises_of_yaml_are_refused_with_what_was_meant(
    tmp_path: Path, setting: str, expected: str
) -> None:
    assert expected in message(tmp_path, QUICKSTART, setting)
    key, _, value = setting.partition("=")
    nested = "".join("{" + part + ": " for part in key.split(".")) + value
    (tmp_path / "small.yaml").write_text(nested + "}" * len(key.split(".")))
    with pytest.raises(UserError) as caught:
        load_spec(tmp_path / "small.yaml", {"dataset": None, "model": "tiny", "objective": None})
    assert f"small.yaml:1: {key}" in str(caught.value)
    assert expected in str(caught.value)


def test_unknown_option_of_deepspeed_is_named_by_its_own_line(tmp_path: Path) -> None:
    text = QUICKSTART + "training:\n  deepspeed:\n    zero_optimisation: {stage: 2}\n"
    assert message(tmp_path, text).startswith(
        "DIR/run.yaml:6: training.deepspeed.zero_optimisation: DeepSpeed has no such option; did "
        "you mean zero_optimization? There are: "
    )
    setting = "training.deepspeed={zero_optimization: {overlap_com: true}}"
    assert message(tmp_path, QUICKSTART, setting).startswith(
        f"--set {setting}: training.deepspeed.zero_optimization.overlap_com: DeepSpeed has no such "
        "option; did you mean overlap_comm?"
    )


def test_parts_of_a_setting_are_named_by_their_own_line(tmp_path: Path) -> None:
    text = "dataset:\n  name: figfont\n  validation: 2\n  size: 9_000_000\n"
    text += "model: tiny\nobjective: DEFT\n"
    said = message(tmp_path, text)
    assert said.startswith("DIR/run.yaml:4: dataset.size: figfont has 40000 training examples")


def test_files_that_cannot_be_read_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")

    def said(name: str) -> str:
        with pytest.raises(UserError) as caught:
            load_spec(tmp_path / name)
        return str(caught.value).replace(str(tmp_path), "DIR")

    assert said("latin.yaml") == (
        "DIR/latin.yaml: not UTF-8 text: invalid continuation byte at byte 6; save it as UTF-8"
    )
    assert said("lattin.yaml") == "DIR/lattin.yaml: no such file; did you mean DIR/latin.yaml?"
    assert said("none.yaml") == "DIR/none.yaml: no such file; give one that is there"
    assert said("none/run.yaml") == "DIR/none/run.yaml: no such file; give one that is there"
    assert said("") == "DIR: a directory; give a YAML file, such as DIR/latin.yaml"
    assert said("empty") == "DIR/empty: a directory; give a YAML file"
    assert said("loop.yaml") == (
        "DIR/loop.yaml: Too many levels of symbolic links; give another file"
    )


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    said = message(tmp_path, QUICKSTART + "seed: x\nfoo: 1\n")
    assert len(said.splitlines()) == 2
