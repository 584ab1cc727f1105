"""How heavy the book's pages are, and how fast the table of queries answers; `--picture` draws the README's.

Reads build/book, which `make book` makes, in Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import sync_playwright

from dpr.data.loading import project_root
from dpr.experiments.plots import with_palette
from dpr.provenance import hardware

PICTURE = "src/dpr/book/queries.png"
VIEW = "c=scifact&s=bm25&s=all-MiniLM-L6-v2-ft&by=difference&down=1&q=1"
ROUNDS = 9
# From before the event to after the layout that it needs
MEASURE = """([selector, event, value]) => {
  const target = document.querySelector(selector);
  if (value !== null) target.value = value;
  const begun = performance.now();
  target.dispatchEvent(new Event(event, {bubbles: true}));
  document.querySelector('.rows').getBoundingClientRect();
  return performance.now() - begun;
}"""
ACTIONS = {
    "sorting by query": (".rows th:nth-child(1) button", "click", None),
    "sorting by difference": (".rows th:last-child button", "click", None),
    "keeping the queries with an e": ("#queries input", "input", "e"),
    "showing all again": ("#queries input", "input", ""),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", action="store_true", help=f"write {PICTURE}")
    arguments = parser.parse_args()
    root = project_root()
    book = root / "build" / "book"
    if not (book / "index.html").is_file():
        parser.error(f"{book}: not there; `make book` makes it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        weigh(page, book)
        page.goto(f"file://{book}/queries.html#{VIEW}")
        page.wait_for_selector("h2")
        print(
            f"\n{len(page.locator('.rows tbody tr').all())} queries, {hardware()}, median of {ROUNDS} rounds"
        )
        print("\n| | ms (slowest) |\n|---|---:|")
        for name, action in ACTIONS.items():
            taken = [page.evaluate(MEASURE, list(action)) for _ in range(ROUNDS)]
            print(f"| {name} | {median(taken):.0f} ({max(taken):.0f}) |")
        if arguments.picture:
            page.goto(f"file://{book}/queries.html#{VIEW}")
            page.reload()
            page.wait_for_selector("h2")
            png = with_palette(
                page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": 1150})
            )
            (root / PICTURE).write_bytes(png)
            print(f"wrote {PICTURE}, {Image.open(io.BytesIO(png)).size}, {len(png) // 1024} kB")
        browser.close()


def weigh(page, book: Path) -> None:
    """Print the heaviest pages, with all that they load."""
    weights, loaded = {}, []
    page.on("request", lambda sent: loaded.append(Path(urlsplit(sent.url).path)))
    for path in sorted(book.rglob("*.html")):
        loaded.clear()
        page.goto(f"file://{path}", wait_until="networkidle")
        weights[path.relative_to(book)] = sum(p.stat().st_size for p in set(loaded) if p.is_file())
    print("| page | kB |\n|---|---:|")
    for path, weight in sorted(weights.items(), key=lambda item: -item[1])[:4]:
        print(f"| {path} | {weight / 1000:.0f} |")


if __name__ == "__main__":
    main()
