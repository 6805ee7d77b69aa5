/* Words of the field, explained where they stand: term(key, text) is a button that shows what the word means (and
   `more`, of this model), by tap, by click and by keyboard, and closes when something else is touched. This file goes after dom.js. */

const TERMS = {
  plan: "How many bits each layer keeps. Full precision is 16 bits everywhere; W4 means 4 bits for every "
    + "layer's weights, with embeddings (E), activations (A) and KV cache at 16 unless said. Mixed plans spend bits where "
    + "they count most, embeddings too: so one can be smaller than W3 and better.",
  memory: "The size of the model if it were shipped at this plan alone: exact, to the byte of the exported file.",
  bpp: "All bytes of the plan times eight, over all parameters: scales and embeddings included.",
  "bits per token": "How many bits of each weight a token reads, on average over the tokens measured: routers choose 2, 4, 6 or 8 "
    + "for each token in each layer. All 8 are kept, so memory stays the same.",
  uniform: "The best plan with the same bits in every layer that fits into the bytes of yours; its name stands "
    + "beside. A mixed plan is worth its trouble if it beats that one.",
  ppl: "Perplexity: how surprised the model is by real text, on average, as if it had to choose among so many "
    + "words. Lower is better; it is shown beside full precision's on the same text.",
  kl: "Mean KL divergence: how far the model's next-word probabilities are from full precision's. 0 is none; "
    + "0.1 is hard to notice, 1 changes most answers.",
  same_top: "How often both, this plan and full precision, put the same choice first.",
  accuracy: "The share of right answers on labelled data, with the interval that so many of them allow.",
  p_right: "How much probability the right answer lost or gained against full precision, on average over the same "
    + "questions. It moves long before answers do: a small model near chance says little by accuracy alone.",
  same_answer: "How often both, this plan and full precision, choose the same answer. A flip is an answer that "
    + "differs, right or wrong: accuracy can stay while many flip.",
  origin: "Exact: counted. Predicted: added up from measurements of single layers, while you drag; the range beside "
    + "it is how far such sums were off on the plans that were measured. Measured: "
    + "this very plan was run, and the ± or the range says how sure that is.",
  e: "Token embeddings and output head: the table that turns words into numbers and back. In a small model it "
    + "is a large part of the bytes. At half a bit, 5.5 say, common words get more bits than rare ones.",
  kv: "KV cache: what the model remembers of the conversation so far. It grows with every token; fewer bits "
    + "make long chats cheaper. It is no part of the file.",
  roles: "The parts of a block. q, k, v, o: attention, which looks back at earlier words. gate, up, down: the "
    + "MLP, which holds most of the weights. Choosing one moves that part alone.",
  kinds: "Weights are what is stored; activations are the numbers that flow between layers while it runs.",
  lines: "Best found: mixed plans that a search measured. Same bits: every layer alike. The band joins what "
    + "nothing smaller beats; the star is your plan, the dotted line the plans that you tried.",
};
TERMS.top1 = TERMS.exact = TERMS.acc = TERMS.acc_norm = TERMS.accuracy;

function term(key, text, more = "") {
  if (!TERMS[key]) return make("span", { text });
  const card = make("div", { class: "term-card", popover: "auto", text: [TERMS[key], more].filter(Boolean).join(" ") });
  const button = make("button", { type: "button", class: "term", "data-term": key, text });
  button.popoverTargetElement = card;
  card.addEventListener("toggle", ({ newState }) => {
    if (newState !== "open") return;
    const at = button.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, innerWidth - card.offsetWidth - 8));
    const below = at.bottom + 6, above = at.top - card.offsetHeight - 6;
    card.style.left = `${left}px`;
    card.style.top = `${below + card.offsetHeight < innerHeight ? below : Math.max(8, above)}px`;
  });
  return make("span", { class: "term-box" }, button, card);
}
