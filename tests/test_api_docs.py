"""`docs/api.md` says what is so: its tables follow from the schemas, and its examples run."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from server.commands.api_table import main, updated

PAGE = Path(__file__).parent.parent / "docs" / "api.md"


def examples(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_tables_are_up_to_date(tmp_path):
    text = PAGE.read_text()
    assert updated(text) == text, "run `python -m server.commands.api_table docs/api.md`"
    copy = tmp_path / "api.md"
    copy.write_text(re.sub(r"(<!-- table: \w+ -->\n).*?(<!-- end -->)", r"\1\2", text, flags=re.DOTALL))
    assert "`temperature`" not in copy.read_text()
    main([str(copy)])
    assert copy.read_text() == text


def absent():
    [section] = re.findall(r"^## What is absent\n(.*?)^## ", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return section


def test_what_is_called_absent_is(demo_server):
    routes = [path for path in re.findall(r"`(/[\w/]+)`", absent()) if not path.endswith("completions")]
    assert len(routes) > 15
    for path in routes:
        assert httpx.post(f"{demo_server}{path}", json={}).status_code == 404, path
        assert httpx.get(f"{demo_server}{path}").json()["error"]["message"], path


@pytest.mark.parametrize(
    "field",
    [
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"prompt_logprobs": 1},
        {"use_beam_search": True},
        {"logits_processors": ["x"]},
        {"chat_template": "x"},
        {"documents": [{"text": "x"}]},
    ],
)
def test_an_absent_field_is_refused_by_name(demo_server, field):
    [name] = field
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **field}
    answer = httpx.post(f"{demo_server}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert name in answer.json()["error"]["param"]


def test_the_table_of_a_field():
    table = updated("<!-- table: sampling -->\n<!-- end -->")
    assert "| `n` | integer 1 to 128 | `1` | Answers to each prompt" in table
    assert (
        "| `stop` | string (at most 256 characters) or list of string (at most 256 characters) (at most 64) |" in table
    )


@pytest.mark.slow
def test_the_examples_in_python_run(demo_server, capsys):
    scope = {}
    for source in examples("python"):
        exec(compile(source.replace("http://127.0.0.1:8000", demo_server), str(PAGE), "exec"), scope)
        assert capsys.readouterr().out.strip(), source


@pytest.mark.parametrize("source", examples("bash"))
def test_the_examples_in_the_shell_run(demo_server, source):
    command = ["bash", "-euo", "pipefail", "-c", source.replace("http://127.0.0.1:8000", demo_server)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    if output.startswith("data: "):
        *events, end, _ = output.split("\n\n")
        assert end == "data: [DONE]"
        assert all("choices" in json.loads(event.removeprefix("data: ")) for event in events)
    else:
        answers = re.sub(r"\}\{", "}\n{", output).splitlines()
        assert answers
        assert all("error" not in json.loads(answer) for answer in answers)
