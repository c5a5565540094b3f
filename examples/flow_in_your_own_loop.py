"""Knowledge Flow in your own PyTorch loop: your modules, your data, your optimiser.

    python examples/flow_in_your_own_loop.py

A teacher learns from 1,000 images of digits. A student of another shape learns from 100 images, alone and with links to
the teacher. The exported student has no links and no weights of the teacher. The images are part of scikit-learn.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from kfrl.flow import KnowledgeFlow, dependence_weight, links_by_depth
from kfrl.losses.knowledge_flow import dependence_loss

UPDATES, SEED = 300, 0


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 64) pixels in [0, 1] and (N,) labels, shuffled."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(SEED))
    return torch.tensor(digits.data / 16, dtype=torch.float32)[order], torch.tensor(digits.target)[order]


def net(*hidden: int) -> nn.Sequential:
    """Linear layers with ReLUs between them, so that the layers' outputs are pre-activations, which links read."""
    sizes = (64, *hidden, 10)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """The training loop; Knowledge Flow adds only the lines under `isinstance`."""
    optimiser = torch.optim.Adam(model.parameters(), 0.003)
    for update in range(UPDATES):
        rows = torch.randint(len(x), (32,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        if isinstance(model, KnowledgeFlow):
            progress = update / UPDATES
            model.handover = min(1.0, 2 * progress)  # from half of the run on, the student is independent
            p = [model.layer_weights(layer)[0] for layer in model.layers]
            loss = loss + dependence_weight(progress, 0.1) * dependence_loss(p)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def main() -> None:
    """Train the teacher and the students, and print their accuracy."""
    torch.manual_seed(SEED)
    (x, y), few = images(), slice(0, 100)
    test_x, test_y = x[1000:], y[1000:]
    teacher, alone, taught = net(64, 64), net(32, 32), net(32, 32)
    train(teacher, x[:1000], y[:1000])
    train(alone, x[few], y[few])
    flow = KnowledgeFlow(taught, {"teacher": teacher}, links_by_depth(taught, {"teacher": teacher}), x[:8])
    train(flow, x[few], y[few])
    for name, model in {"teacher": teacher, "student alone": alone, "student after flow": flow.export()}.items():
        print(f"{name:20}{100 * (model(test_x).argmax(1) == test_y).float().mean():.1f} % correct")


if __name__ == "__main__":
    main()
