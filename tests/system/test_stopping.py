from __future__ import annotations

import os
import signal

import pytest

from cogcache.system.signals import ended_by_signals, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_stop(number):
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop.reason == number.name


def test_the_second_signal_stops_at_once():
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


def interrupted_within_a_library():
    """Fail as safetensors does where SystemExit comes between C and Python."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        raise ValueError("could not determine the shape") from error


def test_a_library_that_takes_the_end_for_its_own_error_does_not_hide_the_signal():
    with pytest.raises(SystemExit) as ended, ended_by_signals():
        interrupted_within_a_library()
    assert ended.value.code == 128 + signal.SIGTERM


def interrupted_again_within_a_library():
    with stop_on_signals() as stop:
        stop.ask("SIGTERM")
        interrupted_within_a_library()


def test_a_second_signal_within_a_library_is_not_hidden():
    with pytest.raises(SystemExit) as ended:
        interrupted_again_within_a_library()
    assert ended.value.code == 128 + signal.SIGTERM


def test_an_error_without_a_signal_stays_one():
    with pytest.raises(ValueError, match="a fault"), ended_by_signals():
        raise ValueError("a fault")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_hangup_that_is_to_be_passed_by_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
