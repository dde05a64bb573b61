"""Everything that can be wrong with a request, as the client sees it: OpenAI's error object, the right status."""

import gzip
import json

import pytest
from pydantic import ValidationError

from server.protocols.unsupported import HARMLESS, MAX_LABEL_LENGTH, MAX_REMEMBERED, NEUTRAL_VALUES, UnsupportedFields
from server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, WireRequest

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "16"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 1e300}, "max_tokens"),
        ({"prompt": [1.5]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": ["x" * 200] * 6}, "stop"),
        ({"stop": ["a", None]}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": "1"}, "stop_token_ids"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 5}, "model"),
        ({"diffusion": "dual"}, "diffusion"),
        ({"diffusion": {"cache": 3}}, "diffusion.cache"),
        ({"diffusion": {"cache": "nonsense"}}, "diffusion.cache"),
        ({"diffusion": {"speed": 3}}, "diffusion.speed"),
        ({"diffusion": {"threshold": "high"}}, "diffusion.threshold"),
    ],
)
async def test_a_bad_value_names_its_field(api, engine, body, param):
    error = await api.error(400, **body)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert not engine.streams


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": "a", "allowed_token_ids": ["a"] * 5000}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["a"] * 5000}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {f"a{number}": "b" for number in range(5000)}}),
        (DetokenizeRequest, {"tokens": ["a"] * 5000}),
    ],
)
def test_the_first_error_of_a_long_list_is_enough(kind, body):
    """One for each of a quarter of a million, which a body may hold, takes seconds in which nobody is answered."""
    with pytest.raises(ValidationError) as raised:
        kind.model_validate(body)
    assert raised.value.error_count() == 1


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
async def test_numbers_are_finite(api, number):
    for param, field in (("temperature", '"temperature": %s'), ("diffusion.factor", '"diffusion": {"factor": %s}')):
        body = '{"prompt": "a", ' + field % number + "}"
        error = api.error_of(await api.client.post("/v1/completions", content=body, headers=JSON), 400)
        assert error["param"] == param


@pytest.mark.parametrize("field", ["temperature", "made_up"])
@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
async def test_words_for_numbers_are_no_json(api, field, word):
    body = f'{{"prompt": "a", "{field}": {word}}}'
    error = api.error_of(await api.client.post("/v1/completions", content=body, headers=JSON), 400)
    assert "not valid JSON" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"null", b'"text"', b'{"prompt": "\xff"}', b"[" * 3000, b'{"seed": ' + b"9" * 4000 + b"}"],
)
async def test_a_body_that_is_no_json_object_is_a_400(api, body):
    error = api.error_of(await api.client.post("/v1/completions", content=body, headers=JSON), 400)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", ['{"prompt": "\\ud800"}', '{"prompt": "", "\\ud800": 1}', '{"prompt": "", "stop": "\\ud800"}']
)
async def test_lone_surrogates_go_no_further(api, body):
    api.error_of(await api.client.post("/v1/completions", content=body, headers=JSON), 400)


async def test_the_answer_does_not_repeat_a_long_input(api):
    for body in (
        {"stream": "x" * 3000},
        {"diffusion": {"x" * 3000: 1}},
        {"model": "x" * 3000},
        {"stop": [["x"] * 500]},
    ):
        # The list of the fields that there are grows; what was sent does not come back.
        assert len(json.dumps(await api.error(400, **body))) < 1500


async def test_the_prompt_is_required(api):
    error = api.error_of(await api.client.post("/v1/completions", json={}), 400)
    assert error["param"] == "prompt"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_another_content_type_is_a_415(api, content_type):
    headers = {"content-type": content_type} if content_type else {}
    response = await api.client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert "application/json" in api.error_of(response, 415)["message"]


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, deflate", "x-made-up"])
async def test_a_compressed_body_is_a_415_by_name(api, coding):
    response = await api.client.post(
        "/v1/completions", content=gzip.compress(b'{"prompt": "a"}'), headers=JSON | {"content-encoding": coding}
    )
    assert coding in api.error_of(response, 415)["message"]
    assert response.headers["accept-encoding"] == "identity"


async def test_a_body_may_say_that_it_is_not_compressed(api):
    headers = JSON | {"content-encoding": "identity"}
    assert (await api.client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)).status_code == 200


async def test_a_content_type_may_name_its_charset(api):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await api.client.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)).status_code == 200


@pytest.mark.parametrize("field", NEUTRAL_VALUES)
async def test_a_field_that_cannot_be_honoured_is_refused(api, engine, field):
    routes = {CompletionRequest: api.complete, ChatRequest: api.chat}
    asks = [ask for request, ask in routes.items() if field not in request.model_fields]
    assert asks, "a field of both routes is honoured"
    for ask in asks:
        error = api.error_of(await ask(**{field: 5}), 400)
        assert error["param"] == field
        assert field in error["message"]
        for neutral in (None, *NEUTRAL_VALUES[field]):
            assert (await ask(**{field: neutral})).status_code == 200
    assert len(engine.streams) == len(asks) * (1 + len(NEUTRAL_VALUES[field]))


@pytest.mark.parametrize("field", sorted(HARMLESS))
async def test_a_field_without_effect_may_not_be_a_book(api, engine, field):
    asks = [api.complete] if field in ChatRequest.model_fields else [api.complete, api.chat]
    for ask in asks:
        error = api.error_of(await ask(**{field: "x" * (MAX_LABEL_LENGTH + 1)}), 400)
        assert error["param"] == field
        assert str(MAX_LABEL_LENGTH) in error["message"]
        assert not engine.streams
    assert (await api.complete(**{field: "x" * MAX_LABEL_LENGTH})).status_code == 200


async def test_what_metadata_holds_has_the_same_limit(api):
    long = "x" * (MAX_LABEL_LENGTH + 1)
    for metadata in ({"key": long}, {long: "value"}):
        assert (await api.error(400, metadata=metadata))["param"] == "metadata"
    assert (await api.complete(metadata={"key": "x" * MAX_LABEL_LENGTH, "other": 5})).status_code == 200
    assert (await api.complete(prediction={"type": "content", "content": long})).status_code == 200


async def test_true_is_not_one(api):
    assert (await api.error(400, n=True))["param"] == "n"


def test_made_up_fields_do_not_fill_the_memory(caplog):
    fields = UnsupportedFields()
    fields.check(WireRequest(**{f"made_up_{i}": i for i in range(2 * MAX_REMEMBERED)}))
    assert len(caplog.records) == MAX_REMEMBERED


async def test_too_long_a_context_has_openais_code(api):
    error = await api.error(400, max_tokens=1000)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens"


async def test_an_unknown_model_is_a_404(api):
    error = await api.error(404, model="gpt")
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "gpt" in error["message"]


async def test_an_unknown_route_is_a_404(api):
    error = api.error_of(await api.client.post("/v1/nothing"), 404)
    assert error["type"] == "invalid_request_error"
    assert "POST /v1/nothing" in error["message"]


async def test_the_wrong_method_is_a_405(api):
    response = await api.client.get("/v1/completions")
    api.error_of(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/ping", "GET, HEAD, POST"), ("/v1/models", "GET, HEAD"), ("/v1/models/a", "GET, HEAD"), ("/tokenize/", "POST")],
)
async def test_a_405_names_all_methods_of_its_path(api, path, methods):
    response = await api.client.delete(path)
    api.error_of(response, 405)
    assert response.headers["allow"] == methods


async def test_a_full_queue_is_a_429(api, engine):
    engine.places = 1
    response = await api.complete(prompt=["a", "b"])
    error = api.error_of(response, 429)
    assert error["type"] == "rate_limit_error"
    assert error["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "1"


async def test_an_engine_that_takes_nothing_is_a_503(api, engine):
    engine.accepting = False
    response = await api.complete(stream=True)
    assert response.headers["connection"] == "close"
    assert api.error_of(response, 503)["type"] == "service_unavailable_error"
    assert response.headers["retry-after"] == "1"


async def test_an_unexpected_error_says_nothing_of_the_inside(api, engine, caplog):
    engine.script = lambda _: 1 / 0
    response = await api.complete()
    assert api.error_of(response, 500)["type"] == "server_error"
    assert "division" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "division by zero" in caplog.text


async def test_a_long_body_is_a_413(api, engine):
    error = await api.error(413, prompt="x" * 5000)
    assert "4096" in error["message"]
    assert not engine.streams


@pytest.mark.parametrize("announced", [{}, {"content-length": "100000"}])
async def test_a_long_body_is_not_read_to_its_end(api, announced):
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 1000

    api.error_of(await api.client.post("/v1/completions", content=chunks(), headers=JSON | announced), 413)
    assert sent == (0 if announced else 5)


@pytest.mark.parametrize("request_id", ["me-1", "x" * 128])
async def test_a_client_may_choose_the_request_id(api, request_id):
    response = await api.client.get("/health", headers={"x-request-id": request_id})
    assert response.headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["x" * 129, "a b", "", "é"])
async def test_a_bad_request_id_is_replaced(api, request_id):
    response = await api.client.get("/health", headers={"x-request-id": request_id.encode()})
    assert response.headers["x-request-id"] != request_id
    assert len(response.headers["x-request-id"]) == 32


async def test_request_ids_differ(api):
    ids = {(await api.client.get("/health")).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
