"""Steps over the wire: named events of a stream, `trace` of a whole answer, `step_map`; other clients read on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from engine import Canvas, TracedStep, Usage
from server.protocols.forms import Extras
from server.replies.choice import Delta

PAGE = Path(__file__).parent.parent / "docs" / "trace.md"

CHAT = {"messages": [{"role": "user", "content": "Sort these numbers: 7 3 12 5."}], "max_tokens": 40}
TEXT = {"prompt": "Question: Sort these numbers: 7 3 12 5.\nAnswer:", "max_tokens": 40}


@pytest.fixture(params=["chat/completions", "completions"])
def ask(request, demo_server):
    """Posts to either route: `ask(stream=…, **body)` is the answer, or the events of a stream as (name, data)."""

    def ask(*, trace=True, step_map=False, stream=False, diffusion=None, **body):
        body = {**(CHAT if request.param.startswith("chat") else TEXT), **body, "stream": stream}
        body["diffusion"] = {"block_length": 8, **(diffusion or {}), "trace": trace, "step_map": step_map}
        answer = httpx.post(f"{demo_server}/v1/{request.param}", json=body, timeout=60)
        if not stream or answer.status_code != 200:
            return answer.json()
        events = []
        for frame in answer.text.removesuffix("\n\n").split("\n\n"):
            lines = dict(line.split(": ", 1) for line in frame.split("\n"))
            events.append((lines.get("event"), lines["data"]))
        assert events.pop() == (None, "[DONE]")
        return [(name, json.loads(data)) for name, data in events]

    return ask


def text_of(choice):
    return choice["text"] if "text" in choice else choice["message"]["content"]


def folded(steps):
    """The tokens of one choice's answer in order, as texts."""
    start = steps[0]["canvas"]["answer"][0][0]
    cells = {at: token for step in steps for at, token in zip(step["positions"], step["tokens"], strict=True)}
    return [cells[at] for at in sorted(cells) if at >= start]


def test_the_steps_of_a_whole_answer(ask):
    answer = ask(n=2, temperature=0.7, seed=4)
    usage = answer["usage"]
    assert len(answer["trace"]) == usage["diffusion"]["forwards"]
    for choice in answer["choices"]:
        steps = [step for step in answer["trace"] if step["index"] == choice["index"]]
        assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
        assert len(steps[0]["canvas"]["prompt"]) == usage["prompt_tokens"]
        assert "Sort these numbers: 7 3 12 5." in "".join(steps[0]["canvas"]["prompt"])
        assert "".join(folded(steps)).startswith(text_of(choice))
    rows = sum(end - start for step in answer["trace"] for start, end in step["rows"])
    assert rows == usage["diffusion"]["rows_computed"]


def test_the_steps_of_a_stream_are_events_of_their_own(ask):
    events = ask(stream=True, n=2, temperature=0.7, seed=4)
    steps = [data["trace"] for name, data in events if name == "unmask.step"]
    whole = ask(n=2, temperature=0.7, seed=4)
    assert sorted(steps, key=lambda step: (step["index"], step["step"])) == whole["trace"]
    assert all(data["choices"] == [] for name, data in events if name)
    chunks = [data for name, data in events if name is None]
    assert not any("trace" in chunk for chunk in chunks)
    told = dict.fromkeys(range(2), "")
    for chunk in chunks:
        for choice in chunk["choices"]:
            told[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    assert [told[choice["index"]] for choice in whole["choices"]] == list(map(text_of, whole["choices"]))


def test_steps_come_before_the_block_that_they_complete(ask):
    events = ask(stream=True, diffusion={"block_length": 4, "unmask": "fixed"})
    names = [name for name, data in events if name or data["choices"][0].get("delta", {}).get("role") is None]
    blocks = [steps for steps in "".join("s" if name else "b" for name in names).split("b") if steps]
    assert len(blocks) > 1
    assert {*blocks} == {"ssss"}, "a token a step, four tokens a block"


def test_the_step_of_each_token(ask):
    answer = ask(trace=False, step_map=True, return_token_ids=True)
    assert "trace" not in answer
    [choice] = answer["choices"]
    assert len(choice["step_map"]) == answer["usage"]["completion_tokens"]
    assert 1 <= min(choice["step_map"]) <= max(choice["step_map"]) <= answer["usage"]["diffusion"]["forwards"]
    pieces = [
        step
        for _, data in ask(trace=False, step_map=True, stream=True)
        for part in data["choices"]
        for step in part.get("step_map") or ()
    ]
    assert pieces == choice["step_map"]


def checked_maps(answer):
    """Checks that `shown`, `token_ids` and `step_map` of each choice are of the same tokens. Returns their numbers."""
    for choice in answer["choices"]:
        decoded = {
            at: (token, step["step"])
            for step in answer["trace"]
            if step["index"] == choice["index"]
            for at, token in zip(step["positions"], step["token_ids"], strict=True)
        }
        shown = [decoded[at] for start, end in choice["shown"] for at in range(start, end)]
        assert shown == list(zip(choice["token_ids"], choice["step_map"], strict=True))
    return [len(choice["step_map"]) for choice in answer["choices"]]


@pytest.mark.parametrize("stop", ["3 5", "3", "or", " "])
def test_a_stop_string_cuts_the_map_too(ask, stop):
    whole, cut = (ask(step_map=True, return_token_ids=True, **how) for how in ({}, {"stop": stop}))
    [length], [all_of_them] = checked_maps(cut), checked_maps(whole)
    assert length < all_of_them
    assert cut["choices"][0]["step_map"] == whole["choices"][0]["step_map"][:length]


def test_the_maps_of_several_choices(ask):
    answer = ask(n=3, temperature=1.0, seed=1, step_map=True, return_token_ids=True)
    assert sum(checked_maps(answer)) == answer["usage"]["completion_tokens"]
    told = {
        choice["index"]: choice["shown"]
        for _, data in ask(n=3, temperature=1.0, seed=1, stream=True)
        for choice in data["choices"]
        if "shown" in choice
    }
    assert told == {choice["index"]: choice["shown"] for choice in answer["choices"]}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Tell me a story about Ann.\nAnn is ", "suffix": " Then all of them went home.", "max_tokens": 12},
        {"prompt": "Ann is <|fill:4|> and Tom <|fill:6|><|fill:3|>.", "temperature": 1.0, "n": 3, "seed": 1},
        {"prompt": "Sort: 7 3.\nAnswer:<|fill:12|>\nSort: 5 4.\nAnswer: <|fill:12|>"},
        {"prompt": ["Alpha one", "Bravo two three"], "max_tokens": 20, "best_of": 3, "n": 2, "temperature": 1.0},
        {"prompt": "Tom went", "echo": True, "logprobs": 0, "max_tokens": 1},
        {"prompt": "Tom went", "echo": True, "max_tokens": 0},
    ],
)
def test_maps_of_holes_and_of_kept_choices(demo_server, body):
    body = {**body, "return_token_ids": True, "diffusion": {"trace": True, "step_map": True}}
    answer = httpx.post(f"{demo_server}/v1/completions", json=body).json()
    assert (sum(checked_maps(answer)) > 0) == (body.get("max_tokens") != 0)


def test_a_fill_that_meets_its_end_leaves_the_rest_out(demo_server):
    """Of the map, of the tokens and of the picture alike; else what is behind it would move all that follow."""
    text = "Question: Sort these numbers: 7 3.\nAnswer:"
    ask = {"prompt": f"{text}<|fill:14|>\n{text}<|fill:14|>", "return_token_ids": True}
    answer = httpx.post(
        f"{demo_server}/v1/completions", json={**ask, "diffusion": {"trace": True, "step_map": True}}
    ).json()
    [length] = checked_maps(answer)
    assert length < 28, "a fill has met its end"


@pytest.mark.parametrize("how", [{"best_of": 2, "n": 1}, {"n": 2}, {"best_of": 3, "n": 2}])
def test_each_choice_tells_its_own_prompt(demo_server, how):
    texts = ["Alpha one", "Bravo two three"]
    body = {"prompt": texts, "max_tokens": 8, "temperature": 1.0, **how, "diffusion": {"trace": True}}
    answer = httpx.post(f"{demo_server}/v1/completions", json=body).json()
    prompts = {step["index"]: step["canvas"]["prompt"] for step in answer["trace"] if "canvas" in step}
    told = ["".join(prompts[index]) for index in sorted(prompts)]
    assert told == [text for text in texts for _ in range(how["n"])]


def test_without_it_nothing_is_told(ask):
    answer = ask(trace=False)
    assert "trace" not in answer
    assert "step_map" not in answer["choices"][0]
    assert not any(name for name, _ in ask(trace=False, stream=True))


def test_holes_are_watched_as_well(demo_server):
    body = {"prompt": "Ann is <|fill:4|> and Tom <|fill:6|>.", "diffusion": {"trace": True}}
    answer = httpx.post(f"{demo_server}/v1/completions", json=body).json()
    canvas = answer["trace"][0]["canvas"]
    assert sum(end - start for start, end in canvas["answer"]) == 10
    assert sorted(at for step in answer["trace"] for at in step["positions"]) == [
        at for start, end in canvas["answer"] for at in range(start, end)
    ]


def test_too_much_to_watch_is_a_400(ask):
    error = ask(n=128, max_tokens=900)["error"]
    assert error["param"] == "diffusion.trace"


def test_prompts_count_as_told(demo_server):
    body = {"prompt": [1] * 900, "max_tokens": 1, "n": 80, "diffusion": {"trace": True}}
    error = httpx.post(f"{demo_server}/v1/completions", json=body).json()["error"]
    assert error["param"] == "diffusion.trace"
    assert f"{80 * 901} tokens" in error["message"]


def test_a_long_prompt_is_spelled_in_a_thread():
    """What `num_written` counts decides that."""
    canvas = Canvas(end=1010, answer=((1000, 1010),), output_end=1010, cached_tokens=0)
    for told, size in ((canvas, 1001), (None, 1)):
        step = TracedStep(
            request_id="x", step=1, block=(1000, 1010), rows=(), visible_end=1010, positions=(1000,), token_ids=(1,),
            confidences=(1.0,), canvas=told,
        )  # fmt: skip
        usage = Usage(prompt_tokens=1000, completion_tokens=0, forwards=0, rows_computed=0)
        delta = Delta(index=0, text="", usage=usage, traced=(step,), prompt_ids=range(1000))
        assert Extras().num_written(delta, is_first=False) == size


EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("source", EXAMPLES)
def test_the_examples_of_the_page_run(demo_server, tmp_path, source):
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"({source}) > told".replace("http://127.0.0.1:8000", demo_server)],
        env={**os.environ, "PATH": paths},
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    told = (tmp_path / "told").read_text()
    if "answer.json" in source:
        assert {path.name for path in tmp_path.iterdir()} == {"told", "answer.json", "answer.svg", "answer.gif"}
    else:
        assert "event: unmask.step\n" in told
        assert told.endswith("data: [DONE]\n\n")
        assert "error" not in told


def test_openais_client_reads_on(demo_server):
    """It hands events of any name on as chunks: these have no choices, as the one with `usage` has none."""
    with openai.OpenAI(base_url=f"{demo_server}/v1", api_key="none") as client:
        plain = client.chat.completions.create(model="demo", **CHAT).choices[0].message.content
        chunks = list(
            client.chat.completions.create(model="demo", **CHAT, stream=True, extra_body={"diffusion": {"trace": True}})
        )
        with client.chat.completions.stream(model="demo", **CHAT, extra_body={"diffusion": {"trace": True}}) as events:
            final = events.get_final_completion().choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == plain == final
    assert any(chunk.trace["positions"] for chunk in chunks if not chunk.choices)
