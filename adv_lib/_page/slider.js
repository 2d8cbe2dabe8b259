// Sliders of adv_lib.widgets: the controls choose a frame and the sentence that goes with it.
(() => {
  const dark = () => document.documentElement.dataset.theme === "dark";
  const phone = matchMedia("(max-width: 600px)");

  function start(figure) {
    if (figure.moves) return; // the same slider may be shown twice, and scripts may run more than once
    figure.moves = true;
    const { frames, narrow, says, texts } = JSON.parse(figure.querySelector("script").textContent);
    const controls = [...figure.querySelectorAll(".adv-control")];
    const picture = figure.querySelector("img");
    const sentence = figure.querySelector(".adv-says");
    const value = (control) =>
      Number((control.querySelector("input:checked") ?? control.querySelector("input")).value);
    // The book writes a second drawing of every frame for its dark pages.
    const drawn = (frame) => {
      const list = narrow && phone.matches ? narrow : frames;
      return "dark" in figure.dataset && dark() ? list[frame].replace(/\.svg$/, "-dark.svg") : list[frame];
    };
    const frame = () => controls.reduce((at, control, i) => at * texts[i].length + value(control), 0);

    function show() {
      controls.forEach((control, i) => {
        const text = texts[i][value(control)];
        control.querySelector("input[type=range]")?.setAttribute("aria-valuetext", text);
        const output = control.querySelector("output");
        if (output) output.textContent = text;
      });
      figure.querySelector("source")?.remove();
      const source = drawn(frame());
      if (picture.getAttribute("src") !== source) picture.src = source;
      picture.alt = sentence.textContent = says[frame()];
    }

    // Everything when the figure has come near and nothing else is to do, so that moving it waits for nothing.
    let fetched = "";
    function fetch() {
      const all = frames.map((_, i) => drawn(i));
      if (fetched === all[0]) return;
      fetched = all[0];
      figure.kept = all.map((source) => Object.assign(new Image(), { src: source }));
    }
    const near = new IntersectionObserver(
      (seen) => {
        if (!seen.some((each) => each.isIntersecting)) return;
        figure.near = true;
        (window.requestIdleCallback ?? setTimeout)(fetch);
      },
      { rootMargin: "300px" },
    );
    near.observe(figure);

    function redraw() {
      show();
      if (figure.near) fetch();
    }
    figure.addEventListener("input", show);
    phone.addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    figure.querySelectorAll("button.adv-play").forEach((button) => play(button, show));
    if (dark() || phone.matches) show();
  }

  // Play: one value after the other until the last, or until someone takes over.
  function play(button, show) {
    const range = button.parentElement.querySelector("input[type=range]");
    let timer;
    const label = (text, name) => {
      button.textContent = text;
      button.setAttribute("aria-label", `${name} ${range.getAttribute("aria-label")}`);
    };
    const stop = () => {
      clearInterval(timer);
      timer = undefined;
      label("▶", "play");
    };
    const step = () => {
      if (Number(range.value) >= Number(range.max)) return stop();
      range.value = Number(range.value) + 1;
      show();
    };
    button.addEventListener("click", () => {
      if (timer !== undefined) return stop();
      if (Number(range.value) >= Number(range.max)) range.value = -1;
      label("❚❚", "pause");
      timer = setInterval(step, 900);
      step();
    });
    range.addEventListener("input", stop);
  }

  const all = () => document.querySelectorAll("figure.adv-slider").forEach(start);
  all();
  document.addEventListener("DOMContentLoaded", all);
})();
