"""Devices for tensors."""

from __future__ import annotations

import torch

from kfrl.errors import UserError


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        UserError: the message lists the devices of this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"Unknown device {name!r}. Expected cpu, cuda or cuda:N; here: {', '.join(here)}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: PyTorch {torch.__version__} finds no such GPU. Devices here: {', '.join(here)}."
        )
