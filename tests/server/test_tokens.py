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
    assert answer["token_strs"] == ["a", "â", "Ĥ", "¬"], "as the vocabulary writes them, and vLLM"
    answer = (await post("/tokenize", prompt=" <|endoftext|>", return_token_strs=True)).json()
    assert answer["token_strs"] == ["Ġ", "<|endoftext|>"]
    assert (await post("/tokenize", prompt="")).json()["count"] == 0


async def test_tokens_are_spelled_beside_the_event_loop(post, tokenizer, monkeypatch):
    """Half a million characters may become as many tokens."""
    threads = set()

    class Backend:
        def id_to_token(self, id_):
            threads.add(get_ident())
            return str(id_)

        def __getattr__(self, name):
            return getattr(backend, name)

    backend = tokenizer._backend
    monkeypatch.setattr(tokenizer, "_backend", Backend())
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


async def test_tokens_are_read_beside_the_event_loop(post, tokenizer, monkeypatch):
    threads = set()
    decode = tokenizer.decode

    def watched(ids):
        threads.add(get_ident())
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode", watched)
    await post("/detokenize", tokens=[97])
    assert threads
    assert get_ident() not in threads


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
        ("/detokenize", {"tokens": [97] * 129}, "tokens"),
    ],
)
async def test_a_bad_value_names_its_field(post, api, path, body, param):
    assert api.error_of(await post(path, **body), 400)["param"] == param


async def test_an_unknown_model_is_a_404(post, api):
    api.error_of(await post("/tokenize", prompt="a", model="gpt"), 404)
    api.error_of(await post("/detokenize", tokens=[1], model="gpt"), 404)


async def test_the_tokenizer(api, tokenizer):
    """What lm-eval's remote tokenizer asks a server for, as vLLM's has it."""
    info = (await api.client.get("/tokenizer_info")).json()
    assert info.pop("chat_template") == tokenizer._tokenizer.chat_template
    assert info.pop("tokenizer_class")
    assert info == {
        "model_max_length": 128,
        "eos_token": "<|endoftext|>",
        **dict.fromkeys(("bos_token", "pad_token", "unk_token", "mask_token")),
        "added_tokens_decoder": {"256": {"content": "<|endoftext|>", "special": True}},
    }


async def test_a_tokenizer_without_a_template(api, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", None)
    assert (await api.client.get("/tokenizer_info")).json()["chat_template"] is None


async def test_what_a_model_comes_from(api):
    for card in (await api.client.get("/v1/models")).json()["data"]:
        assert card["root"] == "demo", "the folder's name, and not where it stands"
        assert card["parent"] is None


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "a", "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/detokenize", {"tokens": [97], "tools": [{}]}, "tools"),
    ],
)
async def test_what_would_change_the_tokens_is_refused(post, api, path, body, param):
    assert api.error_of(await post(path, **body), 400)["param"] == param


async def test_unknown_fields_are_named_in_the_log(post, caplog):
    await post("/tokenize", prompt="a", flux=1)
    await post("/detokenize", tokens=[97], flow=1)
    told = [record.getMessage() for record in caplog.records]
    assert "ignoring the unknown request field 'flux'" in told
    assert "ignoring the unknown request field 'flow'" in told


async def test_whole_numbers_may_be_written_with_a_point(post):
    assert (await post("/detokenize", tokens=[97.0, 98])).json() == {"prompt": "ab"}


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
