import math

import pytest
import torch
from torch import nn

from kfrl.errors import UserError
from kfrl.supervised.config import SupervisedConfig
from kfrl.supervised.methods.base import Progress
from kfrl.supervised.methods.mutual import Mutual

NOW = Progress(0, 0.0, 0.0)


def test_every_net_learns_from_the_labels_and_the_mean_of_the_others(batch, says) -> None:
    even, one, other = (torch.tensor([[1.0, 1.0, 2.0]] * 2).log(), [[2.0, 1.0, 1.0]] * 2, [[1.0, 2.0, 1.0]] * 2)
    nets = nn.ModuleList(says(*torch.tensor(odds).log().tolist()) for odds in (even.exp().tolist(), one, other))
    terms = {name: float(term.detach()) for name, term in Mutual(SupervisedConfig()).losses(nets, batch, NOW).items()}
    # Any two of the three nets swap a half and a quarter: KL = 1/2 log 2 + 1/4 log 1/2.
    kl = 0.25 * math.log(2)
    assert terms == pytest.approx(
        {
            # The labels are 0 and 2.
            "task": -(math.log(1 / 4) + math.log(1 / 2)) / 2,
            "mutual": kl,
            "task_2": -(math.log(1 / 2) + math.log(1 / 4)) / 2,
            "mutual_2": kl,
            "task_3": -math.log(1 / 4),
            "mutual_3": kl,
        },
        rel=1e-5,
    )


def test_no_net_is_pulled_by_what_the_others_learn_from_it(batch, says) -> None:
    nets = nn.ModuleList([says([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), says([0.0, 0.0, 2.0], [0.0, 0.0, 0.0])])
    Mutual(SupervisedConfig()).losses(nets, batch, NOW)["mutual"].backward()
    assert nets[1].logits.grad is None
    # d KL[p_2 || p_1] / d z_1 = p_1 - p_2.
    p = [net.logits.detach().softmax(1) for net in nets]
    torch.testing.assert_close(nets[0].logits.grad, (p[0] - p[1]) / 2)


def test_the_student_is_the_first_net_and_its_peers_are_named(task) -> None:
    method = Mutual(SupervisedConfig(methods={"mutual": {"peers": "mlp-9, mlp-6"}}))
    nets = method.build(task("mlp-6"), [])
    assert [net.arch["hidden"] for net in nets] == [[6], [9], [6]]
    assert not torch.equal(nets[0].fc1.weight, nets[2].fc1.weight)
    shipped = method.export(nets)
    assert torch.equal(shipped.fc1.weight, nets[0].fc1.weight) and shipped is not nets[0]
    assert len(Mutual(SupervisedConfig()).build(task("mlp-6"), [])) == 2


def test_peers_and_the_ensemble_are_evaluated_too(task, batch, says) -> None:
    method = Mutual(SupervisedConfig())
    nets = nn.ModuleList([says([4.0, 0.0, 0.0]), says([0.0, 1.0, 0.0]), says([0.0, 3.0, 0.0])])
    assert list(method.others(nets, final=False)) == ["net_2", "net_3"]
    together = method.others(nets, final=True)["ensemble"](batch.images)
    expected = torch.stack([net.logits.softmax(1) for net in nets]).mean(0)
    torch.testing.assert_close(together.softmax(1), expected)


def test_an_unknown_peer_is_refused(task) -> None:
    with pytest.raises(UserError, match=r"Unknown net 'resnt-20'. Did you mean 'resnet-20'"):
        Mutual(SupervisedConfig(methods={"mutual": {"peers": "resnt-20"}})).build(task(), [])
