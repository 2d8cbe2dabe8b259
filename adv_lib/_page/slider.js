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

    // The page's own choice of a drawing ends here; its size stays, so that nothing below it moves.
    const sizes = [picture, figure.querySelector("source") ?? picture].map((drawing) => [
      drawing.getAttribute("width"),
      drawing.getAttribute("height"),
    ]);
    function takeOver() {
      figure.querySelector("source")?.remove();
      [picture.width, picture.height] = sizes[phone.matches ? 1 : 0];
    }

    function show() {
      controls.forEach((control, i) => {
        const text = texts[i][value(control)];
        control.querySelector("input[type=range]")?.setAttribute("aria-valuetext", text);
        const output = control.querySelector("output");
        if (output) output.textContent = text;
      });
      takeOver();
      const source = drawn(frame());
      if (picture.getAttribute("src") !== source) picture.src = source;
      picture.alt = sentence.textContent = says[frame()];
    }

    // All frames when a hand comes near, so that moving the slider waits for nothing; most readers move few.
    let fetched = "";
    function fetch() {
      const all = frames.map((_, i) => drawn(i));
      if (fetched === all[0]) return;
      fetched = all[0];
      figure.kept = all.map((source) => Object.assign(new Image(), { src: source }));
    }
    for (const sign of ["pointerenter", "focusin"]) figure.addEventListener(sign, fetch);

    function redraw() {
      show();
      if (fetched) fetch();
    }
    figure.addEventListener("input", show);
    phone.addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    figure.querySelectorAll("button.adv-play").forEach((button) => play(button, show));
    if (dark()) show();
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
