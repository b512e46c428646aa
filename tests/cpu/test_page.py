"""The web page, in a headless Chromium: against the bundled model, and against answers that a test makes up."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from seeing import png, saved, wav
from seeing import seeing as seeing_llm
from served import listening, serving

from isobit import SamplingParams, api
from isobit.media import picture, sound
from isobit.server.run import planned

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make page` installs it")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
STREAM = {"content-type": "text/event-stream"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    served = serving()
    served.about = {name: value for name, value in planned(api.find("bundled"), "cpu").items() if name != "text"}
    with listening(served) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        started = run.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page as somebody sees it for the first time; it must have had no error and asked nobody else."""
    yield from opened(browser, address)


def soon(page: Any, expression: str) -> None:
    """Waits for something that must come. (Playwright's own waiting needs eval, which this page forbids.)"""
    end = time.monotonic() + 300
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"it never came: {expression}"
        page.wait_for_timeout(20)


def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**options)
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    found.on("request", lambda request: request.url.startswith(address) or problems.append(request.url))
    found.on("console", lambda line: "Content Security Policy" in line.text and problems.append(line.text))
    found.goto(address)
    soon(found, "document.title === 'bundled · isobit'")
    yield found
    context.close()
    assert not problems


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, **more}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bundled",
        "choices": [choice],
    }


def answers(page: Any, *chunks: dict[str, Any], done: bool = True) -> list[dict[str, Any]]:
    """The server answers with these chunks from now on; returns the list that the requests' bodies come into."""
    asked: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        lines = [f"data: {json.dumps(one)}\n\n" for one in chunks]
        route.fulfill(status=200, headers=STREAM, body="".join(lines) + ("data: [DONE]\n\n" if done else ""))

    page.route("**/v1/chat/completions", answer)
    return asked


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector("#send:visible")


def test_a_chat_with_the_model(page: Any) -> None:
    ask(page, "def add(a, b):")
    answer = page.locator(".message:not(.user)")
    facts = answer.locator(".facts").inner_text()
    assert answer.locator(".body").inner_text().strip() and "tokens/s" in facts and "first after" in facts
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("#send:visible")
    assert page.locator(".turner").inner_text() == "‹2/2›"
    page.get_by_role("button", name="The branch before").click()
    assert page.locator(".turner").inner_text() == "‹1/2›"
    page.reload()
    page.locator("#chats .chat").click()
    assert page.locator(".message.user .body").inner_text() == "def add(a, b):"
    page.get_by_role("button", name="Delete the chat def add(a, b):").click()
    assert page.locator(".message").count() == 0 and page.locator("#chats li").count() == 0


def test_the_same_text_as_without_the_page(page: Any, address: str) -> None:
    page.click("#settings-open")
    page.fill("#set-temperature", "1")
    page.fill("#set-seed", "7")
    page.fill("#set-max_tokens", "24")
    page.keyboard.press("Escape")
    ask(page, "import os")
    shown = page.evaluate("JSON.parse(localStorage['isobit.chats'])[0].nodes")
    content = next(node["content"] for node in shown.values() if node.get("role") == "assistant")
    body = {"messages": [{"role": "user", "content": "import os"}], "temperature": 1, "seed": 7, "max_tokens": 24}
    reply = page.request.post(f"{address}/v1/chat/completions", data=body).json()
    assert content == reply["choices"][0]["message"]["content"]


def test_stopping_leaves_what_came(page: Any, address: str) -> None:
    page.click("#settings-open")
    page.fill("#set-max_tokens", "900")
    page.keyboard.press("Escape")
    page.fill("#prompt", "class A:")
    page.press("#prompt", "Enter")
    soon(page, "document.querySelector('.message:not(.user) .body')?.textContent.length > 20")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:visible")
    assert "stopped" in page.locator(".message:not(.user) .facts").inner_text()
    soon(
        page,
        "fetch('/v1/isobit/status').then(one => one.json()).then(one => one.queue.running + one.queue.admitted === 0)",
    )


HOSTILE = """<script>document.title = "owned"</script> <img src=x onerror="document.title='owned'">
[click](javascript:alert(1)) [data](data:text/html,<script>alert(1)</script>) ![i](https://elsewhere.example/p.png)
<https://fine.example/a?b=1> https://also.example/x). `<b>code</b>` **<i>bold</i>**

| a | b |
|---|---|
| <u>1</u> | 2 |

```html"><script>
</script><svg onload=alert(1)>
```
</div></main>
"""


def test_an_answer_never_becomes_markup(page: Any) -> None:
    answers(page, chunk({"role": "assistant", "content": HOSTILE}), chunk({}, "stop"))
    ask(page, "hello <b>you</b>")
    body = page.locator(".message:not(.user) .body")
    assert page.title() == "bundled · isobit"
    assert body.locator("script, img, svg, b, u, i").count() == 0
    links = body.locator("a").evaluate_all("all => all.map(one => [one.getAttribute('href'), one.rel])")
    assert {href for href, _ in links} == {
        "https://elsewhere.example/p.png", "https://fine.example/a?b=1", "https://also.example/x",
    }  # fmt: skip
    assert all("noopener" in rel for _, rel in links)
    text = body.inner_text()
    assert '<script>document.title = "owned"</script>' in text and "<svg onload=alert(1)>" in text
    assert body.locator("td").first.inner_text() == "<u>1</u>" and body.locator("strong").inner_text() == "<i>bold</i>"
    assert page.locator(".user .body").inner_text() == "hello <b>you</b>"


RENDERED = [
    ("# A\ntext", "<h3>A</h3><p>text</p>"),
    ("*em* **strong** ~~gone~~", "<p><em>em</em> <strong>strong</strong> <del>gone</del></p>"),
    ("***both*** `a*b*`", "<p><strong><em>both</em></strong> <code>a*b*</code></p>"),
    ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
    ("- a\n\n1. x\n2. y", "<ul><li>a</li></ul><ol><li>x</li><li>y</li></ol>"),
    ("3) x", '<ol start="3"><li>x</li></ol>'),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("a_b_c and 2 * 3 * 4 \\*not\\*", "<p>a_b_c and 2 * 3 * 4 *not*</p>"),
    ("**open *and `never closed", "<p>**open *and `never closed</p>"),
    ("---", "<hr>"),
    ("# a #b ##", "<h3>a #b</h3>"),
    ("# C#", "<h3>C#</h3>"),
    ("|a|b|\n|-|\n|c|d|", "<p>|a|b|\n|-|\n|c|d|</p>"),
]


@pytest.mark.parametrize(("text", "markup"), RENDERED)
def test_markdown(page: Any, text: str, markup: str) -> None:
    made = page.evaluate(
        """async (text) => {
            const home = document.createElement("div");
            (await import("/page/markdown.js")).show(home, text);
            return home.innerHTML;
        }""",
        text,
    )
    assert made.replace("\n<", "<") == markup


def test_text_that_is_never_closed_takes_no_time(page: Any) -> None:
    """Twenty times the text, not four hundred times the work: the work is counted, not timed."""
    found = page.evaluate(
        """async () => {
            const { inline } = await import("/page/markdown.js");
            const search = String.prototype.indexOf;
            let looked = 0;
            String.prototype.indexOf = function (what, from = 0) {
                const place = search.call(this, what, from);
                looked += (place < 0 ? this.length : place) - from;
                return place;
            };
            const work = (text) => { looked = 0; inline(text); return looked / text.length; };
            const texts = ["*a ", "**a ", "[a", "`a ``b ", "_a ", "[a](", "<http"].map((one) => one.repeat(5000));
            const found = texts.map(work);
            String.prototype.indexOf = search;
            return found;
        }"""
    )
    assert max(found) < 1200  # characters looked at for each one: a bound of the places that may be looked for


def test_reasoning_tools_and_probabilities(page: Any) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
    asked = answers(
        page,
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning": "Let me think.", "reasoning_content": "Let me think."}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ': "Oslo"}'}}]}),
        chunk({}, "tool_calls"),
    )
    ask(page, "Weather?")
    assert page.locator(".thought:visible").inner_text().startswith("Reasoning")
    page.locator(".thought:visible summary").click()
    assert page.locator(".thought:visible").inner_text().split("\n")[-1] == "Let me think."
    assert page.locator(".calls:not(:empty)").inner_text().split("\n")[0] == "calls weather"
    assert json.loads(page.locator(".calls pre").inner_text()) == {"city": "Oslo"}
    assert asked[0]["stream"] is True and asked[0]["messages"] == [{"role": "user", "content": "Weather?"}]

    page.unroute("**/v1/chat/completions")
    top = [{"token": "Hi", "logprob": -0.1, "bytes": None}, {"token": "<b>", "logprob": -3.0, "bytes": None}]
    logprobs = {"content": [{"token": "Hi", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    asked = answers(page, chunk({"content": "Hi"}, logprobs=logprobs), chunk({}, "stop"))
    page.click("#settings-open")
    page.check("#set-logprobs")
    page.fill("#set-system", "Be brief.")
    page.fill("#set-stop", "END\nSTOP")
    page.fill("#set-schema", '{"type": "object"}')
    page.keyboard.press("Escape")
    ask(page, "Say hi")
    assert page.locator(".tokens span").get_attribute("title").splitlines()[0] == '90.5 %  "Hi"'
    assert asked[0]["messages"][0] == {"role": "system", "content": "Be brief."} and asked[0]["top_logprobs"] == 5
    assert asked[0]["stop"] == ["END", "STOP"]
    assert asked[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_errors_in_words(page: Any) -> None:
    body = {"error": {"message": "the queue is full", "type": "unavailable", "param": None, "code": "queue_full"}}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=503, headers={"retry-after": "3"}, body=json.dumps(body)),
    )
    ask(page, "a")
    assert page.locator(".message .wrong").inner_text() == "the queue is full Ask again in 3 s."
    page.unroute("**/v1/chat/completions")
    answers(page, chunk({"content": "half"}), {"error": {"message": "the engine has failed"}})
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("text=the engine has failed")
    assert page.locator(".message:not(.user) .body").inner_text() == "half"
    page.unroute("**/v1/chat/completions")
    answers(page, chunk({"content": "half"}), done=False)
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("text=The answer broke off.")


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("temperature", "7", "Between 0 and 2."),
        ("top_k", "1.5", "A whole number, please."),
        ("seed", "x", "A number, please."),
        ("schema", "{", "No JSON"),
        ("schema", "[]", "A schema is a JSON object."),
    ],
)
def test_a_setting_that_cannot_be_used(page: Any, name: str, value: str, wrong: str) -> None:
    asked = answers(page, chunk({"content": "x"}, "stop"))
    page.click("#settings-open")
    page.fill(f"#set-{name}", value)
    assert page.locator(f"#set-{name}-wrong").inner_text().startswith(wrong)
    page.keyboard.press("Escape")
    page.fill("#prompt", "a")
    page.press("#prompt", "Enter")
    assert wrong.rstrip(".") in page.locator("#notice").inner_text() and not asked
    assert page.input_value("#prompt") == "a"  # nothing is lost
    page.click("#settings-open")
    page.fill(f"#set-{name}", "")
    page.keyboard.press("Escape")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#send:visible")
    assert len(asked) == 1 and name not in asked[0]


def test_keys_of_the_keyboard(page: Any) -> None:
    asked = answers(page, chunk({"content": "yes"}, "stop"))
    page.fill("#prompt", "one")
    page.press("#prompt", "Shift+Enter")
    assert not asked
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.wait_for_selector(".message:not(.user)")
    assert asked[0]["messages"][0]["content"] == "one\ntwo"
    page.wait_for_selector("#send:visible")
    page.press("#prompt", "ArrowUp")
    page.keyboard.type(" three")
    page.keyboard.press("Enter")
    soon(page, "document.querySelector('.user .turner')?.textContent.includes('2/2')")
    assert asked[1]["messages"][0]["content"] == "one\ntwo three"
    page.wait_for_selector("#send:visible")
    page.keyboard.press("Control+k")
    assert page.locator(".message").count() == 0 and page.evaluate("document.activeElement.id") == "prompt"
    page.reload()
    soon(page, "document.activeElement.id === 'prompt'")
    page.focus(".skip")
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_the_model_at_a_glance(page: Any) -> None:
    page.click("#model-open")
    said = page.locator("#about").inner_text()
    for words in ("bundled", "What it is", "How it runs here", "Fidelity", "1,024 tokens"):
        assert words in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_widths_and_themes(browser: Any, address: str, width: int, scheme: str) -> None:
    long = "x" * 400 + "\n\n```\n" + "y" * 400 + "\n```\n\n|" + "z" * 200 + "|b|\n|-|-|\n|1|2|"
    for page in opened(browser, address, viewport={"width": width, "height": 700}, color_scheme=scheme):
        answers(page, chunk({"content": long}, "stop"))
        ask(page, "w" * 300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "document.querySelector('#scroll').scrollWidth <= document.querySelector('#scroll').clientWidth"
        )
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
        assert page.locator("#side").is_visible() == (width > 736)
        if width < 736:
            page.click("#side-open")
            assert page.locator("#new-chat").is_visible()
            page.keyboard.press("Escape")
            assert not page.locator("#new-chat").is_visible()


def test_a_key_is_asked_for(browser: Any) -> None:
    with listening(serving(keys=("secret",))) as address:
        context = browser.new_context(http_credentials={"username": "", "password": "secret"})
        page = context.new_page()
        page.goto(address)
        soon(page, "document.title === 'bundled · isobit'")
        ask(page, "def f")
        assert page.locator(".message:not(.user) .body").inner_text().strip()
        context.close()
        context = browser.new_context()
        assert context.request.get(f"{address}/").status == 401
        assert context.request.get(f"{address}/page/app.js").status == 401
        context.close()


# Pictures and sounds


@pytest.fixture
def seeing(browser: Any) -> Iterator[tuple[Any, Any]]:
    """The page of a model that reads pictures and sounds, and its tower, which remembers what came."""
    served = serving(seeing_llm("image", "audio"))
    with listening(served) as address:
        for page in opened(browser, address):
            yield page, served.llm.tower


def attached(page: Any, count: int) -> None:
    soon(page, f"document.querySelectorAll('#attached li').length === {count}")


def test_a_picture_and_a_sound_are_sent(seeing: Any) -> None:
    page, tower = seeing
    page.set_input_files("#files", [
        {"name": "red.png", "mimeType": "image/png", "buffer": png(colour=(250, 10, 10))},
        {"name": "tone.wav", "mimeType": "audio/wav", "buffer": wav(1.0)},
    ])  # fmt: skip
    attached(page, 2)
    assert page.locator("#attached .name").all_inner_texts() == ["red.png", "tone.wav"]
    assert page.evaluate("document.activeElement.id") == "prompt"
    ask(page, "What is this?")
    assert page.locator("#attached li").count() == 0
    picture, tone = tower.given
    assert (picture.pixels == (250, 10, 10)).all() and picture.pixels.shape == (30, 40, 3)
    assert (len(tone.samples), tone.rate) == (8000, 8000)
    assert [part["type"] for part in tower.messages_given[0]["content"]] == ["image", "audio", "text"]
    mine = page.locator(".message.user")
    soon(page, "document.querySelector('.message.user .media img')?.naturalWidth === 40")
    assert mine.locator("img").get_attribute("alt") == "red.png"
    soon(page, "(s => s.scrollHeight - s.scrollTop - s.clientHeight < 48)(document.querySelector('#scroll'))")
    assert mine.locator("audio").get_attribute("aria-label") == "tone.wav"
    assert page.locator(".message:not(.user) .wrong").count() == 0
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("#send:visible")
    assert len(tower.given) == 4
    mine.get_by_role("button", name="Edit").click()
    page.keyboard.type(" Say.")
    page.keyboard.press("Enter")
    soon(page, "document.querySelector('.user .turner')?.textContent.includes('2/2')")
    page.wait_for_selector("#send:visible")
    assert len(tower.given) == 6 and tower.messages_given[0]["content"][2]["text"] == "What is this? Say."


def test_what_was_sent_is_there_after_the_page_was_closed(seeing: Any) -> None:
    page, tower = seeing
    page.set_input_files("#files", {"name": "red.png", "mimeType": "image/png", "buffer": png()})
    attached(page, 1)
    page.press("#prompt", "Enter")  # no text at all
    page.wait_for_selector("#send:visible")
    assert len(tower.given) == 1 and page.locator("#chats .chat").inner_text() == "red.png"
    page.reload()
    page.locator("#chats .chat").click()
    soon(page, "document.querySelector('.message.user .media img')?.naturalWidth === 40")
    ask(page, "And now?")
    assert len(tower.given) == 2
    page.evaluate("import('/page/attic.js').then((attic) => attic.keepOnly([]))")
    ask(page, "Still?")
    assert "red.png is not kept by this browser any more" in page.locator(".message .wrong").inner_text()
    assert len(tower.given) == 2
    page.get_by_role("button", name="Delete the chat red.png").click()


PASTE = """([name, kind, data, event]) => {
    const carried = new DataTransfer();
    carried.items.add(new File([Uint8Array.from(data)], name, { type: kind }));
    const told = event === "paste"
        ? new ClipboardEvent("paste", { clipboardData: carried, bubbles: true, cancelable: true })
        : new DragEvent(event, { dataTransfer: carried, bubbles: true, cancelable: true });
    document.querySelector("#prompt").dispatchEvent(told);
    return told.defaultPrevented;
}"""


def test_pasting_dropping_and_taking_back(seeing: Any) -> None:
    page, tower = seeing
    assert page.evaluate(PASTE, ["image.png", "image/png", list(png()), "paste"])
    attached(page, 1)
    assert page.evaluate(PASTE, ["tone.wav", "", list(wav()), "dragover"])
    assert page.evaluate("document.body.classList.contains('dropping')")
    assert page.evaluate(PASTE, ["tone.wav", "", list(wav()), "drop"])
    attached(page, 2)
    assert not page.evaluate("document.body.classList.contains('dropping')")
    remove = page.get_by_role("button", name="Remove image.png")
    remove.focus()
    page.keyboard.press("Enter")
    attached(page, 1)
    assert page.locator("#said").inner_text() == "image.png is removed."
    ask(page, "a")
    assert [medium.kind for medium in tower.given] == ["audio"]


def test_what_cannot_be_attached_or_read(seeing: Any) -> None:
    page, tower = seeing
    page.evaluate(PASTE, ["film.mp4", "video/mp4", [1, 2, 3], "drop"])
    soon(page, "!document.querySelector('#notice').hidden")
    assert page.locator("#notice").inner_text() == "film.mp4: this model reads text and pictures or sounds."
    page.set_input_files("#files", {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"})
    attached(page, 1)
    assert page.locator("#notice").is_hidden()
    ask(page, "a")
    # A message that is refused is below again: in the chat it would be refused with every later one.
    assert page.locator("#notice").inner_text().startswith("broken.png is no image that can be read")
    assert page.locator(".message").count() == 0 and page.locator("#chats .chat").count() == 0
    assert page.input_value("#prompt") == "a" and page.locator("#attached .name").all_inner_texts() == ["broken.png"]
    page.get_by_role("button", name="Remove broken.png").click()
    ask(page, "b")
    assert page.locator(".message .wrong").count() == 0 and page.locator(".message").count() == 2
    page.set_input_files("#files", {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"})
    attached(page, 1)
    ask(page, "c")
    attached(page, 1)
    assert page.locator("#notice").inner_text().startswith("broken.png is no image")
    assert page.locator(".message").count() == 2
    page.get_by_role("button", name="Remove broken.png").click()
    ask(page, "d")
    assert page.locator(".message .wrong").count() == 0 and page.locator(".message").count() == 4
    assert not tower.given


def test_formats_that_are_not_read_are_refused_when_chosen(seeing: Any) -> None:
    page, _ = seeing
    assert "*" not in page.get_attribute("#files", "accept") and ".webp" in page.get_attribute("#files", "accept")
    assert "mp4" not in page.get_attribute("#files", "accept")
    page.evaluate(PASTE, ["a.svg", "image/svg+xml", [1, 2, 3], "drop"])
    soon(page, "!document.querySelector('#notice').hidden")
    said = "a.svg is in no format that is read here: PNG, JPEG, WebP, GIF, BMP, WAV, FLAC, Ogg, MP3."
    assert page.locator("#notice").inner_text() == said and page.locator("#attached li").count() == 0


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_a_picture_that_moves_is_a_video(browser: Any, form: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    home = io.BytesIO()
    frames[0].save(home, form, save_all=True, append_images=frames[1:], duration=100)
    served = serving(seeing_llm("image", "video"))
    mime = f"image/{form.lower()}"
    with listening(served) as address:
        for page in opened(browser, address):
            page.set_input_files("#files", [
                {"name": "moving", "mimeType": mime, "buffer": home.getvalue()},
                {"name": "still", "mimeType": mime, "buffer": saved(form, frames[0])},
            ])  # fmt: skip
            attached(page, 2)
            ask(page, "What?")
            assert page.locator(".message .wrong").count() == 0, page.locator(".message .wrong").inner_text()
            assert [medium.kind for medium in served.llm.tower.given] == ["video", "image"]
            assert len(served.llm.tower.given[0].frames) == 3
            soon(page, "document.querySelector('.message.user .media .video img')?.naturalWidth === 40")


def test_a_model_of_text_offers_no_pictures(page: Any) -> None:
    assert page.locator("#attach").is_hidden()
    assert page.evaluate(PASTE, ["a.png", "image/png", list(png()), "drop"])
    soon(page, "!document.querySelector('#notice').hidden")
    assert page.locator("#notice").inner_text() == "a.png: this model reads text only."


def test_the_button_is_named_and_reached_by_keys(seeing: Any) -> None:
    page, _ = seeing
    assert page.locator("#attach").get_attribute("aria-label") == "Attach pictures or sounds"
    page.focus("#prompt")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "attach"
    # The browser's own dialog is let be: when it is caught for a test does not depend on the page.
    page.evaluate("""document.querySelector("#files").addEventListener("click", (event) => {
        event.preventDefault();
        window.asked = true;
    })""")
    page.keyboard.press("Enter")
    soon(page, "window.asked === true")
    page.set_input_files("#files", {"name": "red.png", "mimeType": "image/png", "buffer": png()})
    attached(page, 1)


def seen_and_heard(kind: str, folder: Any) -> tuple[list[tuple[str, bytes]], list[Any]]:
    """A tiny model of published classes in a folder; two files for it, and what is in them."""
    pytest.importorskip("transformers")
    if kind == "image":
        import glm4v_models as glm

        glm.save(glm.make(glm.PLAIN, text={"vocab_size": glm.tokenizer().get_vocab_size()}), folder)
        found = [saved("PNG", Image.fromarray(glm.pixels(30, 44, seed=seed))) for seed in (1, 2)]
        return [("image/png", file) for file in found], [picture(file) for file in found]
    import glmasr_tiny

    glmasr_tiny.make(folder)
    found = [wav(1.0), wav(2.5, 16_000)]
    return [("audio/wav", file) for file in found], [sound(file) for file in found]


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_models_that_see_and_hear(browser: Any, tmp_path: Any, kind: str) -> None:
    """A tiny GLM-4.1V, a tiny GLM-ASR: the page's answer is what the model says of the same picture or sound."""
    files, media = seen_and_heard(kind, tmp_path / "model")
    llm = api.LLM(str(tmp_path / "model"))
    said: list[str] = []
    with listening(serving(llm)) as address:
        for page in opened(browser, address):
            page.click("#settings-open")
            page.fill("#set-max_tokens", "12")
            page.fill("#set-temperature", "0")
            page.keyboard.press("Escape")
            for number, (mime, file) in enumerate(files):
                page.set_input_files("#files", {"name": "a", "mimeType": mime, "buffer": file})
                attached(page, 1)
                ask(page, "What?")
                nodes = page.evaluate("JSON.parse(localStorage['isobit.chats'])[0].nodes")
                said.append(next(node["content"] for node in nodes.values() if node.get("role") == "assistant"))
                if number == 0:
                    page.keyboard.press("Control+k")
            assert page.locator(".message .wrong").count() == 0
    message = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What?"}]}
    template = llm.tokenizer.chat_template
    assert template is not None
    prompts = [llm.media_prompt(template, [message], [one]) for one in media]
    assert said == [answer.text for answer in llm.generate(prompts, SamplingParams(max_tokens=12))]
