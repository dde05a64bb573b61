"""Builds the demo models' tokenizer: words, small numbers and JSON's marks as single tokens, bytes for the rest.

A word carries the space before it, so text is the plain concatenation of its tokens and every string round-trips.
Run as `python -m engine.demo.build_tokenizer FOLDER`; the ids are a function of `engine.demo.tasks` alone.
"""

import argparse
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from engine.demo.chat import BOS, END_HEADER, EOS, EOT, HEADER, MARKS, MASK, SPECIALS, TEMPLATE, rendered
from engine.demo.samples import SYSTEMS
from engine.demo.tasks import TASKS

JSON_MARKS = (
    *('"}}, "', '"}, "', '": {"', '": ["', '"]}}}', '"]}', '"}}', '}}}', '": "', '", "', '}, "'),
    *(' {"', '{"', '["', '"}', '"]', '}}', '": ', ', "'),
)  # fmt: skip
"""What stands between the words of JSON with a space behind comma and colon; the first that fits is taken."""
_MARKS = "|".join(map(re.escape, JSON_MARKS))
PIECE = rf"{_MARKS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]|\s"
_PIECE = re.compile(rf"{_MARKS}| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s")
FRAME = ("system", "user", "assistant", "Question:", "Answer:", " ".join(map(str, range(100))), *map(str, range(100)))
SAMPLES = 4000
"""Problems per family that are read for words: every word of every family is among them."""
OFTEN = 10
"""How often a word must occur in what no family is about: rarer ones are bytes, as a user's unknown words are."""


@cache
def pieces() -> tuple[str, ...]:
    """Every word that the families use, with and without the space before it where both occur. It takes seconds."""
    instructions = "".join(text for text, _ in rendered((), ("{}",)))
    frame = (*FRAME, *SYSTEMS, *JSON_MARKS, instructions)
    found = Counter(piece for text in frame for piece in _PIECE.findall(text))
    for task, draw in TASKS.items():
        counted: Counter[str] = Counter()
        rng = Random(task)
        for problem in (draw(rng) for _ in range(SAMPLES)):
            texts = [problem.prompt, f" {problem.prompt}", problem.answer, f" {problem.answer}"]
            texts += [turn.content for turn in problem.before]
            texts += problem.tools
            counted.update(piece for text in texts for piece in _PIECE.findall(text))
        found.update({piece: n for piece, n in counted.items() if task != "other" or n >= OFTEN})
    return tuple(sorted(piece for piece in found if not (len(piece.strip()) > 2 and piece.strip().isdigit())))


def build() -> Tokenizer:
    """Byte-level BPE without merges: a piece is a whole token or its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(token for token, _ in byte_level.pre_tokenize_str(piece)) for piece in pieces()]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *words]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """A special token's id."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def save(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "additional_special_tokens": [HEADER, END_HEADER, EOT],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    save(parser.parse_args().folder)
