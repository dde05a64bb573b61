"""Decisions by real engines: what a plain forward says of each option, whatever else is asked together."""

import asyncio
import shutil
import tracemalloc
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import (
    ContextLengthExceeded,
    EngineConfig,
    EngineLoop,
    FinishReason,
    Hole,
    InvalidRequest,
    ModelSpec,
    Output,
    TokenLogprobs,
    Usage,
    load,
)
from engine.bench.block_causal import BlockCausalContext
from engine.bench.causal_commit import CommittedSequence
from engine.bench.reference import DenseContext
from server.decisions.decider import Decider
from server.decisions.labels import Label, Labels
from server.decisions.questions import Option, Question, predicate
from server.observe.observer import Observers
from server.prompts.prompts import PromptReader
from server.replies.forwards import Forwards
from server.text.encoder import Encoder, Unreadable
from server.text.tokenizer import Tokenizer

INPUT = [{"role": "user", "content": "Tom has a red box. " * 4}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
PIRATE = [{"role": "system", "content": "Ahoy."}, {"role": "user", "content": "Hi."}]


def question(number):
    """One of each kind in turn, all different."""
    if number % 3 == 0:
        return predicate(f"Is it {number}?")
    kind = "choice" if number % 3 == 1 else "score"
    count = 2 + number % 7
    options = tuple(Option(text=f"o{number}-{i}", description="so" if i % 2 else None) for i in range(count))
    return Question(kind=kind, instructions=f"Which of {number}?", options=options)


QUESTIONS = [question(number) for number in range(24)]


@pytest.fixture(scope="module", params=["llada-tiny", "dream-tiny", "sdar-tiny", "fast-dllm-v2-tiny", "nemotron-tiny"])
def folder(request, llada_tiny):
    return llada_tiny.with_name(request.param)


@pytest.fixture(scope="module")
def engine(folder):
    return load(EngineConfig(model=str(folder), page_size=8))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder, tmp_path_factory):
    """Its tokens are bytes; turns have an end."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with closing(Tokenizer.load(folder)) as tokenizer:
        yield tokenizer


@pytest.fixture
def deciding(engine, tokenizer, monkeypatch):
    """`async with deciding() as decide`: a decider around an engine loop; `decide.submitted` are its requests."""

    @asynccontextmanager
    async def running():
        loop = EngineLoop(engine)
        submitted, prepare = [], loop.prepare
        monkeypatch.setattr(loop, "prepare", lambda some: submitted.extend(some) or prepare(some))
        prompts = PromptReader(tokenizer, max_model_len=loop.info.max_model_len, vocab_size=loop.info.spec.vocab_size)
        decider = Decider(loop, tokenizer, prompts, Forwards(loop), Observers().tokens)

        async def decide(questions, turns=INPUT, **how):
            return await decider.decide(turns, questions, **how)

        decide.submitted = submitted
        loop.start()
        yield decide
        await loop.stop(drain_seconds=1)

    return running


def plain(engine, submission):
    """For each blank, the probabilities of the submission's named tokens, by a plain forward over its whole canvas."""
    request, spec, model = engine.new_request(submission), engine.info.spec, engine.runner.model
    ids, named = torch.from_numpy(request.ids), list(submission.sampling.logprob_ids)
    if spec.says_next:
        with torch.inference_mode():
            said = CommittedSequence(model).append(submission.prompt_ids)[-1].double().numpy()
        weights = np.exp(said[named])
        yield weights / weights.sum()
        return
    context = DenseContext(model, len(ids))
    if spec.is_block_causal:
        context = BlockCausalContext(model, len(ids), request.block_length)
    with torch.inference_mode():
        logits = model.logits(model(ids, torch.arange(len(ids)), context)).double().numpy()
    for blank in request.answer_positions[: submission.sampling.max_tokens]:
        weights = np.exp(logits[max(blank - spec.shift, 0), named])
        yield weights / weights.sum()


async def test_each_option_is_as_probable_as_a_plain_forward_says(deciding, engine):
    async with deciding() as decide:
        decided = await decide(QUESTIONS)
    assert len(decide.submitted) == len(decided.probabilities) == 24
    for one, found, submission in zip(QUESTIONS, decided.probabilities, decide.submitted, strict=True):
        assert len(found) == len(one.options)
        assert sum(found) == pytest.approx(1, abs=1e-12)
        [expected] = plain(engine, submission)
        assert found == pytest.approx(expected, abs=1e-5)
    told = {tuple(np.round(found, 9)) for found in decided.probabilities}
    assert len(told) == 24, "each question has its own answer"


async def test_answers_do_not_depend_on_what_else_is_asked(deciding):
    order = np.random.default_rng(0).permutation(24).tolist()
    async with deciding() as decide:
        together = await decide(QUESTIONS)
        mixed, alone, twice = await asyncio.gather(
            decide([QUESTIONS[number] for number in order]), decide(QUESTIONS[5:6]), decide(QUESTIONS[5:6] * 3)
        )
    for place, number in enumerate(order):
        assert mixed.probabilities[place] == pytest.approx(together.probabilities[number], abs=1e-6)
    for found in (*alone.probabilities, *twice.probabilities):
        assert found == pytest.approx(together.probabilities[5], abs=1e-6)


@pytest.fixture
def steps(engine, monkeypatch):
    """The steps of the engine, each as its plans."""
    taken, commit = [], engine.scheduler.commit

    def watched(choices):
        taken.append([choice.plan for choice in choices])
        return commit(choices)

    monkeypatch.setattr(engine.scheduler, "commit", watched)
    return taken


async def test_four_hundred_at_once(deciding, engine, steps):
    """More than the engine has places for. One forward answers each; only what fills up a step is computed before."""
    assert engine.info.max_running_requests + engine.info.max_queued_requests < 400
    async with deciding() as decide:
        decided = await decide([question(number) for number in range(400)])
    assert [len(found) for found in decided.probabilities] == [len(question(n).options) for n in range(400)]
    assert decided.usage.completion_tokens == 0
    assert decided.usage.prompt_tokens == sum(len(one.prompt_ids) for one in decide.submitted)
    plans = [plan for step in steps for plan in step]
    assert decided.usage.forwards == len(plans)
    answering = [plan.request.id for plan in plans if len(plan.targets)]
    assert sorted(answering) == sorted(one.request_id for one in decide.submitted)
    spec = engine.info.spec
    for step in steps:
        parts = [plan for plan in step if not len(plan.targets)]
        assert spec.is_block_causal or not parts
        free = engine.info.max_batch_rows - sum(len(plan.rows) for plan in step)
        assert not parts or free < spec.block_length, "a part of a prompt, where the rest of the step was left empty"


async def test_block_causal_questions_share_the_pages_of_the_input(deciding, engine):
    async with deciding() as decide:
        decided = await decide(QUESTIONS)
    block = engine.info.spec.block_length or 0
    shared = 0
    if block:
        prompts = np.array([one.prompt_ids[:80] for one in decide.submitted])
        alike = int((prompts == prompts[0]).all(axis=0).cumprod().sum())
        assert alike > 70
        shared = 23 * (alike // max(block, 8) * max(block, 8))
    assert decided.usage.cached_tokens >= shared
    assert bool(decided.usage.cached_tokens) == bool(block)


async def test_joint_questions_are_one_canvas(deciding, engine):
    async with deciding() as decide:
        if engine.info.spec.is_block_causal:
            with pytest.raises(InvalidRequest, match="block-causal") as error:
                await decide(QUESTIONS[:6], is_joint=True)
            assert error.value.param == "diffusion.joint"
            return
        decided = await decide(QUESTIONS[:6], is_joint=True)
        again = await decide(QUESTIONS[:6], is_joint=True)
    submission = decide.submitted[0]
    assert decided == again
    assert decided.usage.forwards == 1
    ids = list(submission.sampling.logprob_ids)
    for one, found, expected in zip(QUESTIONS, decided.probabilities, plain(engine, submission), strict=False):
        labels = "123456789" if one.kind == "score" else "ABCDEFGHI"
        own = expected[[ids.index(ord(label)) for label in labels[: len(one.options)]]]
        assert found == pytest.approx(own / own.sum(), abs=1e-5)


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
