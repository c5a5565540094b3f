"""What of another net stands in a new one is found by values, not by what a method says."""

from collections.abc import Callable

import torch
from torch import nn

from kfrl.nets.carried import carried
from kfrl.nets.images.registry import make_net
from kfrl.nets.images.widen import grow


def test_layers_are_loaded_fresh_and_skipped(mlp: Callable[..., nn.Sequential]) -> None:
    teacher, student = mlp(3, 4, 2), mlp(3, 4, 5)
    assert carried(student, {"t": teacher}) == []
    student[0].load_state_dict(teacher[0].state_dict())
    assert [str(line) for line in carried(student, {"t": teacher})] == [
        "loaded   0 (4 x 3) from t: 0",
        "fresh    2 (5 x 4)",
        "skipped  t: 2 (2 x 4)",
    ]


def test_one_changed_number_makes_a_layer_fresh(mlp: Callable[..., nn.Sequential]) -> None:
    teacher = mlp(3, 4, 2)
    student = mlp(3, 4, 2)
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student[0].weight[0, 0] += 1.0
    assert [line.fate for line in carried(student, {"t": teacher})] == ["fresh", "loaded", "skipped"]


def test_a_layer_that_begins_with_a_smaller_one_is_resized() -> None:
    small, large = (make_net(name, (1, 8, 8), 10) for name in ("mlp-8", "mlp-12"))
    grow(small, large, "zero")
    assert {line.fate for line in carried(large, {"small": small})} == {"resized"}
