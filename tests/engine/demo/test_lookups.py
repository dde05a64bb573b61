"""Rows to practise looking up: what an answer says is what the text says, and it fits the row."""

import json
import re
from itertools import chain
from random import Random

import pytest
from tokenizers import Tokenizer

from engine.demo import FOLDERS
from engine.demo.chat import BOS
from engine.demo.families.lookups import Asked, lookups, owners
from engine.demo.families.words import COLOURS, NAMES, PLACES, THINGS
from engine.demo.samples import LOOKUPS_LENGTH, Rows
from engine.demo.tasks import split_of

TEXTS = 400
CLOSED = re.compile(r"Does (\w+) have the \w+\?|Is the (?!ball)\w+ (\w+)\?|Is it (\w+day)\?")
OWNED = re.compile(rf"({'|'.join(NAMES)}) has a ({'|'.join(COLOURS)}) ({'|'.join(THINGS)})\.")


@pytest.fixture(scope="module")
def all_drawn() -> list[tuple[str, list[Asked]]]:
    rng = Random(5)
    return [(text, list(asked)) for text, asked in (lookups(rng) for _ in range(TEXTS))]


@pytest.fixture(scope="module")
def drawn(all_drawn) -> list[tuple[str, list[tuple[str, str]]]]:
    """Questions and answers alone."""
    return [(text, [(one.question, one.answer) for one in asked]) for text, asked in all_drawn]


def test_each_question_is_asked_once(drawn):
    for text, asked in drawn:
        questions = [question for question, _ in asked]
        assert questions, text
        assert len(set(questions)) == len(questions), text


def test_what_a_thing_is_like_and_whose_is_as_the_text_says(drawn):
    """Read back by another grammar than the one that wrote it."""
    checked = set()
    for text, asked in drawn:
        if "balls" in text:
            continue
        owned = {thing: (name, colour) for name, colour, thing in OWNED.findall(text)}
        for question, answer in asked:
            said = answer.split(", ")
            if whose := re.fullmatch(r"Does (\w+) have the (\w+)\?", question):
                name, _ = owned[whose[2]]
                right = [name == whose[1], name]
            elif colour := re.fullmatch(r"Is the (\w+) (\w+)\?", question):
                _, right_colour = owned[colour[1]]
                right = [right_colour == colour[2], right_colour]
            elif what := re.fullmatch(r"What colour is the (\w+)\?", question):
                assert answer == owned[what[1]][1]
                checked.add("open")
                continue
            else:
                continue
            checked.add(answer.split(" ")[0])
            assert said == [("No", "Yes")[right[0]], right[1]][: len(said)]
    assert checked == {"open", "Yes", "No", "Yes,", "No,"}


def test_letters_are_those_of_the_list(drawn):
    found = 0
    for text, asked in drawn:
        words = dict(re.findall(r"\b([A-D])[:.)] (\w+)", text))
        for question, answer in asked:
            if which := re.fullmatch(r"Which letter is (\w+)\?", question):
                assert words[answer] == which[1]
            elif what := re.fullmatch(r"What is ([A-D])\?", question):
                assert answer == words[what[1]]
            elif there := re.fullmatch(r"Is (\w+) in the list\?", question):
                assert answer == ("Yes" if there[1] in words.values() else "No")
            elif options := re.findall(r"\b([A-D])[:.)] (\w+)", question):
                assert answer in dict(options)
            else:
                continue
            found += 1
    assert found > TEXTS


def test_fields_are_those_of_the_form(drawn):
    forms = [(json.loads(text), asked) for text, asked in drawn if text.startswith("{")]
    for form, asked in forms:
        assert len(asked) == len(form)
        for question, answer in asked:
            field = question.removeprefix("What is the ").removesuffix("?")
            assert answer == f"The {field} is {form[field]}."
    assert forms


def test_a_clue_decides_its_judgement(all_drawn):
    """It is the word of the text that is compared, whatever the answer."""
    checked = set()
    for text, asked in all_drawn:
        for one in asked:
            if one.clue is None:
                assert one.answer not in ("Yes", "No") or "in the list" in one.question
                continue
            assert re.search(rf"\b{one.clue}\b", text), one
            answer, *reason = one.answer.split(", ")
            assert reason in ([], [one.clue])
            if there := re.fullmatch(r"Is \w+ in the (\w+)\?", one.question):
                is_so = there[1] in (one.clue, "list")
            elif gap := CLOSED.fullmatch(one.question):
                is_so = one.clue in gap.groups()
            elif answer in "ABCD":
                is_so = dict(re.findall(r"\b([A-D])[:.)] (\w+)", one.question))[answer] == one.clue
                answer = "Yes"
            else:
                continue
            assert answer == ("No", "Yes")[is_so]
            checked.add((one.answer[:1], one.question.split()[0]))
    assert {("Y", "Is"), ("N", "Is"), ("Y", "Does"), ("N", "Does"), ("A", "What"), ("B", "Who")} <= checked


def test_a_draw_is_asked_for_once_and_as_often_yes_as_the_bag_says(all_drawn):
    bags = [(text, asked) for text, asked in all_drawn if "balls" in text]
    expected = said = 0
    for text, asked in bags:
        counts = {colour: int(n) for n, colour in re.findall(rf"(\d+) ({'|'.join(COLOURS)})", text)}
        assert sum(counts.values()) == 10
        [draw] = [one for one in asked if not one.question.startswith("How many")]
        [colour] = re.findall("|".join(COLOURS), draw.question)
        assert draw.clue == str(counts[colour])
        assert {one.question: one.answer for one in asked if one is not draw} == {
            f"How many are {colour}?": str(n) for colour, n in counts.items()
        }
        expected, said = expected + counts[colour] / 10, said + (draw.answer == "Yes")
    assert len(bags) > 15
    assert abs(said - expected) < 2.5 * (len(bags) / 6) ** 0.5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A: red B) blue\nC. 12", {"red": "A", "blue": "B", "12": "C"}),
        ("Leo has a white lamp. Lucy is in the park.", {"lamp": "Leo", "park": "Lucy"}),
        ("It is Friday. Mia has 12 pens. Mia says the pens are great.", {"12": "Mia", "great": "Mia"}),
        ("For Ann the cups are okay.", {"okay": "Ann"}),
        ("Is Lucy in the park?", {}),
        ("Does Leo have the lamp?", {}),
    ],
)
def test_a_word_belongs_to_its_letter_or_to_whom_its_sentence_is_about(text, found):
    assert {text[at:].split()[0].rstrip("."): owner for at, owner in owners(text, {})} == found


def test_a_word_of_a_question_belongs_where_it_is_listed():
    question = "Which letter is red?"
    assert list(owners(question, {"red": "B"})) == [(question.index("red"), "B")]


@pytest.fixture(scope="module")
def tokenizer():
    """As it is bundled: test_bundled.py holds it to the one that is built, which takes seconds."""
    return Tokenizer.from_file(str(FOLDERS["demo"] / "tokenizer.json"))


def test_a_row_has_room_and_its_answers_are_marked(tokenizer):
    rows, rng, forms = Rows(tokenizer), Random(5), set()
    for _ in range(TEXTS):
        row = rows.lookups(rng)
        assert len(row.ids) <= LOOKUPS_LENGTH
        ends = list(chain.from_iterable(row.answers))
        assert ends == sorted(ends)
        assert ends[-1] == len(row.ids)
        forms.add(tokenizer.decode(row.ids[:1], skip_special_tokens=False) in (BOS, "Question"))
        assert row.clues.keys() <= {start for start, _ in row.answers}
    assert forms == {True, False}


def test_clues_and_owners_are_where_their_words_are(tokenizer):
    rows, rng = Rows(tokenizer), Random(5)
    told = re.compile(rf"({'|'.join(NAMES)}) is in the ({'|'.join(PLACES)})\.")
    found = 0
    for _ in range(TEXTS):
        row = rows.lookups(rng)
        text = tokenizer.decode(row.ids, skip_special_tokens=False)
        owned = [
            (tokenizer.decode([row.ids[at]]).strip(), tokenizer.decode([owner]).strip())
            for at, owner in row.owners.items()
        ]
        assert {(place, name) for name, place in told.findall(text)} <= set(owned)
        for start, clue in row.clues.items():
            assert tokenizer.decode([clue]).strip() in text
            assert row.ids[start] != clue
        found += len(row.clues)
    assert found > TEXTS


def test_what_is_held_out_is_not_practised(tokenizer):
    """A problem may be asked in the words of a row: its text, a line's end, and the question."""
    rng, seen = Random(5), set()
    rows = {split: Rows(tokenizer, split) for split in ("train", "held_out")}
    for split, drawn_rows in rows.items():
        for _ in range(TEXTS // 4):
            row = drawn_rows.lookups(rng)
            said = tokenizer.decode(row.ids, skip_special_tokens=False)
            for question in re.findall(r"Does \w+ have the \w+\?", said):
                [text] = re.findall(r"\A(?:.*user<\|end_header_id\|>\n\n|Question: )?([^\n?|]+\.)\n", said)
                assert split_of(f"{text}\n{question}") == split
                seen.add(split)
    assert seen == {"train", "held_out"}
