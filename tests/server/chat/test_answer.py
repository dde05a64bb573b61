"""An answer as a terminal shows it: the canvas while steps are told, then the text."""

import pytest
from rich.console import Console

from server.chat.answer import MASK, Answer

CANVAS = {"end": 12, "answer": [[4, 12]], "output_end": 10, "cached_tokens": 0, "prompt": ["a"] * 4}


def step(number, cells, canvas=None):
    return {
        "choices": [],
        "trace": {
            "step": number,
            "positions": list(cells),
            "tokens": list(cells.values()),
            "confidences": [0.9] * len(cells),
            **({"canvas": canvas} if canvas else {}),
        },
    }


def text(content, finish_reason=None):
    return {"choices": [{"delta": {"content": content}, "finish_reason": finish_reason}]}


def drawn(answer):
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(answer)
    return capture.get().rstrip("\n")


def test_the_canvas_until_the_end_then_the_text():
    answer = Answer()
    answer.read(step(1, {5: "bb", 7: "d"}, CANVAS))
    assert drawn(answer) == f"{MASK}bb{MASK}d{MASK}{MASK}"
    answer.read(step(2, {4: "a", 6: "c"}))
    assert drawn(answer) == f"abbcd{MASK}{MASK}"
    answer.read(text("abbcd"))
    answer.read(text("", "stop"))
    assert drawn(answer) == answer.text == "abbcd"
    assert answer.num_steps == 2


def test_a_server_without_steps():
    answer = Answer()
    answer.read(text("Hello"))
    answer.read(text(", you"))
    assert drawn(answer) == "Hello, you"
    answer.error = "stopped"
    assert drawn(answer) == "Hello, you\nstopped"


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({}, ""),
        ({"completion_tokens": 7}, "7 tokens"),
        (
            {
                "completion_tokens": 8,
                "diffusion": {
                    "forwards": 2,
                    "tokens_per_forward": 4.0,
                    "rows_computed": 90,
                    "cache": "dual",
                    "unmask": "threshold",
                },
            },
            "8 tokens · 2 forwards, 4.0 tokens each · 90 rows · cache dual, unmask threshold",
        ),
    ],
)
def test_the_cost_in_a_line(usage, cost):
    answer = Answer()
    answer.read({"choices": [], "usage": usage})
    assert answer.cost == cost


ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b1mbell\x7f\r\b"
PLAIN = "�]0;title��[2J�1mbell���"


def test_a_server_cannot_speak_to_the_terminal():
    answer = Answer()
    answer.read(step(1, {4: ESCAPES}, CANVAS))
    assert drawn(answer).startswith(PLAIN)
    answer.read(text(f"a\n\tb{ESCAPES}", "stop"))
    assert answer.text == f"a\n\tb{PLAIN}"
    told = {"forwards": 1, "tokens_per_forward": 1.0, "rows_computed": 1, "cache": ESCAPES, "unmask": ESCAPES}
    answer.read({"choices": [], "usage": {"completion_tokens": 1, "diffusion": told}})
    assert answer.cost.endswith(f"cache {PLAIN}, unmask {PLAIN}")


def test_an_answer_that_is_cut_says_so():
    answer = Answer()
    answer.read({"usage": {"completion_tokens": 7}, **text("a", "length")})
    assert answer.cost.endswith("cut at max_tokens")
