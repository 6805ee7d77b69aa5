/* What a plan means, as plain functions of (model, plan): bytes, predicted quality, link, words.

   model is what readModel makes of a description; a plan is {w, a, kv, e}: weight and activation bits per
   layer, in the description's order, the bits of the KV cache, one number or one for each block that keeps
   one, and those of the token embeddings and the output head. This file goes in front of equalizer.js. */

const FULL = 16;
const LINK_PARTS = ["m", "w", "a", "kv", "k", "e"];
const LINK_BITS = [2, 3, 4, 5, 6, 7, 8, 16]; // the link's 3-bit codes, see app/link.py

function readModel(description) {
  const { blocks, roles, layers, bits, sizes } = description;
  const grid = roles.map(() => new Array(blocks.length).fill(undefined));
  layers.forEach((layer, i) => { grid[layer.role][layer.block] = i; });
  const columnOf = new Map(bits.map((width, i) => [width, i]));
  const inputs = description.activation_bits ?? [], embeddings = description.embedding_bits ?? [];
  const sum = (numbers) => numbers.reduce((total, n) => total + n, 0);
  const model = {
    ...description,
    grid,
    sections: description.sections ?? [], // {name, from, to}: columns
    cached: description.kv_blocks ?? [], // columns
    levels: { w: bits, a: inputs, kv: description.kv_bits ?? [] },
    singles: { kv: description.kv_bits ?? [], e: embeddings },
    bytesAt: (i, width) => sizes[i][columnOf.get(width)],
    embeddingBytesAt: (width) => description.embedding_bytes?.[embeddings.indexOf(width)] ?? 0,
    harmAt: (i, width) => description.prediction.sensitivity[i][columnOf.get(width)],
    inputHarmAt: (i, width) => description.prediction.activations?.[i][inputs.indexOf(width)] ?? 0,
    cacheHarmAt: (width) => description.prediction.kv?.[description.kv_bits.indexOf(width)] ?? 0,
    embeddingHarmAt: (width) => description.prediction.embeddings?.[embeddings.indexOf(width)] ?? 0,
    quantized: sum(layers.map((layer) => layer.params)),
    curve: readCurve(description.prediction),
  };
  model.fullBytes = deployBytes(model, fullPlan(model));
  return model;
}

/* What the bits of the KV cache add to KL, of each block its own; 0 where the table has no such costs. */
function cacheKl(model, kv) {
  const cache = model.prediction?.cache ?? [], at = (i) => model.levels.kv.indexOf(Array.isArray(kv) ? kv[i] : kv);
  return cache.reduce((sum, row, i) => sum + row[at(i)], 0);
}

/* One number where all are alike, else all of them. */
const together = (kv) => (Array.isArray(kv) && kv.every((bits) => bits === kv[0]) ? kv[0] ?? FULL : kv);
const roundsCache = (kv) => [].concat(kv).some((bits) => bits < FULL);

function readCurve(prediction) {
  if (!prediction) return null;
  const { sum, kl, same_top } = prediction.curve, score = prediction.curve[prediction.score];
  const points = sum.map((s, i) => [s, kl[i], score[i], same_top[i]]).filter(([s]) => s > 0);
  if (!points.length) return null;
  const column = (k, f) => points.map((point) => f(point[k]));
  const log = (x) => Math.log(Math.max(x, 1e-12));
  const scale = prediction.score === "ppl" ? log : Number;
  return { log: column(0, log), kl: column(1, log), score: column(2, scale), sameTop: column(3, Number) };
}

function fullPlan(model) {
  const all = () => new Array(model.layers.length).fill(FULL);
  return { w: all(), a: all(), kv: cacheOf(model, FULL), e: FULL };
}

/* The bits of the KV cache of each block that keeps one. */
const cacheOf = (model, kv) => (Array.isArray(kv) ? [...kv] : model.cached.map(() => kv));

/* The plan in a value, its kv one number for each block; null when the value is of another model. */
function readPlan(model, value) {
  const fits = (list) => Array.isArray(list) && list.length === model.layers.length;
  if (!fits(value?.w)) return null;
  const { kv = FULL, e = FULL } = value;
  return { w: [...value.w], a: fits(value.a) ? [...value.a] : fullPlan(model).a, kv: cacheOf(model, kv), e };
}

const copyOf = (plan) => ({ ...plan, w: [...plan.w], a: [...plan.a], kv: [...plan.kv] });

function same(plan, other) {
  const equal = (name) => plan[name].every((x, i) => x === other[name][i]);
  return plan.e === other.e && ["w", "a", "kv"].every(equal);
}

function deployBytes(model, plan) {
  const rest = model.fixed_bytes + model.embeddingBytesAt(plan.e);
  return plan.w.reduce((bytes, width, i) => bytes + model.bytesAt(i, width), rest);
}

function meanWeightBits(model, plan) {
  return plan.w.reduce((bits, width, i) => bits + width * model.layers[i].params, 0) / model.quantized;
}

/* Piecewise linear through (xs, ys), constant outside. */
function interpolate(xs, ys, x) {
  if (xs.length === 1 || x <= xs[0]) return ys[0];
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i += 1;
  const t = Math.min(1, (x - xs[i - 1]) / (xs[i] - xs[i - 1]));
  return ys[i - 1] + t * (ys[i] - ys[i - 1]);
}

/* What a plan costs by the sensitivity table: the sum over what it rounds, s in quept/allocate/sensitivity/table.py,
   but for the cache of single blocks, see cacheKl. */
function harmOf(model, plan) {
  const layer = (harm, width, i) => harm + model.harmAt(i, width) + model.inputHarmAt(i, plan.a[i]);
  return plan.w.reduce(layer, model.embeddingHarmAt(plan.e) + model.cacheHarmAt(together(plan.kv)));
}

/* Null where the table does not cover the plan: its sum would say what the rest costs and call it all. */
function predictQuality(model, plan) {
  if (!model.curve || uncovered(model, plan).length) return null;
  return qualityAt(model, harmOf(model, plan), cacheKl(model, plan.kv));
}

/* Quality from s: along the measured curve in log s; below its first point the distance to full precision
   (KL, log perplexity, lost accuracy, differing tokens) shrinks in proportion to s. What the cache adds to KL
   moves s to where the curve shows the sum of both. */
function qualityAt(model, s, added = 0) {
  const curve = model.curve;
  if (added) return qualityAt(model, showing(curve, qualityAt(model, s).kl + added));
  const at = (ys) => interpolate(curve.log, ys, Math.log(Math.max(s, 1e-300)));
  const share = Math.min(1, s / Math.exp(curve.log[0]));
  const { score, reference } = model.prediction, ofText = score === "ppl";
  const full = ofText ? Math.log(reference.ppl) : reference[score];
  const moved = full + (at(curve.score) - full) * share;
  return {
    kl: Math.exp(at(curve.kl)) * share,
    [score]: ofText ? Math.exp(moved) : moved,
    same_top: 1 - (1 - at(curve.sameTop)) * share,
  };
}

/* The sum at which the curve shows this KL. */
function showing(curve, kl) {
  const first = Math.exp(curve.kl[0]);
  if (kl <= first) return (Math.exp(curve.log[0]) * kl) / first;
  return Math.exp(interpolate(curve.kl, curve.log, Math.log(kl)));
}

/* What a plan rounds and the sensitivity table did not. */
function uncovered(model, plan) {
  const left = [], { activations, embeddings, kv, cache } = model.prediction;
  if (!activations && plan.a.some((bits) => bits < FULL)) left.push("activation bits");
  if (!embeddings && plan.e < FULL) left.push("embedding bits");
  if (!kv && !cache && roundsCache(plan.kv)) left.push("KV-cache bits");
  if (kv && !cache && Array.isArray(together(plan.kv))) left.push("KV-cache bits of single blocks");
  return left;
}

/* What predictions are made of, or why there is none. */
function predictionNote(model, plan) {
  if (!model.curve) return "No sensitivity table for this model: quality is measured when you let go.";
  const left = uncovered(model, plan);
  if (!left.length) return model.prediction.on ?? "";
  return `No prediction: the table does not cover ${left.join(" and ")}. Quality is measured when you let go.`;
}

/* All of it, as the event quept:predict tells it. */
function tellingOf(model, plan) {
  const bytes = deployBytes(model, plan);
  return {
    bytes,
    full_bytes: model.fullBytes,
    bits_per_param: (bytes * 8) / model.params,
    weight_bits: meanWeightBits(model, plan),
    predicted: predictQuality(model, plan),
    off_by: model.prediction?.off_by ?? null, // predicted KL, as a factor, on plans that were measured
    reference: model.prediction?.reference ?? null,
    note: predictionNote(model, plan),
    words: widthWords(model, plan),
    plainly: plainWords(model, plan),
    link: linkOf(model, plan),
  };
}

/* 3 bits a layer, most significant first, base64url without padding. */
function encodeBits(widths) {
  const bytes = new Uint8Array(Math.ceil((widths.length * 3) / 8));
  widths.forEach((width, i) => {
    const code = LINK_BITS.indexOf(width);
    for (let k = 0; k < 3; k += 1) {
      const place = 3 * i + k;
      if ((code >> (2 - k)) & 1) bytes[place >> 3] |= 128 >> (place & 7);
    }
  });
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/* The widths behind such a text. */
function decodeBits(text, count) {
  const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bit = (place) => (bytes.charCodeAt(place >> 3) >> (7 - (place & 7))) & 1;
  return Array.from({ length: count }, (_, i) =>
    LINK_BITS[(bit(3 * i) << 2) | (bit(3 * i + 1) << 1) | bit(3 * i + 2)]);
}

/* The plan in a link made here, for a model of so many layers and blocks with a KV cache. */
function planOfLink({ w, a, k, kv = FULL, e = FULL }, layers, blocks = 0) {
  const inputs = a ? decodeBits(a, layers) : new Array(layers).fill(FULL);
  return { w: decodeBits(w, layers), a: inputs, kv: k ? decodeBits(k, blocks) : Number(kv), e: Number(e) };
}

function linkOf(model, plan) {
  const link = { m: model.model, w: encodeBits(plan.w) };
  if (plan.a.some((bits) => bits !== FULL)) link.a = encodeBits(plan.a);
  const kv = together(plan.kv);
  if (Array.isArray(kv)) link.k = encodeBits(kv);
  else if (kv !== FULL) link.kv = String(kv);
  if (plan.e !== FULL) link.e = String(plan.e);
  return link;
}

/* An address with the link of a plan in it; its other parameters stay. */
function addressWith(link, href) {
  const url = new URL(href);
  for (const name of LINK_PARTS) url.searchParams.delete(name);
  for (const [name, text] of Object.entries(link)) url.searchParams.set(name, text);
  return url.href;
}

function sizeWords(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB`;
  if (bytes >= 1e5) return `${(bytes / 1e6).toFixed(bytes >= 1e6 ? 1 : 3)} MB`; // not KB beside MB
  return `${(bytes / 1e3).toFixed(1)} KB`;
}

function perplexityWords(x) {
  if (x >= 1e5) return x.toExponential(1).replace("e+", "e");
  return x >= 1000 ? Math.round(x).toLocaleString("en") : x.toFixed(1);
}

/* "perplexity 21.3", or "accuracy 91.2 %" of a model that sees. */
const scoreWords = ({ ppl, top1 }) =>
  ppl === undefined ? `accuracy ${(100 * top1).toFixed(1)} %` : `perplexity ${perplexityWords(ppl)}`;

/* Two digits that count, as people write them down to a ten-thousandth. */
function smallWords(x) {
  if (x === 0) return "0";
  if (x > 0 && x < 1e-4) return "<0.0001";
  if (x >= 1e5) return x.toExponential(1).replace("e+", "e");
  return String(Number(x.toPrecision(2)));
}

const bitsWords = (bits) => (bits === FULL ? "16 bits (untouched)" : `${bits} bits`);
const layersWords = (n) => (n === 1 ? "1 layer" : `${n} layers`);

/* "60 layers at 4, 150 at 8" */
function spreadWords(widths) {
  const counts = new Map();
  for (const bits of widths) counts.set(bits, (counts.get(bits) ?? 0) + 1);
  const groups = [...counts].sort((a, b) => a[0] - b[0]);
  if (groups.length === 1) return `all ${widths.length} layers at ${groups[0][0]}`;
  return groups.map(([bits, n], i) => `${i ? n : layersWords(n)} at ${bits}`).join(", ");
}

/* "A4 activations", "A4 to A8 activations (60 layers at 4, 150 at 8)" */
function activationWords(widths) {
  const low = Math.min(...widths), high = Math.max(...widths);
  return low === high ? `A${low} activations` : `A${low} to A${high} activations (${spreadWords(widths)})`;
}

/* "W mixed 4.5 · A16 · E5 · KV16": a letter for each kind of width, the mean where layers differ. */
function widthWords(model, plan) {
  const one = (widths, mean) => (widths.every((bits) => bits === widths[0]) ? widths[0] : ` mixed ${mean()}`);
  const inputs = () => Math.min(...plan.a) + "–" + Math.max(...plan.a);
  const parts = [`W${one(plan.w, () => meanWeightBits(model, plan).toFixed(1))}`, `A${one(plan.a, inputs)}`];
  if (model.singles.e.length > 1) parts.push(`E${plan.e}`);
  const kv = [].concat(plan.kv), mean = () => (kv.reduce((sum, bits) => sum + bits, 0) / kv.length).toFixed(1);
  if (model.singles.kv.length > 1) parts.push(`KV${one(kv, mean)}`);
  return parts.join(" · ");
}

/* "every layer at 3 bits, embeddings at 16 (56.6 MB)": the same for who does not know the letters. */
function plainWords(model, plan) {
  const alike = plan.w.every((bits) => bits === plan.w[0]), mean = () => meanWeightBits(model, plan).toFixed(1);
  const parts = [alike ? `every layer at ${plan.w[0]} bits` : `layers at ${mean()} bits on average`];
  if (plan.a.some((bits) => bits < FULL)) parts.push(`activations at ${cacheWords(plan.a)}`);
  const size = () => sizeWords(model.embeddingBytesAt(plan.e));
  if (model.singles.e.length > 1) parts.push(`embeddings at ${plan.e} (${size()})`);
  if (roundsCache(plan.kv)) parts.push(`KV cache at ${cacheWords(plan.kv)}`);
  return parts.join(", ");
}

/* "8", "4 to 16" */
function cacheWords(kv) {
  const widths = [].concat(kv), low = Math.min(...widths), high = Math.max(...widths);
  return low === high ? String(low) : `${low} to ${high}`;
}

function summaryWords(plan, telling) {
  const rate = `${telling.bits_per_param.toFixed(1)} bits/parameter`;
  const parts = [spreadWords(plan.w), sizeWords(telling.bytes), rate];
  if (plan.a.some((bits) => bits < FULL)) parts.splice(1, 0, activationWords(plan.a));
  if (telling.predicted) parts.push(`predicted ${scoreWords(telling.predicted)}`);
  if (roundsCache(plan.kv)) parts.push(`KV cache at ${cacheWords(plan.kv)}`);
  if (plan.e < FULL) parts.push(`embeddings at ${plan.e}`);
  return parts.join(" · ");
}

/* "blocks 5 to 8, role down": where layers are, as {rows, cols} of the model's grid. */
function rangeWords(model, { rows, cols }) {
  return `${sideWords(cols, model.blocks, "block")}, ${sideWords(rows, model.roles, "role")}`;
}

/* "blocks 5 to 8": one side of it. */
function sideWords(list, names, one) {
  if (list.length === names.length) return `all ${one}s`;
  const [first, last] = [names[list[0]], names[list.at(-1)]];
  return list.length === 1 ? `${one} ${first}` : `${one}s ${first} to ${last}`;
}

const span = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => first + i);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
