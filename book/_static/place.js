// The bar at the top says where the reader is: the section, and how much of the page is read.
addEventListener("DOMContentLoaded", () => {
  const bar = document.querySelector(".bd-header-article");
  const name = document.querySelector(".adv-place-section");
  const article = document.querySelector(".bd-article");
  if (!bar || !name || !article) return;
  const headings = [...article.querySelectorAll("h2, h3")].filter((heading) => !heading.closest("details"));
  let shown = null;
  let waiting = false;

  const show = (heading) => {
    if (heading === shown) return;
    shown = heading;
    const words = heading?.cloneNode(true) ?? document.createElement("h2");
    words.querySelectorAll(".headerlink, .section-number").forEach((part) => part.remove());
    words.querySelectorAll("a").forEach((link) => link.replaceWith(...link.childNodes));
    name.replaceChildren(...words.childNodes);
  };
  const look = () => {
    waiting = false;
    const edge = bar.getBoundingClientRect().bottom + 40;
    const { top, height } = article.getBoundingClientRect();
    const way = top + scrollY + height - innerHeight;
    bar.style.setProperty("--adv-read", way > 0 ? Math.min(1, scrollY / way).toFixed(4) : 1);
    document.body.classList.toggle("adv-away", scrollY > innerHeight);
    show(headings.findLast((heading) => heading.getBoundingClientRect().top < edge) ?? null);
  };
  const soon = () => {
    if (!waiting) requestAnimationFrame(look);
    waiting = true;
  };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon, { passive: true });
  look();
});
