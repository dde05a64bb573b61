"""Log-probabilities in both forms: what the engine said, at the places where the text shows the tokens.

The fake engine says -t/256 of token t, and of the best ones, which are 0, 1, 2, ...
"""

import math
import sys
from threading import get_ident

import pytest

from engine import TokenLogprobs
from server.replies.logprobs import FLOOR, LogprobWriter
from server.replies.passage import Token
from server.threads import MAX_TOKENS_ON_LOOP


def said(text):
    return [-byte / 256 for byte in text.encode()]


async def test_completions(api, engine):
    engine.script = lambda _: ["on", "e"]
    [choice] = (await api.complete(logprobs=2)).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["o", "n", "e"],
        "token_logprobs": said("one"),
        "top_logprobs": [
            {"\x00": 0.0, "\x01": -1 / 256, letter: logprob} for letter, logprob in zip("one", said("one"), strict=True)
        ],
        "text_offset": [0, 1, 2],
    }
    assert engine.submissions[0].sampling.logprobs == 2


@pytest.mark.parametrize("path", ["complete", "stream"])
async def test_many_are_written_beside_the_event_loop(api, engine, tokenizer, monkeypatch, path):
    threads = set()
    spell = tokenizer.spell

    def watched(id_):
        threads.add(get_ident())
        return spell(id_)

    monkeypatch.setattr(tokenizer, "spell", watched)
    engine.script = lambda _: ["a" * MAX_TOKENS_ON_LOOP]
    await getattr(api, path)(logprobs=1)
    assert threads == {get_ident()}, "few are written at once, without a hop to a thread"
    threads.clear()
    engine.script = lambda _: ["a" * (MAX_TOKENS_ON_LOOP + 1)]
    await getattr(api, path)(logprobs=1)
    assert get_ident() not in threads


@pytest.mark.parametrize("form", ["for_completion", "for_chat"])
def test_others_may_run_while_json_is_made(tokenizer, form):
    """The interpreter changes threads where Python is called, and all of it is one call of a library."""
    tokens = [Token(97, 0, TokenLogprobs(-1.0, ((98, -1.0),)))] * 100
    answer = getattr(LogprobWriter(tokenizer, as_ids=False), form)(tokens)
    calls = []
    sys.setprofile(lambda _frame, event, _argument: calls.append(event) if event == "call" else None)
    try:
        answer.model_dump_json()
    finally:
        sys.setprofile(None)
    assert len(calls) >= len(tokens)


async def test_of_the_chosen_token_alone(api, engine):
    engine.script = lambda _: ["a"]
    [choice] = (await api.complete(logprobs=0)).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -97 / 256}]


async def test_a_chosen_token_that_is_among_the_best_is_there_once(api, engine):
    engine.script = lambda _: [b"\x01"]
    [choice] = (await api.complete(logprobs=2)).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\x00": 0.0, "\x01": -1 / 256}]


async def test_chat(api, engine):
    engine.script = lambda _: ["ok"]
    [choice] = (await api.chat(logprobs=True, top_logprobs=1)).json()["choices"]
    assert choice["logprobs"] == {
        "content": [
            {
                "token": letter,
                "logprob": logprob,
                "bytes": [ord(letter)],
                "top_logprobs": [{"token": "\x00", "logprob": 0.0, "bytes": [0]}],
            }
            for letter, logprob in zip("ok", said("ok"), strict=True)
        ],
        "refusal": None,
    }


async def test_chat_without_alternatives(api, engine):
    for body in ({}, {"top_logprobs": None}, {"top_logprobs": 0}):
        [choice] = (await api.chat(logprobs=True, **body)).json()["choices"]
        assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])
    assert (await api.chat()).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("blocks", [["one E", "ND two"], ["one ", "END two"], ["on", "e EN", "D two"], ["one END two"]])
async def test_tokens_behind_the_cut_are_left_out(api, engine, blocks):
    engine.script = lambda _: blocks
    [choice] = (await api.complete(logprobs=0, stop="END")).json()["choices"]
    assert choice["text"] == "one "
    assert choice["logprobs"]["tokens"] == list("one ")
    [kept] = (await api.complete(logprobs=0, stop="END", include_stop_str_in_output=True)).json()["choices"]
    assert kept["logprobs"]["tokens"] == list("one END")


@pytest.mark.parametrize("blocks", [["a€", "b"], [b"a\xe2", b"\x82\xac", b"b"], [b"a", b"\xe2\x82", b"\xacb"]])
async def test_parts_of_characters(api, engine, blocks):
    engine.script = lambda _: blocks
    [choice] = (await api.complete(logprobs=0)).json()["choices"]
    assert choice["text"] == "a€b"
    assert choice["logprobs"]["tokens"] == ["a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2]
    [chat] = (await api.chat(logprobs=True)).json()["choices"]
    assert [entry["bytes"] for entry in chat["logprobs"]["content"]] == [[byte] for byte in "a€b".encode()]


async def test_tokens_that_the_text_does_not_show_are_there(api, engine):
    engine.script = lambda _: [[97, 256], [256]]
    [choice] = (await api.complete(logprobs=0, ignore_eos=True)).json()["choices"]
    assert choice["text"] == "a"
    assert choice["logprobs"]["tokens"] == ["a", "<|endoftext|>", "<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]


@pytest.mark.parametrize("stop", [[], ["END"], ["two"]])
@pytest.mark.parametrize("blocks", [["one E", "", "ND two"], [b"a\xe2", b"\x82\xac", b"b"], ["EN", "EN", "x"]])
async def test_the_parts_of_a_stream_are_the_whole(api, engine, blocks, stop):
    engine.script = lambda _: blocks
    [whole] = (await api.complete(logprobs=3, stop=stop)).json()["choices"]
    parts = [event["choices"][0] for event in await api.stream(logprobs=3, stop=stop)]
    for key, values in whole["logprobs"].items():
        assert [value for part in parts for value in part["logprobs"][key]] == values
    length = 0
    for part in parts:
        offsets = part["logprobs"]["text_offset"]
        assert all(length <= offset <= length + len(part["text"]) for offset in offsets), "with their own text"
        length += len(part["text"])

    [chat] = (await api.chat(logprobs=True, top_logprobs=3, stop=stop)).json()["choices"]
    events = api.events_of((await api.chat(logprobs=True, top_logprobs=3, stop=stop, stream=True)).text)
    opening, *parts = [event["choices"][0] for event in events]
    assert opening["logprobs"] is None
    assert [entry for part in parts for entry in part["logprobs"]["content"]] == chat["logprobs"]["content"]


async def test_tokens_as_ids(api, engine):
    engine.script = lambda _: ["a"]
    [choice] = (await api.complete(logprobs=1, return_tokens_as_token_ids=True)).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:97"]
    assert list(choice["logprobs"]["top_logprobs"][0]) == ["token_id:0", "token_id:97"]


@pytest.mark.parametrize("logprob", [-math.inf, math.nan, -1e6])
def test_numbers_are_finite(tokenizer, logprob):
    writer = LogprobWriter(tokenizer, as_ids=False)
    token = Token(97, 0, TokenLogprobs(logprob, ((98, logprob),)))
    completion = writer.for_completion([token])
    assert completion.token_logprobs == [FLOOR]
    assert completion.top_logprobs == [{"b": FLOOR, "a": FLOOR}]
    [entry] = writer.for_chat([token]).content
    assert [entry.logprob, *(top.logprob for top in entry.top_logprobs)] == [FLOOR, FLOOR]


def test_tokens_that_look_alike_do_not_hide_the_best(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "spell", lambda _: "same")
    token = Token(97, 0, TokenLogprobs(-5.0, ((98, -1.0), (99, -2.0))))
    assert LogprobWriter(tokenizer, as_ids=False).for_completion([token]).top_logprobs == [{"same": -1.0}]


def test_ids_beyond_the_tokenizer(tokenizer):
    assert tokenizer.spell(5000) == "token_id:5000"
    assert tokenizer.bytes_of(5000) == b""
