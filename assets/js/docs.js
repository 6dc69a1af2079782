// The API's document as Swagger UI shows it. Only on /docs: it is larger than all else together.

import SwaggerUI from "swagger-ui-dist/swagger-ui-es-bundle.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const followColours = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followColours);
followColours();

const place = document.getElementById("swagger-ui");

async function show() {
  const answer = await fetch(place.dataset.document);
  const spec = await answer.json();
  // The document names the public origin. Who looks at it elsewhere tries it where they are.
  spec.servers = [{ url: location.origin }];
  SwaggerUI({ spec, domNode: place, deepLinking: true, defaultModelsExpandDepth: 0 });
}

show();
