"""When a full queue is worth asking again."""

from dataclasses import replace

from server.observe.pace import MAX_ENDS, WINDOW_SECONDS, Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def ended(clock, count, seconds_each):
    pace = Pace(clock)
    for _ in range(count):
        pace.count_end()
        clock.now += seconds_each
    return pace


def test_nothing_is_known_yet():
    assert Pace().seconds_to_halve(256) == 1


def test_it_follows_the_queues_length():
    pace = ended(Clock(), 10, 2.0)
    assert [pace.seconds_to_halve(waiting) for waiting in (0, 1, 7, 30)] == [1, 1, 7, 30]


def test_a_fast_server_may_be_asked_at_once_and_a_slow_one_within_a_minute():
    assert ended(Clock(), MAX_ENDS + 10, 0.001).seconds_to_halve(256) == 1
    assert ended(Clock(), 3, 15.0).seconds_to_halve(256) == WINDOW_SECONDS


def test_what_was_long_ago_does_not_count():
    clock = Clock()
    pace = ended(clock, 10, 2.0)
    clock.now += 100
    assert pace.seconds_to_halve(256) == 1
    pace.count_end()
    clock.now += 1
    assert pace.seconds_to_halve(20) == 10


async def test_a_client_is_told(app, api, engine):
    """Two answers, and a clock that a minute passes on between each end and the refusal."""
    pace = app.state.service.submitter._observers.pace
    pace._clock = Clock()
    for _ in range(2):
        assert (await api.complete()).status_code == 200
        pace._clock.now += 5
    engine.places, engine.stats = 0, replace(engine.stats, waiting=6)
    response = await api.complete()
    assert api.error_of(response, 429)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "15"
