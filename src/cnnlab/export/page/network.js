// The network: onnxruntime-web with one thread, which needs no special headers from the server.

// Return the bytes of a file beside the page, or of one embedded in the page as base64. Either may be gzipped.
async function bytesOf(name) {
  const inside = document.getElementById(`file-${name}`);
  let bytes;
  if (inside) {
    const letters = atob(inside.textContent);
    bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i += 1) bytes[i] = letters.charCodeAt(i);
    inside.remove(); // frees its memory
  } else {
    const response = await fetch(`./${name}`);
    if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
    bytes = new Uint8Array(await response.arrayBuffer());
  }
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes; // some servers decompress by themselves
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

// files: the names of script, wasm and network. Return classify(image), with an image of pixels.js, which returns
// { probabilities, none, map }; map: { data, shape (K, h, w) } or null.
export async function openNetwork(files) {
  const [wasm, network] = await Promise.all([bytesOf(files.wasm), bytesOf(files.network)]);
  const inside = document.getElementById(`file-${files.script}`);
  const address = inside ? URL.createObjectURL(new Blob([await bytesOf(files.script)], { type: "text/javascript" })) : `./${files.script}`;
  const ort = await import(new URL(address, document.baseURI).href);
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm.buffer });
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
  const wanted = ["probabilities", "none_of_these", "map"].filter((name) => session.outputNames.includes(name));
  return async function classify(image) {
    const pixels = new ort.Tensor("uint8", image.data, [1, image.channels, image.height, image.width]);
    const found = await session.run({ pixels }, wanted);
    return {
      probabilities: found.probabilities.data,
      none: Boolean(found.none_of_these?.data[0]),
      map: found.map ? { data: found.map.data, shape: found.map.dims.slice(1) } : null,
    };
  };
}
