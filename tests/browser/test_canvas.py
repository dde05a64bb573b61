"""The canvas in a real browser: every step as it was, its replay, and what the keyboard and a reader are told."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
SLOW = {"A__unmask": "fixed"}
"""A token a step."""


def folded(trace, step):
    """By position, the (token, step, confidence) that stands there after a step."""
    return {
        at: (token, told["step"], confidence)
        for told in trace[:step]
        for at, token, confidence in zip(told["positions"], told["tokens"], told["confidences"], strict=True)
    }


def legible(token):
    return token.removeprefix(" ").replace("\n", "⏎") or "␣"


def spans(pairs):
    return {at for start, end in pairs for at in range(start, end)}


def test_every_step_is_drawn_as_it_was(desk):
    body = desk.run(**SLOW, max_tokens="40")
    answer = desk.whole(body)
    trace, canvas = answer["trace"], answer["trace"][0]["canvas"]
    assert len(trace) > 20
    answered = spans(canvas["answer"])
    for step in (0, 1, 7, len(trace)):
        desk.goto(step)
        cells, written = desk.cells(), folded(trace, step)
        prompt = iter(canvas["prompt"])
        assert len(cells) == canvas["end"]
        for at, cell in enumerate(cells):
            if at not in answered:
                assert ("prompt" in cell["marks"], cell["text"]) == (True, legible(next(prompt)))
            elif at in written:
                token, decoded, confidence = written[at]
                assert (cell["text"], cell["step"]) == (legible(token), decoded)
                level = sum(confidence >= bound for bound in (0.5, 0.7, 0.9, 0.99))
                assert {"token", f"level-{level}"} <= {*cell["marks"]}
                assert ("fresh" in cell["marks"]) == (decoded == step)
            else:
                assert ("mask" in cell["marks"], cell["text"], cell["step"]) == (True, "", 0)
        if step:
            block, rows = spans([trace[step - 1]["block"]]), spans(trace[step - 1]["rows"])
            assert {at for at, cell in enumerate(cells) if "open" in cell["marks"]} == block
            assert {at for at, cell in enumerate(cells) if "computed" in cell["marks"]} == rows & block
            assert {at for at, cell in enumerate(cells) if "refreshed" in cell["marks"]} == rows - block
    usage = answer["usage"]
    [end] = [at for at, cell in enumerate(cells) if "end" in cell["marks"]]
    assert end == canvas["answer"][0][0] + usage["completion_tokens"]
    assert desk.pane().locator(".answer").inner_text().strip() == answer["choices"][0]["text"].strip()
    expect(desk.pane().locator(".finish")).to_have_text(f"finish_reason: {answer['choices'][0]['finish_reason']}")
    desk.wait_for_drawing()
    assert desk.counter("forwards") == str(usage["diffusion"]["forwards"])
    assert desk.counter("rows_computed") == str(usage["diffusion"]["rows_computed"])
    assert desk.counter("tokens_per_forward") == f"{usage['diffusion']['tokens_per_forward']:.2f}"


def test_blocks_fill_while_they_are_decoded(desk):
    desk.page.evaluate(
        """() => {
            const seen = window.seen = [];
            const look = () => {
                const masks = document.querySelectorAll("#canvas-A .mask").length;
                if (masks && masks !== seen.at(-1)) seen.push(masks);
                requestAnimationFrame(look);
            };
            look();
        }"""
    )
    desk.run(**SLOW, max_tokens="40")
    expect(desk.pane().locator(".play")).to_have_text("Play")  # what came faster than it is shown has been shown
    seen = desk.page.evaluate("window.seen")
    assert len(seen) > 10
    assert seen == sorted(seen, reverse=True)


def test_replay_plays_pauses_and_obeys_the_keyboard(desk):
    desk.run(**SLOW, max_tokens="40")
    pane = desk.pane()
    play, slider, step = pane.locator(".play"), pane.locator(".slider"), pane.locator(".step")
    expect(play).to_have_text("Play")
    last = int(slider.get_attribute("max"))
    slider.focus()
    for key, shown in (("ArrowLeft", last - 1), ("Home", 0), ("ArrowRight", 1), ("End", last)):
        desk.page.keyboard.press(key)
        expect(step).to_have_text(f"step {shown} of {last}")
    play.click()
    expect(play).to_have_text("Pause")
    play.click()
    expect(play).to_have_text("Play")
    paused = step.inner_text()
    desk.page.wait_for_timeout(300)
    assert step.inner_text() == paused != f"step {last} of {last}"
    desk.goto(last - 3)
    play.click()
    expect(step).to_have_text(f"step {last} of {last}")
    expect(play).to_have_text("Play")


def test_two_settings_on_one_prompt(desk):
    desk.page.check("#compare")
    desk.run(A__unmask="fixed", B__cache="none", max_tokens="40")
    expect(desk.status).to_contain_text("Pane B: done")
    desk.wait_for_drawing("A")
    desk.wait_for_drawing("B")
    forwards = [int(desk.counter("forwards", pane)) for pane in "AB"]
    assert forwards[0] > 2 * forwards[1]
    assert [cell["text"] for cell in desk.cells("A")[:5]] == [cell["text"] for cell in desk.cells("B")[:5]]
    assert [desk.pane(pane).locator(".answer").inner_text() for pane in "AB"] == [
        desk.pane("A").locator(".answer").inner_text()
    ] * 2


def test_by_keyboard_alone(desk):
    """From the top of the page with Tab to everything that is used, each with a focus that can be seen."""
    page, press = desk.page, desk.page.keyboard.press

    def tab_to(selector):
        for _ in range(60):
            press("Tab")
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
        pytest.fail(f"Tab does not lead to {selector}")

    tab_to("#prompt")
    press("Control+A")
    page.keyboard.type("Sort these numbers: 7 3 12 5.\nAnswer:")
    press("Control+Enter")
    desk.wait()
    tab_to(".slider")
    press("Home")
    expect(desk.pane().locator(".step")).to_contain_text("step 0 of")
    press("End")
    tab_to(".canvas")
    readout = desk.pane().locator(".readout")
    first = int(re.search(r"position (\d+)", readout.inner_text())[1])
    assert "confidence" in readout.inner_text()
    press("ArrowRight")
    expect(readout).to_contain_text(f"position {first + 1}: ")
    press("ArrowDown")
    assert int(re.search(r"position (\d+)", readout.inner_text())[1]) > first + 2
    press("Home")
    expect(readout).to_contain_text("position 0: ")
    active = page.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"


def test_the_live_region_tells_the_start_and_the_end_alone(desk):
    desk.page.evaluate(
        """() => {
            window.told = [];
            const status = document.getElementById("status");
            new MutationObserver(() => window.told.push(status.textContent)).observe(status, {childList: true});
        }"""
    )
    desk.run(**SLOW)
    started, ended = desk.page.evaluate("window.told")
    assert started == "Running."
    assert re.fullmatch(r"Pane A: done, \d+ tokens in \d+ forwards\.", ended)
    assert desk.page.locator("[aria-live], [role=alert], [role=log], output").count() == 0


def test_tokens_are_text(desk):
    hostile = "<img src=x onerror=alert(1)>"
    body = desk.run(prompt=hostile)
    assert body["prompt"] == hostile
    assert desk.page.locator(".canvas img").count() == 0
    shown = "".join(cell["text"] for cell in desk.cells() if "prompt" in cell["marks"])
    assert re.sub("[ ␣]", "", shown) == hostile.replace(" ", "")
