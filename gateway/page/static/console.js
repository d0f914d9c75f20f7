"use strict";

const stale = document.getElementById("stale");

function showStale(isStale) {
  if (stale !== null) {
    stale.hidden = !isStale;
  }
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden) {
    event.preventDefault();
  }
});

for (const failure of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(failure, () => showStale(true));
}

document.addEventListener("htmx:afterSwap", () => showStale(false));

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
  }
});
