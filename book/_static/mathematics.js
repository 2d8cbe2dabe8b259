// A formula wider than its place is reached by the keyboard, and fades on the side where it goes on.
(() => {
  const look = (box) => {
    if (box.scrollWidth - box.clientWidth > 1) box.classList.add("adv-wide"); // into the margin, if there is one
    const end = box.scrollWidth - box.clientWidth;
    const more = [box.scrollLeft > 1 && "left", end - box.scrollLeft > 1 && "right"].filter(Boolean);
    if (end > 1) {
      box.dataset.more = more.join(" ");
      box.tabIndex = 0;
    } else if (box.hasAttribute("tabindex")) {
      delete box.dataset.more;
      box.removeAttribute("tabindex");
    }
  };
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => look(target)));
  const boxes = document.querySelectorAll("div.math");
  document.fonts.addEventListener("loadingdone", () => boxes.forEach(look)); // a late face moves no box's edge
  for (const box of boxes) {
    sizes.observe(box);
    box.addEventListener("scroll", () => look(box), { passive: true });
  }
})();
