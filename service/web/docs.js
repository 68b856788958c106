// The API viewer: Swagger UI shows openapi.json. Every name is relative, so that the page works under a path prefix.

const viewer = document.getElementById("viewer");

async function show() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json: HTTP ${answer.status}`);
  const spec = await answer.json();
  // "Try it out" sends requests to the folder of this page, unless SEGUE_ROOT_PATH names another one.
  spec.servers ??= [{ url: new URL(".", location.href).pathname }];
  SwaggerUIBundle({ spec, domNode: viewer, deepLinking: true, validatorUrl: null });
}

show().catch((error) => {
  viewer.textContent = `The API description cannot be loaded: ${error.message}. Reload the page.`;
});
