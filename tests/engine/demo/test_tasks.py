"""The demo families: what is asked, what counts as right, and that training never meets what is held out."""

import json
import re
from functools import cache
from itertools import islice
from random import Random

import pytest

from engine.demo.families.basics import MAX_SUM, MAX_TOTAL, OUT_OF_RANGE
from engine.demo.families.facts import FACT_GROUPS
from engine.demo.families.problem import Problem, Turn, parsed_calls, written_calls
from engine.demo.families.stories import is_story, tell
from engine.demo.families.talk import HONEST
from engine.demo.tasks import TASKS, examples, problems, split_of

SEED = 7
PUBLISHED = {
    "word": "Lily has 5 cakes. Lily sells 4 of them. Lily gets 2 more. Lily loses 3 of them. "
    "How many cakes does Lily have now?",
    "sort": "Sort these numbers: 10 2 12 6 8.",
    "reverse": "Turn these words around: milk bird key pen game.",
    "facts": "What is a young cat called?",
    "story": "Write a short story about Jack, Eva and a puppet.",
    "yesno": "Leo is in the beach. Ann has a green flute. Jack has 7 pens. "
    "Jack is in the river. Is the flute purple? Answer yes or no.",
    "choice": "Read this: Mia has a purple flute. Tim has a blue puppet. "
    "Eva is in the river. Where is Eva? A) river B) forest C) garden Which letter is right?",
    "score": "For Lily the stamps are good. How much does Lily like the stamps? Give a score from 1 to 5.",
}
"""The first problem of families that docs/quality.md and docs/demo-model.md have figures of."""


@cache
def sample(task: str, n: int = 100) -> tuple[Problem, ...]:
    """Drawn once: most of what is drawn is not held out."""
    return tuple(problems(task, SEED, n))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_asks_the_same(task: str) -> None:
    assert problems(task, SEED, 20) == problems(task, SEED, 30)[:20]
    assert problems(task, SEED, 20) != problems(task, SEED + 1, 20)


@pytest.mark.parametrize("task", TASKS)
def test_training_never_sees_a_held_out_prompt(task: str) -> None:
    """What is asked says of itself where it belongs."""
    assert {split_of(problem.key) for problem in sample(task)} == {"held_out"}
    assert {split_of(problem.key) for problem in problems(task, SEED, 40, "train")} == {"train"}


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_accepts_its_own_answer_with_white_space_around_it(task: str) -> None:
    for problem in sample(task):
        assert problem.task == task
        if problem.yes is None:  # else the answer is drawn, and the likelier one is right
            assert problem.check(problem.answer)
            assert problem.check(f" {problem.answer}\n")


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_refuses_a_wrong_answer(task: str) -> None:
    for problem in sample(task):
        assert not problem.check("")
        assert not problem.check(problem.answer[:-1])
        assert not problem.check(f"{problem.answer} {problem.answer}")
        if " " in problem.answer and not problem.answer.startswith(("{", "<")):
            assert not problem.check(problem.answer.replace(" ", "  ", 1))


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"story", "tale", "yesno"}))
def test_a_problem_refuses_the_answer_of_another(task: str) -> None:
    problem, *others = sample(task)
    assert not any(problem.check(other.answer) for other in others if other.answer != problem.answer)


def test_problems_are_those_of_the_published_tables() -> None:
    """Their seeds are in docs: a change of what they draw would make the tables those of other problems."""
    drawn = {task: problems(task, 20261122, 1)[0].prompt for task in PUBLISHED}
    assert drawn == PUBLISHED


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


def test_tales_are_about_anybody_or_those_who_are_named() -> None:
    tale = tell(Random(SEED), ("Tom", "Mia"), ("kite",), is_long=True)
    assert is_story(tale, ("Tom", "Mia"), ("kite",), is_long=True)
    assert not is_story(tale, ("Tom", "Sam"), ("kite",), is_long=True)
    assert not is_story(tale, ("Tom", "Mia"), ("kite",), is_long=False)
    free = tell(Random(SEED), (), (), is_long=True)
    assert is_story(free, (), (), is_long=True)
    hero = free.split()[2]
    other = "Tom" if hero != "Tom" else "Mia"
    assert is_story(free.replace(hero, other), (), (), is_long=True)
    assert not is_story(free.replace(hero, other, 1), (), (), is_long=True), "one hero keeps one name"
    assert len(free.split()) > 60


def test_sums_stay_in_their_range() -> None:
    for problem in sample("sum"):
        if problem.answer == OUT_OF_RANGE:
            said = re.search(r"(\d+) (\S+) (\d+)", problem.prompt)
            numbers = [int(said[1]), int(said[3])]
            numbers.append(sum(numbers) if said[2] in ("+", "plus") else numbers[0] - numbers[1])
            assert not all(0 <= number <= MAX_SUM for number in numbers)
            continue
        left, sign, right, _, result = problem.answer.removesuffix(".").split()
        assert int(result) == int(left) + int(right) * (1 if sign == "+" else -1)
        assert all(0 <= int(number) <= MAX_SUM for number in (left, right, result))


def test_second_turns_follow_a_whole_first_one() -> None:
    for problem in sample("turn"):
        first, said = problem.before
        assert (first.role, said.role, problem.role) == ("user", "assistant", "user")
        assert [message["role"] for message in problem.messages()] == ["user", "assistant", "user"]


def test_forms_are_values_whatever_their_white_space() -> None:
    for problem in sample("form"):
        fields = json.loads(problem.answer)
        assert problem.check(json.dumps(fields, separators=(",", ":")))
        assert all(str(value) in problem.prompt for value in fields.values())
        assert not problem.check(json.dumps(fields | {"more": 1}))
        assert not problem.check(json.dumps(list(fields)))


def test_tool_calls_are_of_tools_that_are_there() -> None:
    seen = set()
    for problem in sample("tool"):
        names = {json.loads(tool)["function"]["name"] for tool in problem.tools}
        calls = parsed_calls(problem.answer)
        assert {call["name"] for call in calls or ()} <= names
        seen.add("call" if calls else "result" if problem.role == "tool" else "honest" * (problem.answer == HONEST))
        for message in problem.messages():
            for call in message.get("tool_calls", ()):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert seen == {"call", "result", "honest", ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is sunny.",
        '<tool_call>\n{"name": "add"}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {}}',
        "<tool_call>\nadd(1, 2)\n</tool_call>",
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call> and so on',
        'Here: <tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>',
    ],
)
def test_what_is_no_tool_call_is_none(text: str) -> None:
    assert parsed_calls(text) is None


def test_tool_calls_are_read_as_they_are_written() -> None:
    calls = [("add", {"a": 1, "b": 2}), ("weather", {"city": "Oslo"})]
    assert parsed_calls(written_calls(calls)) == [{"name": name, "arguments": given} for name, given in calls]


def test_a_draw_is_right_when_it_is_the_likelier_one() -> None:
    often, even = (Problem(task="yesno", prompt="", answer="No", yes=yes) for yes in (0.7, 0.5))
    assert often.check("Yes")
    assert not often.check("No")
    assert even.check("Yes")
    assert even.check("No")
    assert not even.check("Maybe")


def test_draws_come_out_as_often_as_they_say() -> None:
    drawn = [problem for problem in problems("yesno", SEED, 4000, "train") if problem.yes is not None]
    for tenth in range(1, 10):
        those = [problem.answer == "Yes" for problem in drawn if problem.yes == tenth / 10]
        assert len(those) > 40
        assert abs(sum(those) / len(those) - tenth / 10) < 4 * (0.25 / len(those)) ** 0.5


@pytest.mark.parametrize("task", TASKS)
def test_solved_examples_are_of_the_family_and_its_tools(task: str) -> None:
    problem = sample(task, 1)[0]
    for solved in islice(examples(problem, Random(SEED)), 8):
        assert solved.task == task
        assert split_of(solved.key) == "train"
        assert {json.loads(tool)["function"]["name"] for tool in solved.tools} == {
            json.loads(tool)["function"]["name"] for tool in problem.tools
        }


def test_messages_carry_the_results_of_calls_by_id() -> None:
    calls = written_calls([("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})])
    before = (Turn("user", "Weather?"), Turn("assistant", calls), Turn("tool", "sunny"))
    *_, said, first, second = Problem(task="tool", prompt="rainy", answer="", before=before, role="tool").messages()
    ids = [call["id"] for call in said["tool_calls"]]
    assert [first["tool_call_id"], second["tool_call_id"]] == ids
    assert len(set(ids)) == 2
    assert said["content"] is None
