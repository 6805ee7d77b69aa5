/* Draws one widget: lays the style of its kind, once in a page, and runs its scripts, which the browser fetches when
   the first widget that needs them is drawn, and keeps. A module, imported by what Gradio runs as it mounts a widget
   (see widget.py). The style is laid under `:is(#_, .widget)`: as strong as an id, so that it beats Gradio's own, and
   the same for all widgets of one kind. */

const kept = {};

/* address(file): where a file is; given: what Gradio gives a script, by name; files: of this kind of widget. */
export async function draw(address, given, { name, styles, scripts }) {
  const read = async (file) => {
    const answer = await fetch(address(file));
    if (!answer.ok) throw new Error(`${file}: ${answer.status}`);
    return answer.text();
  };
  const text = (file) => (kept[file] ??= read(file));
  const dress = async () => {
    const sheet = document.createElement("style");
    sheet.textContent = `:is(#_, .widget-${name}) { ${(await Promise.all(styles.map(text))).join("")} }`;
    document.head.append(sheet);
  };
  const [, ...parts] = await Promise.all([(kept[`style of ${name}`] ??= dress()), ...scripts.map(text)]);
  Function(...Object.keys(given), parts.join("\n"))(...Object.values(given));
}
