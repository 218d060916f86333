"""The page of ``serve --ui`` in a browser, where one is there (``pip install playwright``, and Chromium)."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxaccel as ja

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def address(digits_run, tmp_path):
    made = ja.export(digits_run.directory, tmp_path / "digits", to=("bundle",), batch=(1,), timed=False)
    words = ["--ui", "--port", "0", "--grpc-port", "0", "--log", "errors"]
    command = [sys.executable, "-m", "jaxaccel.serve", str(made.place), *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield next(line for line in server.stdout if line.startswith("ready: ")).split()[1].rstrip(",")
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here")
def test_a_person_drops_a_picture(address, digits_run, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    levels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(levels).save(tmp_path / "four.png")
    (expected,) = ja.predict(digits_run.directory, tmp_path / "four.png", top=5)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, said = browser.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}/")
        page.set_input_files("input[type=file]", tmp_path / "four.png")
        page.wait_for_selector("#result .row")
        names = page.eval_on_selector_all(
            "#result .row span:first-child", "all => all.map(x => x.textContent)"
        )
        assert names == list(expected["scores"])
        assert page.text_content("#status").startswith(f"{expected['label']}, ")
        (tmp_path / "no.png").write_bytes(b"no picture")
        page.set_input_files("input[type=file]", tmp_path / "no.png")
        page.wait_for_selector("#status.error")
        assert "no.png" in page.text_content("#status")
        page.fill("#text", "four")
        page.press("#text", "Enter")
        page.wait_for_function("document.getElementById('status').textContent.includes('read texts')")
        browser.close()
    assert all("400" in message or "422" in message for message in said), said
