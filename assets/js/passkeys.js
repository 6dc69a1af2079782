// Passkeys: the buttons of the macro `passkey_button`, and passkeys in the autofill of the login page.

const MESSAGES = {
  busy: "Follow the instructions of your browser.",
  offline: "The server could not be reached. Check your connection and try again.",
  limited: "Too many attempts. Wait a minute, then try again.",
  unsupported: "This browser does not support passkeys. Update it, or use another one.",
  // https://www.w3.org/TR/webauthn-3/#sctn-op-create and #sctn-op-get
  NotAllowedError: "The request was canceled or timed out. Try again.",
  InvalidStateError: "This device already has a passkey for your account.",
  NotSupportedError: "This device cannot create a passkey for this site. Use another device.",
  ConstraintError: "This device has no screen lock or PIN. Set one up, or use another device.",
  SecurityError: "The browser does not allow passkeys at this address.",
  other: "The passkey could not be used. Try again, or use another way.",
};
const RENEW = 0.8; // renew the challenge of the autofill after this part of its lifetime

const isSupported = Boolean(
  window.PublicKeyCredential?.parseRequestOptionsFromJSON && navigator.credentials,
);

let autofill = null; // the pending request of the autofill; a browser allows only one request

/** An error whose message is for the user. */
class PasskeyError extends Error {}

/** Fetch the options and the token of a new challenge. */
async function fetchOptions(url, isInBackground) {
  let response;
  try {
    response = await fetch(url, { method: "POST" });
  } catch {
    throw new PasskeyError(MESSAGES.offline);
  }
  if (response.status === 429) throw new PasskeyError(MESSAGES.limited);
  if (!isInBackground && (response.status === 401 || response.status === 403)) {
    location.reload(); // logged out, or the identity must be confirmed again: the page says so
    return new Promise(() => {});
  }
  if (!response.ok) throw new PasskeyError(MESSAGES.offline);
  return response.json();
}

/** Ask for a passkey and submit the form with it. */
async function run(container, extra = {}) {
  const { options, token } = await fetchOptions(
    container.dataset.options,
    extra.mediation === "conditional",
  );
  const credential =
    container.dataset.passkey === "create"
      ? await navigator.credentials.create({
          publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options),
        })
      : await navigator.credentials.get({
          publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options),
          ...extra,
        });
  const form = container.closest("form");
  container.querySelector("[data-passkey-token]").value = token;
  container.querySelector("[data-passkey-response]").value = JSON.stringify(credential);
  const remember = container.querySelector("[data-passkey-remember]");
  if (remember) {
    remember.value = document.querySelector("main [name=remember]:checked")?.value ?? "";
  }
  form.submit(); // without validation: a form may also have an empty password field
}

function showMessage(container, text) {
  container.querySelector("[data-passkey-message]").textContent = text;
}

function explain(container, error) {
  showMessage(
    container,
    error instanceof PasskeyError ? error.message : (MESSAGES[error.name] ?? MESSAGES.other),
  );
}

/** Say at which address passkeys work, with a link to this page there. */
function showAddress(container) {
  const link = document.createElement("a");
  link.href = container.dataset.origin + location.pathname + location.search;
  link.textContent = container.dataset.origin;
  const message = container.querySelector("[data-passkey-message]");
  message.replaceChildren(`Passkeys do not work at ${location.origin}. Open `, link, ".");
}

async function press(container, button) {
  const form = container.closest("form");
  if (container.dataset.passkey === "create" && !form.reportValidity()) return;
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true"; // keeps the focus, unlike `disabled`
  showMessage(container, MESSAGES.busy);
  autofill?.abort();
  try {
    await run(container);
  } catch (error) {
    explain(container, error);
    offerInAutofill(container);
  } finally {
    button.ariaDisabled = "false";
  }
}

/** Let the browser offer passkeys where it offers saved passwords ("conditional UI"). */
async function offerInAutofill(container) {
  const field = document.getElementById(container.dataset.autofill);
  if (!field || !(await PublicKeyCredential.isConditionalMediationAvailable?.())) return;
  autofill?.abort();
  autofill = new AbortController();
  const { signal } = autofill;
  field.autocomplete = "username webauthn";
  try {
    await run(container, { mediation: "conditional", signal });
  } catch (error) {
    // A failure that the user has not caused is not shown: the button still works.
    if (error.name === "NotAllowedError") explain(container, error);
  }
}

/** Renew the challenge before it expires, when the page is visible. */
function renewAutofill(container, lifetime) {
  setInterval(() => {
    if (autofill && !autofill.signal.aborted && !document.hidden) offerInAutofill(container);
  }, lifetime * RENEW);
}

function setUp(container) {
  const form = container.closest("form");
  const button = container.querySelector("button");
  if (location.origin !== container.dataset.origin) {
    form.hidden = false;
    showAddress(container);
    return;
  }
  if (!isSupported) {
    if (!("explain" in container.dataset)) return;
    form.hidden = false;
    showMessage(container, MESSAGES.unsupported);
    return;
  }
  form.hidden = button.hidden = false;
  button.addEventListener("click", () => press(container, button));
  if (container.dataset.passkey === "create") {
    // The Enter key in the field of the name.
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      press(container, button);
    });
  }
  if (container.dataset.autofill) {
    offerInAutofill(container);
    renewAutofill(container, Number(container.dataset.lifetime));
  }
}

document.querySelectorAll("[data-passkey]").forEach(setUp);
