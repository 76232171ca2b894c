"""Ctrl-C during training: a step is taken wholly or not at all."""

from __future__ import annotations

import signal
import threading

import pytest

from train.distributed import stepping


def test_ctrl_c_waits_for_the_end_of_the_step() -> None:
    done = []

    def steps() -> None:
        with stepping() as agreed:
            assert agreed(1.5) == 1.5
            signal.raise_signal(signal.SIGINT)
            done.append("rest of the step")
            agreed(2.0)

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), stepping():
        signal.raise_signal(signal.SIGINT)
    with stepping() as agreed:
        agreed(0.0)


def test_steps_in_a_thread_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with stepping() as agreed:
            seen.append((agreed(1.0), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(1.0, signal.default_int_handler)]
