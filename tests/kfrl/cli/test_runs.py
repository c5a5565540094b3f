from pathlib import Path

import pytest

from kfrl.cli.runs import read_flags
from kfrl.cli.supervised.train import TrainFlags as ClassifierFlags
from kfrl.cli.train import TrainFlags
from kfrl.config import LinkConfig
from kfrl.supervised.config import EdgeConfig, NodeConfig

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
