"""Rows to practise looking up: what an answer says is what the text says, and it fits the row."""

import json
import re
from itertools import chain
from random import Random

import pytest
from tokenizers import Tokenizer

from engine.demo import FOLDERS
from engine.demo.families.lookups import lookups
from engine.demo.families.words import COLOURS, NAMES, THINGS
from engine.demo.samples import LOOKUPS_LENGTH, Rows
from engine.demo.tasks import split_of

TEXTS = 400
OWNED = re.compile(rf"({'|'.join(NAMES)}) has a ({'|'.join(COLOURS)}) ({'|'.join(THINGS)})\.")


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, list[tuple[str, str]]]]:
    rng = Random(5)
    return [(text, list(asked)) for text, asked in (lookups(rng) for _ in range(TEXTS))]


def test_each_question_is_asked_once(drawn):
    for text, asked in drawn:
        questions = [question for question, _ in asked]
        assert questions, text
        assert len(set(questions)) == len(questions), text


def test_what_a_thing_is_like_and_whose_is_as_the_text_says(drawn):
    """Read back by another grammar than the one that wrote it."""
    checked = set()
    for text, asked in drawn:
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


@pytest.fixture(scope="module")
def tokenizer():
    """As it is bundled: test_bundled.py holds it to the one that is built, which takes seconds."""
    return Tokenizer.from_file(str(FOLDERS["demo"] / "tokenizer.json"))


def test_a_row_has_room_and_its_answers_are_marked(tokenizer):
    rows, rng = Rows(tokenizer), Random(5)
    for _ in range(TEXTS):
        row = rows.lookups(rng)
        assert len(row.ids) <= LOOKUPS_LENGTH
        ends = list(chain.from_iterable(row.answers))
        assert ends == sorted(ends)
        assert row.answers


def test_what_is_held_out_is_not_practised(tokenizer):
    """A problem may be asked in the words of a row: its text, a line's end, and the question."""
    rng, seen = Random(5), set()
    rows = {split: Rows(tokenizer, split) for split in ("train", "held_out")}
    for split, drawn_rows in rows.items():
        for _ in range(TEXTS // 4):
            row = drawn_rows.lookups(rng)
            text, *asked = tokenizer.decode(row.ids, skip_special_tokens=False).split("\n")
            for line in asked:
                if whose := re.match(r"Does \w+ have the \w+\?", line):
                    assert split_of(f"{text}\n{whose[0]}") == split
                    seen.add(split)
    assert seen == {"train", "held_out"}
