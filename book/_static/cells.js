// The theme lets the keyboard reach the listings that scroll when it loads a page, and again when the
// window changes; what was folded then is asked for when it opens.
addEventListener("toggle", (event) => {
  event.target.querySelectorAll("pre").forEach((listing) => {
    listing.tabIndex = listing.scrollWidth > listing.clientWidth ? 0 : -1;
  });
}, true);
