"""The site: its pages in a browser, and what they say against run files, judgements and notebooks."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import pytest

from dpr.book import build, mistakes
from dpr.book.build import build_book
from dpr.book.by_query import FEW_WORDS, write_results_by_query
from dpr.book.by_system import draw_quality_by_speed, queries_a_second, systems_section, timed_on
from dpr.book.chapters import LONGEST_SHOWN, picture_in_words, write_chapter
from dpr.book.sources import Source, find_sources
from dpr.data.collection import Collection
from dpr.data.loading import load_collection
from dpr.data.trec import Run, read_run
from dpr.experiments.report import COLLECTIONS, rendered_notebooks
from dpr.experiments.results import fits, load_results, save_result

ROOT = Path(__file__).parents[2]
SYSTEMS = ("bm25", "all-MiniLM-L6-v2", "all-MiniLM-L6-v2-ft")
ATTACK = '<img src=x onerror="window.attacked = 1"> & zinc'
QUERY = "<script>window.attacked = 2</script> does zinc help?"
SIZES = ((1440, 900, "light"), (360, 740, "dark"))

pytestmark = pytest.mark.skipif(
    not list(ROOT.glob("notebooks/[0-9]*.ipynb")), reason="no notebooks in this checkout"
)


@pytest.fixture(scope="module")
def tiny():
    """A collection whose title and query would be run if they came on a page as HTML."""
    return Collection.from_texts(
        {
            "d1": "Zinc may shorten a cold.",
            "d2": "Masks hold back droplets.",
            "d3": "The sun makes vitamin D.",
        },
        titles=[ATTACK, "Masks", ""],
        queries={"q1": QUERY, "q2": "what stops droplets?"},
        qrels={"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}},
        name="docstrings",  # whose texts may be shown
    )


def save_tiny(folder, collection):
    """Two systems and a merged one over the tiny collection."""
    made = {
        "bm25": ({"q1": {"d2": 2.0, "d1": 1.0}, "q2": {"d2": 3.0}}, {}, 2.0),
        "dense": ({"q1": {"d1": 0.9, "d3": 0.8, "d2": 0.1}, "q2": {"d1": 0.5, "d2": 0.4}}, {}, 4.0),
        "merged": ({"q1": {"d1": 2.0, "d2": 1.0}, "q2": {"d2": 1.0}}, {"runs": ["bm25", "dense"]}, 0.0),
    }
    for tag, (hits, config, seconds) in made.items():
        how = {"notebook": "02_bm25", "config": config, "depth": 10, "wall_s": seconds}
        save_result(folder, Run(hits, tag), collection, **how)


@pytest.fixture(scope="module")
def repository(tmp_path_factory, tiny):
    """The committed notebooks, three committed systems on SciFact, and the tiny collection."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    (root / "runs" / "scifact").mkdir(parents=True)
    for system in SYSTEMS:
        for path in (ROOT / "runs" / "scifact").glob(f"{system}.*"):
            shutil.copy(path, root / "runs" / "scifact")
    save_tiny(root / "runs" / "docstrings", tiny)
    return root


@pytest.fixture(scope="module")
def scifact():
    """SciFact where it is at hand, else None."""
    from conftest import DATA_DIR

    return load_collection(DATA_DIR / "scifact") if DATA_DIR else None


@pytest.fixture(scope="module")
def site(repository, tiny, scifact, tmp_path_factory):
    sources = [
        Source(repository / "runs" / "scifact", "SciFact", scifact),
        Source(repository / "runs" / "docstrings", "Tiny", tiny, sample=True),
    ]
    return build_book(repository, sources, tmp_path_factory.mktemp("site") / "book").parent


@pytest.fixture(scope="module")
def address(site):
    """A server of the site."""
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Cache-Control", "no-store")  # so that each page is weighed whole
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser():
    found = [
        path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))
    ]
    if not found:
        pytest.skip("the site is looked at in Chromium, which is not installed here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found[0])
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    """A page that fails the test on any error of a script, and on what cannot be loaded."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and errors.append(message.text))
    yield opened
    context.close()
    assert errors == []


def hits_on(page, system):
    """The doc_ids and grades that the page shows of a system, in order."""
    hits = page.locator(f"section[data-system='{system}'] li.hit")
    grades = [
        re.findall(r"relevant(?:, grade (\d+))?", text) for text in hits.locator(".line").all_inner_texts()
    ]
    return [
        (hit.get_attribute("data-doc"), int(grade[0] or 1) if grade else 0)
        for hit, grade in zip(hits.all(), grades, strict=True)
    ]


def column(page, number):
    return page.locator(f".rows tbody td:nth-child({number})").all_text_contents()


# --- in the browser ----------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_every_page_loads_without_an_error_fits_its_window_and_is_light(
    browser, site, address, width, height, scheme
):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, problems, weight = context.new_page(), [], {}
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("request", lambda sent: sent.url.startswith(address) or problems.append(sent.url))
    page.on("response", lambda got: got.status < 400 or problems.append(f"{got.status} {got.url}"))
    page.on("requestfinished", lambda sent: weight.update({sent.url: sent.sizes()["responseBodySize"]}))
    names = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html"))]
    assert {"index.html", "queries.html", "systems.html", "mistakes.html", "notebooks/02_bm25.html"} <= set(
        names
    )
    for name in names:
        weight.clear()
        page.goto(f"{address}/{name}", wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        without = page.evaluate("[...document.images].filter(i => !i.alt.trim()).map(i => i.src)")
        assert without == [], name
        assert len(weight) > 3, name
        assert sum(weight.values()) < 3_000_000, name
    context.close()
    assert problems == []


def test_a_page_works_from_a_folder_without_a_server(page, site):
    page.goto(f"file://{site}/queries.html#c=docstrings&s=dense&q=q1")
    page.wait_for_selector("section[data-system='dense'] li")
    assert hits_on(page, "dense") == [("d1", 2), ("d3", 1), ("d2", 0)]


def test_search_finds_a_word_of_a_chapter(page, address):
    page.goto(f"{address}/search.html?q=hnswlib")
    page.wait_for_selector("ul.search li a")
    assert "05 Dense retrieval" in page.locator("ul.search").inner_text()


def test_a_query_shows_the_hits_of_the_run_files_with_the_grades_of_the_judgements(
    page, address, repository, scifact
):
    runs = {system: read_run(repository / "runs" / "scifact" / f"{system}.trec.gz") for system in SYSTEMS}
    results = load_results(repository / "runs" / "scifact")
    qrels = scifact.qrels if scifact else {}
    for query_id in ("1", "13", "1395"):
        asked = "&".join(["c=scifact", *(f"s={system}" for system in SYSTEMS), f"q={query_id}"])
        page.goto(f"{address}/queries.html#{asked}")
        page.wait_for_selector(f"h2:has-text('Query {query_id}')")
        grades = qrels.get(query_id, {})
        for system, run in runs.items():
            first = list(run[query_id])[:10]
            assert hits_on(page, system) == [(doc_id, grades.get(doc_id, 0)) for doc_id in first]
            value = results[system].evaluation.per_query["nDCG@10"][query_id]
            assert f"nDCG@10 {value:.4f}" in page.locator(f"section[data-system='{system}'] h3").inner_text()
        ranks = list(runs["all-MiniLM-L6-v2"][query_id])
        top = next(iter(runs["bm25"][query_id]))
        other = f"all-MiniLM-L6-v2: {ranks.index(top) + 1 if top in ranks else '–'}"
        assert other in page.locator("section[data-system='bm25'] li .others").first.inner_text()
        missed = [
            d for d in grades if grades[d] > 0 and not any(d in list(r[query_id])[:10] for r in runs.values())
        ]
        shown = page.locator(".query .scrolls tbody tr td:first-child code").all_inner_texts()
        assert sorted(shown) == sorted(missed)


def test_the_table_has_every_query_with_its_values_and_sorts_and_filters(page, address, repository):
    page.goto(f"{address}/queries.html#c=scifact&s=bm25&s=all-MiniLM-L6-v2")
    page.wait_for_selector(".rows tbody tr")
    results = load_results(repository / "runs" / "scifact")
    values = [list(results[s].evaluation.per_query["nDCG@10"].values()) for s in ("bm25", "all-MiniLM-L6-v2")]
    assert column(page, 3) == [f"{value:.4f}" for value in values[0]]
    assert len(column(page, 1)) == 300
    page.locator(".rows th button", has_text="difference").click()
    expected = sorted((round(b, 4) - round(a, 4) for a, b in zip(*values, strict=True)), reverse=True)
    assert [float(text) for text in column(page, 5)] == pytest.approx(expected, abs=1e-9)
    assert page.locator(".rows th[aria-sort=descending]").inner_text().startswith("difference")
    page.locator("input[type=search]").fill("1395")
    assert len(column(page, 1)) == 1
    assert "1 of 300 queries" in page.locator("[role=status]").inner_text()


def test_html_of_a_collection_stays_text(page, address):
    page.goto(f"{address}/queries.html#c=docstrings&s=bm25&s=dense&q=q1")
    page.wait_for_selector("section[data-system='dense'] li")
    assert page.locator("h2", has_text=QUERY).count() == 1
    assert page.locator("section[data-system='dense'] .title").first.inner_text() == ATTACK
    assert page.evaluate("window.attacked") is None
    assert page.locator("#queries img, #queries script").count() == 0


def test_the_words_of_the_query_are_marked(page, address):
    page.goto(f"{address}/queries.html#c=docstrings&s=dense&q=q1")
    page.wait_for_selector("section[data-system='dense'] li")
    marks = {text.lower() for text in page.locator("section mark").all_inner_texts()}
    assert "zinc" in marks
    assert marks <= {"zinc", "script", "window", "attacked", "2", "help"}


def test_an_address_shows_the_same_view_again(page, address, browser):
    page.goto(f"{address}/queries.html")
    page.wait_for_selector(".rows tbody tr")
    page.get_by_label("collection").select_option("docstrings")
    page.wait_for_selector(".rows tbody tr >> text=q2")
    page.get_by_label("system 2").select_option("dense")
    page.locator(".rows th button", has_text="relevant").click()
    page.locator(".rows a", has_text="droplets").click()
    page.wait_for_selector("h2:has-text('Query q2')")
    seen, url = page.locator("#queries").inner_text(), page.url
    again = browser.new_page()
    again.goto(url)
    again.wait_for_selector("h2:has-text('Query q2')")
    assert again.locator("#queries").inner_text() == seen
    again.close()


def test_the_page_works_by_keyboard(page, address):
    page.goto(f"{address}/queries.html#c=docstrings&s=bm25&s=dense")
    page.wait_for_selector(".rows tbody tr")
    page.locator(".rows th button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".rows th").first.get_attribute("aria-sort") == "ascending"
    for _ in range(5):  # over the other headings to the first query
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:has-text('Query')")
    page.wait_for_function("document.activeElement.tagName === 'H2'")


def test_a_query_that_does_not_exist_is_said(page, address):
    page.goto(f"{address}/queries.html#c=docstrings&q=q9")
    page.wait_for_selector("text=There is no query q9 here.")


def test_a_table_of_systems_sorts_by_number(page, address):
    page.goto(f"{address}/systems.html")
    table = page.locator(".sortable table").first
    table.locator("th button", has_text="R@100").click()
    values = [float(text) for text in table.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert values == sorted(values)
    table.locator("th button", has_text="R@100").click()
    values = [float(text) for text in table.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert values == sorted(values, reverse=True)


# --- results by query --------------------------------------------------------------------------


def handed(path):
    """The content that a script hands over."""
    text = path.read_text(encoding="ascii")
    return json.loads(re.fullmatch(r'dprBook\.add\("[^"]+",(.*)\);\n', text, re.DOTALL).group(1))


def test_of_an_unknown_licence_only_first_words_are_shown(tmp_path, tiny):
    long = Collection.from_texts(
        {"d1": " ".join(f"word{n}" for n in range(50)), "d2": "b", "d3": "c"},
        queries=tiny.queries,
        qrels=tiny.qrels,
        name="tiny",
    )
    save_tiny(tmp_path / "runs", long)
    told = write_results_by_query(tmp_path / "site", load_results(tmp_path / "runs"), long)
    assert "licence" in told["texts"]
    title = next(d for d in handed(tmp_path / "site" / "tiny" / "0.js")["documents"] if d[0] == "d1")[2]
    assert title == " ".join(f"word{n}" for n in range(FEW_WORDS)) + " …"


def test_on_a_site_that_is_not_for_publishing_texts_are_whole(tmp_path, tiny):
    collection = replace(tiny, name="tiny")
    save_tiny(tmp_path / "runs", collection)
    write_results_by_query(tmp_path / "site", load_results(tmp_path / "runs"), collection, private=True)
    documents = handed(tmp_path / "site" / "tiny" / "0.js")["documents"]
    assert ["d1", 2, ATTACK, "Zinc may shorten a cold."] in documents


@pytest.mark.parametrize("other", [False, True])
def test_without_the_collection_that_the_runs_are_of_only_ids_are_shown(tmp_path, tiny, other):
    save_tiny(tmp_path / "runs", tiny)
    collection = Collection.from_texts(["another"], queries=["one"], name=tiny.name) if other else None
    told = write_results_by_query(tmp_path / "site", load_results(tmp_path / "runs"), collection)
    assert "ids alone" in told["texts"]
    content = handed(tmp_path / "site" / "docstrings.js")
    assert content["queries"] == [["q1", "", None], ["q2", "", None]]
    assert all(
        len(document) == 2 for document in handed(tmp_path / "site" / "docstrings" / "0.js")["documents"]
    )


def test_a_result_over_fewer_queries_is_left_out(tmp_path, tiny):
    save_tiny(tmp_path / "runs", tiny)
    few = Collection.from_texts(
        {p.doc_id: p.text for p in tiny.passages},
        queries={"q1": QUERY},
        qrels={"q1": tiny.qrels["q1"]},
        name=tiny.name,
    )
    how = {"notebook": "09_reranking", "config": {}, "depth": 10, "wall_s": 1.0}
    save_result(tmp_path / "runs", Run({"q1": {"d1": 1.0}}, "few"), few, **how)
    write_results_by_query(tmp_path / "site", load_results(tmp_path / "runs"), tiny)
    assert {s["name"] for s in handed(tmp_path / "site" / "docstrings.js")["systems"]} == {
        "bm25",
        "dense",
        "merged",
    }


# --- results by system -------------------------------------------------------------------------


def test_the_table_says_of_each_system_what_its_files_say(tmp_path, tiny):
    save_tiny(tmp_path / "runs", tiny)
    results = load_results(tmp_path / "runs")
    text = systems_section(results, "Tiny", tmp_path / "speed.svg", sample=False)
    for system, result in results.items():
        [line] = [line for line in text.splitlines() if f"| `{system}` |" in line]
        assert f"{result.evaluation.means['nDCG@10']:.4f}" in line
        assert "`python -m dpr.experiments.notebooks runs --profile docstrings --only 02`" in line
    assert "merges bm25 and dense" in text
    assert "notebooks run --profile sample" in systems_section(
        results, "Tiny", tmp_path / "speed.svg", sample=True
    )


def test_more_systems_than_letters_are_all_in_the_table(tmp_path, tiny):
    how = {"notebook": "02_bm25", "config": {}, "depth": 10, "wall_s": 1.0}
    for n in range(27):
        save_result(tmp_path / "runs", Run({"q1": {"d1": 1.0 + n}}, f"system-{n}"), tiny, **how)
    text = systems_section(load_results(tmp_path / "runs"), "Tiny", tmp_path / "speed.svg", sample=False)
    assert all(f"| `system-{n}` |" in text for n in range(27))


def test_one_query_proves_nothing_and_is_shown(tmp_path, tiny):
    one = replace(tiny, all_qrels={"test": {"q2": tiny.qrels["q2"]}})
    how = {"notebook": "02_bm25", "config": {}, "depth": 10, "wall_s": 1.0}
    for n, tag in enumerate(("bm25", "dense")):
        save_result(tmp_path / "runs", Run({"q2": {"d1": 1.0, "d2": 2.0 * n}}, tag), one, **how)
    text = systems_section(load_results(tmp_path / "runs"), "Tiny", tmp_path / "speed.svg", sample=False)
    assert "| `dense` | 1.0000 |" in text


def test_the_command_names_the_profile_that_makes_the_runs(tmp_path):
    results = load_results(ROOT / "runs" / "msmarco-dl")
    text = systems_section(results, "MS MARCO", tmp_path / "speed.svg", sample=False)
    assert "runs --profile scifact --only 09" in text


def test_a_merged_system_takes_the_time_of_its_parts(tmp_path, tiny):
    save_tiny(tmp_path, tiny)
    results = load_results(tmp_path)
    assert queries_a_second("bm25", results) == 1.0
    assert queries_a_second("merged", results) == pytest.approx(2 / 6)
    assert queries_a_second("merged", {s: r for s, r in results.items() if s != "dense"}) is None


def test_speeds_of_another_machine_are_left_out_of_the_figure(tmp_path, tiny):
    save_tiny(tmp_path, tiny)
    results = load_results(tmp_path)
    mine = results["bm25"].metadata["hardware"]
    assert timed_on(results) == (mine, [])
    results["dense"].metadata["hardware"] = "a GPU"
    assert timed_on(results) == (mine, ["merged", "dense"])
    front = draw_quality_by_speed(results, "Tiny", tmp_path / "speed.svg")
    assert [system for system, _, _ in front] == ["bm25"]
    text = systems_section(results, "Tiny", tmp_path / "speed.svg", sample=False)
    assert "Left out, as timed on another machine: merged, dense." in text


def test_no_system_is_better_and_faster_than_one_of_the_front(tmp_path):
    results = load_results(ROOT / "runs" / "scifact", ablations=True)
    main = [s for s, r in results.items() if not r.metadata["ablation"]]
    points = {s: (queries_a_second(s, results), results[s].evaluation.means["nDCG@10"]) for s in main}
    points = {s: point for s, point in points.items() if point[0]}
    expected = {
        s
        for s, (speed, value) in points.items()
        if not any(
            (a >= speed and b > value) or (a > speed and b >= value) for t, (a, b) in points.items() if t != s
        )
    }
    front = draw_quality_by_speed(results, "SciFact", tmp_path / "speed.svg")
    assert {system for system, _, _ in front} == expected


# --- chapters ----------------------------------------------------------------------------------


def test_a_chapter_has_links_folded_code_and_words_for_pictures(tmp_path):
    for rendered in rendered_notebooks(ROOT):
        before = nbformat.read(rendered.path, as_version=4)
        after = nbformat.read(write_chapter(rendered, tmp_path), as_version=4)
        assert f"[Open in Colab]({rendered.colab})" in after.cells[0].source
        assert [cell.source for cell in after.cells[1:]] == [cell.source for cell in before.cells[1:]]
        for cell in after.cells:
            if cell.cell_type == "code":
                long = len(cell.source.splitlines()) > LONGEST_SHOWN
                assert ("hide-input" in cell.metadata.get("tags", [])) == long
                assert cell.metadata["mystnb"]["image"]["alt"].startswith("Figure: ")


def test_a_picture_in_words_is_the_heading_and_what_the_cell_says():
    output = nbformat.v4.new_output("display_data", {"text/markdown": "**It gains\n+.02.** More."})
    cell = nbformat.v4.new_code_cell("say()", outputs=[output])
    assert picture_in_words("Does it help?", cell) == "Figure: Does it help? It gains +.02."


# --- what mistakes cost ------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", mistakes.MISTAKES, ids=lambda mistake: mistake.what)
def test_every_mistake_is_guarded_by_tests_that_exist_and_shown_where_it_says(mistake):
    assert mistake.guards
    for guard in mistake.guards:
        file, name = guard.split("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), guard
    if mistake.shown:
        notebook, heading = mistake.shown
        cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
        assert any(
            f"## {heading}" in cell.source.splitlines() for cell in cells if cell.cell_type == "markdown"
        )
    if mistake.said or mistake.runs or mistake.trainings:
        assert mistakes.damage(ROOT, mistake) != "–"


def test_the_damage_is_that_of_the_run_files():
    [mistake] = [m for m in mistakes.MISTAKES if m.runs == ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2-cls")]
    told = mistakes.damage(ROOT, mistake)
    for name, title in COLLECTIONS.items():
        means = [
            load_results(ROOT / "runs" / name, True)[run].evaluation.means["nDCG@10"] for run in mistake.runs
        ]
        assert f"{title}: nDCG@10 {means[0]:.4f} to {means[1]:.4f}" in told


# --- the whole ---------------------------------------------------------------------------------


def test_a_broken_link_ends_the_making_and_leaves_the_old_site(repository, tiny, tmp_path, monkeypatch):
    last = rendered_notebooks(repository)[-1:]  # which links to others
    monkeypatch.setattr(build, "rendered_notebooks", lambda root: last)
    (tmp_path / "book").mkdir()
    with pytest.raises(ValueError, match="06_doc2query"):
        build_book(repository, [Source(repository / "runs" / "docstrings", "Tiny", tiny)], tmp_path / "book")
    assert list((tmp_path / "book").iterdir()) == []


def test_runs_of_a_folder_elsewhere_are_shown_with_its_texts_if_it_is_named(tmp_path, tiny_beir_folder):
    collection = load_collection(tiny_beir_folder)
    how = {"notebook": "02_bm25", "config": {}, "depth": 10, "wall_s": 1.0}
    run = Run({query_id: {collection.doc_ids[0]: 1.0} for query_id in collection.qrels}, "bm25")
    save_result(tmp_path / "runs" / tiny_beir_folder.name, run, collection, **how)
    assert [source.collection for source in find_sources(tmp_path)] == [None]
    [source] = find_sources(tmp_path, [str(tiny_beir_folder)], private=True)
    assert fits(next(iter(load_results(source.runs).values())), source.collection)
    assert source.private
    with pytest.raises(FileNotFoundError, match="no runs of elsewhere"):
        find_sources(tmp_path, ["some/elsewhere"])


def test_without_runs_there_is_no_book(repository, tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebooks or no runs"):
        build_book(repository, [], tmp_path / "book")
