"""Steps over the wire: named events of a stream, `trace` of a whole answer, `step_map`; other clients read on."""

import json

import httpx
import openai
import pytest

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


def test_a_stop_string_cuts_the_map_too(ask):
    whole = ask(trace=False, step_map=True)
    stop = text_of(whole["choices"][0])[6:8]
    cut = ask(trace=False, step_map=True, stop=stop)
    steps = cut["choices"][0]["step_map"]
    assert len(steps) == cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert steps == whole["choices"][0]["step_map"][: len(steps)]


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
