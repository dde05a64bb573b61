"""Probabilities as the answers of /v1/decisions."""

from collections.abc import Sequence
from math import log

from server.decisions.decider import Decided
from server.protocols.decisions.schema import (
    ChoiceAnswer,
    ChoiceProbability,
    DecisionCost,
    DecisionQuestion,
    DecisionRequest,
    DecisionResponse,
    DecisionTokensDetails,
    DecisionUsage,
    PredicateAnswer,
    ScoreAnswer,
    ScoreProbability,
)


def written(asked: DecisionRequest, model: str, decided: Decided) -> DecisionResponse:
    """The whole answer. `model`: its name."""
    usage = decided.usage
    return DecisionResponse(
        model=model,
        answers=[_answer(one, found) for one, found in zip(asked.questions, decided.probabilities, strict=True)],
        usage=DecisionUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=DecisionTokensDetails(cached_tokens=usage.cached_tokens),
            total_tokens=usage.prompt_tokens,
            diffusion=DecisionCost(forwards=usage.forwards, rows_computed=usage.rows_computed),
        ),
    )


def _answer(asked: DecisionQuestion, found: Sequence[float]) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer:
    match asked.type:
        case "predicate":
            return PredicateAnswer(name=asked.name, probability=found[0])
        case "choice":
            values = [option.value for option in asked.choices or ()]
            return ChoiceAnswer(
                name=asked.name,
                choice=values[found.index(max(found))],
                confidence=confidence(found),
                probabilities=[
                    ChoiceProbability(value=value, probability=one) for value, one in zip(values, found, strict=True)
                ],
            )
        case "score":
            labels = [level.label for level in asked.levels or ()]
            return ScoreAnswer(
                name=asked.name,
                score=sum(number * one for number, one in enumerate(found)),
                confidence=confidence(found),
                probabilities=[
                    ScoreProbability(value=number, label=label, probability=one)
                    for number, (label, one) in enumerate(zip(labels, found, strict=True))
                ],
            )


def confidence(probabilities: Sequence[float]) -> float:
    """How far two or more probabilities are from even: 1 - entropy / log of their number, from 0 to 1."""
    entropy = -sum(one * log(one) for one in probabilities if one)
    return min(max(1.0 - entropy / log(len(probabilities)), 0.0), 1.0)
