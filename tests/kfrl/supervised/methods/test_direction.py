"""--kl-direction of every method for images that imitates a teacher's probabilities."""

from dataclasses import asdict

import pytest
import torch

from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.graphs import Edge, Graph, Node
from kfrl.supervised.methods import get_method
from kfrl.supervised.methods.base import Progress

GRAPH = asdict(
    Graph((Node("a"), Node("old", teacher="pets")), (Edge("labels", "a"), Edge("old", "a")), edge_temperature=2.0)
)
KD = {"temperature": 2.0, "soft_weight": 1.0}
# The method's settings, its stage, its term, and what stands before the mean of the divergences at T.
CASES = {
    "kd": (KD, 0, "distillation", 2.0, 4.0),
    "born-again": ({}, 1, "born_again", 1.0, 1.0),
    "fitnets": ({"temperature": 2.0, "soft_start": 3.0}, 1, "distillation", 2.0, 3.0),
    "collaborative": (GRAPH, 0, "old_to_a", 2.0, 4.0),
    "lwf": ({"old_data": "none", "old_temperature": 2.0, "old_weight": 3.0}, 1, "old", 2.0, 3.0),
}


@pytest.mark.parametrize("direction", ["reverse", "mixed"])
@pytest.mark.parametrize("name", CASES)
def test_the_divergence_turns(name: str, direction: str, task, taught, batch) -> None:
    settings, stage, term, temperature, factor = CASES[name]
    own = {**settings, "kl_direction": direction}
    method = get_method(name)(SupervisedConfig(epochs=4, methods={name: own}))
    teacher = taught("mlp-6")
    net = method.build(task(), [] if name == "born-again" else [teacher]).eval()
    student = net[1](batch.images) if name == "born-again" else method.export(net)(batch.images)
    source = net[0](batch.images) if name == "born-again" else teacher.net(batch.images)
    if name == "lwf":
        # A step away from the teacher, with which the old head begins.
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        student = method.further(net)["old"][0](batch.images)
    elif name == "fitnets":
        student = net.student(batch.images)
    found = float(method.losses(net, batch, Progress(stage, 0.0, 0.5))[term].detach())
    p, q = (source / temperature).softmax(1), (student / temperature).softmax(1)
    forward, reverse = (p * (p / q).log()).sum(1).mean(), (q * (q / p).log()).sum(1).mean()
    expected = factor * float((reverse if direction == "reverse" else (forward + reverse) / 2).detach())
    assert abs(float((forward - reverse).detach())) > 1e-5
    assert found == pytest.approx(expected, rel=1e-3)
