// The page of results by query. The scripts in `results/` hand over their content by `dprBook.add`, which
// works from a folder as from a server. What comes from a collection is put on the page as text, never as HTML.
"use strict";

window.dprBook = (() => {
  const MOST_SYSTEMS = 4;
  const SHOWN = 10; // hits of each system
  const KEPT = 100; // hits of a query in a run file
  const FREQUENT = new Set(
    ("a an and are as at be but by can did do does for from had has have how if in into is it its no not of " +
      "on or that the their then there these they this to was were what when where which who why will with").split(" "),
  );

  // --- content --------------------------------------------------------------------------------------

  const contents = new Map(); // key → content
  const waiting = new Map(); // key → [promise, what fulfils it]

  function add(key, content) {
    contents.set(key, content);
    waiting.get(key)?.fulfil(content);
  }

  function load(key) {
    if (contents.has(key)) return Promise.resolve(contents.get(key));
    if (!waiting.has(key)) {
      const entry = {};
      entry.promise = new Promise((fulfil, fail) => Object.assign(entry, { fulfil, fail }));
      waiting.set(key, entry);
      const script = document.createElement("script");
      script.src = `${page.dataset.results}/${key.split("/").map(encodeURIComponent).join("/")}.js`;
      script.onerror = () => {
        waiting.delete(key);
        entry.fail(new Error(`${script.src} cannot be read`));
      };
      document.head.append(script);
    }
    return waiting.get(key).promise;
  }

  // --- state: the part of the address after # --------------------------------------------------------

  function readState() {
    const given = new URLSearchParams(location.hash.slice(1));
    const overview = contents.get("overview");
    const known = overview.some((found) => found.name === given.get("c"));
    return {
      c: known ? given.get("c") : overview[0].name,
      s: given.getAll("s").slice(0, MOST_SYSTEMS),
      q: given.get("q"),
      by: given.get("by"),
      down: given.get("down") === "1",
      f: given.get("f") || "",
    };
  }

  function address(changes) {
    const { c, s, q, by, down, f } = { ...state, ...changes };
    const parts = new URLSearchParams([["c", c], ...s.map((name) => ["s", name])]);
    if (by) parts.set("by", by);
    if (down) parts.set("down", "1");
    if (f) parts.set("f", f);
    if (q !== null) parts.set("q", q);
    return `#${parts}`;
  }

  // --- elements ---------------------------------------------------------------------------------------

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }

  const stem = (word) => word.toLowerCase().replace(/(?<=..)(es|s)$/, "");

  // A text with the query's words marked.
  function marked(text, query) {
    const words = (query.match(/[\p{L}\p{N}]+/gu) || []).filter((word) => !FREQUENT.has(word.toLowerCase()));
    const wanted = new Set(words.map(stem));
    const parts = text.split(/([\p{L}\p{N}]+)/gu);
    return parts.map((part, i) => (i % 2 && wanted.has(stem(part)) ? element("mark", {}, part) : part));
  }

  const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(4);

  // --- the table ----------------------------------------------------------------------------------------

  let page, state, table; // the page's element, the state, and what is shown of the collection
  const boxes = {};

  function chosenSystems(collection) {
    const byName = new Map(collection.systems.map((system) => [system.name, system]));
    const asked = state.s.filter((name) => byName.has(name));
    if (asked.length) return asked.map((name) => byName.get(name));
    const usual = collection.systems.filter((system) => !system.variant);
    const first = byName.get("bm25") || usual[usual.length - 1] || collection.systems[0];
    const best = (usual.length ? usual : collection.systems)[0];
    return best === first ? [first] : [first, best];
  }

  function columnsOf(collection, systems) {
    const columns = [
      { key: "query", name: "query", of: (i) => collection.queries[i][1] || collection.queries[i][0] },
      { key: "relevant", name: "relevant", of: (i) => collection.queries[i][2] },
      ...systems.map((system) => ({ key: system.name, name: system.name, of: (i) => system.values[i], digits: 4 })),
    ];
    if (systems.length > 1) {
      const [first, last] = [systems[0], systems[systems.length - 1]];
      const of = (i) => last.values[i] - first.values[i];
      columns.push({ key: "difference", name: "difference", of, signed: true });
    }
    return columns;
  }

  function shownValue(column, i) {
    const value = column.of(i);
    if (value === null) return "–";
    if (column.signed) return signed(value);
    return column.digits ? value.toFixed(column.digits) : String(value);
  }

  function makeTable(collection, systems) {
    const columns = columnsOf(collection, systems);
    const headings = columns.map((column) => {
      const button = element("button", { type: "button", onclick: () => sortBy(column.key) }, column.name);
      const kind = column.key === "query" ? "text" : "number";
      return element("th", { scope: "col", role: "columnheader", class: kind }, button);
    });
    const rows = collection.queries.map(([id, text], i) => {
      const link = element("a", { "data-query": id }, text || id);
      const cells = columns.slice(1).map((column) => element("td", { role: "cell", class: "number" }, shownValue(column, i)));
      const name = text ? [element("code", {}, id), " ", link] : [link];
      const row = element("tr", { role: "row" }, element("td", { role: "cell", class: "text" }, ...name), ...cells);
      return { row, link, i, searched: `${id} ${text}`.toLowerCase() };
    });
    const body = element("tbody", { role: "rowgroup" });
    const head = element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...headings));
    const made = element("table", { role: "table", style: `--numbers: ${columns.length - 1}` }, head, body);
    return { collection, systems, columns, headings, rows, body, made };
  }

  function sortBy(key) {
    const down = state.by === key ? !state.down : key !== "query";
    history.replaceState(null, "", address({ by: key, down }));
    state = readState();
    orderRows();
  }

  function orderRows() {
    const column = table.columns.find((found) => found.key === state.by);
    const rows = [...table.rows];
    if (column) {
      const sign = state.down ? -1 : 1;
      const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
      rows.sort((a, b) => sign * compare(column.of(a.i), column.of(b.i)) || a.i - b.i);
    }
    const wanted = state.f.toLowerCase();
    for (const [n, heading] of table.headings.entries()) {
      const sorted = table.columns[n] === column;
      heading.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    }
    table.shown = rows.filter(({ searched }) => searched.includes(wanted));
    for (const { link } of table.shown) {
      link.href = address({ q: link.dataset.query });
      if (link.dataset.query === state.q) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    table.body.replaceChildren(...table.shown.map(({ row }) => row));
    boxes.count.replaceChildren(summary());
  }

  function summary() {
    const { systems, shown, collection } = table;
    const means = systems.map((system) => {
      const sum = shown.reduce((total, { i }) => total + system.values[i], 0);
      return `${system.name} ${shown.length ? (sum / shown.length).toFixed(4) : "–"}`;
    });
    const count = `${shown.length} of ${collection.queries.length} queries`;
    return `${count}; mean ${collection.metric}: ${means.join(", ")}. ${collection.told}`;
  }

  // --- controls -----------------------------------------------------------------------------------------

  function select(label, options, value, change) {
    const made = element("select", { onchange: () => change(made.value) }, ...options);
    made.value = value;
    return element("label", {}, element("span", {}, label), made);
  }

  function systemOptions(collection, free) {
    const group = (label, variant) => {
      const found = collection.systems.filter((system) => system.variant === variant);
      const options = found.map(({ name, mean }) =>
        element("option", { value: name }, `${name} (${mean.toFixed(4)})`),
      );
      return found.length ? [element("optgroup", { label }, ...options)] : [];
    };
    return [...(free ? [element("option", { value: "" }, "–")] : []), ...group("systems", false), ...group("variants", true)];
  }

  function showControls() {
    const { collection, systems } = table;
    const overview = contents.get("overview");
    const collections = overview.map(({ name, title }) => element("option", { value: name }, title));
    const names = systems.map((system) => system.name);
    const go = (changes) => { location.hash = address(changes); };
    const choices = Array.from({ length: Math.min(names.length + 1, MOST_SYSTEMS) }, (_, n) =>
      select(`system ${n + 1}`, systemOptions(collection, n > 0), names[n] || "", (name) => {
        const changed = [...names];
        changed[n] = name;
        go({ s: changed.filter((given) => given) });
      }),
    );
    const filter = element("input", { type: "search", value: state.f, oninput: () => {
      history.replaceState(null, "", address({ f: filter.value }));
      state = readState();
      orderRows();
    } });
    boxes.controls.replaceChildren(
      select("collection", collections, state.c, (c) => go({ c, s: [], q: null, by: null, down: false, f: "" })),
      ...choices,
      element("label", {}, element("span", {}, "queries with"), filter),
    );
  }

  // --- one query ------------------------------------------------------------------------------------------

  function rankIn(found, system, position) {
    const rank = (found.runs[system.name] || []).indexOf(position) + 1;
    return rank ? String(rank) : "–";
  }

  function grade(document) {
    if (!document[1]) return [];
    return [" ", element("span", { class: "grade" }, document[1] === 1 ? "relevant" : `relevant, grade ${document[1]}`)];
  }

  function hit(found, systems, system, position, rank, query) {
    const document = found.documents[position];
    const [id, , title, text] = document;
    const others = systems.filter((other) => other !== system).map((other) => `${other.name}: ${rankIn(found, other, position)}`);
    return element(
      "li",
      { class: document[1] ? "hit relevant" : "hit", "data-doc": id },
      element("p", { class: "line" }, element("b", {}, String(rank)), " ", element("code", {}, id), ...grade(document)),
      ...(title ? [element("p", { class: "title" }, ...marked(title, query))] : []),
      ...(text ? [element("p", { class: "passage" }, ...marked(text, query))] : []),
      ...(others.length ? [element("p", { class: "others" }, others.join(" · "))] : []),
    );
  }

  function missed(found, systems) {
    const first = new Set(systems.flatMap((system) => (found.runs[system.name] || []).slice(0, SHOWN)));
    const lost = found.documents.map((document, n) => [document, n]).filter(([document, n]) => document[1] && !first.has(n));
    if (!lost.length) return [];
    const head = ["document", "grade", ...systems.map((system) => system.name)];
    const rows = lost.map(([document, n]) =>
      element(
        "tr",
        {},
        element("td", { class: "text" }, element("code", {}, document[0]), ` ${document[2] || ""}`),
        element("td", { class: "number" }, String(document[1])),
        ...systems.map((system) => element("td", { class: "number" }, rankIn(found, system, n))),
      ),
    );
    const headings = head.map((name, n) => element("th", { scope: "col", class: n ? "number" : "text" }, name));
    return [
      element("h3", {}, `Relevant, but among no system's first ${SHOWN} (${lost.length})`),
      element("p", {}, `Ranks, as far as the first ${KEPT} hits are kept.`),
      element(
        "div",
        { class: "scrolls", tabindex: "0", role: "region", "aria-label": "relevant documents that were missed" },
        element("table", {}, element("thead", {}, element("tr", {}, ...headings)), element("tbody", {}, ...rows)),
      ),
    ];
  }

  function neighbours() {
    const at = table.shown.findIndex(({ link }) => link.dataset.query === state.q);
    const link = (name, n) => {
      const query = at >= 0 && table.shown[n] && table.shown[n].link.dataset.query;
      return query ? [element("a", { href: address({ q: query }) }, name), " "] : [];
    };
    return element("p", { class: "neighbours" }, ...link("← query above", at - 1), ...link("query below →", at + 1));
  }

  async function showQuery(focus) {
    const { collection, systems } = table;
    const number = collection.queries.findIndex(([id]) => id === state.q);
    if (state.q === null || number < 0) {
      boxes.query.replaceChildren(...(state.q === null ? [] : [element("p", {}, `There is no query ${state.q} here.`)]));
      return;
    }
    const shownFor = state;
    const found = await load(`${collection.name}/${number}`);
    if (state !== shownFor) return; // another one was asked for meanwhile
    const [id, text, relevant] = collection.queries[number];
    const heading = element("h2", { tabindex: "-1" }, `Query ${id}`, text ? `: ${text}` : "");
    const judged = relevant === null ? "The judgements are not at hand." : `${relevant} relevant.`;
    const lists = systems.map((system) => {
      const positions = (found.runs[system.name] || []).slice(0, SHOWN);
      const hits = positions.map((position, n) => hit(found, systems, system, position, n + 1, text));
      const value = `${system.name}: ${collection.metric} ${system.values[number].toFixed(4)}`;
      return element(
        "section",
        { "data-system": system.name },
        element("h3", {}, value),
        hits.length ? element("ol", {}, ...hits) : element("p", {}, "No hit."),
      );
    });
    const legend = ` Marked: the query's words. Below a hit: its rank in the other lists, – beyond the first ${KEPT}.`;
    boxes.query.replaceChildren(
      heading,
      element("p", {}, judged + legend),
      neighbours(),
      element("div", { class: "lists" }, ...lists),
      ...missed(found, systems),
    );
    if (focus) heading.focus();
  }

  // --- the whole page -----------------------------------------------------------------------------------

  async function show(event) {
    const before = state;
    const asked = (state = readState());
    const collection = await load(state.c);
    if (state !== asked) return;
    const systems = chosenSystems(collection);
    state.s = systems.map((system) => system.name);
    const same = table && table.collection === collection && table.systems.map((s) => s.name).join() === state.s.join();
    if (!same) {
      table = makeTable(collection, systems);
      boxes.table.replaceChildren(table.made);
      showControls();
    }
    orderRows();
    await showQuery(event && before && before.q !== state.q);
  }

  function fail(error) {
    boxes.query.replaceChildren(element("p", { role: "alert" }, error.message));
  }

  document.addEventListener("DOMContentLoaded", () => {
    page = document.getElementById("queries");
    boxes.controls = element("div", { class: "controls" });
    boxes.count = element("p", { role: "status" });
    boxes.table = element("div", { class: "scrolls rows", tabindex: "0", role: "region", "aria-label": "queries" });
    boxes.query = element("div", { class: "query" });
    page.replaceChildren(boxes.controls, boxes.count, boxes.table, boxes.query);
    window.addEventListener("hashchange", (event) => show(event).catch(fail));
    show().catch(fail);
  });

  return { add };
})();
