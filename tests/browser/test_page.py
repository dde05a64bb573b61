"""The page in a real browser: what is asked, and what it says when something is wrong."""

import json
import re
import subprocess
from contextlib import redirect_stdout
from io import StringIO

import httpx
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


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


def test_an_error_changes_no_fields_width(desk):
    width = desk.page.locator("#max_tokens").bounding_box()["width"]
    desk.run(max_tokens="9999")
    expect(desk.page.locator("#max_tokens")).to_have_attribute("aria-invalid", "true")
    assert desk.page.locator("#max_tokens").bounding_box()["width"] == width


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
        stored = page.evaluate("[localStorage.length, {...sessionStorage}, document.cookie]")
        assert (stored[0], stored[1].pop("unmask.key"), stored[2]) == (0, "sk-right", "")
        assert [*stored[1]] == ["unmask.state"]
        assert "sk-right" not in stored[1]["unmask.state"]
        page.reload()
        expect(page.locator("#model")).to_contain_text("demo")
    desk.page.click("#run")
    expect(desk.pane().locator(".failure")).to_contain_text("cannot be reached")
    expect(page.locator("#run")).to_be_enabled()


def test_a_key_that_no_header_holds(desk_at, serve):
    with serve("demo", "--api-key", "sk-right") as url:
        desk = desk_at(url)
        desk.page.goto(f"{url}/")
        expect(desk.page.locator("#key")).to_be_visible()
        desk.page.fill("#key", "ключ")
        desk.page.keyboard.press("Enter")
        expect(desk.page.locator("#key")).to_have_accessible_description(re.compile("letters from A to Z"))


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
    expect(desk.pane().locator(".failure")).to_have_class(re.compile("calm"))
    expect(desk.page.locator("#run")).to_be_enabled()
    for _ in range(50):
        if httpx.get(f"{desk.url}/load").json()["server_load"] == 0:
            break
        desk.page.wait_for_timeout(100)
    else:
        pytest.fail("the server still decodes")


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
