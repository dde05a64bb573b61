"""Where the context ends within a block, that block is shorter: under every policy as if it had been asked so."""

from dataclasses import replace

import pytest

from engine import UNMASKS, EngineConfig, FinishReason, Hole, load
from tests.engine.toys import EACH_POLICY, EVERY_PAIR

CONTEXT = 40


@pytest.fixture(scope="module", params=["llada_tiny", "dream_tiny"])
def engines(request):
    """With a context of 40, and with the model's own."""
    model = str(request.getfixturevalue(request.param))
    return load(EngineConfig(model=model, max_model_len=CONTEXT, page_size=8)), load(EngineConfig(model=model))


def test_a_single_block_is_as_short_as_the_room(engines, submission, run):
    """A prompt of 29 leaves 11: the same as blocks of 11, where the canvas ends there anyway."""
    short, long = engines
    asked = [
        submission(number, prompt=list(range(29)), gen_length=10, cache=cache, unmask=unmask, steps=3, ignore_eos=True)
        for number, (cache, unmask) in enumerate(EACH_POLICY)
    ]
    answers = run(short, *asked)
    in_elevens = (replace(one, diffusion=replace(one.diffusion, block_length=11)) for one in asked)
    assert answers == run(long, *in_elevens)
    assert {(len(tokens), reason) for tokens, reason, _ in answers.values()} == {(10, FinishReason.LENGTH)}
    assert short.stats().kv_pages_used == 0


@pytest.mark.parametrize(
    "pairs", [EACH_POLICY, pytest.param(EVERY_PAIR, marks=pytest.mark.slow)], ids=["each", "every"]
)
def test_the_last_of_several_blocks_is(engines, submission, run, pairs):
    """A prompt of 10 and blocks of 8, 8, 8 and 6: what filling a hole of 30 behind the prompt makes."""
    short, long = engines
    row = {"prompt": list(range(10)), "gen_length": 26, "block_length": 8, "steps": 4, "ignore_eos": True}
    asked = [submission(number, cache=cache, unmask=unmask, **row) for number, (cache, unmask) in enumerate(pairs)]

    def as_hole(one):
        length = 26 if UNMASKS[one.diffusion.unmask].cuts_canvas else CONTEXT - 10
        return replace(one, holes=(Hole(10, length),), sampling=replace(one.sampling, max_tokens=length))

    answers, filled = run(short, *asked), run(long, *map(as_hole, asked))
    for request_id, (tokens, reason, usage) in answers.items():
        assert tokens == filled[request_id][0][:26]
        assert reason is FinishReason.LENGTH
        assert usage.completion_tokens == 26


def test_a_block_longer_than_the_context_is_the_room(engines, submission, run):
    short, _ = engines
    request = short.new_request(submission(prompt=[5], gen_length=3, block_length=65536, steps=1))
    assert (request.canvas_end, request.block.end, request.num_blocks) == (CONTEXT, CONTEXT, 1)
    [(tokens, reason, _)] = run(short, submission(prompt=[5], gen_length=3, block_length=65536)).values()
    assert (len(tokens), reason) == (3, FinishReason.LENGTH)


def test_a_canvas_takes_the_pages_of_its_shortened_length(llada_tiny, submission):
    engine = load(EngineConfig(model=str(llada_tiny), max_model_len=CONTEXT, page_size=8, kv_cache_tokens=CONTEXT))
    engine.submit(engine.new_request(submission(prompt=[5] * 30, gen_length=10)))
    assert engine.step() == []
    assert engine.stats().kv_pages_used == 5
