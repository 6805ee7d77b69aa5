/* The plans that a budget's slider runs through, as plain functions of the path from quept/allocate/solve/solver.py:

     {start: {w, e, bytes, cost}, steps: [[unit, bits, bytes after, cost after], ...], units: [[layers]...]}

   A step gives one unit (layers that share a width; -1 the embeddings) more bits; the plan for a budget is the
   start and all steps that fit. This file goes in front of budget.js. */

const LEAST_ACTIVATION_BITS = 4;

const endsOf = (path) => [path.start.bytes, path.steps.length ? path.steps.at(-1)[2] : path.start.bytes];

/* {w, e, bytes}: the plan of the path for a budget in bytes; the start where nothing fits. */
function planWithin(path, budget) {
  const plan = { w: [...path.start.w], e: path.start.e, bytes: path.start.bytes };
  for (const [unit, bits, bytes] of path.steps) {
    if (bytes > budget) break;
    plan.bytes = bytes;
    if (unit < 0) plan.e = bits;
    else for (const layer of path.units[unit]) plan.w[layer] = bits;
  }
  return plan;
}

/* Bytes of a plan {w, e} as a file, see quept/export; null where its format lacks a width. `file` is
   {sizes: [[bytes at each width], ...], embeddings: {width: bytes}, fixed}, `widths` those of the layers. */
function fileBytes(file, plan, widths) {
  const parts = plan.w.map((bits, i) => file.sizes[i][widths.indexOf(bits)]);
  parts.push(file.embeddings[plan.e]);
  return parts.some((bytes) => bytes == null) ? null : parts.reduce((sum, bytes) => sum + bytes, file.fixed);
}

/* Widths of the layers' inputs where they go with the weights. */
const inputsAsWeights = (widths) => widths.map((bits) => Math.max(LEAST_ACTIVATION_BITS, bits));

/* A slider's place, 0 to 1, on a logarithmic scale from the smallest plan to the largest, and back, rounded
   to what is shown of a size. */
const placeOf = ([low, high], bytes) => (high > low ? Math.log(bytes / low) / Math.log(high / low) : 1);

function bytesAt([low, high], place) {
  if (place <= 0) return low;
  if (place >= 1) return high;
  const bytes = low * (high / low) ** place;
  const grain = bytes >= 1e9 ? 1e7 : bytes >= 1e6 ? 1e5 : 1e2;
  return Math.min(high, Math.max(low, Math.floor(bytes / grain) * grain));
}

/* Round sizes for the slider's ticks, the first and the last size among them; `room` is the smallest distance
   between two, as a share of the slider. */
function ticksOf([low, high], room) {
  const round = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const digits of [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8]) round.push(digits * 10 ** power);
  }
  const ticks = [low];
  const apart = (a, b) => placeOf([low, high], b) - placeOf([low, high], a);
  for (const bytes of round) {
    if (bytes > low && apart(ticks.at(-1), bytes) >= room && apart(bytes, high) >= room) ticks.push(bytes);
  }
  return high > low ? [...ticks, high] : ticks;
}
