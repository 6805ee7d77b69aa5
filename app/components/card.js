/* The share card: a picture of a plan with its size, its quality, its link and the bits of its layers. This file
   goes in front of planbar.js. */

const CARD = { width: 1200, height: 630, paper: "#ffffff", ink: "#1c2333", soft: "#55607a", accent: "#4f46e5" };

/* What a card says: telling as of quept:predict, measured: points and metrics as of quept:points. */
function cardOf(telling, { metrics, points }, model, href) {
  const current = points.find((p) => p.kind === "current" && p.measured && Math.abs(p.bytes - telling.bytes) <= 1);
  const found = current ?? telling.predicted ?? {};
  const said = ({ name, label, unit }) => {
    const x = found[name];
    if (typeof x !== "number" || !Number.isFinite(x)) return [];
    return [`${label} ${unit === "share" ? `${(100 * x).toFixed(1)} %` : smallNumber(x)}`];
  };
  const quality = metrics.flatMap(said);
  return {
    model, widths: telling.words, bits: telling.plan.w,
    size: `${sizeWords(telling.bytes)}, ${((100 * telling.bytes) / telling.full_bytes).toFixed(0)} % of full precision`,
    quality: quality.length ? `${quality.join(" · ")}, ${current ? "measured" : "predicted"}` : "quality not measured yet",
    link: addressWith(telling.link, href),
  };
}

const smallNumber = (x) => (x >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(3))));

function drawCard({ model, widths, bits, size, quality, link }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [CARD.width, CARD.height];
  const pen = canvas.getContext("2d"), left = 60, wide = CARD.width - 2 * left;
  const fill = (color, ...box) => { pen.fillStyle = color; pen.fillRect(...box); };
  const text = (words, y, px, color, weight = 400) => {
    pen.fillStyle = color;
    pen.font = `${weight} ${px}px system-ui, sans-serif`;
    pen.fillText(words, left, y, wide);
  };
  fill(CARD.paper, 0, 0, CARD.width, CARD.height);
  fill(CARD.accent, 0, 0, CARD.width, 12);
  text(model, 88, 40, CARD.ink, 700);
  text(widths, 146, 34, CARD.accent, 600);
  text(size, 200, 32, CARD.ink);
  text(quality, 250, 32, CARD.ink);
  const step = wide / bits.length, floor = 530, tall = 220;
  bits.forEach((width, i) => {
    const height = (tall * width) / 16;
    fill(CARD.accent, left + i * step, floor - height, Math.max(1, step - Math.min(2, step / 4)), height);
  });
  fill(CARD.soft, left, floor, wide, 1);
  text(`bits of each of ${bits.length} layers`, 560, 20, CARD.soft);
  text(link, 598, 20, CARD.soft);
  return canvas;
}
