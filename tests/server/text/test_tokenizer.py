"""Blocks become text that never has to be taken back, and stop strings are found wherever they are split."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from engine import LoadError
from server.replies.stop_strings import StopStrings
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

EOS = 256


def split(items, cuts):
    edges = [0, *sorted(min(cut, len(items)) for cut in cuts), len(items)]
    return [items[a:b] for a, b in pairwise(edges)]


def detokenized(tokenizer, blocks):
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.push(block, last=i == len(blocks) - 1) for i, block in enumerate(blocks)]


def cut(stops, pieces):
    """The text that comes out of pieces, and whether it was cut."""
    strings, text = StopStrings(stops), ""
    for i, piece in enumerate(pieces):
        fresh, stopped = strings.push(piece, last=i == len(pieces) - 1)
        text += fresh
        if stopped:
            return text, True
    return text, False


@pytest.mark.slow
@pytest.mark.parametrize("trims", [True, False])
async def test_a_token_begins_with_its_space(trims):
    """As in an answer, whose tokens are located by what they write; GPT-2's and Llama's files leave the space out."""
    space = "\u0120"  # in GPT-2's alphabet
    backend = Backend(BPE(vocab={"a": 0, "b": 1, space: 2, f"{space}b": 3}, merges=[(space, "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = processors.TemplateProcessing(single="a:0 $A", special_tokens=[("a", 0)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trims), template])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert await tokenizer.encode(["a b  b"]) == [[0, 0, 3, 2, 3]]
    assert await tokenizer.locate(["a b  b"]) == [[0, 0, 1, 3, 4]]


def test_half_a_character_waits_for_the_rest(tokenizer):
    euro = "€".encode()
    assert detokenized(tokenizer, [b"a" + euro[:1], euro[1:2], euro[2:] + b"b"]) == ["a", "", "€b"]


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer):
    assert detokenized(tokenizer, [b"a", "€".encode()[:2]]) == ["a", "\ufffd"]


def test_special_tokens_are_left_out(tokenizer):
    assert detokenized(tokenizer, [[97, EOS], [EOS, 98]]) == ["a", "b"]


@given(data=st.one_of(st.binary(max_size=24), st.text(max_size=12).map(str.encode)), cuts=st.lists(st.integers(0, 24)))
@settings(deadline=None)
def test_blocks_read_as_the_whole_does(tokenizer, data, cuts):
    pieces = detokenized(tokenizer, split(list(data), cuts))
    assert "".join(pieces) == tokenizer.decode(list(data))


@given(data=st.binary(max_size=24))
@settings(deadline=None)
def test_bytes_read_as_the_librarys_own_decoder_does(tokenizer, data):
    assert tokenizer.decode(list(data)) == tokenizer._backend.decode(list(data), skip_special_tokens=False)


@pytest.fixture(scope="session")
def sentencepiece():
    """As Llama's: words begin with a mark for their space, and what no token spells is written in bytes."""
    words = ["<unk>", "<s>", "▁Hi", "▁there", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(BPE(vocab={word: id_ for id_, word in enumerate(words)}, merges=[], byte_fallback=True))
    replaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(replaced)
    backend.add_special_tokens(["<s>"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@given(
    pieces=st.lists(
        st.sampled_from([[2], [3], [4], *([5 + byte for byte in c.encode()] for c in "é€😀a")]), max_size=8
    ),
    cuts=st.lists(st.integers(0, 24), max_size=4),
)
@settings(deadline=None)
def test_tokens_of_bytes_and_spaces_read_as_the_whole_does(sentencepiece, pieces, cuts):
    ids = [id_ for piece in pieces for id_ in piece]
    assert "".join(detokenized(sentencepiece, split(ids, cuts))) == sentencepiece.decode(ids)


def test_tokens_of_bytes_are_spelled_as_bytes(sentencepiece):
    assert sentencepiece.spell(5 + 0xE2) == r"bytes:\xe2"
    assert detokenized(sentencepiece, [[2], *([5 + 0x80] for _ in range(9)), [3]]) == ["Hi", *"\ufffd" * 9, " there"]


def test_spacing_depends_on_what_came_before(llada_tiny):
    words = Tokenizer.load(llada_tiny)
    assert detokenized(words, [[1, 2], [], [3]]) == ["t1 t2", "", " t3"]


def test_a_stop_string_across_pieces_is_cut():
    assert cut(["END"], ["one E", "N", "D two"]) == ("one ", True)


def test_what_only_looked_like_a_stop_string_comes_later():
    strings = StopStrings(["END"])
    assert strings.push("one EN", last=False) == ("one ", None)
    assert strings.push("TRY", last=False) == ("ENTRY", None)


def test_the_end_of_the_answer_frees_what_was_held_back():
    assert cut(["END"], ["one EN"]) == ("one EN", False)


def test_the_stop_string_that_is_complete_first_wins():
    assert cut(["bcde", "c"], ["abcde"]) == ("ab", True)
    assert cut(["c", "bc"], ["abc"]) == ("a", True)


@given(
    text=st.text("ab", max_size=20),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    cuts=st.lists(st.integers(0, 20)),
)
def test_the_cut_does_not_depend_on_the_pieces(text, stops, cuts):
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert cut(stops, split(text, cuts)) == expected


async def test_texts_are_encoded_in_order(tokenizer):
    assert await tokenizer.encode(["ab", "€"]) == [[97, 98], list("€".encode())]


def test_a_folder_without_a_tokenizer_is_a_load_error(tmp_path):
    with pytest.raises(LoadError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_broken_tokenizer_is_a_load_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match="cannot be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.slow
async def test_a_folder_with_vocabulary_and_merges_alone(tmp_path):
    """How Dream's checkpoints come: Qwen2's two files, and special tokens in `tokenizer_config.json`."""
    (tmp_path / "vocab.json").write_text(json.dumps({"h": 0, "i": 1, "Ġ": 2, "hi": 3, "Ġhi": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i\nĠ hi\n")
    added = {"5": {"content": "<|im_end|>", "special": True}}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "added_tokens_decoder": added,
        "auto_map": {"AutoTokenizer": ["x.Y", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    words = Tokenizer.load(tmp_path)
    assert await words.encode(["hi hi<|im_end|>"]) == [[3, 4, 5]]
    assert detokenized(words, [[3, 4, 5]]) == ["hi hi"]
