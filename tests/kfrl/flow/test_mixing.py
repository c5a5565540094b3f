import numpy as np
import pytest
import torch
from torch import Tensor

from kfrl.flow.mixing import Mixing


def raw(mixing: Mixing) -> Tensor:
    (parameter,) = mixing.parameters()
    return parameter


def set_raw(mixing: Mixing, values: list[float]) -> None:
    with torch.no_grad():
        raw(mixing).copy_(torch.tensor(values))


def test_softmax_starts_with_equal_shares() -> None:
    assert Mixing({"fc": 2}, "softmax")("fc").tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_softmax_starts_at_the_student_weight_and_shares_the_rest() -> None:
    assert Mixing({"fc": 2}, "softmax", 0.7)("fc").tolist() == pytest.approx([0.7, 0.15, 0.15])


def test_softmax_of_its_parameters() -> None:
    mixing = Mixing({"fc": 2}, "softmax")
    set_raw(mixing, [3.0, -1.0, 0.2])
    exponentials = np.exp([3.0, -1.0, 0.2])
    np.testing.assert_allclose(mixing("fc").detach(), exponentials / exponentials.sum(), rtol=1e-6)
    assert sum(mixing("fc").tolist()) == pytest.approx(1.0)


def test_simplex_starts_as_the_reproduction_does() -> None:
    expected = [0.1 / 2.1, 1 / 2.1, 1 / 2.1]
    assert Mixing({"fc": 2}, "simplex")("fc").tolist() == pytest.approx(expected)


def test_simplex_may_start_elsewhere() -> None:
    assert Mixing({"fc": 2}, "simplex", 0.5)("fc").tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_simplex_trains_p_itself() -> None:
    mixing = Mixing({"fc": 2}, "simplex")
    assert raw(mixing).tolist() == pytest.approx(mixing("fc").tolist())


def test_simplex_is_back_on_the_simplex_after_a_step() -> None:
    mixing = Mixing({"fc": 2}, "simplex", 0.5)
    optimiser = torch.optim.SGD(mixing.parameters(), lr=1.0)
    (mixing("fc") * torch.tensor([0.0, 1.0, -1.0])).sum().backward()
    optimiser.step()
    assert float(raw(mixing).detach().min()) < 0
    mixing.renormalise()
    assert float(raw(mixing).detach().min()) >= 0
    assert float(raw(mixing).detach().sum()) == pytest.approx(1.0, abs=1e-6)


def test_simplex_counts_a_negative_weight_as_zero() -> None:
    mixing = Mixing({"fc": 2}, "simplex")
    set_raw(mixing, [0.5, -0.3, 0.9])
    expected = [0.5 / 1.4, 0.0, 0.9 / 1.4]
    assert mixing("fc").tolist() == pytest.approx(expected, abs=1e-5)
    mixing.renormalise()
    assert raw(mixing).tolist() == pytest.approx(expected, abs=1e-5)
    assert bool((raw(mixing) >= 0).all())


def test_a_gradient_reaches_a_weight_that_a_step_pushed_below_zero() -> None:
    mixing = Mixing({"fc": 2}, "simplex")
    set_raw(mixing, [-0.3, 1.5, 0.9])
    mixing.renormalise()
    mixing("fc")[0].backward()
    gradient = raw(mixing).grad
    assert gradient is not None
    assert float(gradient[0]) == pytest.approx(1.0, abs=1e-4), "p_0 = w_0 / (w_0 + w_1 + w_2), whose sum is 1"


def test_softmax_needs_no_renormalising() -> None:
    mixing = Mixing({"fc": 1}, "softmax")
    set_raw(mixing, [5.0, -2.0])
    mixing.renormalise()
    assert raw(mixing).tolist() == [5.0, -2.0]


def test_each_layer_has_its_own_weights() -> None:
    mixing = Mixing({"body.fc": 1, "body_fc": 2}, "softmax")
    assert mixing("body.fc").shape == (2,)
    assert mixing("body_fc").shape == (3,)


@pytest.mark.parametrize("layer", ["values", "keys", "0", "block.1"])
def test_any_layer_name_will_do(layer: str) -> None:
    assert Mixing({layer: 1}, "softmax")(layer).tolist() == [0.5, 0.5]
