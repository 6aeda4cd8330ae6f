// Requests to the page's own server. An error response is thrown with its message.

async function answer(request) {
  const response = await request;
  const text = await response.text();
  let found = {};
  try {
    found = JSON.parse(text);
  } catch {
    if (response.ok) throw new Error("the server's answer is damaged");
  }
  if (!response.ok) throw new Error(found.error ?? text.slice(0, 300));
  return found;
}

function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values ?? {})) {
    for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") found.append(name, one);
  }
  return `?${found}`;
}

export const get = (path, values) => answer(fetch(`/api/${path}${query(values)}`));
export const post = (path, values) => answer(fetch(`/api/${path}`, { method: "POST", body: JSON.stringify(values) }));
export const send = (path, values, file) => answer(fetch(`/api/${path}${query(values)}`, { method: "POST", body: file }));

// Call `changed` with the names of runs when they change. A hidden page does not listen, since browsers open six
// connections to a server at most, for all its pages together; when it is shown again, `changed` is called without names.
export function watch(changed) {
  let source = null, again = false;
  function listen() {
    if (document.hidden) { source?.close(); source = null; again = true; return; }
    if (source) return;
    source = new EventSource("/api/events");
    source.onmessage = (event) => {
      const names = JSON.parse(event.data);
      if (names.length || again) changed(names);
      again = true;
    };
  }
  document.addEventListener("visibilitychange", listen);
  listen();
}
