"""Values that ask for nothing, as clients write them, and the fields that nobody knows below the top of a body."""

import pytest

from server.replies.stop_strings import StopStrings

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


@pytest.mark.parametrize(
    "body",
    [
        {"top_logprobs": 0},
        {"logprobs": False},
        {"prompt_logprobs": 0},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False}},
        {"stream_options": {"include_usage": None}},
        {"guided_json": {}, "guided_regex": "", "guided_choice": [], "guided_grammar": ""},
        {"guided_decoding_backend": "outlines", "guided_whitespace_pattern": ""},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "regex": None, "json_object": False}},
        {"response_format": {}},
        {"response_format": {"type": "text", "json_schema": None}},
        {"truncate_prompt_tokens": -1},
        {"thinking_token_budget": -1},
        {"chat_template": ""},
        {"stop": ""},
        {"stop": [""]},
        {"best_of": 0},
        {"max_tokens": None},
        {"seed": -1},
        {"tool_choice": "none", "tools": TOOLS},
        {"function_call": "none", "functions": [{"name": "add"}]},
        {"tools": [], "tool_choice": "auto"},
    ],
)
async def test_what_asks_for_nothing_is_the_same_as_nothing(ask, engine, body):
    plain = (await ask(seed=1)).json()
    response = await ask(**{"seed": 1, **body})
    assert response.status_code == 200, response.text
    assert response.json()["choices"] == plain["choices"]
    for field in ("max_tokens", "logprobs", "stop_ids", "constraint"):
        assert len({getattr(submission.sampling, field) for submission in engine.submissions}) == 1


async def test_minus_one_is_no_seed(ask, engine):
    await ask(seed=-1)
    await ask(seed=-1)
    first, second = engine.submissions
    assert first.sampling.seed != second.sampling.seed, "as in vLLM, whose clients send it for a new one each time"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}, "tool_choice": "none"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "add"}], "tool_choice": "none"}, "functions"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"guided_whitespace_pattern": " *"}, "guided_whitespace_pattern"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
async def test_what_asks_for_something_is_refused(ask, api, engine, body, param):
    assert api.error_of(await ask(**body), 400)["param"] == param
    assert not engine.streams


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "required"}])
async def test_completions_call_no_tools(api, engine, choice):
    assert (await api.error(400, **choice, tools=TOOLS))["param"] in {"tools", *choice}
    assert not engine.streams


async def test_whole_numbers_may_be_written_with_a_point(ask, api, engine):
    whole = {"n": 1, "max_tokens": 16, "top_k": 5, "min_tokens": 2, "seed": 7, "stop_token_ids": [3, 4]}
    pointed = {name: list(map(float, n)) if isinstance(n, list) else float(n) for name, n in whole.items()}
    assert (await ask(**whole, diffusion={"block_length": 8})).status_code == 200
    response = await ask(**pointed, diffusion={"block_length": 8.0})
    assert response.status_code == 200, response.text
    first, second = engine.submissions
    assert (first.sampling, first.diffusion) == (second.sampling, second.diffusion)
    assert type(second.sampling.max_tokens) is int


@pytest.mark.parametrize("prompt", [[97.0, 98], [[97.0], [98.0]]])
async def test_so_may_token_ids(api, engine, prompt):
    assert (await api.complete(prompt=prompt, logprobs=2.0)).status_code == 200
    assert all(type(id_) is int for submission in engine.submissions for id_ in submission.prompt_ids)


async def test_many_stop_strings(ask, engine):
    """Continue and SillyTavern send one for each name and each mark of a turn."""
    engine.script = lambda _: ["one <2", "9> two"]
    choice = (await ask(stop=[f"<{number}>" for number in range(64)])).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "<29>")


@pytest.mark.parametrize("lengths", [(256,) * 4, (16,) * 64])
def test_looking_for_stop_strings_costs_by_their_length_together(lengths):
    """The most that is looked at for each token, where no stop string comes: counted, not timed."""
    looks = 0

    class Text(str):
        def endswith(self, *arguments):
            nonlocal looks
            looks += 1
            return super().endswith(*arguments)

    stops = StopStrings([f"b{'a' * (length - 2)}{number % 10}" for number, length in enumerate(lengths)])
    stops._longest_start(Text("a" * 300))
    assert 0 < looks <= sum(lengths)


async def test_unknown_fields_below_the_top_are_named_in_the_log_once(api, caplog):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "shade": 1}]
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}", "strict": True}}
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c", "prefix": True, "tool_calls": [call]},
        {"role": "user", "content": "d", "prefix": True},
    ]
    for _ in range(2):
        response = await api.chat(messages=messages, stream=True, stream_options={"speed": 1, "include_usage": True})
        assert response.status_code == 200, response.text
    told = [record.getMessage().rpartition(" ")[2] for record in caplog.records if "unknown" in record.message]
    assert sorted(told) == [
        "'messages[].content[].shade'",
        "'messages[].prefix'",
        "'messages[].tool_calls[].function.strict'",
        "'stream_options.speed'",
    ]


async def test_what_is_known_is_not_named(api, caplog):
    message = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None, "name": "me"}
    assert (await api.chat(messages=[message], diffusion={"cache": "dual"}, user="me")).status_code == 200
    assert not [record for record in caplog.records if "unknown" in record.message]
