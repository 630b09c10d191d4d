// Read-outs and copying; the page is complete without.
"use strict";
const short = (value) =>
  value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)
    ? value.toExponential(2)
    : value.toLocaleString("en", { maximumSignificantDigits: 4 });

for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot");
  const svg = plot.querySelector("svg");
  const [left, right, low, high] = chart.dataset.range.split(" ").map(Number);
  const unit = chart.dataset.unit ? " " + chart.dataset.unit : "";
  const lines = new Map();
  const sparse = new Set(); // series of points: between them there is nothing to read
  for (const line of svg.querySelectorAll("polyline:not(.silent)")) {
    const points = line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
    if (line.classList.contains("points")) sparse.add(line.dataset.name);
    lines.set(line.dataset.name, [...(lines.get(line.dataset.name) || []), ...points]);
  }
  if (!lines.size) continue;
  const xs = [...new Set([...lines.values()].flat().map((point) => point[0]))].sort((a, b) => a - b);
  const output = document.createElement("output");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", 0);
  cursor.setAttribute("y2", 1000);
  let at = -1;
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  const show = (index) => {
    at = Math.max(0, Math.min(xs.length - 1, index));
    const x = xs[at];
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    svg.append(cursor);
    const where = left + (x / 1000) * (right - left);
    const near = [...lines].filter(
      ([name, points]) => !sparse.has(name) || Math.abs(nearest(points, x)[0] - x) < 0.2
    );
    const told = near.map(([name, points]) => {
      const value = high - (nearest(points, x)[1] / 1000) * (high - low);
      return (lines.size > 1 ? name + " " : "") + short(value) + unit;
    });
    const count = chart.dataset.x === "step" ? Math.round(where) : where;
    output.textContent = chart.dataset.x + " " + short(count) + ": " + told.join(", ");
  };
  const hide = () => {
    cursor.remove();
    output.textContent = "";
    at = -1;
  };
  plot.append(output);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", chart.querySelector("h3").textContent + ": arrow keys read the figures out");
  output.setAttribute("aria-live", "polite");
  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = Math.max(0, Math.min(1000, (1000 * (event.clientX - box.left)) / box.width));
    show(xs.reduce((best, value, index) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? index : best), 0));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const stride = event.shiftKey ? Math.ceil(xs.length / 20) : 1;
    const goes = { ArrowRight: at + stride, ArrowLeft: at - stride, Home: 0, End: xs.length - 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in goes)) return;
    event.preventDefault();
    show(at < 0 && event.key === "ArrowLeft" ? xs.length - 1 : goes[event.key]);
  });
}

for (const box of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = box.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  box.append(button);
}
