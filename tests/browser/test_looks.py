"""What the page weighs, loads, promises to people with other means, and how fast it draws."""

import json
import statistics
from importlib.resources import files

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

MOST_BYTES = 100_000
SIZES = {"wide": {"width": 1440, "height": 1000}, "phone": {"width": 390, "height": 844}}


def stream(steps, cached=0, prompt=64, answer=1024):
    """A stream of an answer of `answer` positions, a token a step, in an order that jumps about in blocks of 32."""
    events = []
    for step in range(1, steps + 1):
        at = prompt + (step - 1) // 32 * 32 + (step - 1) * 13 % 32
        block = (at - prompt) // 32 * 32 + prompt
        told = {
            "index": 0,
            "step": step,
            "block": [block, block + 32],
            "rows": [[block, block + 32]] if step % 32 != 1 else [[max(0, block - 64), block + 64]],
            "visible_end": min(block + 64, prompt + answer),
            "positions": [at],
            "token_ids": [7],
            "tokens": [" word"],
            "confidences": [0.3 + step % 7 / 10],
        }
        if step == 1:
            told["canvas"] = {
                "end": prompt + answer,
                "answer": [[prompt, prompt + answer]],
                "output_end": prompt + answer,
                "cached_tokens": cached,
                "prompt": [" asked"] * prompt,
            }
        events.append(f"event: unmask.step\ndata: {json.dumps({'choices': [], 'trace': told})}\n\n")
    usage = {
        "completion_tokens": steps,
        "prompt_tokens_details": {"cached_tokens": cached},
        "diffusion": {"forwards": steps, "rows_computed": 1, "tokens_per_forward": 1.0},
    }
    return "".join(events) + f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


@pytest.fixture
def answered(desk):
    """`answered(steps, **of_stream)`: a run that is answered with a made-up stream."""

    def run(steps, **of_stream):
        body = stream(steps, **of_stream)
        desk.page.route(
            "**/v1/completions", lambda route: route.fulfill(status=200, body=body, content_type="text/event-stream")
        )
        desk.run()
        return desk

    return run


def test_the_first_paint_is_light_and_all_from_here(desk_at, demo_server):
    desk = desk_at(demo_server)
    loaded = []
    desk.page.on("response", lambda answer: loaded.append(answer))
    desk.open()
    weights = {answer.url: len(answer.body()) for answer in loaded if "/v1/" not in answer.url}
    weights.pop(f"{demo_server}/openapi.json")
    assert len(weights) == sum(file.name.endswith((".html", ".css", ".js")) for file in files("server.page").iterdir())
    assert sum(weights.values()) < MOST_BYTES


def test_the_policy_holds(desk):
    """What somebody might get into the page neither runs nor calls home."""
    desk.page.evaluate(
        """() => {
            window.refused = [];
            addEventListener("securitypolicyviolation", event => window.refused.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.taken = true";
            const image = document.createElement("img");
            image.src = "http://example.invalid/";
            const styled = document.createElement("div");
            styled.setAttribute("style", "color: red");
            const frame = document.createElement("iframe");
            frame.src = "http://example.invalid/";
            document.body.append(script, image, styled, frame);
            fetch("http://example.invalid/").catch(() => {});
        }"""
    )
    desk.page.wait_for_timeout(200)
    refused = {*desk.page.evaluate("window.refused")}
    assert refused == {"script-src-elem", "img-src", "style-src-attr", "connect-src", "frame-src"}
    assert desk.page.evaluate("window.taken") is None
    desk.errors.clear()
    desk.strangers.clear()


def test_accessible_and_pretty(desk_at, demo_server, pictures):
    """Pictures of every scheme and size, for people to look at; axe-core on the page with all of it open."""
    desk = desk_at(demo_server, reduced_motion="reduce").open()
    page = desk.page

    def take(name, size, scheme):
        page.set_viewport_size(SIZES[size])
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=pictures / f"{name}-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"

    page.check("#compare")
    desk.run(A__unmask="fixed", max_tokens="48")
    desk.goto(14)
    page.mouse.move(0, 0)
    for size in SIZES:
        take("run", size, "light")
        take("run", size, "dark")
    page.check("[name=mode][value=chat]")
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.select_option("#kind", "choice")
    desk.run(message="Sort these numbers: 7 3 12 5.", constraint="yes\nno")
    desk.run(message="And 4 2 9?", temperature="7")
    expect(page.locator("#temperature")).to_have_attribute("aria-invalid", "true")
    take("open", "phone", "dark")
    take("open", "wide", "light")
    for scheme, options in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        page.fill("#temperature", "")
        found = Axe().run(page, options=options)
        assert found.violations_count == 0, found.generate_report()


def test_on_a_phone_the_canvas_comes_into_view(desk_at, demo_server):
    desk = desk_at(demo_server, viewport=SIZES["phone"]).open()
    expect(desk.pane().locator(".parameters")).not_to_be_in_viewport()
    desk.run()
    expect(desk.pane().locator(".canvas")).to_be_in_viewport()


def test_on_a_phone_the_grid_is_seen(desk_at, demo_server):
    desk = desk_at(demo_server, viewport=SIZES["phone"]).open()
    desk.run()
    desk.wait_for_drawing()
    canvas = desk.pane().locator(".canvas")
    assert 0 <= canvas.bounding_box()["y"] < 250
    heights = canvas.evaluate("canvas => [canvas.scrollHeight, canvas.clientHeight]")
    assert heights[0] == heights[1], "a box that scrolls within the page"


def test_on_a_phone_a_conversation_leaves_the_grid_in_view(desk_at, demo_server):
    desk = desk_at(demo_server, viewport=SIZES["phone"]).open()
    desk.page.check("[name=mode][value=chat]")
    desk.run(message="What is the capital of Norway?")
    desk.wait_for_drawing()
    assert 0 <= desk.pane().locator(".canvas").bounding_box()["y"] < 250
    boxes = [desk.pane().locator(f".{name}").bounding_box() for name in ("play", "step", "speed")]
    assert max(box["y"] for box in boxes) < boxes[0]["y"] + boxes[0]["height"], "one row"


def test_a_canvas_of_1024_positions_stays_smooth(desk, answered, pictures):
    """Processor time of a frame's script, style and layout: on a busy machine a clock would tell of its neighbours."""
    answered(1024)
    assert len(desk.cells()) == 64 + 1024
    session = desk.page.context.new_cdp_session(desk.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent():
        metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
        return 1000 * sum(metrics[f"{part}Duration"] for part in ("Script", "RecalcStyle", "Layout"))

    def drawn():
        desk.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return spent()

    desk.pane().locator(".slider").focus()
    frames = []
    for start in (0, 474, 990):  # the first block opens, another does, the canvas is nearly full
        desk.goto(start)
        before = drawn()
        for _ in range(12):
            desk.page.keyboard.press("ArrowRight")
            after = drawn()
            frames.append(after - before)
            before = after
    desk.page.screenshot(path=pictures / "1024.png", full_page=True)
    print(f"median {statistics.median(frames):.1f} ms, worst {max(frames):.1f} ms")
    assert statistics.median(frames) < 1000 / 60
    assert max(frames) < 50


def test_what_was_there_before_is_hatched_and_what_is_refreshed_lit(desk, answered):
    answered(64, cached=32, answer=64)
    assert [("shared" in cell["marks"]) for cell in desk.cells()] == [True] * 32 + [False] * (32 + 64)
    assert desk.counter("cached_tokens") == "32"
    desk.goto(33)
    marks = [{*cell["marks"]} & {"computed", "refreshed"} for cell in desk.cells()]
    assert marks == [set()] * 32 + [{"refreshed"}] * 64 + [{"computed"}] * 32
    desk.pane().locator(".fold").click()
    expect(desk.pane().locator(".cell.prompt").first).to_be_hidden()
    expect(desk.pane().locator(".cell.token").first).to_be_visible()


def test_only_cells_that_change_are_touched(desk, answered):
    answered(64, answer=64)
    desk.goto(40)
    desk.page.evaluate(
        """() => {
            window.touched = new Set();
            new MutationObserver(changes => changes.forEach(({target}) => window.touched.add(
                target.nodeType === Node.TEXT_NODE ? target.parentElement : target,
            ))).observe(document.getElementById("canvas-A"), {
                subtree: true, attributes: true, childList: true, characterData: true,
            });
        }"""
    )
    desk.goto(41)
    assert desk.page.evaluate("window.touched.size") == 2, "the token of this step, and that of the one before"
