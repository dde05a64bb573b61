"""A pane: what it tells of its answer before, during and after a run, beside the canvas."""

import json
import re

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_waiting_is_told(desk):
    held = []
    desk.page.route("**/v1/completions", lambda route: held.append(route))
    desk.page.click("#run")
    expect(desk.pane().locator(".note")).to_have_text("Waiting for the server …")
    held[0].continue_()
    desk.wait()
    expect(desk.pane().locator(".note")).to_have_text("")


def test_an_answer_without_text_is_told(desk):
    def without_text(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'"text":"(?:[^"\\]|\\.)*"', '"text":""', answer.text()))

    desk.page.route("**/v1/completions", without_text)
    desk.run()
    desk.page.unroute("**/v1/completions")
    expect(desk.pane().locator(".no-text")).to_have_text("The model ended at once, without text.")
    expect(desk.pane().locator(".no-text")).to_be_visible()
    desk.run(prompt="What is the capital of Norway?")
    expect(desk.pane().locator(".no-text")).to_be_hidden()
    assert desk.pane().locator(".answer").inner_text() == "The answer is Oslo."


def test_an_old_answer_is_told_apart(desk):
    note = desk.pane().locator(".note")
    desk.run()
    desk.wait_for_drawing()
    expect(desk.pane()).not_to_have_class(re.compile(r"\bold\b"))
    desk.prompt.fill("Another.")
    expect(note).to_have_text("Below is the last run. The request has changed since.")
    expect(desk.pane()).to_have_class(re.compile(r"\bold\b"))
    desk.run()
    expect(note).to_have_text("")
    desk.page.route("**/v1/completions", lambda route: route.abort())
    desk.run()
    expect(desk.pane().locator(".failure")).to_contain_text("cannot be reached")
    expect(note).to_have_text("Below is the last run.")
    expect(desk.pane()).to_have_class(re.compile(r"\bold\b"))


def test_tokens_are_the_answers_own_at_every_step(desk):
    """One definition: what ends the answer, and what comes after, is never counted."""
    body = desk.run(prompt="What is the capital of Norway?", A__unmask="fixed", max_tokens="32")
    desk.wait_for_drawing()
    answer = desk.whole(body)
    trace, [[start, end]] = answer["trace"], answer["choices"][0]["shown"]
    assert len(trace) > 4
    assert any(at >= end for told in trace for at in told["positions"])
    for step in (1, len(trace) // 2, len(trace) - 1, len(trace)):
        desk.goto(step)
        count = sum(start <= at < end for told in trace[:step] for at in told["positions"])
        assert desk.counter("tokens_per_forward") == f"{count / step:.2f}"


def test_a_stream_counts_no_end_while_it_comes(desk):
    """Before the answer is complete its end is known from tokens that end it."""
    end_id = httpx.get(f"{desk.url}/openapi.json").json()["info"]["x-model"]["end_token_ids"][0]
    told = {
        "index": 0, "step": 1, "block": [1, 5], "rows": [[0, 5]], "visible_end": 5,
        "positions": [1, 2, 3, 4], "token_ids": [7, 8, end_id, end_id], "tokens": ["a", "b", "<end>", "<end>"],
        "confidences": [0.9] * 4,
        "canvas": {"end": 5, "answer": [[1, 5]], "output_end": 5, "cached_tokens": 0, "prompt": ["x"]},
    }  # fmt: skip
    body = f"event: unmask.step\ndata: {json.dumps({'choices': [], 'trace': told})}\n\n"
    desk.page.route("**/v1/completions", lambda route: route.fulfill(status=200, body=body))
    desk.run()
    desk.goto(1)
    assert desk.counter("tokens_per_forward") == "2.00"


def test_play_both(desk):
    both = desk.page.locator("#play-both")
    desk.run()
    expect(both).to_be_hidden()
    desk.page.check("#compare")
    expect(both).to_be_disabled()  # there, so that nothing moves when it can be used
    desk.run(A__unmask="fixed", B__unmask="fixed")
    for pane in "AB":
        desk.wait_for_drawing(pane)
        desk.pane(pane).locator(".speed").select_option("0.25")
    both.click()
    for pane in "AB":
        expect(desk.pane(pane).locator(".play")).to_have_text("Pause")


def test_the_answer_is_copied_as_it_is(desk_at, demo_server):
    desk = desk_at(demo_server, permissions=["clipboard-read", "clipboard-write"]).open()
    body = desk.run(prompt="What is the capital of Norway?")
    expect(desk.pane().locator(".copy-answer")).to_have_accessible_name("Copy the answer of pane A")
    desk.pane().locator(".copy-answer").click()
    expect(desk.pane().locator(".copy-answer")).to_have_text("Copied")
    assert desk.page.evaluate("navigator.clipboard.readText()") == desk.whole(body)["choices"][0]["text"]
