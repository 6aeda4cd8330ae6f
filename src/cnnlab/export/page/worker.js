// The service worker: it caches the files of this page, so that the page opens offline. The export writes NAME and
// FILES, whose names change with their content, above this line.

const OURS = `cnnlab ${self.registration.scope} `;

self.addEventListener("install", (event) => {
  // The browser's own cache could still hold the page of the previous export.
  const requests = FILES.map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(caches.open(OURS + NAME).then((cache) => cache.addAll(requests)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) if (name.startsWith(OURS) && name !== OURS + NAME) await caches.delete(name);
    await self.clients.claim();
  })());
});

// Take the page itself from the server if it answers, so that a new export is seen; take all else from the cache.
self.addEventListener("fetch", (event) => {
  const { origin, pathname } = new URL(event.request.url);
  if (event.request.method !== "GET" || origin !== self.location.origin) return;
  event.respondWith((async () => {
    const kept = await (await caches.open(OURS + NAME)).match(pathname.replace(/\/index\.html$/, "/"));
    if (event.request.mode !== "navigate") return kept ?? fetch(event.request);
    try {
      return await fetch(event.request);
    } catch {
      return kept ?? Response.error();
    }
  })());
});
