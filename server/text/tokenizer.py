"""A checkpoint's own tokenizer: texts and conversations as token ids, and ids as text (`server.text.decoder`).

Texts become tokens in another process (`server.jobs`), which can be killed if a tokenizer or template hangs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from engine import InvalidRequest, LoadError
from server.jobs.workers import Failed, TookTooLong, Workers
from server.text.decoder import Decoder
from server.text.encoder import Endings, TooLong, Unreadable
from server.text.turns import NoObject
from server.text.turns import texts as texts_in

JOB_CHARACTERS = 65536
"""The texts of a list are encoded in jobs of up to this many characters."""
SECONDS = 2.0
"""Processor time of a job, to which `SECONDS_PER_CHARACTER` adds."""
SECONDS_PER_CHARACTER = 1e-5
"""Processor time for each character of a job's texts: ten times what tokenizers usually need."""
OPEN_REASONING, CLOSE_REASONING = "<think>", "</think>"
"""What models that reason before they answer write round it."""
Lane = Literal["texts", "chats"]
Job = Literal["encode", "encode_parts", "locate", "converse", "converse_each"]
"""The methods of `Encoder` that a job may call."""


class Tokenizer(Decoder):
    """A checkpoint's own tokenizer. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer.backend_tokenizer)
        self._tokenizer = tokenizer
        # Set once, and the backend used directly: transformers' own calls change both while other threads use it.
        self._backend.no_truncation()
        self._backend.no_padding()
        if processor := self._backend.post_processor:
            # A token's offset includes its leading space, as for answers (`server.replies.passage`).
            untrimmed = processor.__getstate__().replace(b'"trim_offsets":true', b'"trim_offsets":false')
            processor.__setstate__(untrimmed)
            self._backend.post_processor = processor
        self._workers = Workers(
            "server.text.encoder:Encoder", self._setup, lanes=get_args(Lane), raises=(Unreadable, TooLong, NoObject)
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """From `tokenizer.json`, or `vocab.json` and `merges.txt`; runs no code of the checkpoint. Raises LoadError."""
        if (folder / "tokenizer.json").is_file():
            kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            # Dream's checkpoints have Qwen2's files and no others. Looked up here, because transformers then searches
            # all of its models, which would take half a second of every start.
            kind = transformers.Qwen2Tokenizer
        else:
            raise LoadError(f"{folder} has no tokenizer.json, so its tokens cannot be read or written as text")
        try:
            return cls(kind.from_pretrained(folder, local_files_only=True))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise LoadError(f"the tokenizer in {folder} cannot be read: {error}") from error

    async def start(self) -> None:
        """Starts the worker process, and returns when it answers. Without this call, the first text starts it."""
        for lane in get_args(Lane):
            await self._ask(lane, "encode", characters=0, texts=[], add_special_tokens=False)

    def close(self) -> None:
        """Ends the worker process."""
        self._workers.close()

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> list[list[int]]:
        """The tokens of each text. Raises InvalidRequest, which names `param`, if that takes too long."""
        return await self._read("encode", texts, add_special_tokens, param)

    async def locate(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """For each token that `encode` makes of a text, the number of characters before it in that text."""
        return await self._read("locate", texts, add_special_tokens, "prompt")

    async def encode_parts(
        self, parts: Sequence[str], *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> list[list[int]]:
        """The tokens of each part of one text. Special tokens go only before the first part and after the last."""
        with _told_of("The tokenizer", param):
            ids: list[list[int]] = await self._ask(
                "texts",
                "encode_parts",
                characters=sum(map(len, parts)),
                parts=list(parts),
                add_special_tokens=add_special_tokens,
            )
        return ids

    async def converse(
        self,
        turns: list[dict[str, Any]],
        variables: Mapping[str, Any] | None = None,
        *,
        max_characters: int,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """The tokens of a conversation, rendered by the chat template in `max_characters` at most.

        By default no special tokens are added, because templates write them.

        Raises InvalidRequest, NoObject, or TooLong.
        """
        with _told_of("The model's chat template", "messages"):
            ids: list[int] = await self._ask(
                "chats",
                "converse",
                characters=sum(map(len, texts_in([turns, list(tools)]))),
                turns=turns,
                tools=list(tools),
                variables=dict(variables or {}),
                max_characters=max_characters,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                add_special_tokens=add_special_tokens,
            )
        return ids

    async def converse_each(
        self, turns: list[dict[str, Any]], endings: Sequence[str], *, max_characters: int
    ) -> Endings:
        """The tokens of a conversation whose last turn goes on with each of `endings`, and of what is round its answer.

        Raises InvalidRequest, NoObject, or TooLong.
        """
        with _told_of("The model's chat template", "input"):
            told: Endings = await self._ask(
                "chats",
                "converse_each",
                characters=sum(map(len, chain(texts_in(turns), endings))),
                turns=turns,
                endings=list(endings),
                max_characters=max_characters,
            )
        return told

    @property
    def kind(self) -> str:
        """Name of the tokenizer's class in transformers."""
        return type(self._tokenizer).__name__

    @property
    def roles(self) -> Mapping[str, str]:
        """The special tokens by role, such as `eos_token`."""
        return {role: str(token) for role, token in self._tokenizer.special_tokens_map.items()}

    @property
    def added_tokens(self) -> Mapping[int, AddedToken]:
        """The tokens that were added to the vocabulary, control tokens among them, by id."""
        return self._backend.get_added_tokens_decoder()

    @property
    def chat_template(self) -> str | None:
        """The template that conversations are rendered with; None if there is none, or several without a default."""
        try:
            return self._tokenizer.get_chat_template() or None
        except ValueError:  # none, or several without a default
            return None

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    @property
    def reasons(self) -> bool:
        """Whether the chat template has a place for reasoning before the answer."""
        template = self.chat_template or ""
        return OPEN_REASONING in template and CLOSE_REASONING in template

    def _setup(self) -> dict[str, Any]:
        """Arguments of `server.text.encoder.Encoder`."""
        return {
            "backend": self._backend.to_str(),
            "template": self.chat_template,
            "variables": dict(self.roles),
        }

    async def _ask(self, lane: Lane, do: Job, *, characters: int, **given: Any) -> Any:
        """What the method of `Encoder` returns. `characters`: of its texts, for the bound on processor time.

        Raises Unreadable, TooLong, TookTooLong, Failed, or EngineUnavailable.
        """
        return await self._workers.ask(lane, do, seconds=SECONDS + SECONDS_PER_CHARACTER * characters, **given)

    async def _read(
        self, do: Literal["encode", "locate"], texts: Sequence[str], add_special_tokens: bool, param: str
    ) -> list[list[int]]:
        """Splits a long list into several jobs, so that jobs of other requests can run between them."""
        read: list[list[int]] = []
        for batch in _batches(texts):
            with _told_of("The tokenizer", param):
                read += await self._ask(
                    "texts",
                    do,
                    characters=sum(map(len, batch)),
                    texts=batch,
                    add_special_tokens=add_special_tokens,
                )
        return read


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in lists of up to `JOB_CHARACTERS` characters; a longer text is a list of its own."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and characters + len(text) > JOB_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


@contextmanager
def _told_of(subject: str, param: str) -> Iterator[None]:
    """Turns TookTooLong, Failed and Unreadable into InvalidRequest, with `subject` in the message."""
    try:
        yield
    except TookTooLong:
        raise InvalidRequest(f"{subject} takes too long over this.", param) from None
    except (Failed, Unreadable) as error:
        raise InvalidRequest(f"{subject} {error}.", param) from None
