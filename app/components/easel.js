/* The picture that questions are asked about: one of the row or the visitor's drawing, and suggestions.

   This file, after dom.js and sketch.js, is the body of a function that gr.HTML calls once, with
     element   where to draw;
     props     props.value: from Python the pictures, to Python the choice, see easel.py;
     trigger   trigger("ask", {question, picture}) when a suggestion is chosen;
     watch     watch("value", f) calls f when Python sent other pictures. */

const TINY_PX = 64; // up to here the pixels of a picture are shown as squares
const root = element.querySelector(".easel");
const MODES = [{ value: "picture", text: "Pictures" }, { value: "draw", text: "Draw" }];
let given = { items: [] }; // what Python sent last
let chosen = null; // the chosen picture's item
let mode = "picture";

const sketch = makeSketch({ colours: props.value?.colours ?? [["black", "#000000"]], changed: tell });
const modes = choices("Where the picture comes from", "modes", MODES, setMode);
const large = make("div", { class: "stage" });
const strip = make("div", { class: "strip", role: "group", "aria-label": "Pictures" });
const note = make("p", { class: "note", role: "status" });
const chips = make("div", { class: "chips", role: "group", "aria-label": "Suggested questions" });
root.append(modes, make("div", { class: "pictures" }, large, strip), sketch.box, note, chips);

strip.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button) choose(given.items[Number(button.dataset.at)]);
});
strip.addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const buttons = [...strip.children], at = buttons.indexOf(document.activeElement);
  if (!by || at < 0) return;
  event.preventDefault();
  const next = buttons[Math.min(buttons.length - 1, Math.max(0, at + by))];
  next.focus();
  next.click();
});
chips.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button) trigger("ask", { question: button.textContent, picture: picture() });
});

function picture() {
  if (mode === "picture") return chosen && { id: chosen.id };
  const png = sketch.png();
  return png ? { png } : null;
}

/* Python reads the value when something is asked. */
function tell() {
  props.value = picture();
  const questions = (mode === "draw" ? given.questions : chosen?.questions) ?? [];
  if (questions.join("\n") === [...chips.children].map((chip) => chip.textContent).join("\n")) return;
  chips.replaceChildren(...questions.map((text) => make("button", { type: "button", text })));
}

function setMode(next) {
  mode = root.dataset.mode = next;
  say("");
  tell();
}

function onValue() {
  const value = props.value;
  if (!value || !Array.isArray(value.items)) return;
  given = value;
  root.classList.toggle("none", !given.items.length);
  strip.replaceChildren(...given.items.map((item, at) =>
    make("button", { type: "button", "data-at": at, title: item.name, "aria-label": item.name },
      make("img", { src: item.source, alt: "", draggable: "false" }))));
  const wanted = given.items.find(({ id }) => id === given.selected);
  if (wanted && mode === "draw") modes.firstChild.click();
  choose(wanted ?? given.items.find(({ id }) => id === chosen?.id) ?? given.items[0] ?? null);
}

function choose(item) {
  chosen = item;
  const at = given.items.indexOf(item);
  [...strip.children].forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === at));
    button.tabIndex = i === Math.max(at, 0) ? 0 : -1;
  });
  const image = item && make("img", { src: item.source, alt: item.name });
  image?.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth <= TINY_PX));
  large.replaceChildren(image ?? make("p", { text: given.empty ?? "" }));
  tell();
}

/* Until another picture is pasted or the mode changes. */
function say(words) {
  note.textContent = words;
}

function onPaste(event) {
  if (!element.isConnected) return document.removeEventListener("paste", onPaste);
  const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
  if (!files.length || !element.offsetParent) return;
  const field = document.querySelector(`#${CSS.escape(given.paste_into ?? "")} input[type="file"]`);
  if (!field) return;
  event.preventDefault();
  const carrier = new DataTransfer();
  carrier.items.add(files[0]);
  field.files = carrier.files;
  field.dispatchEvent(new Event("change", { bubbles: true }));
  say(files.length > 1 ? "One picture at a time: the first was taken." : "");
}

document.addEventListener("paste", onPaste);
watch("value", onValue);
root.dataset.mode = mode;
onValue();
