"""Settings of serving under Ray, and what becomes of them without Ray."""

import sys

import pytest

from engine import ConfigError
from server.commands.serve import main
from server.settings.sources import from_mapping, load_settings


def test_they_are_flags_as_all_others():
    given = load_settings(
        ["demo", "--ray", "--ray-replicas", "2", "--ray-max-replicas", "4", "--ray-gpus", "0.5"], {}
    ).ray
    assert (given.ray, given.ray_replicas, given.ray_max_replicas, given.ray_gpus) == (True, 2, 4, 0.5)
    assert not load_settings([], {}).ray.ray


@pytest.mark.parametrize("argv", [["--ray-replicas", "0"], ["--ray-replicas", "3", "--ray-max-replicas", "2"]])
def test_bounds_are_checked(argv):
    with pytest.raises(ConfigError, match=r"ray.(max_)?replicas"):
        load_settings(argv, {})


def test_the_arguments_of_a_serve_config_outrank_the_environment():
    given = {"model": "demo", "ray-replicas": 2, "diffusion": {"threshold": 0.5}}
    settings = from_mapping(given, {"UNMASK_RAY_REPLICAS": "5", "UNMASK_PORT": "8001"})
    assert (settings.ray.ray_replicas, settings.server.port, settings.diffusion.threshold) == (2, 8001, 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modle": "demo"}, "modle in the arguments is not a setting"),
        ({"port": "x"}, "port in the arguments"),
        ({"diffusion": 5}, "diffusion in the arguments is no mapping"),
    ],
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(given, {})


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "server.ray.start", None)
    with pytest.raises(ConfigError, match=r"pip install 'unmask\[ray\]'"):
        main(["demo", "--ray", "--port", "0"])
