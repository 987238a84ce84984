"""`toto app`, started as its users start it and driven in headless Chromium: every tab gives its result."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import Browser, find

pytest.importorskip("gradio", reason="toto app needs gradio: pip install 'modeling-toto[app]'")
pytestmark = pytest.mark.skipif(
    find() is None,
    reason="Chromium is not installed (apt-get install chromium), so the page of toto app was not driven",
)

ROOT = Path(__file__).parents[3]
# Not pictures, whose alternative texts test_app.py checks: icons have none.
ROLES = {
    "button",
    "slider",
    "textbox",
    "spinbutton",
    "combobox",
    "radio",
    "tab",
    "checkbox",
}


@pytest.fixture(scope="module")
def address():
    """The page of toto-motion."""
    from test_app import free_port

    port = free_port()
    command = [sys.executable, str(ROOT / "toto_cli.py"), "app", "--model", "checkpoints/toto-motion"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = []
    for line in process.stdout:
        said.append(line.decode())
        if "The page is at" in said[-1]:
            break
    else:
        raise RuntimeError("".join(said))
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    rest = process.communicate(timeout=30)[0].decode()
    assert "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def browser(address):
    with Browser() as browser:
        browser.open(address)
        says(browser, "status", "read by")
        says(browser, "about_token", "Surprise")
        yield browser


def says(browser, element: str, text: str, seconds: float = 120) -> str:
    """Wait until an element says a text; returns all that it says."""
    here = f"document.getElementById({element!r})"
    browser.wait(f"{here} && {here}.textContent.includes({text!r})", seconds)
    return browser.run(f"{here}.textContent")


def choose(browser, tab: str) -> None:
    browser.run(
        f"[...document.querySelectorAll('[role=tab]')].find(each => each.textContent.trim() === {tab!r}).click()"
    )
    browser.wait(f"document.querySelector('[role=tab][aria-selected=true]').textContent.trim() === {tab!r}")


def focus(browser, label: str) -> None:
    """Put the keyboard on the visible slider of this label."""
    found = f"""[...document.querySelectorAll('input[type=range]')].find(
        each => each.offsetParent && each.ariaLabel === "range slider for " + {label!r})"""
    browser.run(f"{found}.focus()")


def test_the_first_clip_is_opened_at_once(browser):
    assert "toyworld:motion:0, read by toto-motion: 16 frames" in says(browser, "status", "read by")


def test_a_token_is_chosen_by_a_click_and_by_the_keyboard(browser):
    choose(browser, "Tokens")
    browser.wait("""[...document.querySelectorAll('[role=tabpanel] img')].some(
        each => each.alt.startsWith('Codes') && each.naturalWidth === 320)""")
    box = """(() => { const each = [...document.querySelectorAll('[role=tabpanel] img')].find(
        each => each.offsetParent && each.alt.startsWith('Codes')); each.scrollIntoView({block: 'center'});
        const box = each.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; })()"""
    x, y, width, height = browser.run(box)
    browser.click(x + width * 2.5 / 8, y + height * 6.5 / 8)
    before = says(browser, "about_token", "row 7, column 3")
    frame = int(re.search(r"at frame (\d+)", before)[1])
    focus(browser, "Frame")
    browser.press("ArrowLeft" if frame > 1 else "ArrowRight", 37 if frame > 1 else 39)
    says(browser, "about_token", f"at frame {frame - 1 if frame > 1 else 2}, row 7, column 3")


def test_frames_appear_one_by_one(browser):
    choose(browser, "Continuation")
    focus(browser, "Frames to draw")
    browser.press("Home", 36)
    browser.press("ArrowRight", 39, times=2)
    browser.run("document.getElementById('draw').focus()")
    browser.press("Enter", 13)
    says(browser, "drawing", "Frame 1 of 3")
    says(browser, "drawing", "Frame 2 of 3")
    says(browser, "drawing", "Done. Frame 3 of 3")
    browser.wait("[...document.querySelectorAll('video')].some(each => each.offsetParent && each.readyState > 0)")


def test_the_layer_is_chosen_by_the_keyboard(browser):
    choose(browser, "Inside")
    says(browser, "about_layer", "Layer 4 of 8")
    focus(browser, "Layer")
    browser.press("ArrowRight", 39)
    says(browser, "about_layer", "Layer 5 of 8")


def test_how_a_model_becomes_promptable(browser):
    choose(browser, "Prompt")
    assert "toto prompt train --model" in says(browser, "promptable", "toto-motion is not promptable")


def test_photos_are_probed(browser):
    choose(browser, "Probe")
    browser.run("document.getElementById('probe').click()")
    text = says(browser, "probing", "95 % interval", 120)
    assert "raw pixels" in text and "always the commonest class" in text and "random weights" in text
    browser.wait("[...document.querySelectorAll('img')].filter(each => each.offsetParent).length > 20")


def test_a_bad_upload_is_a_sentence_in_the_page(browser, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 99)
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "bad.mp4")])
    # which is there once the upload has ended
    browser.wait("[...document.querySelectorAll('.file-preview')].some(each => each.textContent.includes('bad'))")
    browser.run("document.getElementById('open').click()")
    browser.wait("document.body.textContent.includes('bad.mp4: the file cannot be opened as a video')")
    assert not browser.run("document.body.textContent.includes('Traceback')")


def test_every_control_has_a_name(browser):
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    found = [each for each in nodes if not each["ignored"] and each["role"]["value"] in ROLES]
    nameless = [each for each in found if not each.get("name", {}).get("value")]
    assert len(found) > 20 and not nameless, nameless


def test_it_fits_a_phone(browser):
    browser.resize(390, 844)
    for tab in ("Tokens", "Continuation", "Inside", "Prompt", "Probe"):
        choose(browser, tab)
        browser.wait(f"innerWidth === 390 && document.documentElement.scrollWidth <= 390 // {tab}")
    browser.resize(1280, 1600)


def test_the_console_has_no_error_and_no_other_host_is_asked(browser, address):
    assert not browser.errors
    asked = [each for each in browser.requests if not each.startswith((address, "data:", "blob:", "about:"))]
    assert not asked
