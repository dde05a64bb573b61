"""`unmask run-batch`: a file of requests by the bundled model, what is wrong with lines, and runs that go on."""

import asyncio
import json
import os
import tracemalloc
from types import SimpleNamespace

import httpx
import pytest

from engine import ConfigError
from server.cli import main
from server.commands import run_batch
from server.commands.run_batch import resume
from server.observe.pace import Pace

CHAT = {"messages": [{"role": "user", "content": "Sort these numbers: 7 3."}], "max_tokens": 16}
PREDICATE = {"type": "predicate", "instructions": "Is it so?"}


def line(custom_id, url="/v1/chat/completions", body=None, **more):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": CHAT if body is None else body, **more}


@pytest.fixture
def batch(tmp_path, capsys):
    """`batch(lines, *flags)`: the exit code, the answers by custom_id, and what was told."""

    def run(*lines):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
        (tmp_path / "in.jsonl").write_text("\n".join(texts) + "\n\n")
        code = main(["run-batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "demo"])
        answers = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
        return code, answers, capsys.readouterr()

    return run


@pytest.mark.slow
def test_every_route(batch):
    code, answers, told = batch(
        line("chat"),
        line("text", "/v1/completions", {"prompt": "Sort these numbers: 7 3.", "max_tokens": 8}),
        line("fim", "/v1/fim/completions", {"prompt": "Sort", "suffix": "7 3.", "max_tokens": 4}),
        line("decision", "/v1/decisions", {"input": "Tom.", "questions": [PREDICATE]}),
    )
    assert code == 0
    assert told.out == ""
    assert told.err == "4 answered, 0 failed, 0 had answers before\n"
    by_id = {one["custom_id"]: one for one in answers}
    assert set(by_id) == {"chat", "text", "fim", "decision"}
    for one in answers:
        assert one["id"].startswith("batch_req_")
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["request_id"]
    assert by_id["chat"]["response"]["body"]["object"] == "chat.completion"
    assert by_id["text"]["response"]["body"]["object"] == "text_completion"
    assert by_id["decision"]["response"]["body"]["answers"][0]["type"] == "predicate"


def test_what_fails_is_a_line_and_is_asked_again(batch):
    wrong = [
        "{",
        "[]",
        {"method": "POST"},
        line("get", method="GET"),
        line("far", "https://api.example.com/v1/chat/completions"),
        line("stream", body={**CHAT, "stream": True}),
        line("bad", body={**CHAT, "temperature": 3}),
        line("nowhere", "/v1/nowhere"),
    ]
    code, answers, told = batch(line("good"), *wrong, line("good"), line("é\ud800", body={**CHAT, "n": 0}))
    assert code == 1
    assert told.err == "1 answered, 10 failed, 0 had answers before\n"
    refused = [one["error"]["message"] for one in answers if one["error"]]
    assert sorted(int(message.partition(":")[0].split()[1]) for message in refused) == [2, 3, 4, 5, 6, 7, 10]
    assert all(one["response"] is None for one in answers if one["error"])
    by_id = {one["custom_id"]: one for one in answers if one["custom_id"]}
    assert by_id["bad"]["response"]["status_code"] == 400
    assert by_id["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert by_id["nowhere"]["response"]["status_code"] == 404

    first = next(one for one in answers if one["custom_id"] == "good")
    code, answers, told = batch(line("good"), line("bad"), line("new"))
    assert code == 0
    assert told.err == "2 answered, 0 failed, 1 had answers before\n"
    assert answers[0] == first
    assert {one["custom_id"] for one in answers} == {"good", "bad", "new"}


@pytest.fixture
def run_on_fake(app, tmp_path):
    """`await run_on_fake(lines)`: the counts, and the lines of OUT by custom_id, from the engine of the test."""

    async def run(*lines):
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        with (tmp_path / "out.jsonl").open("w", encoding="utf-8") as output:
            counts = await run_batch._run(app, tmp_path / "in.jsonl", output, set(), 1, lambda: None)
        told = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        return counts, {one["custom_id"]: one for one in told}

    return run


TEXT = {"prompt": "a"}


async def test_a_line_that_cannot_be_asked_is_not_the_end_of_the_run(run_on_fake, monkeypatch, engine):
    def prepare(submissions):
        if bytes(submissions[0].prompt_ids) == b"bad":
            raise ZeroDivisionError("boom")
        return submissions

    monkeypatch.setattr(engine, "prepare", prepare)
    post = httpx.AsyncClient.post

    async def posted(http, url, **how):
        if url == "/odd":
            raise OSError("broken")
        return await post(http, url, **how)

    monkeypatch.setattr(httpx.AsyncClient, "post", posted)
    urls = {"control": "/v1/comp\x7fletions", "nul": "/v1\0", "long": "/" + "x" * 70_000}
    counts, told = await run_on_fake(
        line("first", "/v1/completions", TEXT),
        *(line(id_, url, TEXT) for id_, url in urls.items()),
        line("page", "/docs", TEXT),
        line("bad", "/v1/completions", {"prompt": "bad"}),
        line("odd", "/odd", TEXT),
        line("last", "/v1/completions", TEXT),
    )
    assert (counts.answered, counts.failed) == (2, 6)
    for number, id_ in enumerate(urls, start=2):
        assert told[id_]["response"] is None
        assert told[id_]["error"]["message"].startswith(f"line {number}: the `url` is not valid: ")
        assert told[id_]["error"]["code"] == "invalid_request"
    assert told["bad"]["response"]["status_code"] == 500
    assert told["odd"]["error"] == {
        "code": "request_failed",
        "message": "line 7: the request failed: OSError: broken",
        "line": 7,
    }
    for id_ in ("first", "last"):
        assert told[id_]["response"]["status_code"] == 200


@pytest.mark.parametrize(("told", "pause"), [(1, 1), (4, 4), (60, 5)])
async def test_a_line_waits_for_a_place_however_long_it_takes(run_on_fake, monkeypatch, engine, told, pause):
    pauses = []

    async def slept(seconds):
        pauses.append(seconds)
        engine.places = 8 if len(pauses) == 20 else 0
        await asyncio.sleep(0)

    monkeypatch.setattr(Pace, "seconds_to_halve", lambda *_: told)
    monkeypatch.setattr(run_batch, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": slept}))
    engine.places = 0
    counts, answers = await run_on_fake(line("a", "/v1/completions", TEXT))
    assert (counts.answered, counts.failed) == (1, 0)
    assert answers["a"]["response"]["status_code"] == 200
    assert pauses == [pause] * 20


def test_a_run_that_was_ended_goes_on(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = [{"custom_id": str(n), "response": {"status_code": 200 if n % 2 else 503}, "error": None} for n in range(4)]
    text = "".join(json.dumps(one) + "\n" for one in whole)
    path.write_text(text + '{"custom_id": "9", "resp')
    assert resume(path) == {"1", "3"}
    assert [json.loads(one)["custom_id"] for one in path.read_text().splitlines()] == ["1", "3"]
    assert resume(path) == {"1", "3"}
    assert resume(tmp_path / "new.jsonl") == set()
    path.write_text(text.rstrip("\n"))
    assert resume(path) == {"1", "3"}
    assert path.read_text().endswith("\n")


@pytest.mark.parametrize("is_whole", [True, False])
def test_answers_of_a_former_run_are_not_held_in_memory(tmp_path, is_whole):
    path = tmp_path / "out.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(1000):
            status = 200 if is_whole or number % 2 else 503
            response = {"status_code": status, "body": "x" * 10_000}
            file.write(json.dumps({"custom_id": str(number), "response": response, "error": None}) + "\n")
    size = path.stat().st_size
    tracemalloc.start()
    try:
        done = resume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done == {str(number) for number in range(0 if is_whole else 1, 1000, 1 if is_whole else 2)}
    assert abs(path.stat().st_size - size * len(done) / 1000) < 1000
    assert peak < 1 << 20
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


FOREIGN = (
    "hello\nworld\n",
    '{"custom_id": "a"}\n',
    "[1]\n",
    "\xff",
    '{"custom_id": ["a"], "response": {"status_code": 200}, "error": null}\n',
    '{"custom_id": null, "response": {"status_code": 200}, "error": null}\n',
    '{"custom_id": 7, "response": {"status_code": 503}, "error": null}\n',
    "[" * 200_000 + "\n",
)


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    path = tmp_path / "out.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"out\.jsonl"):
        resume(path)
    assert path.read_bytes() == text.encode("latin-1")


def test_an_input_that_cannot_be_read_twice_is_refused(tmp_path, capsys):
    text = json.dumps(line("a")) + "\n"
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    try:
        for path in (tmp_path, f"/dev/fd/{reading}"):
            assert main(["run-batch", str(path), str(tmp_path / "out.jsonl"), "demo"]) == 2
            assert f"{path} is no regular file" in capsys.readouterr().err
        assert os.read(reading, 1 << 16) == text.encode(), "nothing was taken from it"
    finally:
        os.close(reading)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_the_user_can_mend(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps(line("a")))
    for argv, words in (
        ((), "required"),
        (("nowhere.jsonl", "out.jsonl"), "nowhere.jsonl cannot be read"),
        ((str(tmp_path / "in.jsonl"), str(tmp_path / "in.jsonl")), "is the input"),
        ((str(tmp_path / "in.jsonl"), str(tmp_path / "no" / "out.jsonl")), "cannot be written"),
        ((str(tmp_path / "in.jsonl"), "out.jsonl", "--colour", "red"), "--colour"),
    ):
        assert main(["run-batch", *argv]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_text() == json.dumps(line("a"))
