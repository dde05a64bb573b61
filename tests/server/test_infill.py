"""Text between text: `suffix`, and holes in a prompt. The engine fills holes to their last position, in order."""

import pytest
from tokenizers import processors

from engine import Hole
from server.text.tokenizer import Tokenizer


@pytest.fixture
def fill(engine):
    """`fill("abc", "def")`: what the engine writes into the holes, in these blocks."""

    def blocks(*given):
        engine.script = lambda _: list(given)

    return blocks


def only(response):
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    return choice


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
async def test_a_suffix(api, engine, fill, prompt):
    fill("one ", "two!")
    response = await api.complete(prompt=prompt, suffix="yz", max_tokens=8)
    choice = only(response)
    assert (choice["text"], choice["finish_reason"]) == ("one two!", "length")
    assert response.json()["usage"]["diffusion"]["fills"] == ["one two!"]
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids) == b"abyz"
    assert submission.holes == (Hole(2, 8),)
    assert submission.sampling.max_tokens == 8
    assert only(await api.complete(prompt=prompt, suffix="yz", max_tokens=8, echo=True))["text"] == "abone two!yz"


async def test_a_suffix_has_16_positions_before_it(api, engine, fill):
    fill("0123456789abcdef")
    await api.complete(suffix="yz")
    assert engine.submissions[0].holes == (Hole(2, 16),)


async def test_an_empty_suffix_is_none(api, engine):
    answer = (await api.complete(suffix="")).json()
    assert "fills" not in answer["usage"]["diffusion"]
    assert engine.submissions[0].holes == ()


async def test_a_fill_ends_at_its_stop_token(api, engine, fill):
    fill([97, 98, 256, 99], [100])
    choice = only(await api.complete(suffix="yz", max_tokens=5))
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", None)
    choice = only(await api.complete(suffix="yz", max_tokens=5, stop_token_ids=[98]))
    assert (choice["text"], choice["finish_reason"]) == ("a", "stop")
    choice = only(await api.complete(suffix="yz", max_tokens=5, ignore_eos=True))
    assert (choice["text"], choice["finish_reason"]) == ("abcd", "length")


async def test_a_fill_ends_at_a_stop_string(api, engine, fill):
    fill("one E", "ND two")
    choice = only(await api.complete(suffix="yz", max_tokens=11, stop="END", echo=True))
    assert (choice["text"], choice["finish_reason"]) == ("abone yz", "stop")


async def test_holes(api, engine, fill):
    fill("ON", "ETW", "O")
    response = await api.complete(prompt="1: <|fill:3|>, 2: <|fill:3|>.")
    choice = only(response)
    assert (choice["text"], choice["finish_reason"]) == ("ONETWO", "length")
    assert response.json()["usage"]["diffusion"]["fills"] == ["ONE", "TWO"]
    [submission] = engine.submissions
    assert bytes(submission.prompt_ids) == b"1: , 2: ."
    assert submission.holes == (Hole(3, 3), Hole(8, 3))
    assert submission.sampling.max_tokens == 6
    echoed = only(await api.complete(prompt="1: <|fill:3|>, 2: <|fill:3|>.", echo=True, max_tokens=6))
    assert echoed["text"] == "1: ONE, 2: TWO."


async def test_holes_beside_each_other_are_one_for_the_engine(api, engine, fill):
    fill("abcde")
    response = await api.complete(prompt="x<|fill:2|><|fill:3|>")
    assert response.json()["usage"]["diffusion"]["fills"] == ["ab", "cde"]
    assert engine.submissions[0].holes == (Hole(1, 5),)


async def test_every_fill_has_its_own_end(api, engine, fill):
    fill([97, 256, 98, 99], [100, 256])
    response = await api.complete(prompt="<|fill:3|>-<|fill:3|>", echo=True)
    choice = only(response)
    assert (choice["text"], choice["finish_reason"]) == ("a-cd", "stop")
    assert response.json()["usage"]["diffusion"]["fills"] == ["a", "cd"]
    fill([97, 256, 98, 99], [100, 101])
    assert only(await api.complete(prompt="<|fill:3|>-<|fill:3|>"))["finish_reason"] == "length"


@pytest.mark.parametrize("blocks", [["ONETWO"], ["ON", "ETW", "O"], ["ONE", "TWO"], ["ONET", "WO"], [*"ONETWO"]])
async def test_a_stream_is_the_whole_however_it_is_split(api, fill, blocks):
    fill(*blocks)
    prompt = "1: <|fill:3|>, 2: <|fill:3|>."
    *chunks, usage = await api.stream(prompt=prompt, echo=True, stream_options={"include_usage": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "1: ONE, 2: TWO."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(blocks) - 1) + ["length"]
    assert usage["usage"]["diffusion"]["fills"] == ["ONE", "TWO"]
    assert "".join(event["choices"][0]["text"] for event in await api.stream(prompt=prompt)) == "ONETWO"


async def test_log_probabilities_are_of_the_fills(api, fill):
    fill("ON", "ETW", "O")
    prompt = "1: <|fill:3|>, 2: <|fill:3|>."
    said = only(await api.complete(prompt=prompt, logprobs=0))["logprobs"]
    assert said["tokens"] == list("ONETWO")
    assert said["text_offset"] == [0, 1, 2, 3, 4, 5]
    error = await api.error(400, prompt=prompt, logprobs=0, echo=True)
    assert error["param"] == "logprobs"


async def test_several_prompts_and_choices(api, engine):
    engine.script = lambda submission: [f"{submission.request_id[-1]}" * submission.sampling.max_tokens]
    answer = (await api.complete(prompt=["a<|fill:1|>", "b<|fill:2|>c<|fill:1|>", "d"], n=2, max_tokens=None)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["0", "1", "222", "333", "4" * 16, "5" * 16]
    assert answer["usage"]["diffusion"]["fills"] == ["0", "1", "22", "2", "33", "3"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "<|fill:0|>"}, "prompt"),
        ({"prompt": "<|fill:two|>"}, "prompt"),
        ({"prompt": "<|fill:-1|>"}, "prompt"),
        ({"prompt": "<|fill:|>"}, "prompt"),
        ({"prompt": "a<|fill:3|>", "max_tokens": 4}, "max_tokens"),
        ({"prompt": "a<|fill:3|>", "suffix": "b"}, "suffix"),
        ({"suffix": "b", "echo": True, "max_tokens": 0}, "max_tokens"),
        ({"suffix": "b", "echo": True, "logprobs": 1}, "logprobs"),
        ({"suffix": "x" * 2049}, "suffix"),
        ({"suffix": "b<|fill:2|>c"}, "suffix"),
        ({"suffix": "b<|fill:|>c"}, "suffix"),
        ({"prompt": [97], "suffix": "b<|fill:2|>c"}, "suffix"),
        ({"prompt": "a<|fill:999999999|>"}, "max_tokens"),
    ],
)
async def test_what_cannot_be_filled(api, engine, body, param):
    assert (await api.error(400, **body))["param"] == param
    assert not engine.streams


async def test_other_families_cannot(api, engine):
    engine.can_fill = False
    assert "cannot fill" in (await api.error(400, suffix="b"))["message"]


async def test_special_tokens_stand_where_the_whole_texts_would(tokenizer_folder, app, api, engine, fill):
    tokenizer = Tokenizer.load(tokenizer_folder)
    tokenizer._backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 256)]
    )
    app.state.service.prompts._tokenizer = tokenizer
    fill("ab")
    await api.complete(prompt="x<|fill:2|>y")
    await api.complete(prompt="x", suffix="y", max_tokens=2)
    await api.complete(prompt="x<|fill:2|>y", add_special_tokens=False)
    for submission in engine.submissions[:2]:
        assert submission.prompt_ids == [256, 120, 121, 256]
        assert submission.holes == (Hole(2, 2),)
    assert engine.submissions[2].prompt_ids == [120, 121]
