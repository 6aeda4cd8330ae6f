// The search. It takes the place of the theme's worker, and speaks its messages.
//
// The theme's search splits text into words, which Chinese does not mark: it finds every page with one of the characters.
// Here a run of Chinese characters is a phrase. It also works on a page opened from the disk, which may start no worker.
(() => {
  const SETUP = 0, READY = 1, QUERY = 2, RESULT = 3; // the kinds of the theme's messages
  const HAN = /\p{sc=Han}/u;
  const WORD = /\p{sc=Han}+|(?:(?!\p{sc=Han})[\p{L}\p{N}])+(?:[._-](?:(?!\p{sc=Han})[\p{L}\p{N}])+)*/gu;
  const STOP = new Set("a an and are as at be by can do does for from how i in is it my of on or the to use what with".split(" "));
  const ASKED = /怎么样?|怎样|如何|什么|为何|哪些|的|吗/gu;

  const escape = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const quote = (text) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  const plain = (source) => new DOMParser().parseFromString(source, "text/html").body.textContent.replace(/\s+/g, " ").trim();

  // A section of a page, with its text for people (title, text) and for the search (lower case).
  function section(doc) {
    const [title, text] = [plain(doc.title), plain(doc.text)];
    const page = doc.location.split("#")[0];
    const chinese = page.endsWith(".zh.html");
    return { location: doc.location, page, title, text, chinese, boost: doc.boost ?? 1, fields: [title.toLowerCase(), text.toLowerCase()] };
  }

  // A term is a list of patterns, from the strictest to the loosest, each with its weight.
  function term(word) {
    if (HAN.test(word)) return [[new RegExp(quote(word), "gu"), 1]];
    const stem = word.length > 4 ? word.replace(/(?:ations?|ings?|ions?|ed|es|e|s)$/, "") : word;
    const start = "(?<![\\p{L}\\p{N}])";
    return [
      [new RegExp(`${start}${quote(word)}(?![\\p{L}\\p{N}])`, "gu"), 1],
      [new RegExp(`${start}${quote(word)}`, "gu"), 0.7],
      ...(stem.length > 2 && stem !== word ? [[new RegExp(`${start}${quote(stem)}`, "gu"), 0.4]] : []),
      ...(word.length > 3 ? [[new RegExp(quote(word), "gu"), 0.2]] : []),
    ];
  }

  // How well a term fits a text: 0 if not at all, else more for each place, at most three times the weight.
  function fit(patterns, text) {
    for (const [pattern, weight] of patterns) {
      const count = text.match(pattern)?.length ?? 0;
      if (count) return weight * Math.min(3, 1 + Math.log2(count) / 2);
    }
    return 0;
  }

  // The terms of a query: quoted phrases, runs of Chinese, words. A run that is nowhere becomes its pairs of characters,
  // a word such as label-smoothing its parts.
  function parse(query, sections) {
    const quoted = [...query.matchAll(/"([^"]+)"/g)].map((match) => match[1].trim()).filter(Boolean);
    const words = query.replace(/"[^"]*"/g, " ").match(WORD) ?? [];
    const useful = words.filter((word) => !STOP.has(word));
    const terms = [...new Set([...quoted, ...(useful.length || quoted.length ? useful : words)])];
    const somewhere = (word) => sections.some((s) => s.fields.some((text) => text.includes(word)));
    return terms.flatMap((word) => {
      if (somewhere(word)) return [word];
      if (!HAN.test(word)) return word.split(/[._-]+/);
      const parts = word.replace(ASKED, " ").match(WORD) ?? [word];
      const pairs = parts.flatMap((part) => (part.length < 3 ? [part] : [...part].slice(1).map((character, i) => [...part][i] + character)));
      return pairs.filter(somewhere);
    });
  }

  function snippet(text, marks) {
    const first = text.toLowerCase().search(marks);
    const start = first < 60 ? 0 : text.indexOf(" ", first - 60) >= 0 && !HAN.test(text[first]) ? Math.min(first, text.indexOf(" ", first - 60) + 1) : first - 30;
    return (start ? "… " : "") + mark(text.slice(start, start + 240), marks) + (start + 240 < text.length ? " …" : "");
  }

  function mark(text, marks) {
    return text.split(marks).map((part, i) => (i % 2 ? `<mark>${escape(part)}</mark>` : escape(part))).join("");
  }

  // The pages that fit, the best first: for each its sections, the page itself among them.
  function search(query, sections) {
    query = query.normalize("NFKC").toLowerCase().trim();
    const words = parse(query, sections);
    if (!words.length) return [];
    const terms = words.map(term);
    const sure = HAN.test(query);
    const chinese = sure || document.documentElement.lang === "zh";
    const whole = words.length > 1 && query.length > 2 ? [[new RegExp(quote(query), "gu"), 1]] : [];
    const fitsOf = sections.map((one) => terms.map((patterns) => one.fields.map((text) => fit(patterns, text))));
    // A rare term says more than a frequent one.
    const weights = terms.map((_, i) => Math.log(1 + sections.length / (1 + fitsOf.filter((fits) => fits[i][0] || fits[i][1]).length)));
    const all = weights.reduce((sum, weight) => sum + weight, 0);
    const weighted = (values) => values.reduce((sum, value, i) => sum + value * weights[i], 0) / all; // a mean over the terms
    const pages = new Map();
    for (const [number, one] of sections.entries()) {
      const fits = fitsOf[number];
      const page = pages.get(one.page) ?? { hits: [], found: terms.map(() => 0), head: [] };
      pages.set(one.page, page);
      if (one.location === one.page) page.head = fits.map(([title]) => title);
      fits.forEach(([title, text], i) => (page.found[i] = Math.max(page.found[i], title, text)));
      const covered = weighted(fits.map(([title, text]) => +Boolean(title || text)));
      if (!covered) continue;
      let score = weighted(fits.map(([title, text]) => (8 * Math.min(1, title)) / (1 + one.title.length / 40) + text));
      for (const text of one.fields) score += 3 * fit(whole, text);
      page.hits.push({ one, score: score * covered ** 2 });
    }
    const share = (page) => weighted(page.found.map((value) => +Boolean(value)));
    const most = Math.max(0, ...[...pages.values()].map(share));
    if (most < 0.4) return [];
    const marks = new RegExp(`(${terms.flatMap((patterns) => patterns.slice(0, 2).map(([pattern]) => pattern.source)).join("|")})`, "giu");
    const found = [];
    for (const [location, page] of pages) {
      if (!page.hits.length || share(page) < 0.8 * most) continue;
      const head = weighted(page.head.map((title) => Math.min(1, title)));
      const hits = page.hits.sort((a, b) => b.score - a.score);
      const { boost, chinese: own } = hits[0].one;
      const score = (hits[0].score + 8 * head + Math.log2(hits.length)) * share(page) ** 2 * boost * (own === chinese ? 1 : sure ? 0.4 : 0.7);
      const items = hits.map(({ one, score: inner }) => ({
        location: one.location, title: mark(one.title, marks), text: snippet(one.text, marks), terms: {}, score: inner,
      }));
      // The theme wants the page itself among them.
      if (!items.some((item) => item.location === location)) {
        const top = sections.find((s) => s.location === location);
        items.push({ location, title: escape(top.title), text: "", terms: {}, score: 0 });
      }
      found.push({ score, items });
    }
    return found.sort((a, b) => b.score - a.score).map(({ items }) => items);
  }

  window.Worker = class extends EventTarget {
    postMessage({ type, data }) {
      if (type === SETUP) this.sections = data.docs.map(section);
      const answer = type === QUERY ? { type: RESULT, data: { items: search(data, this.sections) } } : { type: READY };
      queueMicrotask(() => this.dispatchEvent(new MessageEvent("message", { data: answer })));
    }

    terminate() {}
  };
})();
