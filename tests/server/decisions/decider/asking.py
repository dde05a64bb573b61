"""What deciders by real engines are asked."""

from server.decisions.questions import Option, Question, predicate

INPUT = [{"role": "user", "content": "Tom has a red box. " * 4}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"


def question(number):
    """One of each kind in turn, all different."""
    if number % 3 == 0:
        return predicate(f"Is it {number}?")
    kind = "choice" if number % 3 == 1 else "score"
    count = 2 + number % 7
    options = tuple(Option(text=f"o{number}-{i}", description="so" if i % 2 else None) for i in range(count))
    return Question(kind=kind, instructions=f"Which of {number}?", options=options)


QUESTIONS = [question(number) for number in range(24)]
