// The page's own script: tables that sort, the explorer, printing. No library, no network; texts become text nodes only.
"use strict";
(() => {
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  // Names come from data: one like "constructor" must not find what every object has.
  const lookup = (object, key, otherwise) => (Object.hasOwn(object, key) ? object[key] : otherwise);
  const count = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  // Controls and signs that reorder or hide text are named instead of obeyed.
  const visible = (text) =>
    text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, (sign) =>
      "⟨U+" + sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩");

  // --- sorting: a heading's button goes through descending or ascending, the other one, and the first order ---

  const sortValue = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text === "missing" ? "" : text;
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = element("button", { type: "button", className: "sort" }, ...heading.childNodes);
      heading.replaceChildren(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const keyed = original.map((row) => [sortValue(row.cells[column]), row]);
        const present = keyed.filter(([key]) => key !== "");
        const numeric = present.every(([key]) => Number.isFinite(Number(key)));
        const order = numeric ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
        const direction = order[(order.indexOf(heading.getAttribute("aria-sort")) + 1) % 3];
        for (const other of headings) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", direction);
        if (direction === "none") {
          body.append(...original);
          return;
        }
        const sign = direction === "ascending" ? 1 : -1;
        present.sort(([a], [b]) => sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true })));
        // What is missing stays last either way.
        body.append(...present.map(([, row]) => row), ...keyed.filter(([key]) => key === "").map(([, row]) => row));
      });
    });
  };

  // --- the explorer ---

  const percent = (code) => {
    if (code === null || code === undefined) return "not known";
    if (code < 0) return "0 (too small for a float32)";
    const p = Math.exp(-code / 100);
    if (p > 0.9995) return "above 99.9\u00a0%";
    if (p >= 0.1) return (100 * p).toFixed(1) + "\u00a0%";
    if (p >= 0.0001) return (100 * p).toPrecision(2) + "\u00a0%";
    const power = Math.floor(Math.log10(p));
    return (p / 10 ** power).toFixed(1) + " · 10^" + power;
  };

  const explore = (data) => {
    const part = (id) => document.getElementById(id);
    const [app, text, kind, counted, list, detail] =
      ["explorer-app", "finder-text", "finder-kind", "finder-count", "finder-list", "detail"].map(part);
    // Sets with several attempts at a problem, those of RSD first.
    const several = data.sets
      .map((set, place) => ({ set, place }))
      .sort((a, b) => (b.set.method === "rsd") - (a.set.method === "rsd"))
      .filter(({ set, place }) => set.attempted && data.problems.some((problem) => problem.sets[place].attempts.length > 1));
    const rightOf = (problem, place) => problem.sets[place].attempts.filter(([outcome]) => data.outcomes[outcome].right).length;
    const viewOf = (problem) => lookup(data.views, problem.id, null);
    // What the two panes show, kept from problem to problem.
    const panes = [{ set: null, reader: null }, { set: null, reader: null }];

    // Kinds of problems to show.
    const kinds = [["all problems", () => true], ["with a token view", (problem) => viewOf(problem) !== null]];
    for (const { set, place } of several) {
      kinds.push(["solved in " + set.name, (problem) => rightOf(problem, place) > 0]);
      kinds.push(["never solved in " + set.name, (problem) => rightOf(problem, place) === 0]);
    }
    kind.append(...kinds.map(([label], value) => element("option", { value: String(value), textContent: label })));

    // The list.
    const items = data.problems.map((problem, index) => {
      const scores = several.slice(0, 3).map(({ set, place }) => set.name + " " + rightOf(problem, place) + "/" + problem.sets[place].attempts.length);
      const item = element(
        "li",
        { id: "problem-" + index },
        element("span", { className: "number", textContent: String(index + 1) }),
        element("span", { className: "what", textContent: visible(problem.question).slice(0, 140) }),
        element("span", { className: "soft", textContent: scores.concat(viewOf(problem) ? ["tokens"] : []).join(" · ") }),
      );
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", "false");
      return item;
    });
    list.append(...items);
    const haystacks = data.problems.map((problem) => (problem.question + "\n" + problem.answer + "\n" + problem.id).toLowerCase());
    let found = items.map((_, index) => index);
    let chosen = -1;

    const choose = (index) => {
      if (index === undefined || index === chosen) return;
      if (chosen >= 0) items[chosen].setAttribute("aria-selected", "false");
      chosen = index;
      const item = items[index];
      item.setAttribute("aria-selected", "true");
      list.setAttribute("aria-activedescendant", item.id);
      // Within the list alone: the page must not jump.
      const top = item.offsetTop;
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + item.offsetHeight - list.clientHeight;
      detail.replaceChildren(...show(data.problems[index], index));
    };

    const filter = () => {
      const wanted = text.value.trim().toLowerCase();
      const fits = kinds[Number(kind.value)][1];
      found = [];
      data.problems.forEach((problem, index) => {
        const there = haystacks[index].includes(wanted) && fits(problem);
        items[index].hidden = !there;
        if (there) found.push(index);
      });
      counted.textContent = count(found.length) + " of " + count(items.length) + " problems";
    };

    // --- one problem ---

    const show = (problem, index) => {
      const view = viewOf(problem);
      const parts = [
        element("h3", {}, "Problem " + (index + 1) + " ", element("code", { textContent: visible(problem.id) })),
        element("p", { className: "question-text", textContent: visible(problem.question) }),
        element("p", {}, "Reference answer: ", element("b", { textContent: visible(problem.answer) })),
        element("div", { className: "attempts" }, ...data.sets.map((set, place) => attempts(set, place, problem))),
      ];
      if (view === null) {
        parts.push(element("p", { className: "soft", textContent: "This problem is not in the sample that is shown token by token; “with a token view” in the list’s filter shows those that are." }));
        return parts;
      }
      parts.push(element("h4", { textContent: "The training rows, token by token" }), legend());
      parts.push(element("div", { className: "panes" }, ...panes.map((state, place) => pane(view, state, place))));
      return parts;
    };

    // Of many sets the tables are closed but for the first RSD traces and the dataset's own.
    const opened = new Set(["rsd", "dataset"].map((method) => data.sets.findIndex((set) => set.method === method)));

    const attempts = (set, place, problem) => {
      const entry = problem.sets[place];
      const [attempt, rowKind] = entry.row ?? [null, null];
      if (!set.attempted) {
        const what = entry.row ? "one training row, from attempt " + attempt + " of the set that it comes from" : "no training row";
        return element("p", { className: "soft" }, element("b", { textContent: set.name }), ", " + set.made + ": " + what + ".");
      }
      const title = [element("b", { textContent: set.name }), ", " + set.made + ": " + rightOf(problem, place) + " of " + entry.attempts.length + " right"];
      const heading = (label, className = "") => element("th", { scope: "col", className, textContent: label });
      const rows = entry.attempts.map(([code, tokens, answer, fallback], index) => {
        const number = entry.numbers ? entry.numbers[index] : index;
        const { right, finish, reason } = data.outcomes[code];
        const used = number === attempt;
        const row = element(
          "tr",
          { className: used ? "used" : "" },
          element("th", { scope: "row", textContent: (used ? "▸ " : "") + number }),
          element("td", { textContent: right ? "✓ right" : "✗ wrong", className: right ? "good" : "bad" }),
          element("td", {}, element("code", { textContent: answer === null ? "none" : visible(answer) })),
          element("td", { className: "right", textContent: count(tokens) }),
          element("td", { className: "right", textContent: fallback === null || set.method !== "rsd" ? "–" : (fallback / 10).toFixed(1) }),
          element("td", { textContent: finish }),
          element("td", { textContent: (used && rowKind === "prefix" ? "its beginning is the training row; " : "") + visible(reason) }),
        );
        [number, Number(right), answer ?? "", tokens, fallback ?? "", finish, reason].forEach((value, column) => {
          row.cells[column].dataset.value = String(value);
        });
        return row;
      });
      const folded = data.sets.length > 3;
      const table = element(
        "table",
        { className: "plain small sortable" },
        ...(folded ? [] : [element("caption", {}, ...title)]),
        element("thead", {}, element("tr", {}, heading("#"), heading("Right?"), heading("Answer"), heading("Tokens", "right"), heading("Fallback %", "right"), heading("Ended"), heading("What became of it"))),
        element("tbody", {}, ...rows),
      );
      sortable(table);
      const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", "Attempts of " + set.name);
      if (!folded) return scroll;
      const details = element("details", { open: opened.has(place) }, element("summary", {}, ...title), scroll);
      details.addEventListener("toggle", () => (details.open ? opened.add(place) : opened.delete(place)));
      return details;
    };

    // --- tokens ---

    const legend = () => {
      const sample = (className, label) => element("li", {}, element("span", { className: "t " + className, textContent: "token" }), " " + label);
      return element(
        "ul",
        { className: "legend" },
        sample("", "probable to the reader (50 % or more)"),
        sample("p1", "10 to 50 %"),
        sample("p2", "from the threshold to 10 %"),
        sample("low", "under the threshold (wavy line)"),
        sample("own", "the student’s own, by fallback (s in front, straight line)"),
        element("li", { id: "token-keys", className: "soft", textContent: "Point at a token, or step through with ← →; ↑ ↓ go to the next marked one." }),
      );
    };

    const option = (value, label, selected) => element("option", { value, textContent: label, selected });

    // The first pane begins with the RSD traces, the second with the dataset's own.
    const choice = (view, state, place) => {
      const names = data.sets.map((set) => set.name).filter((name) => Object.hasOwn(view, name));
      const method = (name) => data.sets.find((set) => set.name === name).method;
      const wished = ["rsd", "dataset"][place];
      if (!names.includes(state.set)) state.set = names.find((name) => method(name) === wished) ?? names[Math.min(place, names.length - 1)];
      const readers = Object.keys(view[state.set].readers);
      if (!readers.includes(state.reader)) state.reader = readers[0];
      return [names, readers];
    };

    const pane = (view, state, place) => {
      const box = element("div", { className: "pane" });
      const draw = () => {
        const [names, readers] = choice(view, state, place);
        const set = data.sets.find((one) => one.name === state.set);
        const row = view[state.set];
        const read = row.readers[state.reader];
        const setSelect = element("select", {}, ...names.map((name) => option(name, name, name === state.set)));
        const readerSelect = element("select", {}, ...readers.map((name) => option(name, name, name === state.reader)));
        setSelect.addEventListener("change", () => { state.set = setSelect.value; draw(); box.querySelector("select").focus(); });
        readerSelect.addEventListener("change", () => { state.reader = readerSelect.value; draw(); box.querySelectorAll("select")[1].focus(); });
        const whole = row.kind === "trace" ? "whole trace" : "beginning only";
        const cut = row.pieces.length < row.total ? ", the first " + count(row.pieces.length) + " shown" : "";
        const limit = read.threshold === null ? "the threshold" : Number((100 * read.threshold).toPrecision(3)) + " %";
        const facts = state.set + ", read by " + state.reader + ": attempt " + row.attempt + ", " + whole + ", " + count(row.total) + " tokens" + cut + "; of these " +
          count(read.improbable.length) + " under " + limit + (set.method === "rsd" ? ", " + count(row.fallback.length) + " by fallback." : ".");
        box.replaceChildren(
          element("p", { className: "choices" }, element("label", {}, "Traces ", setSelect), " ", element("label", {}, "read by ", readerSelect)),
          element("p", { className: "soft", textContent: facts }),
          ...tokens(row, read, set),
        );
      };
      draw();
      return box;
    };

    const tokens = (row, read, set) => {
      const own = new Set(row.fallback), low = new Set(read.improbable);
      const spans = row.pieces.map((piece, place) => {
        const code = read.surprisal[place];
        const classes = ["t"];
        if (low.has(place)) classes.push("low");
        else if (code !== null && code > 230) classes.push("p2");
        else if (code !== null && code > 69) classes.push("p1");
        if (own.has(place)) classes.push("own");
        // A line's end gets a sign, and so does a token without text.
        const shown = piece === "" ? "∅" : visible(piece).replace(/\n/g, "↵\n");
        return element("span", { className: classes.join(" "), textContent: shown });
      });
      const readout = element("p", { className: "readout" });
      readout.setAttribute("role", "status");
      const box = element("div", { className: "tokens", tabIndex: 0 }, ...spans);
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "Trace of " + set.name + ", token by token");
      box.setAttribute("aria-describedby", "token-keys");
      const places = new Map(spans.map((span, place) => [span, place]));
      const marked = row.pieces.map((_, place) => place).filter((place) => own.has(place) || low.has(place));
      let now = -1;

      const tell = (place) => {
        const shown = row.pieces[place] === "" ? "no text of its own" : "“" + visible(row.pieces[place]).replace(/\n/g, "↵").replace(/ /g, "␣") + "”";
        const by = set.writers[own.has(place) ? 1 : 0];
        const rank = read.rank[place] === null ? "not known" : count(read.rank[place]);
        const note = low.has(place) ? " (under the threshold)" : "";
        readout.textContent = "Token " + count(place + 1) + ": " + shown + " · " + by + " · probability " + percent(read.surprisal[place]) + note + " · rank " + rank;
      };
      const go = (place) => {
        if (place === undefined || place < 0 || place >= spans.length) return;
        if (now >= 0) spans[now].classList.remove("now");
        now = place;
        spans[now].classList.add("now");
        const top = spans[now].offsetTop;
        if (top < box.scrollTop || top + spans[now].offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
        tell(now);
      };
      box.addEventListener("pointerover", (event) => { if (places.has(event.target)) tell(places.get(event.target)); });
      box.addEventListener("pointerleave", () => { if (now >= 0) tell(now); });
      box.addEventListener("click", (event) => { if (places.has(event.target)) go(places.get(event.target)); });
      box.addEventListener("keydown", (event) => {
        const steps = {
          ArrowRight: () => now + 1,
          ArrowLeft: () => Math.max(now - 1, 0),
          ArrowDown: () => marked.find((place) => place > now),
          ArrowUp: () => marked.findLast((place) => place < now),
          Home: () => 0,
          End: () => spans.length - 1,
        };
        if (!Object.hasOwn(steps, event.key)) return;
        event.preventDefault();
        go(steps[event.key]());
      });
      if (spans.length) tell(0);
      return [box, readout];
    };

    // --- events ---

    text.addEventListener("input", filter);
    kind.addEventListener("change", filter);
    list.addEventListener("click", (event) => {
      const item = event.target.closest("li");
      if (item) choose(items.indexOf(item));
    });
    list.addEventListener("keydown", (event) => {
      const place = found.indexOf(chosen), last = found.length - 1;
      // Where the chosen problem is filtered away, any step begins at the list's ends.
      const steps = {
        ArrowDown: () => (place < 0 ? 0 : Math.min(place + 1, last)),
        ArrowUp: () => (place < 0 ? last : Math.max(place - 1, 0)),
        PageDown: () => (place < 0 ? 0 : Math.min(place + 10, last)),
        PageUp: () => (place < 0 ? last : Math.max(place - 10, 0)),
        Home: () => 0,
        End: () => last,
      };
      if (!Object.hasOwn(steps, event.key)) return;
      event.preventDefault();
      choose(found[steps[event.key]()]);
    });
    app.hidden = false;
    filter();
    // The sample begins with problems that have whole traces; of these one with something to see.
    const ids = Object.keys(data.views);
    const marked = (row) => Object.values(row.readers).some((reader) => reader.improbable.length > 0);
    const first = ids.find((id) => Object.values(data.views[id]).some(marked)) ?? ids[0];
    choose(items.length ? Math.max(data.problems.findIndex((problem) => problem.id === first), 0) : undefined);
  };

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  const source = document.getElementById("explorer-data");
  if (source !== null) explore(JSON.parse(source.textContent));

  // A closed part would not be printed.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
