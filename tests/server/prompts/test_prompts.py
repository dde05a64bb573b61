"""What is judged of prompts before any of them is read, and how a long list is shared out."""

from time import process_time

import pytest

from engine import ContextLengthExceeded, InvalidRequest
from server.prompts.prompts import CHARACTERS_PER_TOKEN, LONGEST_TOGETHER, PromptReader
from server.text import tokenizer as text

LONGEST = 128 * CHARACTERS_PER_TOKEN


@pytest.fixture
def asked(tokenizer, monkeypatch):
    """The texts of each job that is given to the process that reads them."""
    jobs = []
    ask = tokenizer._workers.ask

    async def watched(lane, do, *, texts, **given):
        jobs.append(texts)
        return await ask(lane, do, texts=texts, **given)

    monkeypatch.setattr(tokenizer._workers, "ask", watched)
    return jobs


@pytest.fixture
def reader(tokenizer):
    return PromptReader(tokenizer, max_model_len=128, vocab_size=257)


async def test_a_list_is_judged_together_before_any_of_it_is_read(reader, asked):
    with pytest.raises(InvalidRequest, match=f"holds {LONGEST * LONGEST_TOGETHER + 1} characters") as told:
        await reader.read(["a" * LONGEST] * LONGEST_TOGETHER + ["a"])
    assert told.value.param == "prompt"
    with pytest.raises(ContextLengthExceeded):
        await reader.read(["a", "a" * (LONGEST + 1)])
    assert not asked


async def test_a_long_list_is_read_in_parts(reader, asked, monkeypatch):
    """Others have their turn between them."""
    monkeypatch.setattr(text, "JOB_CHARACTERS", 10)
    prompts = await reader.read(["a" * 4, "b" * 4, "c" * 4, "d" * 30, "e"])
    assert [[words[0] for words in job] for job in asked] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert [bytes(prompt.ids)[:1] for prompt in prompts] == [b"a", b"b", b"c", b"d", b"e"]


def test_a_list_of_many_short_texts_is_split_in_time():
    """Each text counted once takes 10 ms; all of a part counted again for each text would take half a minute."""
    begun = process_time()
    assert [len(part) for part in text._batches(["a"] * 100_000)] == [65536, 34464]
    assert process_time() - begun < 2
