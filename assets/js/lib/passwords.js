// "Show password" buttons beside password fields.

const ICON = `<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="M2 12s3.6-6.5 10-6.5S22 12 22 12s-3.6 6.5-10 6.5S2 12 2 12z"/><circle cx="12" cy="12" r="2.8"/><path class="slash" d="M4 3l16 18"/></svg>`;

function addToggle(field) {
  const input = field.querySelector("input");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "btn btn-outline-secondary";
  button.setAttribute("aria-controls", input.id);
  button.setAttribute("aria-pressed", "false");
  button.title = "Show password";
  button.innerHTML = `${ICON}<span class="visually-hidden">Show password</span>`;

  function show(isShown) {
    input.type = isShown ? "text" : "password";
    button.setAttribute("aria-pressed", String(isShown));
  }

  button.addEventListener("click", () => show(input.type === "password"));
  // Password managers recognize only fields of type "password" when a form is submitted.
  input.form.addEventListener("submit", () => show(false));
  field.append(button);
}

/** Add a button that shows the password to each password field. */
export function addPasswordToggles() {
  document.querySelectorAll(".password-field").forEach(addToggle);
}
