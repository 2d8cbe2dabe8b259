// Pencil exercises, checked in the page. The cases and their sentences are the check's own, `rules` of
// adv_lib/checks; here is how answers are read, compared and shown, as Python does it.
// tests/site/test_answers.py asks both.
(() => {
  // ---- reading ----

  const TOKENS = /\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|\*\*|[a-z]+|\S/g;
  const SIGNS = { "−": "-", "–": "-", "×": "*", "·": "*", "^": "**", "√": "sqrt", "∞": "inf", "π": "pi" };
  const NAMES = new Map([["inf", Infinity], ["pi", Math.PI]]);

  // What a sum, product, power or root of numbers comes to; NaN for any other text.
  const parse = (text) => {
    const plain = text.toLowerCase().replaceAll("math.", "").replace(/[−–×·^√∞π]/g, (sign) => SIGNS[sign]);
    const tokens = plain.match(TOKENS) ?? [];
    const next = (...wanted) => (wanted.includes(tokens[0]) ? tokens.shift() : null);
    const sum = () => {
      let value = product();
      for (let sign; (sign = next("+", "-")); ) value += (sign === "+" ? 1 : -1) * product();
      return value;
    };
    const product = () => {
      let value = signed();
      for (let sign; (sign = next("*", "/")); ) value = sign === "*" ? value * signed() : value / signed();
      return value;
    };
    const signed = () => (next("-") ? -signed() : next("+") ? signed() : power());
    const power = () => {
      const base = atom();
      return next("**") ? base ** signed() : base;
    };
    const atom = () => {
      if (next("sqrt")) return Math.sqrt(atom());
      if (next("(")) {
        const value = sum();
        if (next(")")) return value;
      } else if (/^\.?\d/.test(tokens[0])) {
        return Number(tokens.shift());
      } else if (NAMES.has(tokens[0])) {
        return NAMES.get(tokens.shift());
      }
      throw new SyntaxError(text);
    };
    try {
      const value = sum();
      const infinite = !Number.isFinite(value) && !plain.includes("inf"); // 1/0 is no number
      return tokens.length || infinite ? NaN : value;
    } catch {
      return NaN;
    }
  };

  // ---- showing: four digits, as Python's format does; a tie goes to the even digit ----

  const show = (value) => {
    if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
    const tie = /^(-?\d\.\d\d[02468])50*(e.*)/.exec(value.toExponential(60));
    const rounded = tie ? tie[1] + tie[2] : value.toExponential(3);
    const [digits, power] = rounded.split("e").map(Number);
    if (power >= -4 && power < 4) return String(Number(rounded));
    return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  };

  // ---- the three kinds of exercise: what is wrong with an answer, or null ----

  const noNumber = ({ labels }, texts, values, wanted, fits) => {
    const bad = values.findIndex((value) => !fits(value));
    if (bad < 0) return null;
    const got = Number.isNaN(values[bad]) ? texts[bad] : show(values[bad]);
    return `${labels[bad]}: expected a ${wanted}, got “${got}”.`;
  };

  const numbers = (rules, texts) => {
    const { absolute, relative } = rules.tolerance;
    const values = texts.map(parse);
    const close = (got, right) => {
      const off = Math.abs(got - right);
      return got === right || (Number.isFinite(off) && off <= absolute + relative * Math.abs(right));
    };
    const wrong = (right) => rules.labels.filter((_, i) => !close(values[i], parse(String(right[i]))));
    const unread = noNumber(rules, texts, values, "number", (value) => !Number.isNaN(value));
    if (unread) return unread;
    const off = wrong(rules.expected);
    if (!off.length) return null;
    const mistake = rules.mistakes.find(([, numbers]) => !wrong(numbers).length);
    if (mistake) return `got (${values.map(show).join(", ")}). ${mistake[0]}`;
    return `not yet right: ${off.join(", ")}.`;
  };

  const directions = (rules, texts) => {
    const { gradients, asked, near } = rules;
    const size = gradients[0].length;
    const values = texts.map(parse);
    const unread = noNumber(rules, texts, values, "finite number", Number.isFinite);
    if (unread) return unread;
    const unit = (vector) => vector.map((entry) => entry / Math.hypot(...vector));
    const dot = (a, b) => a.reduce((total, entry, i) => total + entry * b[i], 0);
    const vectors = asked.map((_, i) => values.slice(i * size, (i + 1) * size));
    for (const [i, { name }] of asked.entries()) {
      const length = Math.hypot(...vectors[i]);
      if (Math.abs(length - 1) > near) return `${name} has length ${show(length)}: divide it by that.`;
    }
    for (const [i, { name, limit, mistakes, advice }] of asked.entries()) {
      const direction = unit(vectors[i]);
      const steepest = Math.max(...gradients.map((gradient) => dot(gradient, direction)));
      const slope = Math.round(steepest * 1e6) / 1e6; // rounding errors are no slope
      if (slope < limit) continue;
      const off = (wrong) => Math.hypot(...unit(wrong).map((entry, j) => entry - direction[j]));
      const mistake = mistakes.find(([, wrong]) => off(wrong) <= near);
      return `along ${name} the slope is ${show(slope)}. ${mistake ? mistake[0] : advice}`;
    }
    return null;
  };

  const words = ({ labels, truth, why }, said) => {
    const bad = said.findIndex((word, i) => word !== truth[i]);
    return bad < 0 ? null : `${labels[bad]}: you said ${said[bad]}. ${why[bad]}`;
  };

  const KINDS = { numbers, directions, words };

  // The verdict on a reader's entries, in the words of the notebook's.
  const judge = (rules, entries) => {
    const texts = entries.map((entry) => entry.trim());
    if (texts.includes("")) return { kind: "not", text: "○ not attempted yet" };
    const complaint = KINDS[rules.kind](rules, texts);
    if (complaint === null) return { kind: "passes", text: `✓ passes: ${rules.praise}` };
    return { kind: "fails", text: `✗ fails: ${complaint}` };
  };

  globalThis.advAnswers = { parse, show, judge };

  // ---- the page ----

  const kept = (key, value) => {
    try {
      if (value === undefined) return JSON.parse(localStorage.getItem(key));
      if (value === null) localStorage.removeItem(key);
      else localStorage.setItem(key, JSON.stringify(value));
    } catch {} // storage is switched off: nothing is kept
    return null;
  };

  const start = (form) => {
    const rules = JSON.parse(form.dataset.rules);
    const key = `adv-answer:${form.dataset.label}`;
    const told = form.querySelector(".adv-verdict");
    const names = rules.labels.map((_, i) => `${form.dataset.label}-${i}`);
    const entries = () => names.map((name) => form.elements[name].value);
    const say = ({ kind, text }) => {
      told.className = `adv-verdict adv-${kind}`;
      told.textContent = text;
    };
    const check = () => {
      say(judge(rules, entries()));
      kept(key, { entries: entries(), checked: true });
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      check();
      const empty = names.find((name) => !form.elements[name].value.trim());
      if (empty) (form.elements[empty][0] ?? form.elements[empty]).focus();
    });
    form.addEventListener("input", () => {
      say({ kind: "none", text: "" });
      kept(key, { entries: entries(), checked: false });
    });
    form.addEventListener("reset", () => {
      say({ kind: "none", text: "" });
      kept(key, null);
    });
    const before = kept(key);
    if (before?.entries?.length !== names.length) return;
    names.forEach((name, i) => { form.elements[name].value = before.entries[i]; });
    if (before.checked) check();
  };

  globalThis.document?.querySelectorAll("form.adv-answers").forEach(start);
})();
