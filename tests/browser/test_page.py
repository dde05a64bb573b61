"""The page in a real browser: what is asked, what is seen, and what it says when something is wrong."""

import json
import re
import subprocess
from contextlib import redirect_stdout
from io import StringIO

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

SLOW = {"A__unmask": "fixed"}
"""A token a step."""


def whole(url, body):
    """The same request's answer, not as a stream."""
    body = {**body, "stream": False}
    del body["stream_options"]
    return httpx.post(f"{url}/v1/{'chat/' if 'messages' in body else ''}completions", json=body, timeout=60).json()


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
    answer = whole(desk.url, body)
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


def test_a_selection_becomes_a_hole(desk):
    desk.page.fill("#prompt", "Sort these numbers: 7 3 12 5. Answer: Sorted: 3 5 7 12.")
    desk.page.locator("#prompt").evaluate("area => area.setSelectionRange(45, 54)")
    desk.page.click("#hole")
    tokens = httpx.post(f"{desk.url}/tokenize", json={"prompt": " 3 5 7 12"}).json()["count"]
    expected = f"Sort these numbers: 7 3 12 5. Answer: Sorted:<|fill:{tokens}|>."
    expect(desk.page.locator("#prompt")).to_have_value(expected)
    body = desk.run()
    assert body["prompt"] == expected
    assert "max_tokens" not in body
    text = whole(desk.url, body)["choices"][0]["text"]
    expect(desk.pane().locator(".answer")).to_have_text(text)
    assert text.startswith("Sort these numbers: 7 3 12 5. Answer: Sorted:")
    assert sum("token" in cell["marks"] for cell in desk.cells()) == tokens


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


def test_only_changed_parameters_are_sent(desk):
    assert desk.run()["diffusion"] == {"trace": True}
    desk.pane().locator(".parameters summary").click()
    body = desk.run(A__unmask="factor", A__factor="0.5", A__lookahead="null")
    assert body["diffusion"] == {"unmask": "factor", "factor": 0.5, "lookahead": None, "trace": True}


def test_parameters_are_those_of_the_policies(desk):
    described = httpx.get(f"{desk.url}/openapi.json").json()["components"]["schemas"]["DiffusionRequest"]
    names = {*described["properties"]} - {"trace", "step_map"}
    pane = desk.pane()
    assert {field.get_attribute("name") for field in pane.locator("[name^='diffusion.']").all()} == {
        f"diffusion.{name}" for name in names
    }
    pane.locator(".parameters summary").click()
    expect(desk.page.locator("#A-threshold")).to_be_visible()
    expect(desk.page.locator("#A-threshold")).to_have_attribute("placeholder", "0.9")
    expect(desk.page.locator("#A-gamma")).to_be_hidden()
    desk.page.select_option("#A-unmask", "entropy_bounded")
    expect(desk.page.locator("#A-gamma")).to_be_visible()
    expect(desk.page.locator("#A-threshold")).to_be_hidden()
    pane.locator(".all").check()
    expect(desk.page.locator("#A-threshold")).to_be_visible()


@pytest.mark.parametrize(
    ("kind", "constraint", "is_valid"),
    [
        ("choice", "yes\nno", lambda text: text in ("yes", "no")),
        ("regex", "[0-9]{2}", lambda text: re.fullmatch("[0-9]{2}", text)),
        ("json", '{"enum": [1, 2]}', lambda text: json.loads(text) in (1, 2)),
    ],
)
def test_structured_output(desk, kind, constraint, is_valid):
    desk.page.click("#structured summary")
    desk.page.select_option("#kind", kind)
    desk.run(constraint=constraint)
    expect(desk.status).to_contain_text("done")
    assert is_valid(desk.pane().locator(".answer").inner_text())


def test_a_conversation_goes_on(desk):
    desk.page.check("[name=mode][value=chat]")
    desk.run(message="Sort these numbers: 7 3 12 5.", system="Be brief.")
    turns = desk.page.locator("#turns li")
    expect(turns).to_have_count(2)
    expect(desk.page.locator("#message")).to_have_value("")
    answer = desk.pane().locator(".answer").inner_text()
    body = desk.run(message="Sort these numbers: 9 4.")
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sort these numbers: 7 3 12 5."},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Sort these numbers: 9 4."},
    ]
    expect(turns).to_have_count(4)
    desk.page.get_by_label("Remove turn 2").click()
    expect(turns).to_have_count(3)
    desk.page.click("#fresh")
    expect(turns).to_have_count(0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"A__threshold": "7"}, "less than or equal to 1"),
        ({"A__threshold": "high"}, "number"),
        ({"max_tokens": "2000"}, "2000"),
        ({"temperature": "3"}, "less than or equal to 2"),
        ({"temperature": "1e999"}, "number"),
        ({"seed": "9007199254740993"}, "integer"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_an_error_is_shown_at_its_field(desk, fields, words):
    desk.pane().locator(".parameters summary").click()
    desk.run(**fields)
    [name] = fields
    control = desk.page.locator(f"#{name.replace('__', '-')}")
    expect(control).to_have_attribute("aria-invalid", "true")
    expect(control).to_be_focused()
    expect(control).to_have_accessible_description(re.compile(words))
    expect(desk.pane().locator(".failure")).to_be_hidden()
    control.fill("0.5" if name.startswith("A") else "1")
    expect(control).not_to_have_attribute("aria-invalid", "true")


def test_a_closed_group_opens_for_its_error(desk):
    desk.page.click("#structured summary")
    desk.page.select_option("#kind", "regex")
    desk.page.fill("#constraint", "(")
    desk.page.click("#structured summary")
    desk.run()
    expect(desk.page.locator("#constraint")).to_be_focused()
    expect(desk.page.locator("#constraint")).to_have_attribute("aria-invalid", "true")


def test_keys_and_a_server_that_goes(desk_at, serve):
    with serve("demo", "--api-key", "sk-right") as url:
        desk = desk_at(url)
        page, key = desk.page, desk.page.locator("#key")
        page.goto(f"{url}/")
        expect(key).to_have_accessible_description(re.compile("wants an API key"))
        key.fill("sk-wrong")
        page.click("#run")
        expect(key).to_have_attribute("aria-invalid", "true")
        key.fill("sk-right")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_contain_text("demo")
        expect(key).not_to_have_attribute("aria-invalid", "true")
        desk.run()
        expect(desk.status).to_contain_text("done")
        assert "sk-right" not in desk.pane().locator(".curl").text_content()
        page.click("#share")
        expect(page).to_have_url(re.compile("#"))
        assert "sk-right" not in page.url
        stored = page.evaluate("[localStorage.length, Object.values(sessionStorage), document.cookie]")
        assert stored == [0, ["sk-right"], ""]
        page.reload()
        expect(page.locator("#model")).to_contain_text("demo")
    desk.page.click("#run")
    expect(desk.pane().locator(".failure")).to_contain_text("cannot be reached")
    expect(page.locator("#run")).to_be_enabled()


def test_a_full_queue_and_a_broken_stream_are_told(desk):
    full = {"error": {"message": "The queue is full.", "type": "rate_limit_error", "param": None, "code": None}}
    desk.page.route(
        "**/v1/completions", lambda route: route.fulfill(status=429, json=full, headers={"retry-after": "3"})
    )
    desk.run()
    expect(desk.pane().locator(".failure")).to_have_text("The server is busy: The queue is full. Try again in 3 s.")
    desk.page.unroute("**/v1/completions")
    desk.page.route("**/v1/completions", lambda route: route.fulfill(status=200, body=": nothing comes\n\n"))
    desk.run()
    expect(desk.pane().locator(".failure")).to_contain_text("before the answer was whole")
    desk.page.unroute("**/v1/completions")
    told = f"data: {json.dumps({'error': {**full['error'], 'message': 'It broke.'}})}\n\ndata: [DONE]\n\n"
    desk.page.route("**/v1/completions", lambda route: route.fulfill(status=200, body=told))
    desk.run()
    expect(desk.pane().locator(".failure")).to_have_text("It broke.")


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_request(desk, how):
    desk.page.select_option("#A-unmask", "fixed")
    desk.page.select_option("#A-cache", "none")
    desk.page.fill("#prompt", "Once upon a time")
    desk.page.click("#structured summary")
    desk.page.select_option("#kind", "regex")
    desk.page.fill("#constraint", "[a-z ]{600,700}")  # an answer of many steps
    desk.page.fill("#max_tokens", "800")
    desk.page.click("#run")
    expect(desk.pane().locator(".canvas")).to_be_visible()
    if how == "button":
        desk.page.click("#stop")
    else:
        desk.page.keyboard.press("Escape")
    expect(desk.pane().locator(".failure")).to_have_text("Stopped.")
    expect(desk.page.locator("#run")).to_be_enabled()
    for _ in range(50):
        if httpx.get(f"{desk.url}/load").json()["server_load"] == 0:
            break
        desk.page.wait_for_timeout(100)
    else:
        pytest.fail("the server still decodes")


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


def test_a_link_holds_what_is_asked(desk, desk_at):
    desk.page.check("#compare")
    desk.pane().locator(".parameters summary").click()
    sent = desk.run(prompt="Ann's 100 % <b>, ünd 漢", A__unmask="factor", A__factor="0.5", seed="3", B__cache="none")
    desk.page.click("#share")
    expect(desk.page).to_have_url(re.compile("#"))
    other = desk_at(desk.url).open(desk.page.url.removeprefix(f"{desk.url}/"))
    expect(other.page.locator("#B-cache")).to_have_value("none")
    assert other.run() == sent


def test_a_hostile_link_is_text(desk_at, demo_server):
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    state = {
        "mode": "chat",
        "message": hostile,
        "turns": [{"role": "user", "content": hostile}, {"role": hostile, "content": "no"}, None, 7],
        "kind": "nonsense",
        "panes": [{"cache": hostile, "threshold": {"a": 1}}, None, 3],
        "max_tokens": {"a": 1},
        "key": "stolen",
        "__proto__": {"x": 1},
    }
    desk = desk_at(demo_server).open(f"#{json.dumps(state)}")
    expect(desk.page.locator("#turns li")).to_have_count(1)
    expect(desk.page.locator("#turns p")).to_have_text(hostile)
    expect(desk.page.locator("#key")).to_have_value("")
    desk.run()
    assert desk.page.title() == "unmask"
    assert desk.page.locator("img, main script").count() == 0


def test_tokens_are_text(desk):
    hostile = "<img src=x onerror=alert(1)>"
    body = desk.run(prompt=hostile)
    assert body["prompt"] == hostile
    assert desk.page.locator(".canvas img").count() == 0
    shown = "".join(cell["text"] for cell in desk.cells() if "prompt" in cell["marks"])
    assert re.sub("[ ␣]", "", shown) == hostile.replace(" ", "")


@pytest.mark.parametrize("mode", ["prompt", "chat"])
def test_the_code_that_is_shown_works(desk, mode):
    desk.page.check(f"[name=mode][value={mode}]")
    text = "Sort Ann's numbers: 7 3 12 5.\nAnswer:"
    desk.page.click("#structured summary")
    desk.page.select_option("#kind", "choice")
    desk.page.fill("#constraint", 'say "yes"\nit\'s no')
    sent = None
    if mode == "prompt":
        sent = desk.run(prompt=text)
        code = {kind: desk.pane().locator(f".{kind}").text_content() for kind in ("curl", "python")}
    else:
        desk.page.fill("#message", text)
        desk.page.wait_for_timeout(200)
        code = {kind: desk.pane().locator(f".{kind}").text_content() for kind in ("curl", "python")}
        sent = desk.run()
    answer = desk.pane().locator(".answer").inner_text()
    assert answer in ('say "yes"', "it's no")
    written = subprocess.run(["bash", "-c", code["curl"]], capture_output=True, text=True, check=True).stdout
    events = [line.removeprefix("data: ") for line in written.splitlines() if line.startswith("data: {")]
    chunks = [choice for event in events for choice in json.loads(event)["choices"]]
    assert "".join(chunk.get("text") or chunk.get("delta", {}).get("content") or "" for chunk in chunks) == answer
    assert json.loads(code["curl"].partition("-d '")[2][:-1].replace("'\\''", "'")) == sent
    with redirect_stdout(StringIO()) as printed:  # no process of its own: OpenAI's client takes seconds to import
        namespace: dict = {}
        exec(code["python"], namespace)
        namespace["client"].close()
    assert printed.getvalue() == answer
