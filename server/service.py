"""What requests share: the engine, the tokenizer, the models' names, the defaults. Made once by `create_app`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine import DiffusionParams, EngineLoop, SamplingParams, Submission
from server.completion import Choice, Completion
from server.errors import ModelNotFound
from server.schemas import ModelCard, Prompts
from server.text import Detokenizer, StopStrings, Tokenizer
from server.unsupported import UnsupportedFields
from server.watch import Watch


class ServedModels:
    """The ids under which the one model is known."""

    def __init__(self, names: Sequence[str], max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self._names = tuple(names)
        self._created = int(time.time())

    def resolve(self, name: str | None) -> str:
        """The id that an answer carries: as asked, or the first if nothing was asked. Raises ModelNotFound."""
        name = name or self._names[0]
        if name not in self._names:
            raise ModelNotFound(name)
        return name

    def card(self, name: str) -> ModelCard:
        return ModelCard(id=self.resolve(name), created=self._created, max_model_len=self._max_model_len)

    def cards(self) -> list[ModelCard]:
        return [self.card(name) for name in self._names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything a route needs."""

    engine: EngineLoop
    tokenizer: Tokenizer
    models: ServedModels
    temperature: float
    diffusion: DiffusionParams
    unsupported: UnsupportedFields
    watch: Watch

    async def encode(self, prompts: Prompts) -> list[list[int]]:
        """Prompts as ids, which they may be already."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            return await self.tokenizer.encode(texts)
        return [prompt for prompt in prompts if not isinstance(prompt, str)]

    def generate(
        self,
        answer_id: str,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        sampling: SamplingParams,
        diffusion: DiffusionParams,
    ) -> Completion:
        """One choice for each prompt, all of them in the engine's queue. Raises what `EngineLoop.submit` raises."""
        submissions = [
            Submission(request_id=f"{answer_id}-{index}", prompt_ids=prompt, sampling=sampling, diffusion=diffusion)
            for index, prompt in enumerate(prompts)
        ]
        streams = map(self.watch.over, self.engine.submit(submissions), submissions)
        choices = [
            Choice(index, stream, Detokenizer(self.tokenizer), StopStrings(stops))
            for index, stream in enumerate(streams)
        ]
        return Completion(choices, [len(prompt) for prompt in prompts])
