"""How requests end and how long they took, as observers are told."""

import asyncio

import pytest

from engine import FinishReason, RequestFailed


class Diary:
    """An observer that writes everything down."""

    def __init__(self):
        self.gaps = []
        self.ends = []

    def on_block(self, stats, seconds):
        self.gaps.append((stats.submission.request_id, seconds))

    def on_end(self, stats):
        self.ends.append(stats)


@pytest.fixture
def diary(app):
    observer = Diary()
    app.state.service.submitter._observers._members = [observer]
    return observer


async def test_a_whole_answer(api, diary, engine):
    await api.complete(max_tokens=7)
    [end] = diary.ends
    assert end.finish_reason is FinishReason.LENGTH
    assert end.usage.completion_tokens == 7
    assert end.submission is engine.submissions[0]
    assert len(diary.gaps) == 2
    assert end.submitted <= end.first_block <= end.last_block <= end.ended
    assert end.seconds == end.ended - end.submitted
    assert end.first_block_seconds + diary.gaps[1][1] == pytest.approx(end.last_block - end.submitted)
    assert end.seconds_per_token == pytest.approx((end.ended - end.first_block) / 6)
    assert end.queue_seconds is None, "the fake engine does not say"


async def test_each_choice_has_its_own_stats(api, diary):
    await api.complete(prompt=["a", "bcd"])
    assert sorted(end.usage.prompt_tokens for end in diary.ends) == [1, 3]


async def test_one_block_has_no_time_per_token(api, diary, engine):
    engine.script = lambda _: ["all of it", FinishReason.STOP]
    await api.complete()
    assert diary.ends[0].seconds_per_token is None
    assert diary.ends[0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [["one ", "two", "three"], ["one ", "two"]])
async def test_a_stop_string_is_a_stop_whatever_the_engine_says(api, diary, engine, stream, script):
    engine.script = lambda _: script
    await api.complete(stop="tw", stream=stream)
    assert [end.finish_reason for end in diary.ends] == [FinishReason.STOP]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engines_failure_is_an_error(api, diary, engine, stream):
    engine.script = lambda _: ["one ", RequestFailed("broken")]
    await api.complete(stream=stream)
    assert [end.finish_reason for end in diary.ends] == [FinishReason.ERROR]


async def test_a_client_that_hangs_up_is_an_abort(app, diary, engine, tokenizer):
    engine.script = None
    sent = asyncio.Event()

    async def receive():
        if not sent.is_set():
            sent.set()
            return {"type": "http.request", "body": b'{"prompt": "ab"}', "more_body": False}
        await engine.submitted.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    [end] = diary.ends
    assert end.finish_reason is FinishReason.ABORT
    assert end.first_block is end.first_block_seconds is None
    assert end.seconds > 0


async def test_an_abort_is_no_block(api, diary, engine):
    """The engine's last word has no tokens: a request that waited all the while never showed a first block."""
    engine.script = lambda _: ["", FinishReason.ABORT]
    api.error_of(await api.complete(), 503)
    [end] = diary.ends
    assert end.first_block is None
    assert diary.gaps == []


async def test_the_answers_usage_is_that_of_its_stats(api, diary, engine):
    engine.script = lambda _: ["one E", "ND two"]
    answer = (await api.complete(stop="END")).json()
    assert diary.ends[0].usage.completion_tokens == answer["usage"]["completion_tokens"] == 7


async def test_a_server_that_stops_aborts(api, diary, engine):
    engine.script = lambda _: ["one ", "two", FinishReason.ABORT]
    api.error_of(await api.complete(), 503)
    assert [end.finish_reason for end in diary.ends] == [FinishReason.ABORT]
