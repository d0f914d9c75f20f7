"use strict";

const FIELDS = "input, select, textarea";
const stale = document.getElementById("stale");

function showStale(isStale) {
  if (stale !== null) {
    stale.hidden = !isStale;
  }
}

/* Times come in UTC, with UTC on hover too; the locale sv-SE writes them as 2026-01-31 12:00:00. */
function showLocalTimes() {
  for (const each of document.querySelectorAll("time[datetime]")) {
    each.textContent = new Date(each.dateTime).toLocaleString("sv-SE");
  }
}

function isChanged(field) {
  if (field.type === "checkbox") {
    return field.checked !== field.defaultChecked;
  }
  if (field.options) {
    return [...field.options].some((option) => option.selected !== option.defaultSelected);
  }
  return field.value !== field.defaultValue;
}

/* A refresh would take away the field in which somebody types or chooses. */
function isInUse(part) {
  return [...part.querySelectorAll(FIELDS)].some((field) => field === document.activeElement || isChanged(field));
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden || isInUse(event.target)) {
    event.preventDefault();
  }
});

for (const failure of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(failure, () => showStale(true));
}

document.addEventListener("htmx:afterSwap", () => {
  showStale(false);
  showLocalTimes();
});

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
  }
});

showLocalTimes();
