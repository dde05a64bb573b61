"""The recipes in Python of docs/clients.md run; and it names tests that there are."""

import gc
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "clients.md").read_text()
RECIPES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_there_is_a_recipe_for_each_client():
    rows = [row.split("|")[1].strip() for row in PAGE.splitlines() if row.startswith("| ") and "| how" not in row]
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    for client in rows[1:]:
        assert any(client.startswith(title.split(",")[0]) for title in titles), client


def test_it_names_tests_that_there_are():
    named = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(named) > 6
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("client", "source"), RECIPES, ids=[client for client, _ in RECIPES])
def test_a_recipe(demo_server, capsys, client, source):
    exec(compile(source.replace("http://127.0.0.1:8000", demo_server), client, "exec"), {"__name__": "recipe"})
    assert capsys.readouterr().out.strip()
    gc.collect()  # a recipe closes no client; what Python says of that, it says here
