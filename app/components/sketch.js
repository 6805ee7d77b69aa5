/* A little drawing: shapes, strokes and a background on a square canvas.

   makeSketch({ colours, changed }) makes one; colours are [[name, "#rrggbb"], ...], changed() is called after
   each change. It has
     box, what to put on the page: the canvas and its tools;
     png(), the drawing as a data URL, "" while nothing is on it.

   A drawing is a list of operations, so that the last ones can be undone:
     {kind: "background", colour}, {kind: "clear"},
     {kind: "rectangle" | "circle" | "triangle", colour, x, y, w, h}, {kind: "brush", colour, points}
   in pixels of the canvas. A tap places a shape of a common size, a drag gives it its own.
   This file goes after dom.js and before easel.js. */

const SKETCH_PX = 256;
const STAMP = { rectangle: [112, 80], circle: [96, 96], triangle: [108, 94] };
const BRUSH_PX = 18, TAP_PX = 6, STEP_PX = 8, MOST_OPERATIONS = 300;
const BACKGROUNDS = [
  ["white", "#ffffff"], ["pale blue", "#e8f0fc"], ["pale green", "#eaf7ea"], ["pale yellow", "#fcf8e3"], ["pale pink", "#fceaf0"],
];
const SHAPE_ICONS = {
  rectangle: "M2 4h12v8H2z", circle: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2z", triangle: "M8 2l6.5 11.5h-13z",
  brush: "M3 13c2 1 4 0 4-2l6-8-2-1-6 7c-2 0-3 2-2 4z",
};

function makeSketch({ colours, changed }) {
  let operations = [], doing = null;
  let tool = "rectangle", colour = (colours.find(([name]) => name === "red") ?? colours[0])[1];
  const canvas = make("canvas", {
    width: SKETCH_PX, height: SKETCH_PX, tabindex: "0", role: "img",
    title: "Tap for a shape, drag to give it a size",
  });
  const pen = canvas.getContext("2d");

  const tools = choices("Draw with", "tools", Object.keys(SHAPE_ICONS).map((kind) => ({
    value: kind, text: "", title: kind === "brush" ? "Brush" : `A ${kind}`, data: { "aria-label": kind },
  })), (kind) => { tool = kind; });
  for (const button of tools.children) button.append(icon(SHAPE_ICONS[button.dataset.value]));
  const swatches = (label, name, list, chosen, onChoose) => {
    const row = choices(label, name, list.map(([words, value]) => ({
      value, text: "", title: words, data: { "aria-label": words },
    })), onChoose, chosen);
    for (const button of row.children) button.style.setProperty("--paint", button.dataset.value);
    return row;
  };
  const paints = swatches("Colour", "swatches", colours, colour, (value) => { colour = value; });
  const grounds = swatches("Background", "swatches grounds", BACKGROUNDS, BACKGROUNDS[0][1],
    (value) => add({ kind: "background", colour: value }));
  const undo = make("button", { type: "button", class: "plain", text: "Undo" });
  const clear = make("button", { type: "button", class: "plain", text: "Clear" });
  undo.addEventListener("click", undoLast);
  clear.addEventListener("click", () => add({ kind: "clear" }));
  const box = make("div", { class: "sketch" }, make("div", { class: "stage" }, canvas),
    make("div", { class: "row" }, tools, undo, clear), make("div", { class: "row" }, paints, grounds));

  canvas.addEventListener("pointerdown", (event) => {
    if (doing || event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    const [x, y] = placeOf(event);
    doing = { pointer: event.pointerId, x, y, made: shapeBetween(x, y, x, y) };
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== doing?.pointer) return;
    const [x, y] = placeOf(event);
    if (tool === "brush") doing.made.points.push([x, y]);
    else doing.made = shapeBetween(doing.x, doing.y, x, y);
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (event.pointerId !== doing?.pointer) return;
    const { made } = doing;
    doing = null;
    add(made);
  });
  canvas.addEventListener("pointercancel", () => { doing = null; draw(); });
  canvas.addEventListener("keydown", onKey);

  function placeOf(event) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const inside = (at) => Math.round(Math.min(1, Math.max(0, at)) * SKETCH_PX);
    return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
  }

  /* Circles and triangles keep their proportions. */
  function shapeBetween(x0, y0, x1, y1) {
    if (tool === "brush") return { kind: tool, colour, points: [[x0, y0]] };
    const dx = x1 - x0, dy = y1 - y0, [width, height] = STAMP[tool];
    if (Math.max(Math.abs(dx), Math.abs(dy)) < TAP_PX) {
      return { kind: tool, colour, x: x0 - width / 2, y: y0 - height / 2, w: width, h: height };
    }
    let w = Math.abs(dx), h = Math.abs(dy);
    if (tool !== "rectangle") {
      w = Math.max(w, h * (width / height));
      h = w * (height / width);
    }
    return { kind: tool, colour, x: dx < 0 ? x0 - w : x0, y: dy < 0 ? y0 - h : y0, w, h };
  }

  function onKey(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    const last = operations.at(-1);
    if (event.key === "Enter" && tool !== "brush") {
      const middle = SKETCH_PX / 2;
      add(shapeBetween(middle, middle, middle, middle));
    } else if ((dx || dy) && last && "w" in last) {
      operations[operations.length - 1] = { ...last, x: last.x + dx * STEP_PX, y: last.y + dy * STEP_PX };
      update();
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) undoLast();
    else return;
    event.preventDefault();
  }

  function undoLast() {
    operations.pop();
    update();
  }

  function add(operation) {
    operations = [...operations, operation].slice(-MOST_OPERATIONS);
    update();
  }

  function update() {
    draw();
    undo.disabled = clear.disabled = !operations.length;
    changed();
  }

  const shapes = () => operations.slice(operations.findLastIndex(({ kind }) => kind === "clear") + 1)
    .filter(({ kind }) => kind !== "background");

  function draw() {
    const ground = operations.findLast(({ kind }) => kind === "background")?.colour ?? BACKGROUNDS[0][1];
    for (const button of grounds.children) button.setAttribute("aria-checked", String(button.dataset.value === ground));
    pen.fillStyle = ground;
    pen.fillRect(0, 0, SKETCH_PX, SKETCH_PX);
    const all = [...shapes(), ...(doing ? [doing.made] : [])];
    all.forEach(paint);
    const names = all.map(({ kind, colour: value }) => `${colours.find(([, hex]) => hex === value)?.[0] ?? ""} ${kind}`);
    canvas.setAttribute("aria-label", `Drawing: ${names.join(", ") || "empty"}. Enter puts a shape in the middle, arrows move it.`);
  }

  function paint({ kind, colour: value, x, y, w, h, points }) {
    pen.fillStyle = pen.strokeStyle = value;
    pen.beginPath();
    if (kind === "brush") {
      pen.lineWidth = BRUSH_PX;
      pen.lineCap = pen.lineJoin = "round";
      pen.moveTo(...points[0]);
      for (const point of points) pen.lineTo(...point);
      return pen.stroke();
    }
    if (kind === "rectangle") pen.rect(x, y, w, h);
    else if (kind === "circle") pen.ellipse(x + w / 2, y + h / 2, w / 2, h / 2, 0, 0, 2 * Math.PI);
    else {
      pen.moveTo(x + w / 2, y);
      pen.lineTo(x + w, y + h);
      pen.lineTo(x, y + h);
    }
    pen.fill();
  }

  undo.disabled = clear.disabled = true;
  draw();
  return { box, png: () => (shapes().length ? canvas.toDataURL("image/png") : "") };
}
