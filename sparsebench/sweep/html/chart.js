"use strict";
// Line charts and scatter plots as SVG. Text always goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = { width: 420, height: 250, left: 52, right: 12, top: 10, bottom: 38 };
const DASHES = ["", "6 3", "2 2", "8 3 2 3"];
const MARKS = ["circle", "square", "diamond", "up", "down", "cross"];

/** An element; attributes that are null are left out. `svg:a` is the drawing's kind of `a`. */
function element(name, attributes, ...children) {
  const drawn = ["svg", "path", "line", "circle", "text"].includes(name) || name.startsWith("svg:");
  const made = drawn ? document.createElementNS(SVG, name.replace("svg:", "")) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {}))
    if (key === "click") made.addEventListener("click", value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const colour = (number) => `var(--s${number % 8})`;
const dash = (number) => DASHES[Math.floor(number / 8) % DASHES.length];

/** A number as one reads it: five digits at most. */
function short(value) {
  if (typeof value !== "number") return String(value);
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4))
    return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(5)));
}

/** Round numbers between two ends, about as many as asked for. */
function ticks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((times) => times * power >= raw * 0.999) || 10);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

/** Ticks of a logarithmic axis. */
function powers(low, high) {
  const found = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++)
    for (const times of [1, 2, 5]) {
      const value = Number((times * 10 ** k).toPrecision(3));
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  return found.length > 7 ? found.filter((value) => /^0*\.?0*1/.test(String(value))) : found;
}

/** From values to places: a range with some air, straight or logarithmic. */
function scale(values, from, to, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (low > high) [low, high] = [0, 1];
  const bend = log ? Math.log10 : (value) => value;
  const back = log ? (value) => 10 ** value : (value) => value;
  const air = (bend(high) - bend(low)) * 0.05 || Math.abs(bend(low)) * 0.02 || 0.5;
  const [start, end] = [bend(low) - air, bend(high) + air];
  return {
    place: (value) => from + ((bend(value) - start) / (end - start)) * (to - from),
    ticks: log ? powers(back(start), back(end)) : ticks(start, end, 5),
  };
}

/** Frame, grid and numbers; x is tight where it counts epochs. */
function frame(title, label, x, y) {
  const { width, height, left, right, top, bottom } = SIZE;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of y.ticks)
    svg.append(
      element("line", { class: "grid", x1: left, x2: width - right, y1: y.place(value), y2: y.place(value) }),
      element("text", { x: left - 6, y: y.place(value) + 4, "text-anchor": "end" }, short(value)),
    );
  const floor = height - bottom;
  for (const value of x.ticks)
    svg.append(
      element("line", { class: "axis", x1: x.place(value), x2: x.place(value), y1: floor, y2: floor + 4 }),
      element("text", { x: x.place(value), y: floor + 16, "text-anchor": "middle" }, short(value)),
    );
  svg.append(
    element("line", { class: "axis", x1: left, x2: width - right, y1: floor, y2: floor }),
    element("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, label),
  );
  return svg;
}

function swatch(number, mark) {
  const svg = element("svg", { viewBox: "0 0 20 12", "aria-hidden": "true" });
  if (mark === undefined)
    svg.append(element("path", { d: "M1 6H19", stroke: colour(number), "stroke-width": 2.4, "stroke-dasharray": dash(number) }));
  else svg.append(marker(mark, 10, 6, number === null ? "currentColor" : colour(number)));
  return svg;
}

function marker(kind, x, y, fill) {
  const shapes = {
    circle: "M-4.5 0A4.5 4.5 0 1 1 4.5 0A4.5 4.5 0 1 1-4.5 0Z",
    square: "M-4-4H4V4H-4Z",
    diamond: "M0-5.6L5.6 0L0 5.6L-5.6 0Z",
    up: "M0-5L5 4H-5Z",
    down: "M0 5L5-4H-5Z",
    cross: "M-5-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",
  };
  return element("path", { d: shapes[MARKS[kind % MARKS.length]], transform: `translate(${x} ${y})`, fill });
}

/**
 * A line chart.
 * series: [{name, number, points: [[x, y]], band: [[x, low, high]]}], y may be null.
 */
function lineChart(title, series, label = "epoch") {
  const { width, height, left, right, top, bottom } = SIZE;
  const drawn = series.filter((one) => one.points.some(([, y]) => y !== null));
  const xs = drawn.flatMap((one) => one.points.map(([x]) => x));
  const ys = drawn.flatMap((one) => [
    ...one.points.map(([, y]) => y).filter((y) => y !== null),
    ...(one.band || []).flatMap(([, low, high]) => [low, high]),
  ]);
  const x = scale(xs, left, width - right, false);
  x.ticks = x.ticks.filter((value) => value >= Math.min(...xs) && Number.isInteger(value));
  const y = scale(ys, height - bottom, top, false);
  const svg = frame(title, label, x, y);
  const at = ([a, b]) => `${x.place(a).toFixed(1)} ${y.place(b).toFixed(1)}`;
  for (const one of drawn) {
    const band = one.band || [];
    if (band.length > 1) {
      const around = [...band.map(([a, low]) => [a, low]), ...band.map(([a, , high]) => [a, high]).reverse()];
      svg.append(element("path", { class: "band", fill: colour(one.number), d: `M${around.map(at).join("L")}Z` }));
    }
    let path = "";
    let pen = "M";
    for (const point of one.points) {
      if (point[1] === null) pen = "M";
      else [path, pen] = [path + pen + at(point), "L"];
    }
    const stroke = { stroke: colour(one.number), "stroke-dasharray": dash(one.number) || null };
    svg.append(element("path", { class: "line", d: path, ...stroke }));
    if (one.points.length === 1) svg.append(marker(0, x.place(one.points[0][0]), y.place(one.points[0][1]), colour(one.number)));
  }
  const figure = element("figure", { class: "chart" }, element("figcaption", {}, title), svg);
  follow(figure, svg, drawn, x, label);
  return figure;
}

/** Shows the values under the pointer. */
function follow(figure, svg, series, x, label) {
  const { height, top, bottom, width } = SIZE;
  const places = [...new Set(series.flatMap((one) => one.points.map(([a]) => a)))].sort((a, b) => a - b);
  const tip = element("div", { class: "tip", hidden: "" });
  const cursor = element("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.append(cursor);
  figure.append(tip);
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const where = ((event.clientX - box.left) / box.width) * width;
    let nearest = places[0];
    for (const place of places) if (Math.abs(x.place(place) - where) < Math.abs(x.place(nearest) - where)) nearest = place;
    const lines = [];
    for (const one of series) {
      const found = one.points.find(([a, b]) => a === nearest && b !== null);
      if (found && lines.length < 16)
        lines.push(element("div", {}, swatch(one.number), element("span", {}, one.name), element("span", {}, short(found[1]))));
    }
    if (!lines.length) return hide();
    tip.replaceChildren(element("b", {}, `${label} ${nearest}`), ...lines);
    tip.hidden = false;
    for (const [key, value] of [["x1", x.place(nearest)], ["x2", x.place(nearest)], ["visibility", "visible"]]) cursor.setAttribute(key, value);
    const middle = (x.place(nearest) / width) * box.width;
    tip.style.left = middle > box.width / 2 ? "" : `${middle + 14}px`;
    tip.style.right = middle > box.width / 2 ? `${box.width - middle + 14}px` : "";
  });
}

/**
 * Points with bars, and the front as a line.
 * points: [{x, y, half, front, number, mark, name, href}]
 */
function scatter(title, labels, points) {
  const { width, height, left, right, top, bottom } = SIZE;
  const costs = points.map((point) => point.x);
  const log = Math.min(...costs) > 0 && Math.max(...costs) / Math.min(...costs) >= 8;
  const x = scale(costs, left, width - right, log);
  const y = scale(points.map((point) => point.y), height - bottom - 6, top + 6, false);
  const inside = (value) => Math.min(Math.max(y.place(value), top), height - bottom); // a wide interval must not flatten the rest
  const svg = frame(title, labels.x + (log ? " (log)" : ""), x, y);
  const front = points.filter((point) => point.front).sort((a, b) => a.x - b.x);
  if (front.length > 1)
    svg.append(element("path", { class: "front", d: `M${front.map((p) => `${x.place(p.x)} ${y.place(p.y)}`).join("L")}` }));
  for (const point of points) {
    const [a, b] = [x.place(point.x), y.place(point.y)];
    const said = `${point.name}: ${labels.x} ${short(point.x)}, ${labels.y} ${short(point.y)}${point.half ? ` ± ${short(Number(point.half.toPrecision(2)))}` : ""}${point.front ? ", on the front" : ""}`;
    const link = { href: point.href, "aria-label": said, class: "point" };
    const drawn = element("svg:a", link, element("svg:title", {}, said));
    if (point.half)
      drawn.append(element("line", { class: "bar", stroke: colour(point.number), x1: a, x2: a, y1: inside(point.y - point.half), y2: inside(point.y + point.half) }));
    if (point.front) drawn.append(element("circle", { class: "ring", cx: a, cy: b, r: 8 }));
    drawn.append(marker(point.mark, a, b, colour(point.number)));
    svg.append(drawn);
  }
  return element("figure", { class: "chart" }, element("figcaption", {}, title), svg);
}
