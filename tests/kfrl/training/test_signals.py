import os
import signal

import pytest

from kfrl.training.signals import noting_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_what_ends_a_process_politely_is_noted_and_no_longer_afterwards(number: signal.Signals) -> None:
    noted: list[int] = []
    before = signal.getsignal(number)
    with noting_signals(noted.append):
        os.kill(os.getpid(), number)
    assert noted == [number]
    assert signal.getsignal(number) == before
