// Swagger UI. Loaded only on /docs, because it is larger than all other scripts together.

import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const applyColorScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyColorScheme);
applyColorScheme();

const container = document.getElementById("swagger-ui");

async function show() {
  const response = await fetch(container.dataset.document);
  const spec = await response.json();
  // The document names the public origin; requests go to the origin that served this page.
  spec.servers = [{ url: location.origin }];
  SwaggerUI({ spec, domNode: container, deepLinking: true, defaultModelsExpandDepth: 0 });
}

show();
