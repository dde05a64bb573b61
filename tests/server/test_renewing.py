"""A model without a mask over HTTP: an answer comes a canvas at a time, and what needs masks is a 400.

So do the commands: what needs masks is told before the model is loaded.
"""

import json

import pytest

from server.cli import main
from server.commands import run_batch
from server.commands import serve as serve_command
from server.eval.answerers import local

SETTINGS = ("--max-model-len", "128", "--diffusion.unmask", "renoise", "--diffusion.max_denoising_steps", "4")


SCHEMA = {"name": "form", "schema": {"type": "object"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TURNS = [{"role": "user", "content": "t5 t6"}]


@pytest.fixture(scope="module")
def server(serve, diffusion_gemma_tiny):
    """The URL of a server of the tiny DiffusionGemma checkpoint."""
    with serve(str(diffusion_gemma_tiny), *SETTINGS) as url:
        yield url


@pytest.fixture
def ask(server):
    import httpx

    def post(path="/v1/completions", **body):
        return httpx.post(server + path, json={"prompt": [5, 6, 7], "max_tokens": 40, "seed": 1, **body}, timeout=60)

    return post


def test_a_stream_has_a_canvas_in_each_chunk(ask):
    whole = ask(ignore_eos=True, return_token_ids=True).json()
    events = ask(ignore_eos=True, return_token_ids=True, stream=True).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    pieces = [choice["token_ids"] for chunk in chunks for choice in chunk["choices"] if choice.get("token_ids")]
    assert [len(piece) for piece in pieces] == [16, 16, 8]
    assert [token for piece in pieces for token in piece] == whole["choices"][0]["token_ids"]
    assert whole["usage"]["completion_tokens"] == 40
    assert whole["choices"][0]["finish_reason"] == "length"


def test_seeds_decide(ask):
    texts = [ask(seed=seed, ignore_eos=True).json()["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"diffusion": {"unmask": "threshold"}}, "diffusion.unmask"),
        ({"diffusion": {"cache": "sub_block"}}, "diffusion.cache"),
        ({"diffusion": {"t_min": 0}}, "diffusion.t_min"),
        ({"suffix": "t7"}, "suffix"),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, None),
    ],
)
def test_what_needs_a_mask_is_refused_by_name(ask, body, param):
    answer = ask(**body)
    assert answer.status_code == 400, answer.text
    if param:
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("guided_choice", {"guided_choice": ["t5 t6"]}),  # of words that it has
        ("guided_choice", {"guided_choice": ["t5 t6"], "diffusion": {"unmask": "renoise"}}),
        ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
        ("structured_outputs.regex", {"structured_outputs": {"regex": "t5+"}}),
    ],
)
def test_what_says_the_answer_is_refused_by_the_policy(ask, param, body):
    answer = ask(**body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert f"{param} cannot be combined with diffusion.unmask 'renoise'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": TURNS, "tools": [TOOL], "tool_choice": "auto"}),
        ("/v1/chat/completions", {"messages": TURNS, "tools": [TOOL], "tool_choice": "required"}),
        ("/v1/responses", {"input": "t5 t6", "tools": [{"type": "function", "name": "add"}]}),
        ("/v1/messages", {"messages": TURNS, "max_tokens": 8, "tools": [{"name": "add", "input_schema": {}}]}),
    ],
)
def test_tools_are_refused_by_name_before_they_are_compiled(server, path, body):
    import httpx

    def counted():
        lines = httpx.get(f"{server}/metrics").text.splitlines()
        return [line for line in lines if line.startswith("unmask_constraint_")]

    before, answer, after = counted(), httpx.post(server + path, json=body, timeout=60), counted()
    assert answer.status_code == 400, answer.text
    assert "tools cannot be combined with diffusion.unmask 'renoise'" in answer.json()["error"]["message"]
    assert answer.json()["error"].get("param", "tools") == "tools"
    assert before == after != []


def test_decisions_are_refused(ask):
    question = {"type": "predicate", "question": "is it?"}
    answer = ask("/v1/decisions", prompt=None, max_tokens=None, seed=None, input="t5 t6", questions=[question])
    assert answer.status_code == 400, answer.text


@pytest.fixture
def evaluated(diffusion_gemma_tiny, capsys, tmp_path):
    """The row of its evaluation on one problem."""
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"prompt": "t5 t6", "answer": "t7"}))
    asked = ["eval", "--model", str(diffusion_gemma_tiny), "--data", str(path), "--max-tokens", "16", "--json"]

    def row(*flags):
        assert main([*asked, "--unmask", "renoise", *flags]) == 0
        [row] = json.loads(capsys.readouterr().out)["rows"]
        return row

    return row


@pytest.mark.slow
def test_eval_compares_it_to_nothing(evaluated):
    row = evaluated()
    assert (row["cache"], row["unmask"], row["block_length"], row["n"]) == ("block", "renoise", 16, 1)
    assert row["forwards"] > 0
    assert row["agreement"] is None


@pytest.mark.slow
def test_eval_compares_it_to_itself_with_other_keys_and_values(evaluated):
    assert evaluated("--kv-dtype", "int8")["agreement"] is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--unmask threshold does not fit the model (diffusion_gemma); these do: renoise"),
        (["--unmask", "renoise,edit"], "--unmask edit does not fit the model (diffusion_gemma); these do: renoise"),
        (["--tasks", "yesno", "--calibration"], "--calibration reads the probabilities at a mask"),
        (["--tasks", "yesno", "--decisions"], "--decisions reads the probabilities at a mask"),
    ],
)
def test_what_eval_cannot_ask_it_is_told_before_it_is_loaded(diffusion_gemma_tiny, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(local, "load", lambda _config: pytest.fail("loaded"))
    assert main(["eval", "--model", str(diffusion_gemma_tiny), "--limit", "1", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["serve", "--dry-run"], ["run-batch", "in.jsonl", "out.jsonl"]])
def test_a_temperature_of_all_requests_that_it_cannot_have_ends_the_start(
    diffusion_gemma_tiny, monkeypatch, capsys, command
):
    for module in (serve_command, run_batch):
        monkeypatch.setattr(module, "load", None)  # no weight is read
    assert main([*command, str(diffusion_gemma_tiny), "--diffusion.unmask", "renoise", "--temperature", "0.7"]) == 2
    assert "temperature cannot be combined with diffusion.unmask 'renoise'" in capsys.readouterr().err
