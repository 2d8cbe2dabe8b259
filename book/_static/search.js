// Search: sections of the book while the reader types, from the index that book/_ext/search.py makes.
// Nothing is loaded before the first use, and nothing is kept after the visit.
(() => {
  const root = new URL(document.documentElement.dataset.content_root, location.href);
  const MARKS = "adv-search-marks";

  // How much a find counts, by what was found: what teaches comes before what is looked up.
  const SORTS = { section: 1, statement: 0.85, exercise: 0.75, term: 0.5, page: 0.4, name: 0.3 };
  const weight = (sort, query) => (sort === "name" && /\w[._]\w/.test(query) ? 2 : SORTS[sort]); // attacks.pgd

  // What people type for what the book writes.
  const SPELLINGS = [
    [/(?<![\p{L}\p{N}])(?:(?:l|ℓ|ell)[ _-]?(?:inf(?:inity|ty)?|∞)|max(?:imum)?[ -]norm|sup[ -]norm)(?![\p{L}\p{N}])/giu, "ℓ∞"],
    [/(?<![\p{L}\p{N}])(?:l|ℓ|ell)[ _-]?([012p])(?![\p{L}\p{N}])/giu, (_, order) => `ℓ${{ 0: "₀", 1: "₁", 2: "₂", p: "ₚ" }[order.toLowerCase()]}`],
    [/\b(?:eps(?:ilon)?|varepsilon)\b/gi, "ε"],
    [/\bdelta\b/gi, "δ"],
    [/\btheta\b/gi, "θ"],
    [/\bnu\b/gi, "ν"],
    [/\b(?:auto-?pgd|a-pgd)\b/gi, "apgd"],
  ];
  const spelled = (query) => SPELLINGS.reduce((text, [said, written]) => text.replace(said, written), query.trim());

  // ---- finding ----

  let loading = null;
  const engine = () => {
    loading ??= import(new URL("pagefind/pagefind.js", root)).then(async (pagefind) => {
      const metaWeights = { title: 1, to: 0, place: 0 };
      await pagefind.options({ noWorker: true, excerptLength: 26, ranking: { pageLength: 0.05, metaWeights } });
      await pagefind.init();
      return pagefind;
    });
    loading.catch(() => { loading = null; });
    return loading;
  };

  // All finds for a query, best first; their words are not loaded yet.
  const find = async (query) => {
    const pagefind = await engine();
    const found = [];
    for (const sort of Object.keys(SORTS)) {
      const { results } = await pagefind.search(query, { filters: { sort } });
      found.push(...results.map(({ score, data }) => ({ score: weight(sort, query) * score, load: data })));
    }
    return found.sort((a, b) => b.score - a.score);
  };

  // For a word that it does not know, the engine offers words that begin alike: those are no finds.
  const bare = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const marked = (excerpt) => [...excerpt.matchAll(/<mark>(.*?)<\/mark>/g)].map((match) => match[1]);
  const isMeant = (excerpt, query) => query.split(/\s+/).some((word) => {
    const start = bare(word).slice(0, Math.max(1, Math.min(4, word.length - 1)));
    return marked(excerpt).some((mark) => bare(mark).includes(start));
  });

  // The heading and the text of a find, marked. The engine's excerpt may begin with the heading or its end.
  const parts = ({ excerpt, meta }) => {
    const [words, title] = [excerpt.split(" "), meta.title.split(" ")];
    const stop = /[.?!:]$/.test(meta.title) ? "" : ".";
    const cut = title.findIndex((_, first) => words.slice(0, title.length - first).join(" ")
      .replace(/<\/?mark>/g, "") === title.slice(first).join(" ") + stop);
    const length = cut < 0 ? 0 : title.length - cut;
    const head = words.slice(0, length).join(" ").replace(/\.(<\/mark>)?$/, "$1");
    const rest = words.slice(length).join(" ");
    return {
      lead: title.slice(0, cut < 0 ? title.length : cut).join(" "),
      head: `${cut > 0 ? " " : ""}${head}`,
      text: `${length ? "" : "… "}${rest}${/[.?!]$/.test(rest) || !rest ? "" : " …"}`,
    };
  };

  // ---- the field and its list ----

  const make = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  };

  const item = ({ excerpt, meta }, query) => {
    const li = make(`<li><a></a><span class="adv-search-place"></span><p></p></li>`);
    const [link, place, text] = li.children;
    const found = parts({ excerpt, meta });
    link.textContent = found.lead;
    link.insertAdjacentHTML("beforeend", found.head);
    link.href = new URL(meta.to, root);
    place.textContent = meta.place;
    text.innerHTML = found.text;
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      handOver(link, [...query.split(/\s+/), ...marked(excerpt)]);
    });
    return li;
  };

  // A field with what it finds below, `room` finds; `chosen` gets the first at Enter.
  const panel = (room, chosen) => {
    const element = make(`<div class="adv-search-panel">
      <form role="search" action="${new URL("search.html", root)}">
        <input type="search" name="q" placeholder="Search this book" aria-label="Search this book"
               autocomplete="off" autocapitalize="off" spellcheck="false">
      </form>
      <p class="adv-search-count" role="status"></p>
      <ol></ol>
      <a class="adv-search-more" hidden></a>
    </div>`);
    const [form, count, list, more] = element.children;
    const input = form.firstElementChild;
    let asked = 0;
    let pause = null;

    const show = async (found, query) => {
      const number = ++asked;
      const loaded = await Promise.all(found.slice(0, room).map((find) => find.load()));
      if (number !== asked) return;
      const meant = loaded.filter(({ excerpt }) => isMeant(excerpt, query));
      list.replaceChildren(...meant.map((data) => item(data, query)));
      const total = meant.length < loaded.length ? meant.length : found.length;
      count.textContent = total === 0 ? `Nothing found for “${input.value.trim()}”.`
        : `${total} ${total === 1 ? "place" : "places"}`;
      more.hidden = total <= room;
      more.textContent = whole ? "Show more" : `All ${total} places`;
      more.href = new URL(`search.html?q=${encodeURIComponent(input.value.trim())}`, root);
    };

    const clear = () => {
      asked += 1;
      list.replaceChildren();
      count.textContent = "";
      more.hidden = true;
    };

    const search = async () => {
      clearTimeout(pause);
      const query = spelled(input.value);
      if (!query) return clear();
      const number = ++asked;
      try {
        const found = await find(query);
        if (number === asked) await show(found, query);
      } catch {
        count.textContent = "The search could not be loaded. It needs the book to come from a server: make serve.";
      }
    };

    input.addEventListener("focus", () => engine().catch(() => {}), { once: true });
    input.addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(search, 80); // while the reader types on
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      await search();
      if (list.firstElementChild) chosen(list.querySelector("a"));
    });
    element.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const stops = [input, ...element.querySelectorAll("li > a, a:not([hidden]).adv-search-more")];
      stops[stops.indexOf(document.activeElement) + step]?.focus();
    });
    const grow = () => { room *= 2; return search(); };
    return { element, input, more, search, grow };
  };

  // ---- the dialog behind the search buttons and Ctrl or Cmd + K ----

  let dialog = null;
  const open = () => {
    if (!dialog) {
      dialog = make(`<dialog class="adv-search" aria-label="Search"><button type="button">Close</button></dialog>`);
      dialog.prepend(panel(8, (first) => first.click()).element);
      dialog.addEventListener("click", (event) => {
        if (event.target === dialog || event.target.closest("button, a")) dialog.close();
      });
      document.body.append(dialog);
    }
    dialog.showModal();
    dialog.querySelector("input").select();
  };
  const page = document.getElementById("adv-search-page");
  const whole = page && panel(20, (first) => first.focus());
  const toggle = () => {
    if (whole) whole.input.focus();
    else if (dialog?.open) dialog.close();
    else open();
  };

  // Before the theme's own listeners, which open an empty field.
  addEventListener("click", (event) => {
    if (!event.target.closest?.(".search-button__button")) return;
    event.stopImmediatePropagation();
    toggle();
  }, true);
  addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    toggle();
  }, true);

  if (whole) {
    page.append(whole.element);
    whole.input.value = new URLSearchParams(location.search).get("q") ?? "";
    whole.input.addEventListener("input", () => {
      const query = whole.input.value.trim();
      history.replaceState(null, "", query ? `?q=${encodeURIComponent(query)}` : location.pathname);
    });
    whole.more.addEventListener("click", (event) => {
      event.preventDefault();
      whole.grow();
    });
    whole.input.focus();
    whole.search();
  }

  // ---- marks on the page that was found, until Escape or the next page ----

  const handOver = (link, words) => {
    const there = link.href;
    if (link.pathname === location.pathname) mark(words);
    else sessionStorage.setItem(MARKS, JSON.stringify({ there, words })); // read and removed on arrival
  };

  const ranges = (words) => {
    const starts = words.map((word) => word.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}∞]+$/gu, "")).filter(Boolean)
      .map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!starts.length) return [];
    const word = new RegExp(`(?<![\\p{L}\\p{N}])(?:${starts.join("|")})[\\p{L}\\p{N}]*`, "giu");
    const found = [];
    const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.parentElement.closest("pre, script, style, button, mjx-container, math")) continue;
      for (const match of node.data.matchAll(word)) {
        const range = new Range();
        range.setStart(node, match.index);
        range.setEnd(node, match.index + match[0].length);
        found.push(range);
      }
    }
    return found;
  };

  let button = null;
  const unmark = () => {
    window.CSS.highlights?.delete(MARKS);
    button?.remove();
    button = null;
  };
  const mark = (words) => {
    unmark();
    const found = window.CSS.highlights ? ranges(words) : [];
    if (!found.length) return;
    CSS.highlights.set(MARKS, new Highlight(...found));
    button = make(`<button type="button" class="adv-search-unmark">Remove the marks <kbd>Esc</kbd></button>`);
    button.addEventListener("click", unmark);
    document.body.append(button);
  };
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !dialog?.open) unmark();
  });
  addEventListener("pagehide", unmark);

  const handed = JSON.parse(sessionStorage.getItem(MARKS));
  sessionStorage.removeItem(MARKS);
  if (handed?.there === location.href) mark(handed.words);
})();
