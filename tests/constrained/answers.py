"""Requests of all kinds under the cases' constraints, in one running batch, and what is wrong with their answers."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from engine import (
    CACHES,
    DEMO_MODEL,
    Constraint,
    DiffusionParams,
    Engine,
    EngineConfig,
    FinishReason,
    Output,
    SamplingParams,
    Submission,
    load,
)
from server.structured.compiler import BYTES_AS, Compiler, unpacked
from server.text.tokenizer import Tokenizer
from tests.constrained.cases import VALID, spec_of, validate
from tests.engine.toys import BLOCK_CAUSAL_UNMASKS, FULL_ATTENTION_UNMASKS

DATA = Path(__file__).parents[1] / "data"
MODELS = (DEMO_MODEL, *(str(DATA / f"{name}-tiny") for name in ("llada", "dream", "sdar", "fast-dllm-v2")))
TEMPERATURES = (0.0, 0.7, 1.0, 2.0)
ROOMS = (0, 1, 7, 40)
"""Positions beyond the shortest answer."""
LONGEST = 160
"""Tokens of an answer: a case whose shortest one is longer is left out."""
AT_ONCE = 4
"""The most requests that come before one step."""


@dataclass(frozen=True, slots=True)
class Asked:
    case: dict[str, Any] | None
    """None of a request without a constraint."""
    submission: Submission


class Model:
    """A model, the spellings of its tokens, and the cases' constraints over them."""

    def __init__(self, folder: str) -> None:
        self.engine = load(EngineConfig(model=folder, device="cpu", dtype="float32", max_running_requests=48))
        spec = self.engine.info.spec
        self.spellings = _spellings(folder, spec.vocab_size)
        self.spellings[spec.mask_id] = b""
        compiler = Compiler([one.decode(BYTES_AS) for one in self.spellings], sorted(spec.eos_ids))
        self.constraints: list[tuple[dict[str, Any], Constraint]] = []
        for case in VALID:
            asked = spec_of(case)
            constraint = Constraint(**unpacked(compiler.compile(asked.kind, asked.source, asked.whitespace)["packed"]))
            if constraint.least_tokens <= LONGEST:
                self.constraints.append((case, constraint))

    def asked(self, count: int, seed: int) -> list[Asked]:
        """`count` requests with a constraint, and a third as many without one."""
        spec, rng = self.engine.info.spec, random.Random(seed)
        kind = "block_causal" if spec.is_block_causal else "full"
        caches = sorted(name for name, policy in CACHES.items() if policy.attention == kind)
        unmasks = FULL_ATTENTION_UNMASKS if kind == "full" else BLOCK_CAUSAL_UNMASKS
        lengths = [4, 8] if spec.is_block_causal else [4, 8, 32]
        kinds = itertools.product(self.constraints, caches, unmasks, TEMPERATURES, lengths, ROOMS)
        asked = []
        for number, (one, cache, unmask, temperature, length, room) in enumerate(rng.sample(list(kinds), count)):
            case, constraint = one
            submission = Submission(
                request_id=f"{number} {case['name']} {cache} {unmask} T={temperature} block={length} room={room}",
                prompt_ids=[rng.randrange(200) for _ in range(rng.randint(2, 20))],
                sampling=SamplingParams(
                    max_tokens=max(constraint.least_tokens, 1) + room,
                    temperature=temperature,
                    seed=number,
                    constraint=constraint,
                ),
                diffusion=DiffusionParams(
                    cache=cache,
                    unmask=unmask,
                    block_length=length,
                    threshold=rng.choice([0.3, 0.9]),
                    current_k=4,
                    guidance="model" if number % 4 == 0 else "posterior",
                ),
            )
            asked.append(Asked(case, submission))
            if number % 3 == 0:
                sampling = replace(submission.sampling, constraint=None)
                free = replace(submission, request_id=f"free {number}", sampling=sampling)
                asked.append(Asked(None, free))
        return asked

    def text(self, ids: Sequence[int]) -> str:
        return b"".join(self.spellings[id_] for id_ in ids).decode()


def answered(engine: Engine, asked: Sequence[Asked], seed: int) -> Iterator[Output]:
    """Serves all of them in one batch, which they join at random steps."""
    rng = random.Random(seed)
    waiting = [one.submission for one in asked]
    while waiting or engine.request_ids:
        for _ in range(min(rng.randint(0 if engine.request_ids else 1, AT_ONCE), len(waiting))):
            engine.submit(engine.new_request(waiting.pop()))
        yield from engine.step()


def faults(model: Model, asked: Sequence[Asked], seed: int) -> Iterator[str]:
    """What is wrong with the answers, one text each."""
    tokens: dict[str, list[int]] = {one.submission.request_id: [] for one in asked}
    reasons: dict[str, FinishReason | None] = {}
    for output in answered(model.engine, asked, seed):
        tokens[output.request_id].extend(output.token_ids)
        reasons[output.request_id] = output.finish_reason
    for one in asked:
        name = one.submission.request_id
        if one.case is None:
            continue
        try:
            assert reasons[name] is FinishReason.STOP, reasons[name]
            validate(one.case, model.text(tokens[name]))
        except (AssertionError, ValueError, jsonschema.ValidationError) as error:
            yield f"{name}: {model.text(tokens[name])!r}: {error!s:.200}"


def _spellings(folder: str, size: int) -> list[bytes]:
    """Of the bundled model its tokenizer's; in others, which know no language, the first 256 tokens are the bytes."""
    if folder == DEMO_MODEL:
        return Tokenizer.load(Path(folder)).spellings(size)
    return [bytes([id_]) if id_ < 256 else b"" for id_ in range(size)]


def shares(total: int) -> list[int]:
    """`total` answers, divided among the models: half of them the bundled one's."""
    each = total // (2 * len(MODELS) - 2)
    return [total - each * (len(MODELS) - 1), *np.full(len(MODELS) - 1, each).tolist()]
