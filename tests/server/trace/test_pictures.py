"""Pictures of watched answers: every token appears in its step, in its place; what cannot be drawn is told."""

import json
from xml.etree import ElementTree

import httpx
import pytest
from PIL import Image

from server.cli import main
from server.trace import svg
from server.trace.film import WIDTH, film_of

SVG = "{http://www.w3.org/2000/svg}"


def answer_of(tokens, steps):
    """An answer whose token i was decoded in `steps[i]`."""
    return {
        "choices": [{"index": 0, "shown": [[5, 5 + len(tokens)]]}],
        "usage": {"completion_tokens": len(tokens), "diffusion": {"cache": "dual", "unmask": "threshold"}},
        "trace": [
            {
                "index": 0,
                "step": step,
                "positions": [5 + at for at, other in enumerate(steps) if other == step],
                "tokens": [tokens[at] for at, other in enumerate(steps) if other == step],
                "confidences": [0.5 for other in steps if other == step],
                **({"canvas": {"answer": [[5, 40]], "output_end": 5 + len(tokens)}} if step == 1 else {}),
            }
            for step in range(1, max(steps) + 1)
        ],
    }


@pytest.fixture
def saved(tmp_path):
    def save(answer):
        path = tmp_path / "answer.json"
        path.write_text(json.dumps(answer))
        return str(path)

    return save


def test_a_word_that_begins_as_bytes_do_is_drawn():
    film = film_of(answer_of(["bytes:", "bytes: 3", "bytes:\\xe2\\x82"], [1, 1, 1]))
    assert [cell.text for cell in film.cells] == ["bytes:", "bytes: 3", "□"]


def test_tokens_stand_in_lines():
    film = film_of(answer_of(["One", " two", "\n", "x" * 60, " three", "bytes:\\xe2", "a\nb"], [2, 1, 2, 1, 3, 1, 1]))
    assert [(cell.text, cell.line, cell.column, cell.step) for cell in film.cells] == [
        ("One", 0, 0, 2),
        (" two", 0, 3, 1),
        ("x" * 60, 1, 0, 1),
        ("three", 2, 0, 3),
        ("□", 2, 5, 1),
        ("a", 2, 6, 1),
        ("b", 3, 0, 1),
    ]
    assert film.num_lines == 4
    assert film.num_steps == 3
    assert all(cell.column + len(cell.text) <= WIDTH for cell in film.cells)


def test_what_stands_behind_the_answer_is_not_shown():
    answer = answer_of(["a", "b", "<|end|>"], [1, 1, 1])
    answer["choices"][0]["shown"] = [[5, 7]]
    assert [cell.text for cell in film_of(answer).cells] == ["a", "b"]


@pytest.mark.parametrize(
    "how",
    [
        {"n": 2},
        {"best_of": 3, "n": 2},
        {"stop": "3 5"},
        {"prompt": "Ann is <|fill:9|>. Tom is <|fill:9|>."},
    ],
)
def test_each_choice_is_drawn_to_its_end(demo_server, how):
    """Its tokens, and nothing behind them."""
    body = {"prompt": "Question: Sort these numbers: 7 3 12 5.\nAnswer:", "temperature": 0.7, "seed": 4, "n": 1, **how}
    body |= {"return_token_ids": True, "diffusion": {"trace": True}}
    answer = httpx.post(f"{demo_server}/v1/completions", json=body).json()
    assert len(answer["choices"]) == body["n"]
    for choice in answer["choices"]:
        film = film_of(answer, choice["index"])
        assert film.caption.startswith(f"{len(choice['token_ids'])} tokens in ")
        words = "".join("".join(cell.text for cell in film.cells).split())
        assert words.startswith("".join(choice["text"].split()))
        assert "stop" in how or words == "".join(choice["text"].split())


def test_what_xml_cannot_say_is_drawn_as_a_box():
    answer = answer_of(["a\x00", "\x1b[1m", "\x0b", "\ufffe", "\ud800", "b\x07c"], [1] * 6)
    answer["usage"]["diffusion"]["cache"] = "\x08"
    root = ElementTree.fromstring(svg.drawn(film_of(answer)).encode())
    words = [node.text for node in root.iter(f"{SVG}text")]
    assert words[:-1] == ["a□", "□[1m", "□", "□", "□", "b□c"]
    assert "□, threshold" in words[-1]


def test_an_answer_of_the_bundled_model(demo_server, saved, tmp_path):
    body = {"prompt": "Tell me a story about Ann.\n", "max_tokens": 60, "diffusion": {"trace": True}}
    answer = httpx.post(f"{demo_server}/v1/completions", json=body).json()
    still, gif = tmp_path / "a.svg", tmp_path / "a.gif"
    assert main(["trace", saved(answer), "--svg", str(still), "--gif", str(gif)]) == 0
    root = ElementTree.fromstring(still.read_text())
    words = [node.text for node in root.iter(f"{SVG}text")][:-1]
    assert "".join("".join(words).split()) == "".join(answer["choices"][0]["text"].split())
    style = root.find(f"{SVG}style").text
    for step in {cell.step for cell in film_of(answer).cells}:
        assert f".s{step} {{" in style
    with Image.open(gif) as film:
        assert film.n_frames > 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"choices": []}, "has no steps of choice 0"),
        ([], "is no answer"),
        ({"trace": [{"index": 0}]}, "has no steps"),
        ({"trace": [{"index": 0, "canvas": {}}]}, "is no answer"),
    ],
)
def test_what_is_no_watched_answer_is_told(saved, tmp_path, capsys, answer, why):
    assert main(["trace", saved(answer), "--svg", str(tmp_path / "x.svg")]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "FILE.json"),
        (["/no/such.json", "--svg", "x"], "cannot be read"),
        (["-"], "say what to draw"),
    ],
)
def test_wrong_arguments(capsys, arguments, why):
    assert main(["trace", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_a_stream_cannot_be_drawn(tmp_path, capsys):
    (tmp_path / "s").write_text("data: {}\n\n")
    assert main(["trace", str(tmp_path / "s"), "--svg", "x"]) == 2
    assert "is no JSON" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(saved, capsys):
    assert main(["trace", saved(answer_of(["a"], [1])), "--svg", "/no/such/x.svg"]) == 2
    assert "cannot be written" in capsys.readouterr().err
