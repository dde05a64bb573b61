"""How `serve --ray` takes signals, GPUs that are not there, and settings that do not start; without a cluster."""

import signal
from types import SimpleNamespace

import pytest

from engine import ConfigError
from server.ray import start
from server.settings.tree import build


@pytest.fixture
def handlers():
    """Puts back the handlers of signals that a test sets."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count)`: how many the cluster has."""
    return lambda count: monkeypatch.setattr(
        "ray.cluster_resources", lambda: {"CPU": 2.0} | ({"GPU": count} if count else {})
    )


@pytest.mark.usefixtures("handlers")
def test_a_signal_ends_a_start_at_once_and_is_waited_for_later():
    signals = start._Signals()
    signal.raise_signal(signal.SIGHUP)
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    serving = start._Signals()
    serving.is_serving = True
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    assert [serving.wait(), serving.wait()] == [signal.SIGHUP, signal.SIGTERM]
    assert signals.wait() == signal.SIGHUP


@pytest.mark.parametrize(
    ("given", "there", "wanted"),
    [
        ({"ray_replicas": 2}, 1.0, 2),
        ({"ray_replicas": 1, "tensor_parallel_size": 4}, 2.0, 4),
        ({"ray_replicas": 3, "ray_gpus": 0.5}, 0.0, 1.5),
    ],
)
def test_more_gpus_than_there_are(gpus, given, there, wanted):
    gpus(there)
    with pytest.raises(ConfigError, match=rf"takes {wanted} GPUs, and this machine has {there:g}:"):
        start._check_gpus(build(given))


@pytest.mark.parametrize(
    ("given", "there"), [({"ray_replicas": 2}, 2.0), ({"ray_replicas": 2}, 0.0), ({"device": "cpu"}, 0.0)]
)
def test_as_many_as_there_are(gpus, given, there):
    gpus(there)
    start._check_gpus(build(given))


def test_a_roll_over_that_fails_goes_back(monkeypatch, caplog):
    before, wrong, right = (build({"served_model_name": [name]}) for name in ("before", "wrong", "right"))
    deployed = []

    def deploy(settings, _):
        deployed.append(settings)
        if settings is wrong:
            raise ConfigError("it does not start")

    monkeypatch.setattr(start, "_deploy", deploy)
    assert start._rolled_over(before, lambda: wrong) is before
    assert deployed == [wrong, before]
    assert "it does not start; going back" in caplog.text
    assert start._rolled_over(before, lambda: right) is right
    assert deployed == [wrong, before, right]

    def unreadable():
        raise ConfigError("no such file")

    assert start._rolled_over(right, unreadable) is right
    assert deployed == [wrong, before, right]
    assert start._rolled_over(wrong, lambda: wrong) is wrong
    assert "these do not start any more" in caplog.text


@pytest.mark.parametrize(("told", "left"), [([2, 3], 5), ([2, RuntimeError("ended")], 2), (TimeoutError(), 0)])
def test_ingresses_that_have_ended_or_hang_do_not_hold_the_drain_up(told, left):
    def results(**_):
        if isinstance(told, Exception):
            raise told
        return told

    ingress = SimpleNamespace(broadcast=lambda _: SimpleNamespace(results=results))
    assert sum(start._asked(ingress, "unfinished")) == left
