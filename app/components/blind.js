/* Blind rounds, and pairs of answers to copy or save; see blind.py.

   This file, after dom.js and rounds.js, is the body of a function that gr.HTML calls once, with element as in
   equalizer.js. In: the DOM event quept:chat, the text that the browser keeps of the chat (kept_chat.py). What
   is hidden, and on which side of the page an answer stands, are data attributes of #chat-sides (chat.css);
   quept:blind says that they changed. The score is kept in the browser alone. */

const KEPT = "quept-rounds";
const root = element.querySelector(".blind");
const button = (text, onClick) => {
  const made = make("button", { type: "button", text });
  made.addEventListener("click", onClick);
  return made;
};
const words = make("span", { class: "words", role: "status", "aria-live": "polite" });
const start = button("Blind round", begin);
const picks = ["A", "B"].map((letter) => button(`It is ${letter}`, () => choose(letter)));
const end = button("End", leave);
const copy = button("Copy pair", copyPair);
const save = button("Save chat", saveChat);
let turns = read(window.queptChat ?? stored(sessionStorage, "quept-chat"));
let round = ""; // "asking" until the visitor chose, then "answered"
let swapped = false; // the right side's answer stands first, as A
let said = "";

/* A store may be forbidden. */
function stored(store, name) {
  try { return store.getItem(name) ?? ""; } catch { return ""; }
}

function read(text) {
  try { return JSON.parse(text).turns ?? []; } catch { return []; }
}

const records = () => { try { return JSON.parse(stored(localStorage, KEPT)) ?? {}; } catch { return {}; } };

function keep(name, record) {
  try { localStorage.setItem(KEPT, JSON.stringify({ ...records(), [name]: record })); } catch { /* not kept */ }
}

/* A round begins with an empty chat: an older answer would say which side is which. */
function begin() {
  document.getElementById("chat-clear").click();
  [turns, round, swapped, said] = [[], "asking", Math.random() < 0.5, ""];
  draw();
}

function choose(letter) {
  const { plans } = turns.at(-1), won = letter === (swapped ? "A" : "B");
  const name = [document.querySelector("#model select")?.value ?? "", ...plans].join(" | ");
  const record = counted(records()[name] ?? { right: 0, rounds: 0 }, won);
  keep(name, record);
  said = `${won ? "Right" : "No"}: ${swapped ? "A" : "B"} is ${plans[1]}. ${verdict(record, plans)}`;
  round = "answered";
  draw();
}

function leave() {
  [round, swapped, said] = ["", false, ""];
  draw();
}

const asked = () => {
  if (!turns.length) return "Ask something below: the answers come without names, in either order.";
  return undecidable(turns) || `Which one is ${turns.at(-1).plans[1]}?`;
};

function draw() {
  const sides = document.getElementById("chat-sides"), asking = round === "asking";
  if (sides) {
    for (const [name, on] of [["round", round], ["swapped", swapped && "yes"]]) {
      if (on) sides.dataset[name] = on;
      else delete sides.dataset[name];
    }
  }
  document.dispatchEvent(new CustomEvent("quept:blind"));
  start.textContent = round === "answered" ? "Next round" : "Blind round";
  start.hidden = asking;
  end.hidden = !round;
  for (const pick of picks) pick.hidden = !asking || !turns.length || undecidable(turns) !== "";
  for (const one of [copy, save]) one.disabled = asking || !turns.length;
  words.textContent = asking ? asked() : said;
}

async function copyPair() {
  said = (await copyText(pairText(turns.at(-1)), root)) ? "The pair is on the clipboard." : "Copying is not allowed here.";
  draw();
}

function saveChat() {
  const url = URL.createObjectURL(new Blob([turns.map(pairText).join("\n")], { type: "text/markdown" }));
  const name = turns.at(-1).plans.join("-vs-").replace(/[^A-Za-z0-9.]+/g, "-");
  make("a", { href: url, download: `chat-${name}.md` }).click();
  URL.revokeObjectURL(url);
}

function onChat({ detail }) {
  if (!element.isConnected) return document.removeEventListener("quept:chat", onChat);
  turns = read(detail);
  draw();
}

root.replaceChildren(start, ...picks, end, words, make("span", { class: "gap" }), copy, save);
document.addEventListener("quept:chat", onChat);
draw();
