"""The demo families: what is asked, what counts as right, and that training never meets what is held out."""

from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from engine.demo import PATH
from engine.demo.build_tokenizer import SPECIALS, pieces
from engine.demo.facts import FACT_GROUPS
from engine.demo.samples import FORMS, chat_form
from engine.demo.stories import is_story, tell
from engine.demo.tasks import MAX_TOTAL, TASKS, Problem, problems, split_of

SEED = 7


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(PATH)


def sample(task: str, n: int = 300) -> list[Problem]:
    return problems(task, SEED, n)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_asks_the_same(task: str) -> None:
    assert problems(task, SEED, 20) == problems(task, SEED, 30)[:20]
    assert problems(task, SEED, 20) != problems(task, SEED + 1, 20)


@pytest.mark.parametrize("task", TASKS)
def test_training_never_sees_a_held_out_prompt(task: str) -> None:
    held_out = {problem.prompt for problem in sample(task)}
    train = {problem.prompt for problem in problems(task, SEED, 3000, "train")}
    assert held_out
    assert train
    assert held_out.isdisjoint(train)


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_accepts_its_own_answer_with_white_space_around_it(task: str) -> None:
    for problem in sample(task):
        assert problem.task == task
        assert problem.check(problem.answer)
        assert problem.check(f" {problem.answer}\n")


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_refuses_a_wrong_answer(task: str) -> None:
    for problem in sample(task):
        assert not problem.check("")
        assert not problem.check(problem.answer.removesuffix("."))
        assert not problem.check(f"{problem.answer} {problem.answer}")
        assert not problem.check(problem.answer.replace(" ", "  ", 1))


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"story"}))
def test_a_problem_refuses_the_answer_of_another(task: str) -> None:
    problem, *others = sample(task)
    assert not any(problem.check(other.answer) for other in others if other.answer != problem.answer)


def test_word_problems_work_out_every_step() -> None:
    for problem in sample("word"):
        *steps, answer = problem.answer.split(". ")
        assert 1 <= len(steps) <= 3
        total = None
        for step in steps:
            _, left, sign, right, _, result = step.split()
            assert total in (None, int(left))
            total = int(left) + int(right) if sign == "+" else int(left) - int(right)
            assert total == int(result)
            assert 0 <= total <= MAX_TOTAL
        assert answer == f"The answer is {total}."


@pytest.mark.parametrize(("task", "restore"), [("sort", sorted), ("reverse", None)])
def test_lists_hold_three_to_six_distinct_items(task: str, restore: object) -> None:
    for problem in sample(task):
        asked = problem.prompt.rsplit(": ")[1].removesuffix(".").split()
        given = problem.answer.split(": ")[1].removesuffix(".").split()
        assert 3 <= len(set(asked)) == len(asked) <= 6
        assert given == (sorted(asked, key=int) if restore is sorted else asked[::-1])


def test_there_are_a_hundred_facts_each_asked_in_several_ways() -> None:
    assert sum(len(group.answers) for group in FACT_GROUPS) >= 100
    for group in FACT_GROUPS:
        for subject in group.answers:
            trained = [question for question in group.questions if split_of(question.format(subject)) == "train"]
            assert len(trained) >= 2, subject


def test_stories_keep_to_what_was_asked() -> None:
    story = tell(Random(SEED), ("Tom", "Mia"), ("kite", "drum"))
    assert is_story(story, ("Tom", "Mia"), ("kite", "drum"))
    assert not is_story(story, ("Tom", "Sam"), ("kite", "drum"))
    assert not is_story(story, ("Tom", "Mia"), ("kite", "bell"))
    assert not is_story(story, ("Tom", "Mia"), ("kite",))
    assert not is_story(story.replace(" a ", " a a ", 1), ("Tom", "Mia"), ("kite", "drum"))


def test_the_free_words_of_a_story_are_free() -> None:
    stories = {tell(Random(seed), ("Tom",), ("kite",)) for seed in range(20)}
    assert len(stories) > 10
    assert all(is_story(story, ("Tom",), ("kite",)) for story in stories)


@pytest.fixture(scope="module")
def words() -> set[str]:
    return {*pieces(), *SPECIALS, "\n"}


@pytest.mark.parametrize("task", TASKS)
def test_every_text_round_trips_in_whole_words(task: str, tokenizer: PreTrainedTokenizerFast, words: set[str]) -> None:
    texts = ["".join(form(problem, ())) for problem in sample(task, 50) for form in FORMS]
    encoded = tokenizer(texts, add_special_tokens=False).input_ids
    assert tokenizer.batch_decode(encoded) == texts
    used = {id_ for ids in encoded for id_ in ids}
    assert {tokenizer.decode([id_]) for id_ in used} <= words


@pytest.mark.parametrize("text", ["zebras don't  reverse", "日本 naïve 🙂", " a\n\tb ", "1234 + 5678", ""])
def test_unknown_text_round_trips_in_bytes(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_chat_form_is_what_the_chat_template_renders(tokenizer: PreTrainedTokenizerFast) -> None:
    problem, shot = sample("facts", 2)
    turns = [("user", shot.prompt), ("assistant", shot.answer), ("user", f" {problem.prompt}\n")]
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == chat_form(problem, [shot])[0]
