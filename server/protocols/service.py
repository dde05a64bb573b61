"""What all requests share: the engine, the tokenizer, the models' names, the defaults. `create_app` makes it once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version

from engine import DiffusionParams, EngineInfo, EngineLoop
from server.constraints import Constraints
from server.decisions.decider import Decider
from server.errors import ModelNotFound
from server.observe.observability import Observability
from server.prompts.conversation import ConversationReader
from server.prompts.prompts import PromptReader
from server.protocols.unsupported import UnsupportedFields
from server.replies.forwards import Forwards
from server.replies.generation import Submitter
from server.schemas import ModelCard
from server.settings.tree import Settings
from server.structured.schema.writer import Whitespace
from server.text.tokenizer import Tokenizer


class ServedModels:
    """The ids under which the one model is served."""

    def __init__(self, names: Sequence[str], root: str, max_model_len: int) -> None:
        """`root`: the model's name at its source."""
        self._root = root
        self._max_model_len = max_model_len
        self._names = tuple(names)
        self._created = int(time.time())

    def resolve(self, name: str | None) -> str:
        """The model id of the answer: the requested one, or the first if none was requested. Raises ModelNotFound."""
        name = name or self._names[0]
        if name not in self._names:
            raise ModelNotFound(name)
        return name

    def card(self, name: str) -> ModelCard:
        length = self._max_model_len
        return ModelCard(
            id=self.resolve(name), created=self._created, root=self._root, max_model_len=length, context_length=length
        )

    def cards(self) -> list[ModelCard]:
        return [self.card(name) for name in self._names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything a route needs."""

    engine: EngineLoop
    tokenizer: Tokenizer
    models: ServedModels
    prompts: PromptReader
    conversations: ConversationReader
    constraints: Constraints
    submitter: Submitter
    decider: Decider
    unsupported: UnsupportedFields
    temperature: float
    default_max_tokens: int
    diffusion: DiffusionParams
    json_whitespace: Whitespace
    fingerprint: str
    """Hash of everything besides the request that determines an answer: with the same fingerprint, a `seed` repeats."""

    @classmethod
    def around(
        cls, engine: EngineLoop, tokenizer: Tokenizer, settings: Settings, observability: Observability
    ) -> "Service":
        """The service of one model."""
        config = settings.server
        max_model_len = engine.info.max_model_len
        forwards = Forwards(engine)
        prompts = PromptReader(tokenizer, max_model_len=max_model_len, vocab_size=engine.info.spec.vocab_size)
        return cls(
            engine=engine,
            tokenizer=tokenizer,
            models=ServedModels(settings.model_names, settings.own_name, max_model_len),
            prompts=prompts,
            conversations=ConversationReader(tokenizer, prompts),
            constraints=Constraints(
                tokenizer,
                engine.info.spec,
                observability.metrics.constraints,
                is_enabled=config.structured,
                cache_bytes=config.structured_cache_mb * 2**20,
            ),
            submitter=Submitter(engine, tokenizer, prompts, observability.observers, forwards),
            decider=Decider(engine, tokenizer, prompts, forwards, observability.observers.tokens),
            unsupported=UnsupportedFields(),
            temperature=config.temperature,
            default_max_tokens=config.default_max_tokens,
            diffusion=settings.diffusion,
            json_whitespace=config.json_whitespace,
            fingerprint=_fingerprint(engine.info, settings),
        )


def _fingerprint(info: EngineInfo, settings: Settings) -> str:
    running = (
        info.model,
        info.folder.name,
        info.device,
        info.dtype,
        settings.engine.attention,
        settings.engine.compile,
    )
    defaults = (settings.diffusion, settings.server.temperature, settings.server.json_whitespace)
    return "fp_" + sha256(repr((version("unmask"), running, defaults)).encode()).hexdigest()[:10]
