"""The chat form and the tokenizer: the template and its Python twin agree, and every text comes back whole."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from engine.demo.build_tokenizer import build, pieces, save
from engine.demo.chat import MARKS, SPECIALS
from engine.demo.samples import FORMS, Rows, chat_form, prompt_of
from engine.demo.tasks import TASKS, Problem, problems

SEED, SYSTEM = 7, "You are a helpful assistant."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows(build())


@pytest.fixture(scope="module")
def whole_words() -> set[str]:
    return {*pieces(), *SPECIALS, *MARKS, "\n", *"0123456789", " "}


def templated(tokenizer: PreTrainedTokenizerFast, problem: Problem, *, before: list[dict[str, object]]) -> str:
    messages = [*before, *problem.messages()]
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    tools = [json.loads(tool) for tool in problem.tools] or None
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("system", ["", SYSTEM])
@pytest.mark.parametrize("task", TASKS)
def test_the_chat_form_is_what_the_chat_template_renders(
    task: str, system: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    before = [{"role": "system", "content": system}] if system else []
    for problem in problems(task, SEED, 20):
        assert templated(tokenizer, problem, before=before) == prompt_of(chat_form(problem, (), system))


def test_solved_examples_are_turns_and_white_space_is_trimmed(tokenizer: PreTrainedTokenizerFast) -> None:
    problem, shot = problems("facts", SEED, 2)
    before = [{"role": "user", "content": f" {shot.prompt}\n"}, {"role": "assistant", "content": f"{shot.answer} "}]
    assert templated(tokenizer, problem, before=before) == prompt_of(chat_form(problem, [shot]))


def test_arguments_may_come_as_text(tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|eot_id|>' in text


@pytest.mark.parametrize("task", TASKS)
def test_every_text_round_trips_and_its_pieces_are_its_tokens(task: str, rows: Rows) -> None:
    for problem in problems(task, SEED, 20):
        for form in FORMS[:1] if problem.tools else FORMS:
            text = form(problem, problems(task, SEED, 2, "train") if not problem.tools else ())
            row, whole = rows.encoded(text), "".join(piece for piece, _ in text)
            assert rows.tokenizer.encode(whole).ids == row.ids
            assert rows.tokenizer.decode(row.ids, skip_special_tokens=False) == whole
            start, end = row.answers[-1]
            assert end == len(row.ids)
            assert rows.tokenizer.decode(row.ids[start:]).strip() == problem.answer


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"other"}))
def test_the_families_are_written_in_whole_words(task: str, rows: Rows, whole_words: set[str]) -> None:
    used = {id_ for problem in problems(task, SEED, 50) for id_ in rows.encoded(chat_form(problem)).ids}
    assert {rows.tokenizer.decode([id_], skip_special_tokens=False) for id_ in used} <= whole_words


@pytest.mark.parametrize(
    "text", ["zebras don't  reverse", "日本 naïve 🙂", " a\n\tb ", "1234 + 5678", "", '{"a":{"b":[1,2]}}']
)
def test_unknown_text_round_trips_in_bytes(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_form_takes_few_tokens(rows: Rows) -> None:
    assert len(rows.tokenizer.encode('{"name": "Tom", "count": 3, "colour": "red"}').ids) == 13


def test_marks_of_tools_are_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("<tool_call>\n</tool_call>").input_ids
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>\n</tool_call>"
