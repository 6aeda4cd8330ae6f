// Elements. Texts are set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

// attributes: onclick and the like are listeners; style is an object of properties; false and null omit an attribute.
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

// Redraw the inside of `node`. Keep the focus on the control at the same position in the element with the same data-key.
export function keepFocus(node, redraw) {
  const controls = (key) => [...(node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.querySelectorAll("a, button, input, select") ?? [])];
  const active = node.contains(document.activeElement) ? document.activeElement : null;
  const key = active?.closest("[data-key]")?.dataset.key;
  const place = key === undefined ? -1 : controls(key).indexOf(active);
  redraw();
  if (place >= 0) controls(key)[place]?.focus({ preventScroll: true });
}

export function svg(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}
