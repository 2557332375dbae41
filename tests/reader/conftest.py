"""The page, served on this computer and opened in Chromium."""

import functools
import http.server
import shutil
import threading

import pytest


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """`serve(folder)` gives the address of a folder; servers end with the test."""
    servers = []

    def start(folder):
        handler = functools.partial(_Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this computer: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


class Page:
    """The page, with what it requested and what it logged."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.requests, self.errors = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda message: message.type == "error" and self.errors.append(message.text),
        )

    def open(self):
        self.page.goto(f"{self.address}/reader.html")
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)
        return self

    def answer(self, action):
        """What the page answers to an action: its `reading` or `refused` event."""
        self.page.evaluate(
            """() => { window.answer = new Promise((resolve) => {
                for (const type of ["reading", "refused"])
                  document.addEventListener(
                    type, (event) => resolve({ type, ...event.detail }), { once: true });
            }); }"""
        )
        action()
        return self.page.evaluate("() => window.answer")

    def read(self, path):
        return self.answer(lambda: self.page.set_input_files("#file", str(path)))


@pytest.fixture
def open_page(browser, serve):
    """`open_page(folder, **context)` serves an export folder and opens its page."""
    contexts = []

    def start(folder, path="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        return Page(context.new_page(), serve(folder) + path).open()

    yield start
    for context in contexts:
        context.close()
