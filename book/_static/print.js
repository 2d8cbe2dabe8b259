// Before printing: light colours, and every proof and hint open. Afterwards: as it was.
// Solutions stay as their reader left them.
(() => {
  const root = document.documentElement;
  const folded = "main details:not([open], .solution, .hide)";
  let theme = null;
  let opened = [];
  const prepare = () => {
    if (theme !== null) return;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    document.querySelectorAll("img[loading=lazy]").forEach((image) => { image.loading = "eager"; });
    opened = [...document.querySelectorAll(folded)];
    opened.forEach((details) => { details.open = true; });
  };
  const restore = () => {
    if (theme === null) return;
    root.dataset.theme = theme;
    theme = null;
    opened.forEach((details) => { details.open = false; });
  };
  addEventListener("beforeprint", prepare);
  addEventListener("afterprint", restore);
  matchMedia("print").addEventListener("change", (media) => (media.matches ? prepare() : restore()));
})();
