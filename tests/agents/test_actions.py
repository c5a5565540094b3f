import math

import pytest
import torch

from agents.actions import epsilon_greedy, in_order


def test_logits_meet_by_meaning_and_what_is_missing_is_never_taken() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    ordered = in_order(logits, ("FIRE", "UP", "LEFT"), ("LEFT", "NOOP", "FIRE"))
    assert ordered.tolist() == [[3.0, -math.inf, 1.0], [6.0, -math.inf, 4.0]]
    assert ordered.softmax(1)[0].tolist() == pytest.approx([math.e**3 / (math.e**3 + math.e), 0.0, 1 / (1 + math.e**2)])


def test_epsilon_greedy_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0, -math.inf]])
    probabilities = epsilon_greedy(values, 0.3).exp()
    assert probabilities[0].tolist() == pytest.approx([0.1, 0.8, 0.1, 0.0])
