"""Time from a file to its answer in the reader page, in Chromium on this computer.

    python benchmarks/reader.py EXPORT_FOLDER [--image=FILE] [--reads=20] [--screenshot=PNG]

Prints the time to load the page with its model, the first answer, and the median and slowest of the
rest: decoding, preprocessing, network, and drawing. Needs playwright (requirements-dev.txt) and
Debian's chromium. A screenshot shows the image with its saliency, 1400 pixels wide.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import statistics
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

_READ = """(name) => new Promise((resolve) => {
    const began = performance.now();
    document.addEventListener("reading", () => requestAnimationFrame(() =>
      setTimeout(() => resolve(performance.now() - began))), { once: true });
    document.addEventListener("refused", (event) => resolve(event.detail.reason), { once: true });
    fetch(name).then((response) => response.blob()).then((blob) => {
      const files = new DataTransfer();
      files.items.add(new File([blob], "image"));
      document.querySelector("#stage").dispatchEvent(
        new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    });
})"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", help="relative to the folder; the first example if not given")
    parser.add_argument("--reads", type=int, default=20)
    parser.add_argument("--screenshot")
    args = parser.parse_args()
    model = json.loads((args.folder / "model.json").read_text())
    image = args.image or model["examples"][0]
    image = image if isinstance(image, str) else image["file"]
    handler = functools.partial(_Quiet, directory=str(args.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as driver:
        chromium = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        began = time.perf_counter()
        page.goto(f"http://127.0.0.1:{server.server_port}/reader.html")
        page.wait_for_selector("body[data-ready]", timeout=300_000)
        print(f"{model['encoder']}, {model['preprocessing']['image_size']} px, {image}")
        print(f"page and model ready     {time.perf_counter() - began:6.2f} s")
        times = [page.evaluate(_READ, image) for _ in range(args.reads)]
        print(f"first answer             {times[0]:6.0f} ms")
        print(f"fastest of {len(times) - 1:2} others     {min(times[1:]):6.0f} ms")
        print(f"median of {len(times) - 1:2} others      {statistics.median(times[1:]):6.0f} ms")
        print(f"slowest of them          {max(times[1:]):6.0f} ms")
        if args.screenshot:
            if page.is_visible("#opacity"):
                page.fill("#opacity", "30")
                page.locator("#opacity").blur()
            page.wait_for_timeout(1000)
            page.screenshot(path=args.screenshot)
        browser.close()
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
