// Progressive enhancement of all pages, which also work without JavaScript.

import "bootstrap/js/src/alert.js";
import "bootstrap/js/src/collapse.js";
import { addPasswordToggles } from "./lib/passwords.js";
import "./lib/copy.js";
import { showRelativeTimes } from "./lib/times.js";

addPasswordToggles();
showRelativeTimes();

// Focus the first invalid field of a form.
document.querySelector("main [aria-invalid='true']")?.focus();

const RESUBMIT_MILLISECONDS = 5000; // in case the user stopped the request, or it got no response

// Prevent double submission.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if ("submitted" in form.dataset) {
    event.preventDefault();
    return;
  }
  form.dataset.submitted = "";
  setTimeout(() => delete form.dataset.submitted, RESUBMIT_MILLISECONDS);
});

// A page restored from the back/forward cache may predate a login or logout, and still contain a typed
// password. Browsers restore it regardless of Cache-Control.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) {
    location.reload();
  }
});

// Closing an alert removes the focused button, so move the focus to the content.
document.addEventListener("close.bs.alert", () => document.getElementById("main").focus());
