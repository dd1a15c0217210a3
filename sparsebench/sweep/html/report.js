"use strict";
// The parts of the report that are drawn, and the pages behind it: #cell/<row>-<column>, #run/<identity>.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = new Map(DATA.runs.map((run) => [run.id, run]));
const CELLS = new Map(DATA.cells.map((cell) => [cell.at.join("-"), cell]));
const FEW = 12; // lines that can be told apart; the others wait to be asked for
const FLAT = MARKS.length - 1; // the mark of rows that the columns do not change
const OVERVIEW = ["validation/accuracy", "train/loss", "sparsity", "itop_rate"];
const TITLES = {
  "train/loss": "Training loss", "validation/loss": "Validation loss", "validation/accuracy": "Validation accuracy",
  "validation/top5": "Validation accuracy, top 5", sparsity: "Sparsity", itop_rate: "Weights ever explored (ITOP rate)",
  lr: "Learning rate", gradient_norm: "Gradient norm", survived: "Share of the first weights still there",
  distance: "Distance from the first topology", dead_units: "Dead units", "flops/inference": "Inference FLOPs",
  "flops/training_relative": "Training FLOPs so far, relative to dense",
};
const title = (key) => TITLES[key] || key;
const byId = (id) => document.getElementById(id);
const folder = (run) => `${DATA.folders[run.folder]}/${run.id}`;
const cellName = ([i, j]) => [DATA.rows[i], DATA.columns[j]].filter(Boolean).join(", ");

/** Points of one curve; a single number stands for a curve that never changes. */
function points(curves, key) {
  const values = curves && curves[key];
  if (values === undefined || !curves.epoch) return [];
  return curves.epoch.map((epoch, k) => [epoch, Array.isArray(values) ? values[k] : values]);
}

/** Mean over runs at each epoch that all of them have, with the 95 % t-interval from three on. */
function meanCurve(curves) {
  const found = curves.map((points) => new Map(points.filter(([, y]) => y !== null)));
  const mean = [];
  const band = [];
  const factor = DATA.t[found.length];
  for (const epoch of found[0].keys()) {
    const values = found.map((curve) => curve.get(epoch));
    if (values.includes(undefined)) continue;
    const middle = values.reduce((sum, value) => sum + value, 0) / values.length;
    mean.push([epoch, middle]);
    if (!factor) continue;
    const spread = values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1);
    const half = factor * Math.sqrt(spread);
    band.push([epoch, middle - half, middle + half]);
  }
  return { points: mean, band };
}

const detailed = (cell) => cell.runs.map((k) => DATA.runs[k]).filter((run) => run.status === "finished" && run.detail);

/** Buttons of which one is pressed; a list where they are many. */
function choice(place, names, chosen, pick) {
  if (names.length < 2) return;
  if (names.length > FEW) {
    const list = element("select", { "aria-label": "Column" }, names.map((name, k) =>
      element("option", { value: k, selected: k === chosen ? "" : null }, name)));
    list.addEventListener("change", () => pick(Number(list.value)));
    place.replaceChildren(list);
    return;
  }
  place.replaceChildren(...names.map((name, k) =>
    element("button", { type: "button", "aria-pressed": String(k === chosen), click: () => pick(k) }, name)));
}

// --- overview -------------------------------------------------------------------------------

function drawCosts() {
  if (!DATA.trade_offs.length) return;
  const places = DATA.trade_offs.flatMap((picture) => picture.points.map((point) => point.at));
  const [rows, columns] = [0, 1].map((axis) => [...new Set(places.map((at) => at[axis]))].sort((a, b) => a - b));
  const several = columns.length > 1;
  byId("cost-key").replaceChildren(
    ...rows.map((i) => element("span", {}, swatch(i, several && DATA.flat.includes(i) ? FLAT : 0), DATA.rows[i])),
    ...(several ? columns.map((j) => element("span", {}, swatch(null, j), DATA.columns[j])) : []),
  );
  byId("cost-charts").replaceChildren(
    ...DATA.trade_offs.map((picture) =>
      scatter(`${picture.gain} over ${picture.cost.toLowerCase().replace("flops", "FLOPs")}`, { x: picture.cost, y: picture.gain },
        picture.points.map((point) => ({
          ...point, x: point.cost, y: point.gain, number: point.at[0],
          mark: several && DATA.flat.includes(point.at[0]) ? FLAT : point.at[1] % FLAT,
          name: DATA.flat.includes(point.at[0]) ? DATA.rows[point.at[0]] : cellName(point.at), href: `#cell/${point.at.join("-")}`,
        })))),
  );
  reveal("cost");
}

const shownRows = new Set([...DATA.rows.keys()].slice(0, FEW));
let column = 0;

function drawCurves() {
  const cells = DATA.cells.filter((cell) => cell.at[1] === column && detailed(cell).some((run) => run.detail.curves));
  choice(byId("column"), DATA.columns, column, (k) => {
    column = k;
    keepFocus("column", drawCurves);
  });
  byId("curves-key").replaceChildren(
    ...cells.map(({ at: [i] }) =>
      element("button", { type: "button", "aria-pressed": String(shownRows.has(i)), click: () => toggle(i) }, swatch(i), DATA.rows[i])),
  );
  const charts = OVERVIEW.map((key) => {
    const series = cells.filter(({ at: [i] }) => shownRows.has(i)).map((cell) => {
      const curves = detailed(cell).map((run) => points(run.detail.curves, key)).filter((curve) => curve.length);
      return { name: DATA.rows[cell.at[0]], number: cell.at[0], ...(curves.length ? meanCurve(curves) : { points: [] }) };
    });
    return series.some((one) => one.points.length) ? lineChart(title(key), series) : null;
  });
  byId("curves-charts").replaceChildren(...charts.filter(Boolean));
}

function toggle(row) {
  if (!shownRows.delete(row)) shownRows.add(row);
  keepFocus("curves-key", drawCurves);
}

/** Draws anew, and puts the focus on the button that takes the place of the one that had it. */
function keepFocus(id, draw) {
  const at = [...byId(id).children].indexOf(document.activeElement);
  draw();
  if (at >= 0) byId(id).children[at].focus();
}

let layersColumn = 0;

function drawLayers() {
  choice(byId("layers-column"), DATA.columns, layersColumn, (k) => {
    layersColumn = k;
    keepFocus("layers-column", drawLayers);
  });
  const found = new Map();
  const rows = [];
  for (const cell of DATA.cells.filter((one) => one.at[1] === layersColumn)) {
    const runs = detailed(cell).filter((run) => run.detail.layers);
    if (!runs.length) continue;
    rows.push(cell.at[0]);
    for (const [name, , weights, nonzeros] of runs.flatMap((run) => run.detail.layers)) {
      if (!found.has(name)) found.set(name, new Map());
      const sums = found.get(name).get(cell.at[0]) || [0, 0];
      found.get(name).set(cell.at[0], [sums[0] + nonzeros / weights, sums[1] + 1]);
    }
  }
  const head = element("tr", {}, element("th", { scope: "col" }, "Layer"), rows.map((i) => element("th", { scope: "col" }, DATA.rows[i])));
  const lines = [...found].map(([name, densities]) =>
    element("tr", {}, element("th", { scope: "row" }, name), rows.map((i) => heatField(densities.get(i)))));
  byId("heat").replaceChildren(element("table", { class: "heat" }, element("thead", {}, head), element("tbody", {}, lines)));
}

/** A density; its shade follows the logarithm from 0.1 % to all. */
function heatField(sums) {
  if (!sums) return element("td", { class: "none" }, "–");
  const density = sums[0] / sums[1];
  const shade = density > 0 ? Math.max(0.04, Math.min(1, 1 + Math.log10(density) / 3)) : 0;
  const field = element("td", { class: shade > 0.7 ? "strong" : shade > 0.45 ? "middle" : null }, density >= 0.0995 ? (100 * density).toFixed(density > 0.9995 ? 0 : 1) : String(Number((100 * density).toPrecision(2))));
  field.style.setProperty("--shade", shade.toFixed(2));
  return field;
}

function reveal(id) {
  byId(id).hidden = false;
  for (const link of document.querySelectorAll(`nav a[href="#${id}"]`)) link.hidden = false;
}

// --- one cell -------------------------------------------------------------------------------

function runTable(cell, current) {
  const head = ["Seed", "Ended", ...DATA.metrics];
  const lines = cell.runs.map((k, n) => {
    const [run, name] = [DATA.runs[k], `seed ${DATA.seeds[n]}`];
    return element("tr", {},
      element("td", {}, run.id === current ? name : element("a", { href: runLink(run) }, name)),
      element("td", {}, element("span", { class: `status ${run.status}` }, run.status)),
      cell.by_seed[n].map((text) => element("td", {}, text)));
  });
  return element("div", { class: "scroll" }, element("table", { class: "plain" },
    element("thead", {}, element("tr", {}, head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, lines)));
}

const runLink = (run) => `#run/${encodeURIComponent(run.id)}`;

/** A figure with six digits, or all of its whole part with thousands apart. */
function plain(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  if (Math.abs(value) >= 1e5) return Math.round(value).toLocaleString("en-US");
  return Math.abs(value) >= 1e-4 ? String(Number(value.toPrecision(6))) : short(value);
}

function showCell(cell) {
  const dialog = byId("cell");
  const rows = DATA.metrics.map((metric, k) => {
    const [measured, published, source] = cell.figures[k];
    return [metric, measured, published ? `${published} (published: ${source})` : null];
  });
  dialog.replaceChildren(
    element("header", {}, element("h2", { id: "cell-title" }, cellName(cell.at)),
      element("button", { class: "close", type: "button", click: () => dialog.close() }, "Close")),
    facts(rows.flatMap(([name, measured, published]) => [[name, measured], ...(published ? [["", published]] : [])])),
    runTable(cell),
  );
  if (!dialog.open) dialog.showModal();
}

// --- one run --------------------------------------------------------------------------------

function facts(pairs, mono) {
  return element("dl", { class: "facts" }, pairs.flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", { class: mono ? "mono" : null }, value)]));
}

function folded(summary, ...inside) {
  return element("details", {}, element("summary", {}, summary), ...inside);
}

function part(name, ...inside) {
  return element("section", {}, element("h2", {}, name), ...inside);
}

function showRun(run) {
  const detail = run.detail || {};
  const cell = DATA.cells.find((one) => one.runs.includes(DATA.runs.indexOf(run)));
  const page = byId("run");
  page.replaceChildren(...[
    element("div", { class: "back" }, element("a", { href: "#table" }, "← Back to the table"), cell ? seedLinks(cell, run) : null),
    element("header", {}, element("h1", {}, run.label, " ", element("span", { class: `status ${run.status}` }, run.status)),
      element("p", { class: "mono about" }, run.id)),
    run.error ? element("pre", { class: "error" }, run.error) : null,
    run.detail ? null : element("p", { class: "note" }, `To keep this file small, config, log and curves of this run are not in it: they are in ${folder(run)}.`),
    element("div", { class: "columns" }, figuresPart(run, cell), configPart(run, detail)),
    logPart(run, detail),
    curvesPart(detail),
    layersPart(detail),
    cell && cell.runs.length > 1 ? part("All seeds of this cell", runTable(cell, run.id)) : null,
  ].filter(Boolean));
}

function seedLinks(cell, current) {
  const links = cell.runs.map((k, seed) =>
    DATA.runs[k] === current
      ? element("b", {}, `seed ${DATA.seeds[seed]}`)
      : element("a", { href: runLink(DATA.runs[k]) }, `seed ${DATA.seeds[seed]}`));
  return element("span", { class: "seeds" }, element("a", { href: `#cell/${cell.at.join("-")}` }, cellName(cell.at)), links);
}

const WHOLE = ["weights_sha256"];

function figuresPart(run, cell) {
  const keys = DATA.keys.filter((key, k) => run.figures && run.figures[k] !== null);
  const value = (key) => plain(run.figures[DATA.keys.indexOf(key)]);
  const shown = keys.length && cell ? cell.by_seed[cell.runs.indexOf(DATA.runs.indexOf(run))] : [];
  const [seconds, flops] = ["seconds/", "flops/"].map((start) => keys.filter((key) => key.startsWith(start)));
  const special = new Set([...seconds, ...flops, ...WHOLE]);
  return part("Figures",
    facts(shown.map((text, k) => [DATA.metrics[k], text])),
    keys.length ? null : element("p", { class: "about" }, "This run has no figures."),
    flops.length ? [element("h3", {}, "FLOPs"), facts(flops.map((key) => [key.slice(6).replaceAll("_", " "), value(key)]))] : null,
    seconds.length ? [element("h3", {}, "Seconds"), facts(seconds.map((key) => [key.slice(8).replaceAll("_", " "), value(key)]))] : null,
    keys.length ? folded("All other figures", facts(keys.filter((key) => !special.has(key)).map((key) => [key, value(key)]))) : null,
    element("h3", {}, "Where it is"),
    facts([["folder", folder(run)], ...(run.written ? [["written", run.written]] : []),
      ...WHOLE.filter((key) => keys.includes(key)).map((key) => [key.replaceAll("_", " "), value(key)])]),
  );
}

function configPart(run, detail) {
  const differs = Object.entries(detail.differs || {});
  const overrides = run.overrides.map((text) => [text.split("=", 1)[0], text.slice(text.indexOf("=") + 1)]);
  const whole = Object.entries({ ...DATA.common, ...detail.differs }).sort(([a], [b]) => (a < b ? -1 : 1));
  return part("Config",
    element("h3", {}, "Set for this run"), facts(overrides, true),
    detail.differs ? folded(`What differs between the runs of this table: ${differs.length} keys`, facts(differs, true)) : null,
    detail.differs ? folded(`The whole config: ${whole.length} keys`, facts(whole, true)) : null,
    detail.environment ? folded("Machine and versions", facts(Object.entries(detail.environment), true)) : null,
  );
}

function logPart(run, detail) {
  if (!run.detail || (run.status === "finished" && !detail.notes)) return null;
  return part("Log",
    detail.notes ? element("ul", { class: "lines" }, detail.notes.map((note) => element("li", {}, note))) : null,
    detail.log ? element("pre", { class: "log" }, detail.log) : null,
    detail.notes || detail.log ? null : element("p", { class: "about" }, "Nothing was written."),
  );
}

function curvesPart(detail) {
  if (!detail.curves) return null;
  const keys = Object.keys(detail.curves).filter((key) => key !== "epoch");
  const first = OVERVIEW.filter((key) => keys.includes(key));
  const charts = [...first, ...keys.filter((key) => !first.includes(key))].map((key, k) =>
    lineChart(title(key), [{ name: title(key), number: 0, points: points(detail.curves, key) }]));
  return part("Curves", element("div", { class: "charts" }, charts));
}

function layersPart(detail) {
  if (!detail.layers) return null;
  const names = Object.keys(detail.density || {}).filter((key) => key !== "epoch");
  const series = names.map((name, k) => ({ name, number: k, points: points(detail.density, name) }));
  const lines = detail.layers.map(([name, shape, weights, nonzeros]) => element("tr", {},
    element("td", {}, name), element("td", {}, shape.join(" × ")), element("td", {}, plain(weights)),
    element("td", {}, plain(nonzeros)), element("td", {}, `${short(Number(((100 * nonzeros) / weights).toPrecision(3)))} %`)));
  return part("Layers", element("div", { class: "columns" },
    series.length ? element("div", {}, lineChart("Density by layer", series),
      series.length <= FEW ? element("div", { class: "key" }, series.map((one) => element("span", {}, swatch(one.number), one.name))) : null) : null,
    element("div", { class: "scroll" }, element("table", { class: "plain" },
      element("thead", {}, element("tr", {}, ["Layer", "Shape", "Weights", "Non-zeros", "Density"].map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, lines)))));
}

// --- where we are ---------------------------------------------------------------------------

let scrolled = 0;

/** The two parts of an address such as #run/name; one that was typed wrong names nothing. */
function address() {
  const [, kind, name] = /^#(\w+)\/(.*)$/.exec(location.hash) || [];
  try {
    return [kind, decodeURIComponent(name)];
  } catch {
    return [];
  }
}

function route() {
  const [kind, name] = address();
  const run = kind === "run" ? RUNS.get(name) : undefined;
  const cell = kind === "cell" ? CELLS.get(name) : undefined;
  const [report, page, dialog] = ["report", "run", "cell"].map(byId);
  if (run) {
    if (!report.hidden) scrolled = window.scrollY;
    if (dialog.open) dialog.close();
    showRun(run);
  }
  const back = report.hidden && !run;
  report.hidden = Boolean(run);
  page.hidden = !run;
  if (run) {
    window.scrollTo({ top: 0, behavior: "instant" });
    page.focus({ preventScroll: true });
  } else if (back) window.scrollTo({ top: scrolled, behavior: "instant" });
  if (cell) showCell(cell);
  else if (dialog.open) dialog.close();
}

byId("cell").addEventListener("close", () => {
  if (location.hash.startsWith("#cell/")) history.replaceState(null, "", location.pathname + location.search);
});
byId("cell").addEventListener("click", (event) => {
  if (event.target === byId("cell")) byId("cell").close();
});
window.addEventListener("hashchange", route);
drawCosts();
column = layersColumn = Math.min(...DATA.cells.map((cell) => cell.at[1]), Infinity);
if (DATA.runs.some((run) => run.detail && run.status === "finished" && run.detail.curves)) {
  drawCurves();
  reveal("curves");
}
if (DATA.runs.some((run) => run.detail && run.status === "finished" && run.detail.layers)) {
  drawLayers();
  reveal("layers");
}
route();
