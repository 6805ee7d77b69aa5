/* Questions about pictures with both answers to each; see talk.py for the value.

   This file, after dom.js, is the body of a function that gr.HTML calls once, with element, props and watch (see
   equalizer.js). A turn is drawn again only where it has changed, so that older ones stand still while an
   answer streams in. */

const root = element.querySelector(".talk");
const WAITING = { queued: "Waiting…", preparing: "Preparing…", reading: "Looking…" };
const LONG = 40; // characters from which an answer is set in small letters
const list = make("div", { class: "turns" });
const news = make("p", { class: "unseen", role: "status", "aria-live": "polite" });
let drawn = []; // what each turn on the page was made of, the oldest first
root.append(list, news);

function cell(side) {
  const answer = make("p", { class: "answer" });
  const [before, marked, after] = side.text;
  const text = before + marked + after;
  if (marked) answer.append(before, make("mark", { text: marked }), after);
  else answer.append(text || WAITING[side.state] || "(no answer)");
  answer.classList.toggle("none", !text);
  answer.classList.toggle("long", text.length > LONG);
  if (side.right !== null && side.right !== undefined) {
    const words = side.right ? "right" : "wrong";
    answer.append(make("span", { class: words, title: `The known answer says this is ${words}`, text: side.right ? " ✓" : " ✗" }));
  }
  const parts = [make("div", { class: "label", text: side.label }), answer];
  if (side.bars?.length) {
    const bars = make("ol", { class: "bars" }, ...side.bars.map(([token, share]) => {
      const row = make("li", {}, make("span", { class: "token", text: token }),
        make("span", { class: "share", text: percent(share) }), make("span", { class: "gauge" }));
      row.lastChild.style.setProperty("--share", share);
      return row;
    }));
    parts.push(make("div", { class: "caption", text: side.caption ?? "" }), bars);
  }
  return make("div", { class: "side", "data-state": side.state }, ...parts);
}

const percent = (share) => (share < 0.001 ? "< 0.1 %" : share > 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`);

function article(turn) {
  const words = make("div", {}, make("h3", { text: turn.question }));
  if (turn.note) words.append(make("p", { class: "note", text: turn.note }));
  const head = make("div", { class: "head" }, make("img", { src: turn.source, alt: "about this picture" }), words);
  const made = make("article", {}, head, make("div", { class: "sides" }, ...turn.sides.map(cell)));
  if (turn.line) made.append(make("p", { class: turn.parted ? "line parted" : "line", text: turn.line }));
  return made;
}

function onValue() {
  const { turns = [], empty = [] } = props.value ?? {};
  const wanted = turns.map((turn) => JSON.stringify(turn));
  if (!turns.length) {
    list.replaceChildren(make("div", { class: "empty" }, ...empty.map((text) => make("p", { text }))));
    drawn = [];
    return;
  }
  if (!drawn.length) list.replaceChildren();
  while (drawn.length > wanted.length) {
    list.firstChild.remove();
    drawn.pop();
  }
  wanted.forEach((text, i) => {
    if (text === drawn[i]) return;
    const made = article(turns[i]);
    if (i < drawn.length) list.children[drawn.length - 1 - i].replaceWith(made);
    else list.prepend(made);
    if (i === turns.length - 1 && (i >= drawn.length || turns[i].line)) made.scrollIntoView({ block: "nearest" });
    drawn[i] = text;
  });
  const line = turns.at(-1).line;
  if (news.textContent !== line) news.textContent = line ?? "";
}

watch("value", onValue);
onValue();
