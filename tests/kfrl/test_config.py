import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.config import TrainConfig
from agents.engines.settings import PPOConfig
from agents.methods import get_method, method_names
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from kfrl.config import checked, dump_config, load_config, split_names, validated
from kfrl.errors import UserError
from kfrl.flow import Link
from kfrl.supervised.config import SupervisedConfig

Read = Callable[[str], TrainConfig]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def load(text: str) -> TrainConfig:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(path, TrainConfig)

    return load


FULL = TrainConfig(
    game="Ms. Pacman",
    teachers="seaquest,zoo:breakout,/a path/agent.safetensors",
    method="knowledge-flow",
    steps=123,
    lr=1e-5,
    convs=((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    run_dir=Path("runs/a/b"),
    methods={
        "knowledge-flow": {
            "mixing": "simplex",
            "fold_at": None,
            "student_weight": 0.25,
            "links": [{"student": "fc", "teacher": "seaquest", "layer": "conv2"}],
        }
    },
)


@pytest.mark.parametrize("config", [TrainConfig(), FULL], ids=["defaults", "full"])
def test_what_is_written_is_read_back(read: Read, config: TrainConfig) -> None:
    assert read(dump_config(config)) == config
    assert checked(config) == config


def test_every_field_is_written_in_the_order_of_its_definition() -> None:
    keys = [line.split(":")[0] for line in dump_config(TrainConfig()).splitlines() if line[0] not in " -"]
    assert keys == list(vars(TrainConfig()))


def test_what_a_file_leaves_out_keeps_its_default(read: Read) -> None:
    assert read("steps: 7\nppo: {epochs: 8}\n") == replace(TrainConfig(), steps=7, ppo=PPOConfig(epochs=8))
    assert read("") == TrainConfig()
    assert read("# nothing\n") == TrainConfig()


def test_numbers_as_people_write_them(read: Read) -> None:
    # YAML takes 1e-4 for a string.
    assert read("lr: 1e-4").lr == 1e-4
    assert read("max_grad_norm: 40").max_grad_norm == 40.0


def test_whole_numbers_in_scientific_notation_are_numbers(read: Read) -> None:
    assert (read("steps: 1e3").steps, read("steps: 4.0e7").steps) == (1_000, 40_000_000)


def test_a_list_of_names_is_a_list_of_teachers(read: Read) -> None:
    assert read("teachers: [seaquest, pong]").teacher_names == ("seaquest", "pong")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: .inf", "lr: expected a finite number, got inf"),
        ("ppo: {clip_range: .nan}", "ppo.clip_range: "),
        ("steps: 100\nsteps: 7", "the key steps occurs twice"),
        ("steps: yes", "steps: yes"),
        ("steps: off", "steps: no"),
        ("ppo: {epochs: on}", "ppo.epochs: yes"),
    ],
)
def test_what_nobody_means_is_refused(read: Read, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read(text)
    assert words in str(error.value)


def test_links_in_yaml(read: Read) -> None:
    text = """
methods:
  knowledge-flow:
    links:
    - {student: fc, teacher: seaquest, layer: conv2}
    - {student: conv1, teacher: pong, layer: conv1}
"""
    assert KnowledgeFlowMethod(read(text)).own.links == (
        Link("fc", "seaquest", "conv2"),
        Link("conv1", "pong", "conv1"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step: 5", "Unknown key step. Did you mean steps?"),
        ("worker: 5\ngama: 1", "Unknown key worker. Did you mean workers? Unknown key gama. Did you mean gamma?"),
        ("ppo: {epoch: 1}", "Unknown key ppo.epoch. Did you mean ppo.epochs?"),
        ("1: 2", "Unknown key 1."),
    ],
)
def test_an_unknown_key_names_the_nearest(read: Read, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read(text)
    assert "config.yaml" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: many", ["steps:", "valid integer", "'many'"]),
        ("steps: 1.5", ["steps:", "1.5"]),
        ("gamma: high", ["gamma:", "'high'"]),
        ("game: [Pong]", ["game:", "string"]),
        ("convs: 16", ["convs:", "16"]),
        ("convs: [[16, 8]]", ["convs.0.2:"]),
        ("convs: [[16, 8, 4.5]]", ["convs.0.2:", "4.5"]),
        ("ppo: fast", ["ppo:", "'fast'"]),
        ("ppo:", ["ppo:"]),
        ("methods: {distral: 3}", ["methods.distral:", "3"]),
        ("optimizer: adm", ["optimizer:", "'adam' or 'rmsprop'"]),
        ("flow: fast", ["flow:", "'fast'"]),
        ("lr: low\nsteps: many", ["lr:", "steps:"]),
    ],
)
def test_a_value_of_another_type_is_refused(read: Read, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(text)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["steps", "workers", "envs_per_worker", "t_max", "hidden", "curve_episodes"])
def test_a_count_is_at_least_one(name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"{name}: .*greater than or equal to 1, got {value}"):
        checked(replace(TrainConfig(), **{name: value}))
    with pytest.raises(UserError, match=name):
        validated({name: value}, TrainConfig)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("gamma", 1.5),
        ("gamma", -0.1),
        ("entropy_coef", -0.01),
        ("max_grad_norm", 0.0),
        ("seed", -1),
        ("eval_episodes", -1),
        ("checkpoint_every", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}: "):
        checked(replace(TrainConfig(), **{name: value}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("transfrm: dense", "Unknown key transfrm. Did you mean transform?"),
        ("links: [{student: fc, teacher: a, layer: fc, layr: fc}]", "links.0.layr. Did you mean links.0.layer?"),
        ("links: [{student: fc, teacher: a}]", "links.0.layer: "),
        ("links: 3", "links: "),
        ("mixing: sofmax", "'softmax' or 'simplex'"),
        ("policy_kl_coef: .nan", "policy_kl_coef: "),
        ("imitation_batch: on", "imitation_batch: yes"),
        ("dependence_coef: -0.1", "dependence_coef: "),
        ("student_weight: 0.0", "student_weight: "),
        ("student_weight: 1.0", "student_weight: "),
        ("fold_at: 1.5", "fold_at: "),
        ("imitation_steps: 0", "imitation_steps: "),
        ("link_heads: sometimes", "link_heads: "),
    ],
)
def test_a_methods_settings_are_checked_too(read: Read, given: str, words: str) -> None:
    config = read(f"methods: {{knowledge-flow: {{{given}}}}}")
    with pytest.raises(UserError) as error:
        KnowledgeFlowMethod.resolve_settings(config, method_names())
    assert "Settings of method knowledge-flow" in str(error.value) and words in str(error.value)


def test_settings_of_a_method_that_is_not_there_are_refused(read: Read) -> None:
    with pytest.raises(UserError, match=r"'knowlege-flow'\. Did you mean 'knowledge-flow'"):
        KnowledgeFlowMethod.resolve_settings(read("methods: {knowlege-flow: {fold_at: 0.1}}"), method_names())


def test_files_of_earlier_versions_are_read(read: Read) -> None:
    """Their groups had names of their own, held what several methods read, and stood there for every method."""
    text = (
        "method: actor-mimic\nflow: {fold_at: null}\ndistillation: {kl_direction: forward, feature_coef: 0.5}\nown: {}"
    )
    config = read(text)
    assert config.methods["knowledge-flow"] == {"fold_at": None}
    resolved = get_method("actor-mimic").resolve_settings(config, method_names())
    assert resolved.keys() == {"actor-mimic"}
    assert resolved["actor-mimic"]["feature_coef"] == 0.5 and "distill_loss" not in resolved["actor-mimic"]
    mine = read("method: there/my_method.py\nown: {strength: 2.0}")
    assert mine.methods == {"my-method": {"strength": 2.0}}
    with pytest.raises(UserError, match=r"`flow` are `methods.knowledge-flow` now"):
        read("flow: {fold_at: null}\nmethods: {knowledge-flow: {fold_at: 0.1}}")


def test_two_former_groups_of_one_method_become_one() -> None:
    given = {"flow": {"soft_targets": True}, "distillation": {"temperature": 2.0}, "teachers": "mnist"}
    config = validated(given, SupervisedConfig)
    assert config.methods["knowledge-flow"] == {"soft_targets": True, "temperature": 2.0}
    assert config.methods["kd"] == {"temperature": 2.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: [1", "is not YAML"),
        ("game: a: b", "is not YAML"),
        ("- steps", "expected `key: value` lines, got a list"),
        ("just words", "expected `key: value` lines, got a str"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(read: Read, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="Could not read the config"):
            load_config(path, TrainConfig)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="Could not read the config"):
        load_config(tmp_path / "binary.yaml", TrainConfig)


def test_the_learning_rate_grows_with_the_envs_of_a_worker_unless_it_is_given() -> None:
    assert TrainConfig(preset="paper").shape.lr == pytest.approx(1e-4)
    assert TrainConfig(envs_per_worker=16).shape.lr == pytest.approx(4e-4)
    assert TrainConfig(envs_per_worker=16, lr=1e-3).shape.lr == pytest.approx(1e-3)


def test_teachers_are_split_at_commas() -> None:
    assert TrainConfig(teachers=" seaquest, zoo:pong ,,").teacher_names == ("seaquest", "zoo:pong")
    assert TrainConfig().teacher_names == ()


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.config.cores", lambda: 4)


@pytest.mark.usefixtures("four_cores")
def test_the_shape_follows_from_preset_algorithm_and_machine() -> None:
    def shape(**settings: Any) -> tuple[int, int, int]:
        found = TrainConfig(**settings).shape
        return found.workers, found.envs_per_worker, found.t_max

    assert shape() == (4, 32, 5)
    assert shape(preset="paper") == (16, 1, 5)
    assert shape(workers="auto", envs_per_worker=8) == (4, 8, 5)
    assert shape(preset="fast") == (4, 32, 5)
    assert shape(preset="fast", workers=2) == (2, 32, 5)
    assert shape(preset="fast", envs_per_worker=3, t_max=20) == (4, 3, 20)
    assert shape(algo="a2c") == (1, 16, 5)
    assert shape(algo="ppo") == (1, 8, 128)
    assert shape(algo="acktr") == (1, 32, 20)
    assert shape(algo="ppo", preset="fast") == (1, 128, 128)


@pytest.mark.usefixtures("four_cores")
def test_a_saved_config_keeps_the_shape_of_the_machine_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = TrainConfig().with_shape()
    monkeypatch.setattr("agents.config.cores", lambda: 64)
    assert (saved.workers, saved.envs_per_worker, saved.max_grad_norm) == (4, 32, 40.0)
    assert saved.shape == saved.with_shape().shape


def test_a_run_is_called_after_its_method_and_its_algorithm() -> None:
    assert TrainConfig().label == "a3c"
    assert TrainConfig(algo="ppo").label == "ppo"
    assert TrainConfig(algo="a2c", teachers="seaquest").label == "knowledge-flow-a2c"


def test_the_path_of_a_file_may_have_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.zip", "a"):
        Path(name).touch()
    assert split_names("a,b.zip@Pong, seaquest,a") == ("a,b.zip@Pong", "seaquest", "a")
    assert split_names(f"sb3:{tmp_path / 'a,b.zip'},pong") == (f"sb3:{tmp_path / 'a,b.zip'}", "pong")
    assert split_names("b,c.zip") == ("b", "c.zip")


def test_keys_that_hold_anchors_are_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("x-rate: &rate 0.25\ngame: Pong\nlr: *rate\n")
    assert load_config(path, TrainConfig).lr == 0.25


def test_a_shipped_config_is_found_from_any_folder_and_an_own_one_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("configs/atari/paper.yaml"), TrainConfig).protocol == "nature"
    own = Path("configs/atari/paper.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("steps: 7\n")
    assert load_config(own, TrainConfig).steps == 7
    with pytest.raises(UserError, match=r"Could not read the config configs/atari/coffee\.yaml"):
        load_config(Path("configs/atari/coffee.yaml"), TrainConfig)
