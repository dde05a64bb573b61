"""Compose files as one, merged as docker compose merges them: podman-compose does not know `!override` everywhere.

Knows YAML and Compose's rules for overlays; nothing of what the files say.
"""

import yaml


class Override:
    """A value that stands in place of the one below it."""

    def __init__(self, value):
        self.value = value


class Loader(yaml.SafeLoader):
    """Knows Compose's tag."""


def _overriding(loader, node):
    build = loader.construct_mapping if isinstance(node, yaml.MappingNode) else loader.construct_sequence
    return Override(build(node, deep=True))


Loader.add_constructor("!override", _overriding)


def merged(paths):
    """The files in their order, later ones over earlier ones, with `extends` filled in."""
    whole = {}
    for path in paths:
        document = yaml.load(path.read_text(), Loader)
        for service in document["services"].values():
            if origin := service.pop("extends", None):
                below = merged([path.with_name(origin["file"])])["services"][origin["service"]]
                # What another overlay before this one changed is not part of the file that is extended.
                service.update(_over(below, service))
        whole = _over(whole, document)
    return whole


def _over(below, above, key=None):
    if isinstance(above, Override):
        return above.value
    if isinstance(below, dict) and isinstance(above, dict):
        names = [*below, *(name for name in above if name not in below)]
        return {name: _over(below.get(name), above[name], name) if name in above else below[name] for name in names}
    if key == "volumes" and isinstance(above, list):  # one for each place
        places = {volume.split(":")[1]: volume for volume in [*(below or ()), *above]}
        return list(places.values())
    if isinstance(below, list) and isinstance(above, list) and key not in ("command", "entrypoint", "test"):
        return [*below, *(entry for entry in above if entry not in below)]
    return {name: _over(None, value, name) for name, value in above.items()} if isinstance(above, dict) else above
