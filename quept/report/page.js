// Draws the figures in #figures into the .chart elements, in the colors of the style sheet; again when the
// reader's color scheme changes, and for paper: light, as wide as a page, the recipe unfolded.
"use strict";
(() => {
  const PAPER_WIDTH = 680;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll(".chart")];
  const root = document.documentElement;
  const color = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const named = (value) => (/^var\(--\w+\)$/.test(value) ? color(value.slice(6, -1)) : value);

  // a copy of a figure in which "var(--name)" is a color, wherever a color stands
  function painted(value, key) {
    if (key === "color") return named(value);
    if (key === "colorscale") return value.map(([at, tone]) => [at, named(tone)]);
    if (Array.isArray(value)) return value.map((item) => painted(item));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, k)]));
  }

  function layout(figure, width) {
    const axis = (given) => ({
      ...given, gridcolor: color("grid"), linecolor: color("line"), tickfont: { color: color("soft") },
    });
    return {
      ...figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("ink") },
      hoverlabel: { bgcolor: color("paper"), bordercolor: color("line"), font: { color: color("ink") } },
      xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
      ...(width ? { width } : {}),
    };
  }

  function draw(width) {
    for (const place of places) {
      const figure = figures[Number(place.dataset.figure)];
      const narrow = width && place.closest(".gallery") ? (width - 24) / 2 : width;
      const options = { responsive: !width, displayModeBar: false, displaylogo: false };
      Plotly.react(place, painted(figure.data), layout(figure, narrow), options);
    }
    document.body.dataset.drawn = String(places.length);
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  const folded = [...document.querySelectorAll("details:not([open])")];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    folded.forEach((each) => { each.open = true; });
    draw(PAPER_WIDTH);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    folded.forEach((each) => { each.open = false; });
    draw();
  });
})();
