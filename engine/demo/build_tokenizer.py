"""Builds the demo model's tokenizer: whole words and numbers below 100 as single tokens, bytes for everything else.

A word carries the space before it, so text is the plain concatenation of its tokens and every string round-trips.
Run as `python -m engine.demo.build_tokenizer`; the ids are a function of `engine.demo.tasks` alone.
"""

import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from engine.demo import PATH
from engine.demo.tasks import TASKS, problems

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIALS = (BOS, EOS, MASK, HEADER, END_HEADER, EOT)

PIECE = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]|\s"
_PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s")
FRAME = ("system", "user", "assistant", "Question:", "Answer:")
SAMPLES = 4000
"""Problems per family and split that are read for words: every word of every family is among them."""

CHAT_TEMPLATE = (
    f"{{% for message in messages %}}{{% if loop.first %}}{{{{ '{BOS}' }}}}{{% endif %}}"
    f"{{{{ '{HEADER}' + message['role'] + '{END_HEADER}\\n\\n' + message['content'] | trim + '{EOT}' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{HEADER}assistant{END_HEADER}\\n\\n' }}}}{{% endif %}}"
)


def pieces() -> list[str]:
    """Every word that the families use, with and without the space before it where both occur."""
    texts = [*FRAME, " ".join(map(str, range(100))), *map(str, range(100))]
    for task in TASKS:
        for problem in problems(task, 0, SAMPLES, "train") + problems(task, 0, SAMPLES, "held_out"):
            texts += [problem.prompt, f" {problem.prompt}", problem.answer, f" {problem.answer}"]
    return sorted({piece for text in texts for piece in _PIECE.findall(text)})


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
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """A special token's id."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def save(folder: Path = PATH) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
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
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    save()
