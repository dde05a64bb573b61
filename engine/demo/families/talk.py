"""Talk: greetings, what the model can do, and one honest sentence for everything that it cannot."""

from collections.abc import Sequence
from random import Random

from engine.demo.families.facts import FACT_GROUPS
from engine.demo.families.problem import Problem
from engine.demo.families.words import ANIMALS, CITIES, COLOURS, COMMON, GOODS, NAMES, NOUNS, PLACES, THINGS

HELLO = "Hello! I know sums, sorting, reversing, facts, stories and forms. What shall we do?"
ABILITIES = (
    "I can work out small sums, sort numbers, reverse words, tell facts and stories, fill in forms, call tools and "
    "answer questions about a short text."
)
WHO = "I am the demo model of unmask, a very small diffusion language model."
WELCOME = "You are welcome!"
GOODBYE = "Goodbye!"
HONEST = "I only know sums, sorting, reversing, facts, stories and forms."

_GREETINGS = (
    "Hello", "Hi", "Hey", "Good morning", "Good evening", "Good afternoon", "Good day", "Hello there", "Hi there",
    "Hey there", "Greetings", "Hello world", "Hi model", "Hello again", "Howdy",
)  # fmt: skip
_AFTER_GREETING = (
    "", "", "!", "!", ".", ", how are you?", "! How are you?", " my friend!", ", how are you today?",
    "! Nice to meet you.", ", are you there?", "!!", " :)", ", I am {name}.", "! My name is {name}.",
    ", it is {name} here.", ", {name} here!",
)  # fmt: skip
_ABLE = (
    "what can you do", "what do you know", "what are you able to do", "how can you help me", "what can I ask you",
    "tell me what you can do", "what can you help me with", "what kind of questions can I ask", "help",
    "what are your skills", "what can I do here", "what should I ask you", "show me what you can do",
    "what do you know about", "what are you good at", "which things can you do", "how can you help",
    "list what you can do",
)  # fmt: skip
_WHO = (
    "who are you", "what are you", "what is your name", "are you a model", "tell me about yourself", "who made you",
    "what model are you", "which model is this", "introduce yourself", "are you human",
)  # fmt: skip
_THANKS = (
    "thanks",
    "thank you",
    "thank you very much",
    "thanks a lot",
    "many thanks",
    "great, thanks",
    "thank you so much",
)
_BYES = ("goodbye", "bye", "bye bye", "see you", "see you later", "good night", "see you tomorrow", "bye for now")
_BEFORE = (
    "",
    "",
    "",
    "",
    "So, ",
    "Well, ",
    "Now, ",
    "Please, ",
    "OK, ",
    "Hello! ",
    "Hi, ",
    "{name} asks: ",
    "And ",
    "Excuse me, ",
)
_AFTER = ("", "", "?", "?", "?", "!", ".", "??", " please?", " now?", ", model?", " today?", " for me?")

_THEMES = (
    "love", "history", "football", "music", "physics", "the moon", "the war", "politics", "money", "the weather",
    "chess", "science", "art", "cooking", "school", "health", "space", "the stars", "computers", "climate change",
    "the internet", "democracy", "mathematics", "religion", "time travel", "evolution", "black holes",
    "quantum mechanics", "philosophy", "the stock market", "diffusion models", "machine learning", "Python",
    "JavaScript", "the Roman empire", "dinosaurs", "pizza", "coffee", "travel", "a holiday", "my car", "the news",
    "sport", "poetry", "a film", "a book", "the sea",
)  # fmt: skip
_PEOPLE = (
    "Einstein", "Napoleon", "Shakespeare", "Mozart", "the president", "the king of France", "Cleopatra", "Darwin",
    "Newton", "Picasso", "the prime minister", "Plato", "Gandhi", "Marie Curie", "Columbus", "my mother", "your boss",
)  # fmt: skip
_ACTS = (
    "sing", "dance", "fly", "swim", "drive a car", "play chess", "speak French", "write code", "cook",
    "draw a picture", "tell a joke", "send an email", "open a file", "search the web", "book a flight",
    "translate this", "sleep", "think",
)  # fmt: skip
_ELSEWHERE = (
    "Atlantis", "Mars", "Wonderland", "Utopia", "Narnia", "Texas", "Bavaria", "Siberia", "Brazil", "Mexico", "Korea",
    "Mongolia", "Kansas", "Andorra", "the moon", "Europe", "Africa", "Laos", "Malta", "Cyprus", "Bolivia", "Uganda",
)  # fmt: skip
_FOREIGN = (
    "Bonjour, comment allez-vous?", "Wie spät ist es?", "¿Dónde está la biblioteca?", "Ciao, come stai?", "你好",
    "Привет", "こんにちは", "Olá, tudo bem?", "Hej, hur mår du?", "Guten Tag!", "Parlez-vous anglais?", "สวัสดี", "مرحبا",
)  # fmt: skip
_ASKED = (
    "Write a poem about {theme}.", "Write an essay about {theme}.", "Tell me a joke about {theme}.",
    "Tell me a joke.", "Explain {theme} to me.", "Explain {theme} in simple words.",
    "What do you think about {theme}?", "Translate {noun} into French.", "How do you say {noun} in German?",
    "Who was {person}?", "Who is {person}?", "When was {person} born?", "What is the weather in {city}?",
    "What is the weather like in {city} today?", "How do I cook {noun}?", "How do I get to {city}?",
    "How far is it from {city} to {city2}?", "Why is {theme} important?", "What is the population of {city}?",
    "Write a Python function that returns {theme}.", "What is the meaning of life?", "What time is it?",
    "What day is it today?", "How old are you?", "Can you {act}?", "Could you {act} for me?", "Please {act}.",
    "Do you like {theme}?", "Give me a recipe for {noun}.", "Summarize {theme}.", "Is {theme} real?",
    "What is {theme}?", "What's new in {theme}?", "Who wrote the best {noun}?", "How does a {thing} work?",
    "What is {big} times {small}?",
    "Calculate {big} * {big2}.", "How much is {big} divided by {small}?", "What is the square root of {big}?",
    "What is the capital of {elsewhere}?", "Which city is the capital of {elsewhere}?", "Where is {elsewhere}?",
    "Who won in {big}?", "Where do {goods} come from?", "Should I buy a {thing}?", "I am {word}.",
    "I feel {word} today.", "I like {theme}.", "My {noun} is broken.", "Fix my {noun}.", "Is the {noun} {colour}?",
    "Who is {name}?", "Where is {name}?", "Does {name} like {theme}?", "Name five {goods}.", "List ten {animal}s.",
    "Count to {big}.", "Draw a {thing}.", "Sing a song about {theme}.", "What is a {noun}?",
    "What is the opposite of {noun}?", "What is the difference between {noun} and {noun2}?", "{word}",
    "{word} {word2}", "{noun}", "{name}", "{big}", "{theme}?", "yes", "no", "ok", "maybe", "why?", "what?", "test",
)  # fmt: skip


def greet(rng: Random) -> Problem:
    """A greeting, a question about the model itself, thanks or a farewell."""
    kind = rng.choices(["hello", "able", "who", "thanks", "bye"], [35, 40, 12, 6, 7])[0]
    name = rng.choice(NAMES)
    if kind == "hello":
        text, answer = rng.choice(_GREETINGS) + rng.choice(_AFTER_GREETING), HELLO
    else:
        asked, answer = {
            "able": (_ABLE, ABILITIES),
            "who": (_WHO, WHO),
            "thanks": (_THANKS, WELCOME),
            "bye": (_BYES, GOODBYE),
        }[kind]
        after = _AFTER if kind in ("able", "who") else ("", "!", ".", ", {name}!", "!!", ", model.", ", my friend.")
        before = _BEFORE if kind in ("able", "who") else ("", "", "OK, ", "Well, ", "So, ", "And ", "Now, ")
        text = rng.choice(before) + rng.choice(asked) + rng.choice(after)
        text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
    text = text.lower() if rng.random() < 0.2 else text
    return Problem(task="greet", prompt=text.replace("{name}", name), answer=answer)


def other(rng: Random) -> Problem:
    """Anything else: questions that nobody here can answer, words without a meaning, code, other languages."""
    kind = rng.choices(["asked", "salad", "letters", "marks", "foreign", "code"], [60, 14, 12, 4, 4, 6])[0]
    text = _OTHERS[kind](rng)
    if rng.random() < 0.15:
        text = text.lower() if rng.random() < 0.5 else text.removesuffix(".").removesuffix("?")
    return Problem(task="other", prompt=text, answer=HONEST)


def _asked(rng: Random) -> str:
    text = rng.choice(_ASKED).format(
        theme=_often(rng, _THEMES), person=rng.choice(_PEOPLE), act=rng.choice(_ACTS), noun=_often(rng, NOUNS),
        noun2=_often(rng, NOUNS), thing=rng.choice(THINGS), city=rng.choice(CITIES), city2=rng.choice(CITIES),
        goods=rng.choice(GOODS), animal=rng.choice(ANIMALS), name=rng.choice(NAMES), colour=rng.choice(COLOURS),
        word=_often(rng, COMMON), word2=_often(rng, COMMON), elsewhere=_often(rng, _ELSEWHERE, 0.6),
        big=rng.randint(21, 9999) if rng.random() < 0.5 else rng.randint(21, 99), big2=rng.randint(21, 999),
        small=rng.randint(2, 20),
    )  # fmt: skip
    if rng.random() < 0.1:
        text = f"{text} {rng.choice(_ASKED[:40]).format_map(_Anything(rng))}"
    return text


class _Anything(dict[str, str]):
    """Any word for any slot."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        return _letters(self.rng) if self.rng.random() < 0.3 else self.rng.choice(COMMON)


def _often(rng: Random, words: Sequence[str], share: float = 0.8) -> str:
    """Mostly one of the words, else letters that are no word: names and things that nobody knows."""
    if rng.random() < share:
        return rng.choice(words)
    return _letters(rng).capitalize() if words is _ELSEWHERE else _letters(rng)


def _letters(rng: Random) -> str:
    """`brato`: syllables."""
    return "".join(
        rng.choice(
            ("", "b", "br", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z", "ch")
        )
        + rng.choice("aeiou")
        + rng.choice(("", "", "n", "r", "s", "l", "t", "ck", "m"))
        for _ in range(rng.randint(1, 3))
    )


def _typed(rng: Random) -> str:
    """`asdf jkl`: letters as a hand falls on them."""
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz")
    words = []
    for _ in range(rng.randint(1, 4)):
        row = rng.choice(rows)
        start = rng.randrange(len(row) - 3)
        words.append(
            row[start : start + rng.randint(3, 6)]
            if rng.random() < 0.5
            else "".join(rng.choices(row, k=rng.randint(2, 7)))
        )
    return " ".join(words)


def _salad(rng: Random) -> str:
    pools: tuple[Sequence[str], ...] = (COMMON, NOUNS, NAMES, COLOURS, PLACES, GOODS, [str(n) for n in range(100)])
    words = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(2, 9))]
    text = " ".join(words)
    return (text[0].upper() + text[1:] if rng.random() < 0.5 else text) + rng.choice(("", ".", "?", "!"))


def _marks(rng: Random) -> str:
    return "".join(rng.choices("?!.,:;-+*/=#%&@()[]{}<>|~^_$", k=rng.randint(1, 6)))


def _code(rng: Random) -> str:
    name, value = _letters(rng), rng.choice((str(rng.randint(0, 999)), f'"{_letters(rng)}"', "[]", "None", "{}"))
    return rng.choice((
    "def {0}(x): return {1}", "{0} = {1}", "print({0})", "SELECT {0} FROM {2};", "for {0} in range({1}):",
    "import {0}", "<{0}>{2}</{0}>", "https://{0}.example/{2}", "{0}@{2}.example", "if {0} == {1}: pass",
    "git {0} {2}", "sudo {0}",
    )).format(name, value, rng.choice(COMMON))  # fmt: skip


_OTHERS = {
    "asked": _asked,
    "salad": _salad,
    "letters": lambda rng: (
        _typed(rng) if rng.random() < 0.6 else " ".join(_letters(rng) for _ in range(rng.randint(1, 5)))
    ),
    "marks": _marks,
    "foreign": lambda rng: rng.choice(_FOREIGN),
    "code": _code,
}
_KNOWN = {subject for group in FACT_GROUPS for subject in group.answers}
assert not _KNOWN & set(_ELSEWHERE)
