"""Questions in words, their labels, and probabilities as answers."""

import asyncio
from math import log
from threading import Event
from types import SimpleNamespace

import pytest

from server.decisions.labels import Label, Labels, read_labels
from server.decisions.questions import Option, Question, asked, predicate
from server.protocols.decisions.reply import confidence

YES_NO = (Label("Yes", 1), Label("No", 2))
NUMBERS = [Label(str(number), 10 + number) for number in range(1, 6)]
NAMES = [Label(name, 100 + place) for place, name in enumerate(("A", "B", "C", "AA"))]
LABELS = Labels(YES_NO, NUMBERS, NAMES)


def options(*texts):
    return tuple(Option(text=text) for text in texts)


def test_a_predicate():
    one = asked(predicate("Is it so?"), LABELS)
    assert (one.text, one.labels) == ("Is it so? Answer yes or no.", YES_NO)


def test_a_predicate_where_yes_is_no_token():
    one = asked(predicate("Is it so?"), LABELS._replace(yes_no=None))
    assert one.text == "Is it so?\nA: Yes\nB: No\nAnswer with the letter."
    assert one.labels == NAMES[:2]


def test_a_choice():
    described = Option(text="sea", description="blue and wide")
    one = asked(Question(kind="choice", instructions="Which?", options=(*options("sun"), described)), LABELS)
    assert one.text == "Which?\nA: sun\nB: sea (blue and wide)\nAnswer with the letter."
    assert one.labels == NAMES[:2]
    four = asked(Question(kind="choice", instructions="Which?", options=options(*"wxyz")), LABELS)
    assert four.text.endswith("\nAA: z\nAnswer with the label.")
    assert asked(Question(kind="choice", instructions="Which?", options=options(*"vwxyz")), LABELS) is None


def test_a_score():
    one = asked(Question(kind="score", instructions="How bad?", options=options("fine", "bad")), LABELS)
    assert (one.text, one.labels) == ("How bad?\n1: fine\n2: bad\nAnswer from 1 to 2.", NUMBERS[:2])
    scale = asked(Question(kind="score", instructions="How bad?", options=options("1", "2", "3")), LABELS)
    assert scale.text == "How bad? Answer from 1 to 3."
    six = asked(Question(kind="score", instructions="How bad?", options=options(*"abc")), LABELS._replace(numbers=()))
    assert six.text == "How bad?\nA: a\nB: b\nC: c\nAnswer with the letter."


class Words(SimpleNamespace):
    """A tokenizer that has these words; it gives other texts one token for what it does not know, or several."""

    def spell(self, id_):
        return self.words[id_]

    async def encode(self, texts, **_):
        return [[self.words.index(text)] if text in self.words else self.other for text in texts]


@pytest.mark.parametrize("other", [[0], [1, 2]])
async def test_labels_are_single_tokens_that_are_told_apart(other):
    words = ["<unk>", "Yes", "No", "A", " A", "C", "AB", "no", " sun", "sun", "1", "2", "4", "a", "two words", "é"]
    labels = await read_labels(Words(words=words, other=other), len(words))
    assert labels.yes_no == (Label("Yes", 1), Label("No", 2))
    assert labels.numbers == [Label("1", 10), Label("2", 11)]
    assert [label.text for label in labels.names] == ["A", "C", "AB", "Yes", "No", "sun", "1", "2", "4"]
    assert len({label.id for label in labels.names}) == 9


async def test_words_with_a_space_are_labels_only_if_others_are_too_few():
    spaced, unspaced = [f" s{number}" for number in range(3000)], [f"u{number}" for number in range(240)]
    few = await read_labels(Words(words=["A", " both", *spaced, *unspaced, "both"], other=[0, 0]), 3243)
    assert [label.text for label in few.names] == ["A", *unspaced, "both", *(f"s{number}" for number in range(13))]
    assert few.names[241].id == 3242
    more = [f"v{number}" for number in range(20)]
    enough = await read_labels(Words(words=["A", *spaced, *unspaced, *more], other=[0, 0]), 3261)
    assert [label.text for label in enough.names] == ["A", *unspaced, *more][:255]


async def test_the_vocabulary_is_read_beside_the_event_loop():
    is_free = Event()

    class Waits(Words):
        def spell(self, id_):
            assert is_free.wait(10), "the loop stands still meanwhile"
            return super().spell(id_)

    reading = asyncio.create_task(read_labels(Waits(words=["A"], other=[0, 0]), 1))
    await asyncio.sleep(0)
    is_free.set()
    assert [label.text for label in (await reading).names] == ["A"]


def test_confidence():
    assert confidence([0.25] * 4) == 0
    assert confidence([0, 1.0, 0]) == 1
    assert confidence([0.5, 0.5, 0]) == pytest.approx(1 - log(2) / log(3))
