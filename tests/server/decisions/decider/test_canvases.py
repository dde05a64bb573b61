"""The canvases of decisions: what stands on them, when they are written out, and which are too long."""

import tracemalloc
from types import SimpleNamespace

import pytest

from engine import ContextLengthExceeded, FinishReason, Hole, InvalidRequest, ModelSpec, Output, TokenLogprobs, Usage
from server.decisions.decider import Decider
from server.decisions.labels import Label, Labels
from server.decisions.questions import Option, Question, predicate
from server.observe.observer import Observers
from server.text.encoder import Encoder, Unreadable
from tests.server.decisions.decider.asking import INPUT, QUESTIONS, TEMPLATE, question

PIRATE = [{"role": "system", "content": "Ahoy."}, {"role": "user", "content": "Hi."}]


async def test_what_stands_on_the_canvas(deciding, engine, tokenizer):
    async with deciding() as decide:
        await decide([predicate("Is it so?"), question(7)], PIRATE)
    is_causal = engine.info.spec.is_block_causal
    texts = [
        "<system>Ahoy.</><user>Hi.\nIs it so?\nA: Yes\nB: No\nAnswer with the letter.</><assistant>",
        "<system>Ahoy.</><user>Hi.\nWhich of 7?\nA: o7-0\nB: o7-1 (so)\nAnswer with the letter.</><assistant>",
    ]
    for text, submission in zip(texts, decide.submitted, strict=True):
        assert await tokenizer.decode_all(submission.prompt_ids) == text + ("" if is_causal else "</>")
        assert submission.holes == (() if is_causal else (Hole(len(text), 1),))


async def test_a_joint_canvas(deciding, engine, tokenizer):
    if engine.info.spec.is_block_causal:
        return
    async with deciding() as decide:
        await decide([predicate("Is it so?"), QUESTIONS[2]], PIRATE, is_joint=True)
    [submission] = decide.submitted
    assert await tokenizer.decode_all(submission.prompt_ids) == (
        "<system>Ahoy.</><user>Hi.\n1. Is it so?\nA: Yes\nB: No\nAnswer with the letter.\n"
        "2. Which of 2?\n1: o2-0\n2: o2-1 (so)\n3: o2-2\n4: o2-3 (so)\nAnswer from 1 to 4.</><assistant>"
        "1:\n\n2:\n</>"
    )
    first, second = submission.holes
    assert (second.offset - first.offset, len(submission.prompt_ids) - second.offset) == (4, 3)


async def test_a_conversation_may_end_with_the_assistants_turn(deciding, tokenizer):
    async with deciding() as decide:
        await decide([predicate("Was it polite?")], [*PIRATE, {"role": "assistant", "content": "Aye."}])
    text = await tokenizer.decode_all(decide.submitted[0].prompt_ids)
    assert "<assistant>Aye.</><user>Was it polite?\nA: Yes" in text


async def test_a_conversation_may_end_with_a_tools_result(deciding, tokenizer):
    function = {"name": "look", "arguments": '{"x": 1}'}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    async with deciding() as decide:
        await decide([predicate("Is it red?")], [*PIRATE, call, {"role": "tool", "content": "red"}])
        function["arguments"] = "["
        with pytest.raises(InvalidRequest, match="JSON text") as error:
            await decide([predicate("Is it red?")], [*PIRATE, call])
    text = await tokenizer.decode_all(decide.submitted[0].prompt_ids)
    assert '<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call></><user><tool_response>\nred\n' in text
    assert "</tool_response></><user>Is it red?\nA: Yes" in text
    assert error.value.param == "input"


async def test_a_control_token_in_a_question_is_text(deciding, engine, tokenizer):
    [control, *_] = [token.content for token in tokenizer.added_tokens.values() if token.special]
    async with deciding() as decide:
        await decide([predicate("Is it so?"), predicate(f"Is it {control}so?")])
    ids = {id_ for id_, token in tokenizer.added_tokens.items() if token.special}
    counts = [sum(id_ in ids for id_ in one.prompt_ids) for one in decide.submitted]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("is_joint", [False, True])
async def test_canvases_are_written_out_as_they_are_submitted(is_joint):
    """400 canvases of 30,000 tokens would take 92 MiB together."""
    before, questions = list(range(1000, 31_000)), [predicate(f"Is it {number}?") for number in range(400)]
    seen = []

    class Words:
        has_chat_template = True

        async def converse_each(self, turns, endings, max_characters):
            return {"before": before, "endings": [[n, n] for n in range(len(endings))], "opening": [7], "closing": [8]}

        async def encode(self, texts, **_):
            return [[9] * (1 + number % 2) for number in range(len(texts))]

    class Reads:
        max_characters = 1 << 20

        def check_length(self, texts, param):
            pass

    class Runs:
        async def run(self, submissions, at_once):
            blocks = []
            for one in submissions:
                named = tuple(-float(id_) for id_ in one.sampling.logprob_ids)
                told = (TokenLogprobs(-1.0, (), named),) * len(one.holes)
                usage = Usage(prompt_tokens=0, completion_tokens=0, forwards=1, rows_computed=1)
                finish = FinishReason.LENGTH
                one_block = Output(request_id="", token_ids=(1,), finish_reason=finish, usage=usage, logprobs=told)
                blocks.append(one_block)
                seen.append((len(one.prompt_ids), one.prompt_ids[30_000:], one.holes[-1]))
            return blocks

    spec = ModelSpec(family="llada", vocab_size=40_000, mask_id=0, eos_ids=frozenset(), max_model_len=40_000)
    info = SimpleNamespace(spec=spec, max_model_len=40_000, max_running_requests=4)
    decider = Decider(SimpleNamespace(info=info), Words(), Reads(), Runs(), Observers().tokens)
    decider._labels = Labels((Label("Yes", 1), Label("No", 2)), (), ())
    tracemalloc.start()
    try:
        decided = await decider.decide(INPUT, questions, is_joint=is_joint)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if is_joint:
        answer = [9] + [9, 9, 9] * 199 + [9, 9]
        assert seen == [(30_604, [0, 0, 7, *answer, 8], Hole(30_603, 1))]
    else:
        assert seen == [(30_004, [n, n, 7, 8], Hole(30_003, 1)) for n in range(400)]
    assert decided.usage.prompt_tokens == sum(length for length, *_ in seen)
    assert len(decided.probabilities) == 400
    assert peak < 4 << 20


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ messages[-1].content }}", TEMPLATE * 2])
def test_a_template_that_does_not_show_the_question_and_its_answer_once_each(tokenizer, template):
    encoder = Encoder(**{**tokenizer._setup(), "template": template})
    with pytest.raises(Unreadable, match="once each"):
        encoder.converse_each([{"role": "user", "content": "Hi."}], ["Is it so?"], max_characters=1000)


async def test_too_much_is_refused_by_name(deciding, engine):
    long = "very " * engine.info.max_model_len
    async with deciding() as decide:
        for param, questions, turns in (
            ("input", QUESTIONS[:1], [{"role": "user", "content": long}]),
            ("input", QUESTIONS[:1], [{"role": "user", "content": long * 20}]),
            ("questions.1", [QUESTIONS[0], predicate(long)], INPUT),
            ("questions", [QUESTIONS[0], predicate(long * 20)], INPUT),
        ):
            with pytest.raises(ContextLengthExceeded) as error:
                await decide(questions, turns)
            assert error.value.param == param
        options = tuple(Option(text=str(number)) for number in range(5000))
        with pytest.raises(InvalidRequest, match="labels") as refused:
            await decide([QUESTIONS[0], Question(kind="choice", instructions="?", options=options)])
        assert refused.value.param == "questions.1.choices"
