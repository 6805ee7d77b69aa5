/* What an average of bits per token costs, and which layers get them; see routing.py for the value.

   This file, after dom.js, is the body of a function that gr.HTML calls once, with element, props and watch (see
   equalizer.js). */

const root = element.querySelector(".routing");
const WIDE = 320;
const HIGH = 150;
const EDGE = { left: 40, right: 10, top: 10, bottom: 24 };
const MOST = 8;

function drawn(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.append(document.createTextNode(text));
  return made;
}

function plot({ average, kl, curve, depths }) {
  const values = [...curve, ...depths].map(([, y]) => Math.log10(y));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (bits) => EDGE.left + ((bits - 2) / (MOST - 2)) * (WIDE - EDGE.left - EDGE.right);
  const y = (cost) => EDGE.top + ((high - Math.log10(cost)) / (high - low || 1)) * (HIGH - EDGE.top - EDGE.bottom);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `KL ${kl.toPrecision(2)} at ${average} bits a token` });
  for (let power = Math.ceil(low); power <= high; power += 1) {
    const at = y(10 ** power);
    svg.append(drawn("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: at, y2: at }));
    svg.append(drawn("text", { x: EDGE.left - 5, y: at + 4, "text-anchor": "end" }, String(10 ** power)));
  }
  for (const bits of [2, 4, 6, 8]) svg.append(drawn("text", { x: x(bits), y: HIGH - 6, "text-anchor": "middle" }, `${bits}`));
  svg.append(drawn("polyline", { class: "curve", points: curve.map(([b, c]) => `${x(b)},${y(c)}`).join(" ") }));
  for (const [bits, cost] of depths) svg.append(drawn("circle", { class: "depth", cx: x(bits), cy: y(cost), r: 3.5 }));
  svg.append(drawn("circle", { class: "now", cx: x(average), cy: y(kl), r: 5 }));
  return svg;
}

function bars(layers) {
  const list = make("ul", { class: "bars", "aria-label": "Bits of each group of layers" });
  for (const [name, bits] of layers) {
    const bar = make("li", { title: `${name}: ${bits.toFixed(1)} bits` }, make("span", { class: "unseen", text: `${name}: ${bits.toFixed(1)}` }));
    bar.style.setProperty("--share", bits / MOST);
    list.append(bar);
  }
  return list;
}

function onValue() {
  const value = props.value ?? {};
  if (!value.curve) return root.replaceChildren();
  const { average, kl, layers, read, kept } = value;
  const words = `KL ${kl.toPrecision(2)} at ${average} bits a token: ${read} read for each, ${kept} kept at every average. Line: routed; rings: every token at the same depth.`;
  const parts = [plot(value), make("div", { class: "right" }, bars(layers), make("p", { class: "caption", text: "Bits of each group of layers, the first on the left" }))];
  root.replaceChildren(make("p", { class: "gist", text: words }), make("div", { class: "parts" }, ...parts));
}

watch("value", onValue);
onValue();
