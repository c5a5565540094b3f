import numpy as np
import pytest
import torch
from torch import Tensor

from kfrl.errors import UserError
from kfrl.nets.adapters import Conv1x1, Dense, LowRank, Transform, build_transform

ONE = torch.ones(())
MAP, OTHER_MAP, VECTOR = (3, 4, 5), (2, 6, 7), (9,)


def randomised(transform: Transform) -> Transform:
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.normal_()
    return transform


def matrix(transform: Transform) -> np.ndarray:
    return transform.get_parameter("weight").detach().flatten(1).numpy()


@pytest.mark.parametrize("kind", ["conv1x1", "dense", "low-rank"])
@pytest.mark.parametrize("source", [MAP, OTHER_MAP, VECTOR])
@pytest.mark.parametrize("target", [MAP, OTHER_MAP, VECTOR])
def test_the_teachers_shape_becomes_the_students(kind: str, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    q = build_transform(kind, source, target, rank=2)
    assert q(torch.randn(2, *source), ONE).shape == (2, *target)


def test_conv1x1_is_dense_where_one_side_is_no_map() -> None:
    assert isinstance(build_transform("conv1x1", MAP, OTHER_MAP), Conv1x1)
    assert isinstance(build_transform("conv1x1", MAP, VECTOR), Dense)
    assert isinstance(build_transform("conv1x1", VECTOR, MAP), Dense)
    assert isinstance(build_transform("conv1x1", VECTOR, VECTOR), Dense)
    assert isinstance(build_transform("dense", MAP, MAP), Dense)


def test_dense_is_the_papers_matrix() -> None:
    q = randomised(build_transform("dense", MAP, OTHER_MAP))
    z = torch.randn(2, *MAP)
    expected = 0.3 * z.numpy().reshape(2, -1) @ matrix(q).T
    np.testing.assert_allclose(q(z, torch.tensor(0.3)).detach().numpy().reshape(2, -1), expected, rtol=1e-4, atol=1e-5)


def test_dense_does_not_depend_on_the_memory_layout() -> None:
    q = randomised(build_transform("dense", MAP, VECTOR))
    z = torch.randn(2, *MAP)
    torch.testing.assert_close(q(z.to(memory_format=torch.channels_last), ONE), q(z, ONE))


def test_conv1x1_is_a_matrix_over_channels() -> None:
    q = randomised(build_transform("conv1x1", MAP, (2, 4, 5)))
    z = torch.randn(2, *MAP)
    expected = 0.3 * np.einsum("oc,bchw->bohw", matrix(q), z.numpy())
    np.testing.assert_allclose(q(z, torch.tensor(0.3)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_conv1x1_resizes_bilinearly() -> None:
    q = build_transform("conv1x1", (1, 1, 2), (1, 2, 4))
    resized = q(torch.tensor([[[[0.0, 1.0]]]]), ONE)
    assert resized.tolist() == [[[[0.0, 0.25, 0.75, 1.0]] * 2]]


def test_low_rank_is_a_product_of_two_matrices() -> None:
    q = randomised(build_transform("low-rank", MAP, VECTOR, rank=2))
    assert isinstance(q, LowRank)
    z = torch.randn(2, *MAP)
    down, up = q.down.detach().numpy(), q.up.detach().numpy()
    assert down.shape == (2, 60)
    assert up.shape == (9, 2)
    expected = 0.3 * z.numpy().reshape(2, -1) @ down.T @ up.T
    np.testing.assert_allclose(q(z, torch.tensor(0.3)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_low_rank_is_dense_where_that_is_as_small() -> None:
    # 9 x 4 numbers against rank x (9 + 4).
    assert isinstance(build_transform("low-rank", VECTOR, (4,), rank=2), LowRank)
    assert isinstance(build_transform("low-rank", VECTOR, (4,), rank=3), Dense)


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [("conv1x1", MAP, MAP), ("dense", MAP, MAP), ("dense", MAP, (60,)), ("dense", VECTOR, VECTOR)],
)
def test_it_starts_as_the_identity_where_shapes_agree(
    kind: str, source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    z = torch.randn(2, *source)
    assert torch.equal(build_transform(kind, source, target)(z, ONE), z.reshape(2, *target))


@pytest.mark.parametrize(("kind", "source", "target"), [("dense", VECTOR, (4,)), ("conv1x1", MAP, OTHER_MAP)])
def test_it_starts_orthogonal_where_shapes_differ(kind: str, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    wide, tall = (matrix(build_transform(kind, *shapes)) for shapes in ((source, target), (target, source)))
    assert wide.shape[0] < wide.shape[1]
    assert tall.shape == wide.shape[::-1]
    np.testing.assert_allclose(wide @ wide.T, np.eye(len(wide)), atol=1e-5)
    np.testing.assert_allclose(tall.T @ tall, np.eye(len(wide)), atol=1e-5)


def scaled(kind: str, scale: Tensor) -> Tensor:
    torch.manual_seed(1)
    q = build_transform(kind, MAP, OTHER_MAP, rank=2)
    output: Tensor = q(torch.randn(2, *MAP), scale)
    return output


@pytest.mark.parametrize("kind", ["conv1x1", "dense", "low-rank"])
def test_scale_multiplies(kind: str) -> None:
    once = scaled(kind, ONE)
    assert float(once.detach().abs().max()) > 0
    torch.testing.assert_close(scaled(kind, torch.tensor(-2.5)), -2.5 * once)
    scale = torch.tensor(3.0, requires_grad=True)
    scaled(kind, scale).sum().backward()
    torch.testing.assert_close(scale.grad, once.sum().detach())


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Unknown transform 'lowrank'\. Did you mean 'low-rank'"):
        build_transform("lowrank", MAP, MAP)


def test_dense_between_first_convolutions_is_as_large_as_documented() -> None:
    with torch.device("meta"):
        q = build_transform("dense", (16, 20, 20), (16, 20, 20))
    assert sum(p.numel() for p in q.parameters()) == 6400 * 6400
