"""The facts that the bundled models know by heart: subject and answer, with the ways in which each kind is asked.

Data only. The answer's sentence is in `basics`, and what is held out is decided by `engine.demo.tasks`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FactGroup:
    """One kind of fact: every question may be asked about every subject."""

    questions: tuple[str, ...]
    answers: dict[str, str]


def _pairs(text: str) -> dict[str, str]:
    """'France Paris, Italy Rome' -> {'France': 'Paris', 'Italy': 'Rome'}; the last word is the answer."""
    return dict(pair.strip().rsplit(" ", 1) for pair in text.split(","))


def _both_ways(pairs: dict[str, str]) -> dict[str, str]:
    return pairs | {right: left for left, right in pairs.items()}


def _successors(names: str) -> dict[str, str]:
    ring = names.split()
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))


CAPITALS = FactGroup(
    (
        "What is the capital of {}?",
        "Which city is the capital of {}?",
        "Name the capital of {}.",
        "Tell me the capital city of {}.",
        "What city is the capital of {}?",
    ),
    _pairs(
        "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Portugal Lisbon, Greece Athens, Austria Vienna, "
        "Poland Warsaw, Hungary Budapest, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, "
        "Ireland Dublin, England London, Scotland Edinburgh, Belgium Brussels, Russia Moscow, Ukraine Kyiv, "
        "Turkey Ankara, Egypt Cairo, Kenya Nairobi, Morocco Rabat, Ghana Accra, Japan Tokyo, China Beijing, "
        "India Delhi, Thailand Bangkok, Vietnam Hanoi, Nepal Kathmandu, Iran Tehran, Iraq Baghdad, Canada Ottawa, "
        "Cuba Havana, Peru Lima, Chile Santiago, Colombia Bogota, Ecuador Quito, Australia Canberra, Jordan Amman"
    ),
)
OPPOSITES = FactGroup(
    (
        "What is the opposite of {}?",
        "Which word is the opposite of {}?",
        "Name the opposite of {}.",
        "Tell me the opposite of {}.",
        "What word means the opposite of {}?",
    ),
    _both_ways(
        _pairs(
            "hot cold, big small, fast slow, old new, high low, long short, light dark, hard soft, wet dry, "
            "full empty, open closed, happy sad, early late, loud quiet, clean dirty, rich poor, strong weak, "
            "near far, thick thin, left right, up down, day night"
        )
    ),
)
COLOURS = FactGroup(
    (
        "What colour is {}?",
        "Which colour is {}?",
        "Name the colour of {}.",
        "Tell me the colour of {}.",
        "What is the colour of {}?",
    ),
    _pairs(
        "the sky blue, the grass green, the sun yellow, the snow white, the night black, a banana yellow, "
        "a tomato red, a carrot orange, a frog green, a plum purple, a crow black, a flamingo pink, a lemon yellow, "
        "a swan white, a leaf green"
    ),
)
YOUNG_ANIMALS = FactGroup(
    (
        "What is a young {} called?",
        "What do you call a young {}?",
        "Name the young of a {}.",
        "Tell me the word for a young {}.",
        "What is the word for a young {}?",
    ),
    _pairs(
        "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, pig piglet, lion cub, duck duckling, goose gosling, "
        "deer fawn, goat kid, frog tadpole"
    ),
)
SOUNDS = FactGroup(
    (
        "What sound does a {} make?",
        "Which sound does a {} make?",
        "What does a {} say?",
        "Name the sound of a {}.",
        "Tell me the sound of a {}.",
    ),
    _pairs(
        "dog woof, cat meow, cow moo, sheep baa, duck quack, pig oink, lion roar, bee buzz, snake hiss, horse neigh"
    ),
)
HOMES = FactGroup(
    (
        "What is the home of a {} called?",
        "What do you call the home of a {}?",
        "Where does a {} live?",
        "Name the home of a {}.",
        "Tell me the home of a {}.",
    ),
    _pairs("bee hive, bird nest, spider web, lion den, rabbit burrow, horse stable, dog kennel, king castle"),
)
LEGS = FactGroup(
    (
        "How many legs does a {} have?",
        "What number of legs does a {} have?",
        "Tell me how many legs a {} has.",
        "Name the number of legs of a {}.",
        "Count the legs of a {}.",
    ),
    _pairs("dog 4, cat 4, bird 2, bee 6, spider 8, snake 0, crab 10"),
)
NEXT_DAYS = FactGroup(
    (
        "Which day comes after {}?",
        "What day comes after {}?",
        "What day follows {}?",
        "Name the day after {}.",
        "Tell me the day after {}.",
    ),
    _successors("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
)
NEXT_MONTHS = FactGroup(
    (
        "Which month comes after {}?",
        "What month comes after {}?",
        "What month follows {}?",
        "Name the month after {}.",
        "Tell me the month after {}.",
    ),
    _successors("January February March April May June July August September October November December"),
)

FACT_GROUPS = (CAPITALS, OPPOSITES, COLOURS, YOUNG_ANIMALS, SOUNDS, HOMES, LEGS, NEXT_DAYS, NEXT_MONTHS)
