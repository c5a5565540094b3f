from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kfrl.cli.flags import whole_numbers
from kfrl.cli.run_flags import RunFlags, read_flags
from kfrl.cli.supervised.train import TrainFlags as ClassifierFlags
from kfrl.cli.train import TrainFlags
from kfrl.supervised.methods.collaborative import Collaborative, Edge, Node
from kfrl.training.method import OwnSettings

CONFIGS = Path(__file__).parents[3] / "configs" / "supervised"
LINKS = """
seed: 2
methods:
  knowledge-flow:
    dependence_coef: 0.5
    links:
    - {student: fc1, teacher: a, layer: fc1}
    - {student: fc2, teacher: a, layer: fc2}
"""


@pytest.mark.parametrize("kind", [TrainFlags, ClassifierFlags])
def test_several_links_in_a_file_go_with_flags(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "links.yaml"
    path.write_text(LINKS)
    given = ["--config", str(path), "--teachers", "a", "--seed", "3", "--transform", "low-rank"]
    settings = read_flags(kind, "kfrl", given).settings
    own = settings.methods["knowledge-flow"]
    assert [link["layer"] for link in own["links"]] == ["fc1", "fc2"]
    assert (settings.seed, own["transform"], own["dependence_coef"]) == (3, "low-rank", 0.5)


def test_the_graph_of_the_example_arrives_whole() -> None:
    path = CONFIGS / "collaborative.yaml"
    settings = read_flags(ClassifierFlags, "kfrl", ["--config", str(path)]).settings
    graph = Collaborative(settings).own
    assert graph.nodes == (
        Node("student"),
        Node("large", net="resnet-110"),
        Node("pretrained", teacher="cifar-100"),
    )
    assert len(graph.edges) == 6
    assert graph.edges[2] == Edge("large", "student", "correct")


@dataclass(frozen=True)
class Group:
    share: float = 0.1
    """Of the algorithm."""
    steps: int = 1


@dataclass(frozen=True)
class Common:
    steps: int = 5
    one: Group = field(default_factory=Group)
    algo: str = "one"
    teachers: str = ""
    method: str | None = None
    methods: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def method_name(self) -> str:
        return self.method or "both"


class Both(OwnSettings):
    @dataclass(frozen=True)
    class Settings:
        share: float = 0.2
        """Of the method."""


@dataclass(frozen=True)
class Flags(RunFlags):
    settings: Common = field(default_factory=Common)

    @staticmethod
    def method(name: str) -> type[OwnSettings]:
        return Both


def test_whole_numbers_may_be_written_as_scientists_do(capsys: pytest.CaptureFixture[str]) -> None:
    with whole_numbers():
        given = read_flags(Flags, "kfrl", ["--steps", "5e5", "--share", "1e-4"]).settings
        assert (given.steps, given.one.share) == (500_000, 1e-4)
        for wrong in ("5e-1", "many"):
            with pytest.raises(SystemExit):
                read_flags(Flags, "kfrl", ["--steps", wrong])
            assert wrong in capsys.readouterr().err
    with pytest.raises(SystemExit):
        read_flags(Flags, "kfrl", ["--steps", "5e5"])


def test_a_method_and_an_algorithm_may_have_settings_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--steps", "7", "--one.steps", "3", "--one.share", "0.6", "--method", "both", "--share", "0.5"]
    expected = Common(7, Group(0.6, 3), method="both", methods={Both.section(): {"share": 0.5}})
    assert read_flags(Flags, "kfrl", given).settings == expected
    with pytest.raises(SystemExit):
        read_flags(Flags, "kfrl", ["--method", "both", "--help"])
    shown = capsys.readouterr().out
    assert "Of the method. (default: 0.2)" in shown and "Of the algorithm. (default: 0.1)" in shown


@pytest.mark.parametrize("flags", [["--algo", "two", "--share", "1"], ["--share", "1"]], ids=["algorithm", "method"])
def test_a_flag_that_nothing_reads_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    other = [] if "--algo" in flags else ["--algo", "two"]
    with pytest.raises(SystemExit):
        read_flags(Flags, "kfrl", [*flags, *other])
    assert "--share" in capsys.readouterr().err
