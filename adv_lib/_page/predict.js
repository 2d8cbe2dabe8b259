// Predictions: the reader commits, then sees the answer. Runs as often as it likes; in a deck the markup is enough.
(() => {
  const memory = {
    get: (key) => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* a closed frame */ } },
    remove: (key) => { try { localStorage.removeItem(key); } catch { /* a closed frame */ } },
  };
  const digitsOf = (value, digits) => value.toFixed(digits).replace("-", "−");

  // What each kind of question knows: read the form, fit a remembered answer, compare it with the right one.
  const kinds = {
    choice: (box, data, form) => ({
      read: () => new FormData(form).get("said"),
      fits: (said) => data.choices.includes(said),
      clear: () => form.reset(),
      judge: (said) => (said === data.answer
        ? ["right", `You said “${said}”, and so it is.`]
        : ["far", `You said “${said}”; it is “${data.answer}”.`]),
    }),

    number: (box, data, form) => {
      const [range, exact] = form.querySelectorAll("input");
      const show = (value) => digitsOf(value, data.digits) + data.unit;
      const follow = (from, to) => {
        to.value = from.value;
        range.setAttribute("aria-valuetext", show(Number(range.value)));
      };
      range.addEventListener("input", () => follow(range, exact));
      exact.addEventListener("input", () => follow(exact, range));
      follow(range, exact);
      return {
        read: () => Number(exact.value),
        fits: Number.isFinite,
        clear: () => { form.reset(); follow(range, exact); },
        judge: (said) => {
          const right = Number(data.answer.toFixed(data.digits));
          const off = Math.abs(said - right);
          if (digitsOf(off, data.digits) === digitsOf(0, data.digits)) {
            return ["right", `You said ${show(said)}, and so it is.`];
          }
          const unit = data.unit.trim() === "%" ? "\u00a0points" : data.unit;
          const words = `You said ${show(said)}, it is ${show(right)}: ${digitsOf(off, data.digits)}${unit} off.`;
          return [off <= data.near ? "near" : "far", words];
        },
      };
    },

    point: (box, data, form) => {
      const ranges = [...form.querySelectorAll("input")];
      const picture = box.querySelector(".adv-predict-picture");
      const images = [...picture.querySelectorAll("img")]; // in the book, one for light and one for dark pages
      const frameOf = () => images.find((image) => image.checkVisibility()).getBoundingClientRect();
      const mine = document.createElement("span");
      mine.className = "adv-predict-mark adv-predict-said";
      picture.append(mine);
      const right = picture.querySelector(".adv-predict-right");
      const [left, top, width, height] = data.place;
      const part = ([x, y]) => [
        left + (width * (x - data.x[0])) / (data.x[1] - data.x[0]),
        top + (height * (data.y[1] - y)) / (data.y[1] - data.y[0]),
      ];
      const tell = (point) => `(${point.map((v, i) => digitsOf(v, data.digits[i])).join(", ")})`;
      const read = () => ranges.map((range) => Number(range.value));
      const place = (point) => {
        const [x, y] = part(point);
        mine.style.left = `${100 * x}%`;
        mine.style.top = `${100 * y}%`;
      };
      const follow = () => {
        read().forEach((value, i) => {
          const text = digitsOf(value, data.digits[i]);
          ranges[i].nextElementSibling.textContent = text;
          ranges[i].setAttribute("aria-valuetext", text);
        });
        place(read());
      };
      ranges.forEach((range, i) => {
        range.step = 10 ** -data.digits[i];
        range.addEventListener("input", follow);
      });
      picture.addEventListener("click", (event) => {
        if (form.hidden) return;
        const frame = frameOf();
        const x = ((event.clientX - frame.left) / frame.width - left) / width;
        const y = ((event.clientY - frame.top) / frame.height - top) / height;
        ranges[0].value = data.x[0] + x * (data.x[1] - data.x[0]);
        ranges[1].value = data.y[1] - y * (data.y[1] - data.y[0]);
        follow();
      });
      follow();
      return {
        read,
        fits: (said) => Array.isArray(said) && said.length === 2 && said.every(Number.isFinite),
        clear: () => { form.reset(); follow(); },
        settle: (said) => {
          right.hidden = false;
          mine.hidden = said === null;
          if (said) place(said);
        },
        open: () => { right.hidden = true; mine.hidden = false; },
        judge: (said) => {
          const [a, b] = [part(said), part(data.answer)];
          const frame = frameOf();
          const diagonal = Math.hypot(frame.width, frame.height) || 1;
          const off = Math.hypot((a[0] - b[0]) * frame.width, (a[1] - b[1]) * frame.height) / diagonal;
          const apart = Math.hypot(said[0] - data.answer[0], said[1] - data.answer[1]);
          if (off <= data.there) return ["right", `You pointed at ○ ${tell(said)}, and there it is: ◆ ${tell(data.answer)}.`];
          const far = `${digitsOf(apart, Math.max(...data.digits))} apart`;
          return [off <= data.near ? "near" : "far", `You pointed at ○ ${tell(said)}, it is ◆ ${tell(data.answer)}: ${far}.`];
        },
      };
    },
  };
  const verdicts = { right: "✓ You saw it coming.", near: "≈ Close.", far: "↔ Worth a second look." };

  // In the book, the output below that settles the question: not seen clearly before the reader has answered.
  const settles = (box) => {
    let next = box.closest(".cell")?.nextElementSibling;
    while (next && !next.querySelector(":scope > .cell_output")) {
      if (next.matches("section") || next.querySelector(".adv-predict")) return null;
      next = next.nextElementSibling;
    }
    return next?.querySelector(":scope > .cell_output:not(:has(.adv-predict))");
  };

  const start = (box) => {
    box.dataset.ready = "";
    if (box.closest(".reveal")) return; // a show of hands
    const form = box.querySelector("form");
    const result = box.querySelector(".adv-predict-result");
    const told = box.querySelector(".adv-predict-answer");
    const key = `adv-predict-${box.dataset.predict}`;
    const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
    const kind = kinds[box.dataset.kind](box, data, form);
    box.querySelector("details").remove();
    const next = settles(box);
    const hide = (hidden) => next?.classList.toggle("adv-veiled", hidden);
    next?.addEventListener("click", () => hide(false));

    const ask = () => {
      result.hidden = true;
      form.hidden = false;
      hide(true);
      kind.open?.();
    };
    const settle = (said) => {
      const [verdict, words] = said === null ? ["skipped", ""] : kind.judge(said);
      const line = document.createElement("p");
      if (said === null) {
        line.innerHTML = told.innerHTML;
      } else {
        const head = document.createElement("strong");
        head.textContent = verdicts[verdict];
        line.append(head, ` ${words} ${data.why}`);
      }
      const again = document.createElement("button");
      again.type = "button";
      again.textContent = "Ask again";
      again.addEventListener("click", () => {
        memory.remove(key);
        kind.clear();
        ask();
        form.querySelector("input").focus();
      });
      result.replaceChildren(line, again);
      result.dataset.verdict = verdict;
      form.hidden = true;
      result.hidden = false;
      hide(false);
      kind.settle?.(said);
    };
    const commit = (said) => {
      memory.set(key, { said });
      settle(said);
      result.focus({ preventScroll: true });
    };
    // Enter clicks it too. A submit event would not come in a frame that may submit nothing.
    form.querySelector("[type=submit]").addEventListener("click", (event) => {
      event.preventDefault();
      if (form.reportValidity()) commit(kind.read());
    });
    form.querySelector(".adv-predict-skip").addEventListener("click", () => commit(null));

    const kept = memory.get(key);
    if (kept && (kept.said === null || kind.fits(kept.said))) settle(kept.said);
    else ask();
  };
  const all = () => document.querySelectorAll(".adv-predict:not([data-ready])").forEach(start);
  all();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", all);
})();
