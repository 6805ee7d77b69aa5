/* Blind rounds and pairs of answers as plain functions: what was told apart so far, and a pair as Markdown. This
   file goes in front of blind.js. A turn is {"user", "left", "right", "plans": [name, name], "scored"}, as
   app/pages/kept_chat.py keeps it; a record is {right, rounds}. */

/* Wilson's 95 % interval of a share, as quept.evaluate.intervals.wilson. */
function wilson(right, rounds, z = 1.96) {
  const p = right / rounds, scale = 1 + (z * z) / rounds;
  const center = p + (z * z) / (2 * rounds);
  const spread = z * Math.sqrt((p * (1 - p)) / rounds + (z * z) / (4 * rounds * rounds));
  return [Math.max(0, (center - spread) / scale), Math.min(1, (center + spread) / scale)];
}

const counted = ({ right, rounds }, won) => ({ right: right + (won ? 1 : 0), rounds: rounds + 1 });

/* What many rounds say: whether the interval leaves guessing, one half, out. */
function verdict({ right, rounds }, [full, other]) {
  const [low, high] = wilson(right, rounds);
  const whole = (share) => Math.round(100 * share);
  const verdict = low > 0.5 ? "you tell them apart" : high < 0.5 ? "you take one for the other" : "guessing is not ruled out";
  return `${right} of ${rounds} between ${full} and ${other}: ${whole(right / rounds)} % ` +
    `(95 % interval ${whole(low)}–${whole(high)} %), ${verdict}.`;
}

/* Why a round on these turns cannot be won or lost; "" where it can. */
function undecidable(turns) {
  const plans = turns.at(-1)?.plans ?? ["", ""];
  if (plans[0] === plans[1]) return `Both sides are ${plans[0] || "of one plan"}: end the round and choose another precision.`;
  if (turns.some(({ plans: p }) => String(p) !== String(plans))) return "A precision changed on the way: end the round.";
  if (turns.every(({ left, right }) => left === right)) return "Both answers are the same so far: ask something else.";
  return "";
}

/* A question and both answers, as Markdown; sizes and figures where they were measured. */
function pairText({ user, left, right, plans, scored }) {
  const side = (name, i, text) => {
    const { bytes, kl } = scored?.[name] ?? {};
    const mean = kl?.length && kl.reduce((sum, one) => sum + one, 0) / kl.length;
    const about = [
      bytes && `${(bytes / 1e6).toFixed(1)} MB`,
      kl?.length && `mean KL ${mean.toPrecision(2)} from full precision over ${kl.length} tokens`,
    ].filter(Boolean);
    return `## ${plans[i] || name}${about.length ? ` (${about.join(", ")})` : ""}\n\n${text}\n`;
  };
  return `# ${user}\n\n${side("left", 0, left)}\n${side("right", 1, right)}`;
}
