"""/tokenize, /detokenize, and what the server says of itself."""

from importlib.metadata import version
from threading import get_ident

import pytest


@pytest.fixture
def post(api):
    async def to(path, **body):
        return await api.client.post(path, json=body)

    return to


async def test_a_text(post):
    answer = (await post("/tokenize", prompt="ab", model="fake")).json()
    assert answer == {"count": 2, "max_model_len": 128, "tokens": [97, 98], "token_strs": None}
    answer = (await post("/tokenize", prompt="a€", return_token_strs=True, add_special_tokens=False)).json()
    assert answer["token_strs"] == ["a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac"]
    assert (await post("/tokenize", prompt="")).json()["count"] == 0


async def test_tokens_are_spelled_beside_the_event_loop(post, tokenizer, monkeypatch):
    """Half a million characters may become as many tokens."""
    threads = set()
    spell = tokenizer.spell

    def watched(id_):
        threads.add(get_ident())
        return spell(id_)

    monkeypatch.setattr(tokenizer, "spell", watched)
    await post("/tokenize", prompt="ab", return_token_strs=True)
    assert threads
    assert get_ident() not in threads


async def test_a_conversation(post, api, engine):
    messages = [{"role": "user", "content": "hi"}]
    tokens = (await post("/tokenize", messages=messages)).json()["tokens"]
    await api.chat(messages=messages)
    assert tokens == list(engine.submissions[0].prompt_ids)
    tokens = (await post("/tokenize", messages=messages, add_generation_prompt=False)).json()["tokens"]
    assert bytes(tokens) == b"<user>hi"


async def test_there_and_back(post):
    text = "a€ <|endoftext|>"
    tokens = (await post("/tokenize", prompt=text)).json()["tokens"]
    assert 256 in tokens
    assert (await post("/detokenize", tokens=tokens, model="org/fake")).json() == {"prompt": text}
    assert (await post("/detokenize", tokens=[])).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x" * 2049}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "refuse"}]}, "messages"),
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, None),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [257]}, "tokens"),
        ("/detokenize", {"tokens": [2**62]}, "tokens"),
    ],
)
async def test_a_bad_value_names_its_field(post, api, path, body, param):
    assert api.error_of(await post(path, **body), 400)["param"] == param


async def test_an_unknown_model_is_a_404(post, api):
    api.error_of(await post("/tokenize", prompt="a", model="gpt"), 404)
    api.error_of(await post("/detokenize", tokens=[1], model="gpt"), 404)


async def test_the_version(api):
    assert (await api.client.get("/version")).json() == {"version": version("unmask")}


async def test_the_load(api):
    assert (await api.client.get("/load")).json() == {"server_load": 2 + 3}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_ping_is_health(api, engine, method):
    response = await api.client.request(method, "/ping")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    engine.healthy = False
    api.error_of(await api.client.request(method, "/ping"), 503)
