// Before printing: light colours, every proof and hint open, the answers to the predictions together at the end.
// Afterwards: as it was.
// Solutions stay as their reader left them.
(() => {
  const root = document.documentElement;
  const folded = "main details:not([open], .solution, .hide)";
  let theme = null;
  let opened = [];
  const answers = () => {
    const told = [...document.querySelectorAll("main .adv-predict-answer")];
    if (!told.length) return;
    const section = document.createElement("section");
    section.className = "adv-predict-answers";
    const list = told.map((answer) => `<li>${answer.innerHTML}</li>`).join("");
    section.innerHTML = `<h2>Answers to the predictions</h2><ol>${list}</ol>`;
    document.querySelector("main article").append(section);
  };
  const prepare = () => {
    if (theme !== null) return;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    document.querySelectorAll("img[loading=lazy]").forEach((image) => { image.loading = "eager"; });
    opened = [...document.querySelectorAll(folded)];
    opened.forEach((details) => { details.open = true; });
    answers();
  };
  const restore = () => {
    if (theme === null) return;
    root.dataset.theme = theme;
    theme = null;
    opened.forEach((details) => { details.open = false; });
    document.querySelector(".adv-predict-answers")?.remove();
  };
  addEventListener("beforeprint", prepare);
  addEventListener("afterprint", restore);
  matchMedia("print").addEventListener("change", (media) => (media.matches ? prepare() : restore()));
})();
