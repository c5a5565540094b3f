from pathlib import Path

import pytest
import torch

from agents.config import TrainConfig
from agents.methods.knowledge_flow import KnowledgeFlowMethod
from agents.run import resolve
from agents.trials import DOMAIN as GAMES
from envs.protocols import get_protocol
from kfrl.config import load_config, read_yaml, validated
from kfrl.errors import UserError
from kfrl.nets.images.registry import arch_of, make_net
from kfrl.supervised.classifiers import Card, Teacher
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.data.batches import Images, Normalisation
from kfrl.supervised.data.sets import SETS
from kfrl.supervised.methods import get_method, method_names
from kfrl.supervised.methods.base import Task
from kfrl.supervised.trials import DOMAIN as IMAGES
from kfrl.sweep.space import Trial, load_spec, make_trials, teacher_names

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted((CONFIGS / "atari").glob("**/*.yaml"))
TABLES = sorted((CONFIGS / "tables").glob("*.yaml"))
IMAGE_TABLES = [path for path in TABLES if "runs: images" in path.read_text()]
SUPERVISED = sorted((CONFIGS / "supervised").glob("**/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_loads_and_differs_from_the_defaults(path: Path) -> None:
    assert load_config(path, TrainConfig) != TrainConfig()


def test_quickstart_is_seaquest_from_the_zoos_own_and_ends_independent() -> None:
    config = load_config(CONFIGS / "atari" / "quickstart.yaml", TrainConfig)
    run = resolve(config)
    assert run.protocol.game == "seaquest"
    assert run.config.method_name == "knowledge-flow"
    assert [teacher.card.game for teacher in run.teachers] == ["seaquest"]
    assert run.method().own.fold_at is not None


@pytest.mark.parametrize("name", ["paper", "reproduction"])
def test_what_goes_beyond_the_paper_is_off(name: str) -> None:
    config = load_config(CONFIGS / "atari" / f"{name}.yaml", TrainConfig)
    flow = KnowledgeFlowMethod(config).own
    assert (flow.fold_at, flow.link_heads, flow.student_weight) == (None, "never", None)
    assert flow.layer_weights_lr is None
    assert not flow.match_scales
    assert not flow.choose_channels
    assert (config.shape.workers, config.shape.envs_per_worker, config.shape.t_max, config.shape.lr) == (16, 1, 5, 1e-4)
    assert (config.steps, config.gamma, config.entropy_coef, config.shape.max_grad_norm) == (40_000_000, 0.99, 0.01, 40)


def test_the_paper_config_is_literal_where_it_can_be() -> None:
    path = CONFIGS / "atari" / "paper.yaml"
    config = load_config(path, TrainConfig)
    flow = KnowledgeFlowMethod(config).own
    assert (flow.transform, flow.mixing) == ("dense", "softmax")
    assert get_protocol(config.protocol, "Alien").max_frames == 18_000
    assert flow.dependence_coef in (0.05, 0.1, 0.5)
    assert flow.policy_kl_coef in (0.001, 0.01, 0.05)
    assert config.eval_episodes == 30
    for file in (path, CONFIGS / "supervised" / "paper.yaml"):
        assert "Differences from the paper that this file cannot set:" in file.read_text()
        assert "The paper leaves open which layers are linked" in file.read_text()


@pytest.mark.parametrize("path", SUPERVISED, ids=lambda path: path.name)
def test_every_supervised_config_names_what_there_is(path: Path) -> None:
    config = load_config(path, SupervisedConfig)
    method = get_method(config.method_name)
    # Those for any data leave the teachers to the user.
    count = len(config.teacher_names) or int(method.takes_teachers != "none")
    method.check_teachers(config.method_name, count)
    if config.net is not None:
        arch_of(config.net)
    for name in (config.data, *config.teacher_names):
        assert name.partition("-no-")[0] in {*SETS, ""}


def test_the_supervised_paper_config_has_nothing_beyond_the_paper() -> None:
    config = load_config(CONFIGS / "supervised" / "paper.yaml", SupervisedConfig)
    flow = get_method(config.method_name)(config).own
    assert (flow.independence_at, flow.handover_coef, flow.link_heads, flow.layer_weights_lr) == (None, 0, "never", 1)


def test_teachers_of_the_papers_are_trained_as_they_have_it() -> None:
    """Huang et al. 2017, sections 4.1 and 4.2; Minami et al. 2019, section 4.1."""
    svhn, cifar, node, graph = (
        load_config(CONFIGS / "supervised" / f"{name}.yaml", SupervisedConfig)
        for name in ("svhn", "cifar-10", "pretrained", "collaborative")
    )
    assert (svhn.data, svhn.epochs, svhn.augment) == ("svhn-extra", 40, "none")
    assert (arch_of(svhn.net or ""), arch_of(cifar.net or "")) == (
        {"family": "densenet", "depth": 100, "growth": 24, "bottleneck": False, "dropout": 0.2},
        {"family": "densenet", "depth": 100, "growth": 24, "bottleneck": False},
    )
    assert "svhn-extra" in cifar.teacher_names
    for one in (svhn, cifar):
        assert (one.batch_size, one.lr, one.schedule, one.milestones) == (64, 0.1, "steps", (0.5, 0.75))
        assert (one.momentum, one.weight_decay) == (0.9, 1e-4)
    for one, batch in ((node, 128), (graph, 64)):
        assert (one.epochs, one.batch_size, one.lr, one.weight_decay) == (200, batch, 0.1, 5e-4)
        assert [round(share * one.epochs) for share in one.milestones] == [60, 120, 180]


def test_the_nets_of_table_6_take_what_they_are_given() -> None:
    stl = load_config(CONFIGS / "supervised" / "stl-10.yaml", SupervisedConfig)
    with pytest.raises(UserError, match="too small"):
        make_net(stl.net or "", (3, 32, 32), 10)
    assert make_net(stl.net or "", (3, 96, 96), 10).num_classes == 10


def table(name: str, scale: float = 1.0) -> list[Trial]:
    path = CONFIGS / "tables" / f"{name}.yaml"
    spec = load_spec(path)
    return make_trials(spec, {"games": GAMES, "images": IMAGES}[spec.runs], scale, path.parent)


@pytest.mark.parametrize(
    ("name", "runs", "teachers", "small"),
    [
        # 7 games x 3 sets of teachers x 25 runs; 6 games x (A3C, with and without an expert, fine-tuning) x 25.
        ("knowledge-flow-1", 525, 2, 21),
        ("knowledge-flow-2", 600, 10, 24),
        ("knowledge-flow-3", 24, 3, 8),
        ("knowledge-flow-4", 18, 1, 6),
        ("knowledge-flow-5", 15, 3, 5),
        ("knowledge-flow-6", 15, 2, 5),
        ("knowledge-flow-7", 150, 3, 6),
        # Three nets alone, distillation, and three sizes of mutual learning; three sets of images x one to seven nodes.
        ("transfer-graph-1", 21, 1, 7),
        ("transfer-graph-2", 63, 0, 21),
        # Three kinds of layers x (fresh, zero, two of U[0, theta], phi).
        ("anti-distillation-3", 45, 3, 15),
        ("anti-distillation-4", 45, 3, 15),
        ("survey-born-again", 4, 0, 4),
        ("survey-distillation", 9, 1, 3),
        ("survey-fsp", 18, 2, 6),
        ("survey-mimic", 15, 4, 5),
    ],
)
def test_the_tables_of_the_paper_hold_their_cells(name: str, runs: int, teachers: int, small: int) -> None:
    whole = table(name)
    assert len([trial for trial in whole if trial.teacher]) == teachers
    assert len([trial for trial in whole if not trial.teacher]) == runs
    assert {one for trial in whole for one in teacher_names(trial.settings)} == {
        trial.teacher for trial in whole if trial.teacher
    }
    assert len([trial for trial in table(name, 0.01) if not trial.teacher]) == small


def test_every_table_is_checked() -> None:
    others = "anti-distillation-3 anti-distillation-4 survey-born-again survey-distillation survey-fsp survey-mimic"
    graphs = ("transfer-graph-1", "transfer-graph-2")
    known = [*others.split(), *graphs, *(f"knowledge-flow-{number}" for number in range(1, 8))]
    assert [path.stem for path in TABLES] == sorted(known)


@pytest.mark.parametrize("path", IMAGE_TABLES, ids=lambda path: path.stem)
def test_nets_and_teachers_of_a_table_fit_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the images: large nets are put together without memory for their weights."""
    small = ("survey-fsp", "knowledge-flow-4", "knowledge-flow-5", "anti-distillation-3", "anti-distillation-4")
    device = "cpu" if path.stem in small else "meta"
    monkeypatch.setattr("kfrl.supervised.methods.anti_distillation.old_images", one_black_image)
    taught: dict[str, Teacher] = {}
    for trial in {one.group: one for one in table(path.stem)}.values():
        config = validated({**trial.settings, "teachers": ",".join(teacher_names(trial.settings))}, SupervisedConfig)
        if config.method_name == "knowledge-flow" and device == "meta":
            continue  # it looks at weights
        task = task_of(config)
        method = get_method(config.method_name)
        method.check_teachers(config.method_name, len(config.teacher_names))
        with torch.device(device):
            net = method(config).build(task, [taught[name] for name in config.teacher_names])
        if trial.teacher:
            card = Card(task.data, task.classes, arch_of(task.net), task.shape, (0.0,), (1.0,), net=task.net)
            taught[trial.teacher] = Teacher(trial.teacher, net.eval().requires_grad_(False), card, Path("nowhere"))


def one_black_image(given: str, card: Card, *_: object) -> tuple[Images, ...]:
    """What stands for a teacher's images."""
    return (Images(torch.zeros(1, *card.input_shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)),) * 3


def task_of(config: SupervisedConfig) -> Task:
    """What a run on the images of the set's own table would learn."""
    name = config.data.partition("-no-")[0]
    known = SETS[name.removesuffix("-half")]
    count = known.num_classes // 2 if name.endswith("-half") else known.num_classes
    channels, height, width = known.shape
    shape = (channels, config.image_size or height, config.image_size or width)
    classes = tuple(f"{name.removesuffix('-half')} {number}" for number in range(count))
    return Task(config.data, classes, shape, Normalisation.none(channels), config.net or known.net)


def test_the_tables_on_games_draw_the_papers_lambdas_for_40_million_steps() -> None:
    flows = [trial for trial in table("knowledge-flow-1") if trial.drawn]
    assert {trial.drawn["methods.knowledge-flow.dependence_coef"] for trial in flows} == {0.05, 0.1, 0.5}
    assert {trial.drawn["methods.knowledge-flow.policy_kl_coef"] for trial in flows} == {0.001, 0.01, 0.05}
    assert {trial.settings["steps"] for trial in table("knowledge-flow-1")} == {40_000_000}
    assert {trial.settings["steps"] for trial in table("knowledge-flow-1", 0.01)} == {400_000}
    assert {trial.settings["methods"]["knowledge-flow"]["transform"] for trial in flows} == {"dense"}


def test_the_file_of_a_cluster_is_one_for_rays_launcher() -> None:
    launcher = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    config = launcher.prepare_config(read_yaml(CONFIGS / "cluster" / "two-machines.yaml"))
    launcher.validate_config(config)
    assert config["max_workers"] == 1


def test_settings_of_a_method_for_images_stand_under_its_name() -> None:
    assert [get_method(name).section() for name in method_names()] == list(method_names())
