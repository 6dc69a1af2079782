// The pages work without this script; it only makes them nicer.

import "bootstrap/js/src/alert.js";
import "bootstrap/js/src/collapse.js";
import "./lib/confirm.js";
import "./lib/copy.js";
import { showRelativeTimes } from "./lib/times.js";

showRelativeTimes();

// After a refused form the next keystroke belongs to the first field that needs it.
document.querySelector("main [aria-invalid='true']")?.focus();

const SUBMIT_AGAIN_MILLISECONDS = 5000; // after the Stop button, or when no answer comes

// A second click must not register somebody twice.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if ("submitted" in form.dataset) {
    event.preventDefault();
    return;
  }
  form.dataset.submitted = "";
  setTimeout(() => delete form.dataset.submitted, SUBMIT_AGAIN_MILLISECONDS);
});

// A page that the Back button brings back out of the browser's memory may be from before a login, with
// the password still typed in. Browsers keep it there whatever the answer's headers say about caches.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) {
    location.reload();
  }
});

// The button that had the focus goes away with its alert.
document.addEventListener("close.bs.alert", () => document.getElementById("main").focus());
