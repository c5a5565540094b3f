import pytest
import torch

from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.growing import Growing


def growing(**own: object) -> Growing:
    return Growing(SupervisedConfig(methods={"growing": own}))


@pytest.mark.parametrize(
    ("own", "beside", "above"),
    [({}, 3, None), ({"grow": "depth"}, None, 6), ({"grow": "both", "new_units": 2, "new_layer": 4}, 2, 4)],
)
def test_how_it_grows(task, taught, own: dict[str, object], beside: int | None, above: int | None) -> None:
    net = growing(**own).build(task("mlp-6"), [taught("mlp-6")])
    assert (net.body.fc1.new.out_features if beside else None) == beside
    assert (net.deeper.out_features if above else None) == above


def test_old_layers_are_the_teachers_and_learn_at_a_tenth_of_the_rate_of_new_ones(task, taught, batch) -> None:
    teacher = taught("mlp-9-6")
    made = growing()
    net = made.build(task("mlp-9-6"), [teacher])
    assert torch.equal(net.body.fc1.weight, teacher.net.fc1.weight)
    assert torch.equal(net.body.fc2.old.weight, teacher.net.fc2.weight)
    (stage,) = made.stages(net)
    scales = {id(p): group.lr_scale for group in stage.groups for p in group.parameters}
    assert {name for name, p in net.named_parameters() if scales[id(p)] == 1.0} == {
        f"body.{layer}.{part}" for layer in ("fc1", "fc2.old") for part in ("weight", "bias")
    }
    assert set(scales.values()) == {1.0, 10.0}
    made.losses(net, batch, Progress(0, 0.0, 0.0))["task"].backward()
    # The old block is divided by its norm, and learns all the same.
    assert net.body.fc2.old.weight.grad.abs().max() > 0


def test_only_what_is_new_may_learn(task, taught, batch) -> None:
    made = growing(only_new=True)
    net = made.build(task("resnet-8"), [taught("resnet-8")])
    (stage,) = made.stages(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made.train_mode(net, 0)
    made.losses(net, batch, Progress(0, 0.0, 0.0))["task"].backward()
    torch.optim.SGD(stage.groups[0].parameters, lr=1.0).step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {
        *(f"body.head.new.{part}" for part in ("weight", "bias")),
        "norms.0.gamma",
        "norms.1.gamma",
        "head.weight",
        "head.bias",
    }


def test_a_smaller_net_and_other_images_are_refused(task, taught) -> None:
    with pytest.raises(UserError, match=r"only adds units .* so the student cannot be mlp-4\. Leave --net out"):
        growing().build(task("mlp-4"), [taught("mlp-6")])
    with pytest.raises(UserError, match=r"images of \(1, 12, 12\), and those of pets are \(1, 8, 8\)"):
        growing().build(task("mlp-6"), [taught("mlp-6", shape=(1, 12, 12))])
    with pytest.raises(UserError, match="new_units"):
        growing(new_units=0).build(task("mlp-6"), [taught("mlp-6")])
