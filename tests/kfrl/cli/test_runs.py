from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kfrl.cli.flags import whole_numbers
from kfrl.cli.runs import RunFlags, read_flags
from kfrl.cli.supervised.train import TrainFlags as ClassifierFlags
from kfrl.cli.train import TrainFlags
from kfrl.config import LinkConfig
from kfrl.supervised.config import EdgeConfig, NodeConfig
from kfrl.training.method import OwnSettings

CONFIGS = Path(__file__).parents[3] / "configs" / "supervised"
LINKS = """
seed: 2
flow:
  dependence_coef: 0.5
  links:
  - {student: fc1, teacher: a, layer: fc1}
  - {student: fc2, teacher: a, layer: fc2}
"""


@pytest.mark.parametrize("kind", [TrainFlags, ClassifierFlags])
def test_several_links_in_a_file_go_with_flags(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "links.yaml"
    path.write_text(LINKS)
    settings = read_flags(kind, "kfrl", ["--config", str(path), "--seed", "3", "--transform", "low-rank"]).settings
    assert settings.flow.links == (LinkConfig("fc1", "a", "fc1"), LinkConfig("fc2", "a", "fc2"))
    assert (settings.seed, settings.flow.transform, settings.flow.dependence_coef) == (3, "low-rank", 0.5)


def test_the_graph_of_the_example_arrives_whole() -> None:
    path = CONFIGS / "collaborative.yaml"
    graph = read_flags(ClassifierFlags, "kfrl", ["--config", str(path)]).settings.collaborative
    assert graph.nodes == (
        NodeConfig("student"),
        NodeConfig("large", net="resnet-110"),
        NodeConfig("pretrained", teacher="cifar-100"),
    )
    assert len(graph.edges) == 6
    assert graph.edges[2] == EdgeConfig("large", "student", "correct")


@dataclass(frozen=True)
class One:
    share: float = 0.1
    """Of one."""
    steps: int = 1


@dataclass(frozen=True)
class Two:
    share: float = 0.2
    """Of two."""
    own: int = 2


@dataclass(frozen=True)
class Settings:
    steps: int = 5
    one: One = field(default_factory=One)
    two: Two = field(default_factory=Two)
    method: str | None = None
    own: dict[str, int] = field(default_factory=dict)


class Both(OwnSettings):
    config_groups = ("one", "two")


@dataclass(frozen=True)
class Flags(RunFlags):
    settings: Settings = field(default_factory=Settings)

    @staticmethod
    def method(name: str) -> type[OwnSettings]:
        return Both


def test_whole_numbers_may_be_written_as_scientists_do(capsys: pytest.CaptureFixture[str]) -> None:
    with whole_numbers():
        given = read_flags(Flags, "kfrl", ["--steps", "5e5", "--two.share", "1e-4"]).settings
        assert (given.steps, given.two.share) == (500_000, 1e-4)
        for wrong in ("5e-1", "many"):
            with pytest.raises(SystemExit):
                read_flags(Flags, "kfrl", ["--steps", wrong])
            assert wrong in capsys.readouterr().err
    with pytest.raises(SystemExit):
        read_flags(Flags, "kfrl", ["--steps", "5e5"])


def test_methods_may_have_settings_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--steps", "7", "--one.steps", "3", "--two.share", "0.6", "--own", "4"]
    assert read_flags(Flags, "kfrl", given).settings == Settings(7, One(steps=3), Two(0.6, 4))
    with pytest.raises(SystemExit):
        read_flags(Flags, "kfrl", ["--share", "1"])
    said = capsys.readouterr()
    assert "--one.share FLOAT" in said.out + said.err and "--two.share FLOAT" in said.out + said.err
    with pytest.raises(SystemExit):
        read_flags(Flags, "kfrl", ["--method", "both", "--help"])
    assert "Of two. (default: 0.2)" in capsys.readouterr().out
