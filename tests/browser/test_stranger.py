"""The page to somebody who was given its address alone: what it is, what to try, and that it forgets nothing."""

import json
import re

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}
RIGHT = {
    "A word problem": "The answer is 8.",
    "A capital": "Oslo",
    "An opposite": "cold",
    "Sorting": "3 9 14 20",
    "A gap to fill": "The answer is Paris.",
    "JSON": '"answer": 12',
    "One word at a time": "Ann",
}


def prompt_of(desk):
    return desk.page.locator("#prompt")


def test_the_page_says_what_it_is(desk):
    expect(desk.page.locator("#intro")).to_contain_text("masks become words, several at once, in no fixed order")
    expect(desk.page.locator("#about")).to_contain_text("demo is a tiny toy model")
    expect(desk.page.locator("#about")).to_contain_text("It knows nothing else")
    expect(desk.page.locator("#model")).to_contain_text("million parameters")
    expect(desk.pane().locator(".empty")).to_be_visible()
    expect(desk.page.locator("#access")).to_be_hidden()
    desk.run()
    expect(desk.pane().locator(".empty")).to_be_hidden()
    expect(desk.pane().locator(".key")).to_be_visible()


def test_every_example_runs_and_is_answered_right(desk):
    desk.page.fill("#seed", "3")
    buttons = desk.page.locator("#examples button")
    assert [*buttons.all_inner_texts()] == [*RIGHT]
    for name, words in RIGHT.items():
        desk.page.get_by_role("button", name=name).click()
        expect(desk.pane().locator(".answer")).to_contain_text(words)
        expect(desk.page.locator("#run")).to_be_enabled()
    expect(desk.page.locator("#seed")).to_have_value("")  # an example is all of a request


def test_an_example_takes_the_place_of_a_run(desk):
    held = []
    desk.page.route("**/v1/completions", lambda route: held.append(route))
    desk.page.click("#run")
    expect(desk.pane().locator(".note")).to_contain_text("Waiting")
    desk.page.unroute("**/v1/completions")
    desk.page.get_by_role("button", name="A capital").click()
    expect(desk.pane().locator(".answer")).to_have_text("The answer is Oslo.")
    expect(desk.pane().locator(".failure")).to_be_hidden()


def test_a_new_conversation_ends_the_answer_to_the_old(desk):
    held = []
    desk.page.check("[name=mode][value=chat]")
    desk.page.fill("#message", "What is the capital of Norway?")
    desk.page.route("**/v1/chat/completions", lambda route: held.append(route))
    desk.page.click("#run")
    expect(desk.pane().locator(".note")).to_contain_text("Waiting")
    desk.page.click("#fresh")
    expect(desk.page.locator("#run")).to_be_enabled()
    expect(desk.page.locator("#turns li")).to_have_count(0)


def test_another_model_has_no_examples(desk_at, golden_server):
    desk = desk_at(golden_server).open()
    expect(desk.page.locator("#model")).to_contain_text("parameters")
    expect(desk.page.locator("#examples")).to_be_hidden()
    expect(desk.page.locator("#about")).to_be_hidden()


def test_an_answer_without_text_is_told(desk):
    desk.run(prompt="  ")
    expect(desk.pane().locator(".no-text")).to_have_text("The model ended at once, without text.")
    expect(desk.pane().locator(".no-text")).to_be_visible()
    desk.run(prompt="What is the capital of Norway?")
    expect(desk.pane().locator(".no-text")).to_be_hidden()
    assert desk.pane().locator(".answer").inner_text() == "The answer is Oslo."


@pytest.mark.parametrize(("first", "last"), [(45, 50), (44, 50), (45, 51)])
def test_a_selected_word_becomes_a_hole_of_its_size(desk, first, last):
    """However the spaces around it were selected; and Ctrl+Z takes that back."""
    text = "What is the capital of France? The answer is Paris of course."
    prompt = prompt_of(desk)
    prompt.fill(text)
    prompt.evaluate("(area, [first, last]) => area.setSelectionRange(first, last)", [first, last])
    desk.page.click("#hole")
    expect(prompt).to_have_value("What is the capital of France? The answer is<|fill:1|> of course.")
    desk.page.keyboard.press("Control+z")
    expect(prompt).to_have_value(text)


def test_a_hole_without_a_selection_or_a_text(desk):
    prompt = prompt_of(desk)
    prompt.fill("some text")
    desk.page.click("#hole")
    expect(prompt).to_have_accessible_description(re.compile("Nothing is selected"))
    expect(prompt).to_have_value("some text")
    desk.run(prompt="<|fill:8|>")
    expect(prompt).to_have_accessible_description(re.compile("nothing but holes"))


def test_on_a_phone_the_grid_is_seen(desk_at, demo_server):
    desk = desk_at(demo_server, viewport=PHONE).open()
    desk.run()
    desk.wait_for_drawing()
    canvas = desk.pane().locator(".canvas")
    assert 0 <= canvas.bounding_box()["y"] < 250
    heights = canvas.evaluate("canvas => [canvas.scrollHeight, canvas.clientHeight]")
    assert heights[0] == heights[1], "a box that scrolls within the page"


def test_on_a_phone_a_conversation_leaves_the_grid_in_view(desk_at, demo_server):
    desk = desk_at(demo_server, viewport=PHONE).open()
    desk.page.check("[name=mode][value=chat]")
    desk.run(message="What is the capital of Norway?")
    desk.wait_for_drawing()
    assert 0 <= desk.pane().locator(".canvas").bounding_box()["y"] < 250
    boxes = [desk.pane().locator(f".{name}").bounding_box() for name in ("play", "step", "speed")]
    assert max(box["y"] for box in boxes) < boxes[0]["y"] + boxes[0]["height"], "one row"


def test_waiting_is_told(desk):
    held = []
    desk.page.route("**/v1/completions", lambda route: held.append(route))
    desk.page.click("#run")
    expect(desk.pane().locator(".note")).to_have_text("Waiting for the server …")
    held[0].continue_()
    desk.wait()
    expect(desk.pane().locator(".note")).to_have_text("")


def test_a_reload_keeps_all(desk):
    desk.page.check("#compare")
    desk.page.click("#structured summary")
    desk.page.select_option("#kind", "regex")
    fields = {"#prompt": "Mine", "#max_tokens": "7", "#constraint": "[a-z]"}
    for field, value in fields.items():
        desk.page.fill(field, value)
    desk.page.select_option("#B-unmask", "factor")
    desk.page.reload()
    for field, value in fields.items():
        expect(desk.page.locator(field)).to_have_value(value)
    expect(desk.page.locator("#B-unmask")).to_have_value("factor")
    desk.page.goto("about:blank")
    desk.page.go_back()
    for field, value in fields.items():
        expect(desk.page.locator(field)).to_have_value(value)
    expect(desk.page.locator("#B-unmask")).to_have_value("factor")


def test_the_address_has_no_link_to_another_request(desk):
    desk.page.fill("#prompt", "before")
    desk.page.click("#share")
    expect(desk.page).to_have_url(re.compile("#.*before"))
    desk.page.reload()
    expect(desk.page.locator("#A-unmask")).to_be_attached()
    expect(desk.page).to_have_url(re.compile("#.*before"))
    desk.page.fill("#prompt", "after")
    expect(desk.page).not_to_have_url(re.compile("#"))
    desk.page.reload()
    expect(prompt_of(desk)).to_have_value("after")


@pytest.mark.parametrize(
    "fragment",
    [
        "garbage",
        "%7B%22prompt%22%3A%22Question",
        json.dumps({"max_tokens": {"a": 1}}),
        json.dumps({"turns": [None]}),
        json.dumps({"kind": "nonsense"}),
        json.dumps({"panes": [{"unmask": "nonsense"}, {}]}),
        json.dumps({"panes": [{"nonsense": 1}, {}]}),
        json.dumps({"panes": [{"cache": "block"}, {}]}),
        json.dumps({"panes": [{"sub_block_length": 4}, {}]}),
        "[]",
        "null",
    ],
)
def test_a_broken_link_is_told(desk_at, demo_server, fragment):
    desk = desk_at(demo_server).open(f"#{fragment}")
    expect(desk.page.locator("#notice")).to_contain_text("This link cannot be read")
    expect(prompt_of(desk)).to_have_value(re.compile("^Tom has 7 apples"))
    expect(desk.page.locator("#A-unmask")).to_have_value("")
    desk.run()
    expect(desk.status).to_contain_text("done")
    expect(desk.page.locator("#notice")).to_be_hidden()


def test_an_old_answer_is_told_apart(desk):
    note = desk.pane().locator(".note")
    desk.run()
    desk.wait_for_drawing()
    expect(desk.pane()).not_to_have_class(re.compile(r"\bold\b"))
    prompt_of(desk).fill("Another.")
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
    for step in (1, 20, len(trace) - 1, len(trace)):
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


def test_what_the_model_refuses_is_not_offered_and_options_are_explained(desk):
    page = desk.page
    offered = page.locator("#A-cache option").evaluate_all("options => options.map(option => option.textContent)")
    assert "window" in offered
    assert not {"block", "sub_block"} & {*offered}
    page.locator(".parameters summary >> nth=0").click()
    desk.pane().locator(".all").check()
    expect(page.locator("#A-sub_block_length")).to_be_hidden()
    expect(page.locator("#A-unmask-hint")).to_have_text(re.compile("at least as sure as the threshold"))
    page.select_option("#A-unmask", "random")
    expect(page.locator("#A-unmask-hint")).to_have_text("A fixed number of tokens a step, anywhere in the block.")
    hints = " ".join(desk.pane().locator(".hint").all_text_contents())
    assert not re.search(r"arXiv|null|\d{4}\.\d{5}", hints)
    assert "none means all of the canvas" in hints
    page.fill("#A-lookahead", "none")
    assert desk.run()["diffusion"]["lookahead"] is None


def test_a_conversation_by_enter(desk):
    page = desk.page
    page.check("[name=mode][value=chat]")
    expect(page.locator("#run")).to_have_text("Send")
    page.click("#run")
    expect(page.locator("#message")).to_have_accessible_description(re.compile("message is empty"))
    page.locator("#message").press_sequentially("Sort these numbers:")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("9 4 2.")
    page.keyboard.press("Enter")
    desk.wait()
    expect(page.locator("#turns .user p")).to_have_text("Sort these numbers:\n9 4 2.")
    desk.wait_for_drawing()
    expect(desk.pane()).not_to_have_class(re.compile(r"\bold\b"))
    expect(page.locator("#whose")).to_be_hidden()
    page.check("#compare")
    expect(page.locator("#whose")).to_be_visible()
    expect(page.locator("#turns li").last).to_be_in_viewport()
    page.click("#fresh")
    expect(desk.pane().locator(".work")).to_be_hidden()
    expect(desk.pane().locator(".empty")).to_be_visible()


def test_a_key_that_no_header_holds(desk_at, serve):
    with serve("demo", "--api-key", "sk-right") as url:
        desk = desk_at(url)
        desk.page.goto(f"{url}/")
        expect(desk.page.locator("#key")).to_be_visible()
        desk.page.fill("#key", "ключ")
        desk.page.keyboard.press("Enter")
        expect(desk.page.locator("#key")).to_have_accessible_description(re.compile("letters from A to Z"))


def test_each_kind_of_structure_has_its_own_text(desk):
    page = desk.page
    page.click("#structured summary")
    page.select_option("#kind", "json")
    page.fill("#constraint", "{}")
    expect(page.locator("#constraint-label")).to_have_text("JSON Schema")
    page.select_option("#kind", "regex")
    expect(page.locator("#constraint")).to_have_value("")
    expect(page.locator("#constraint-label")).to_contain_text("Regular expression")
    page.select_option("#kind", "json")
    expect(page.locator("#constraint")).to_have_value("{}")


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


def test_an_error_changes_no_fields_width(desk):
    width = desk.page.locator("#max_tokens").bounding_box()["width"]
    desk.run(max_tokens="9999")
    expect(desk.page.locator("#max_tokens")).to_have_attribute("aria-invalid", "true")
    assert desk.page.locator("#max_tokens").bounding_box()["width"] == width


def test_the_answer_is_copied_as_it_is(desk_at, demo_server):
    desk = desk_at(demo_server, permissions=["clipboard-read", "clipboard-write"]).open()
    body = desk.run(prompt="What is the capital of Norway?")
    desk.pane().locator(".copy-answer").click()
    expect(desk.pane().locator(".copy-answer")).to_have_text("Copied")
    assert desk.page.evaluate("navigator.clipboard.readText()") == desk.whole(body)["choices"][0]["text"]
