"""What the form holds: for a reload, in a link, and nothing of a link that is broken or hostile."""

import json
import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


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


def test_a_link_holds_what_is_asked(desk, desk_at):
    desk.page.check("#compare")
    desk.pane().locator(".parameters summary").click()
    sent = desk.run(prompt="Ann's 100 % <b>, ünd 漢", A__unmask="factor", A__factor="0.5", seed="3", B__cache="none")
    desk.page.click("#share")
    expect(desk.page).to_have_url(re.compile("#"))
    other = desk_at(desk.url).open(desk.page.url.removeprefix(f"{desk.url}/"))
    expect(other.page.locator("#B-cache")).to_have_value("none")
    assert other.run() == sent


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
    expect(desk.prompt).to_have_value("after")


def test_a_hostile_link_is_text(desk_at, demo_server):
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    state = {
        "mode": "chat",
        "message": hostile,
        "turns": [{"role": "user", "content": hostile, "more": hostile}],
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
    expect(desk.prompt).to_have_value(re.compile("^Tom has 7 apples"))
    expect(desk.page.locator("#A-unmask")).to_have_value("")
    desk.run()
    expect(desk.status).to_contain_text("done")
    expect(desk.page.locator("#notice")).to_be_hidden()
