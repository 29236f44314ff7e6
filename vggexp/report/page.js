"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("runs");
const body = table.tBodies[0];
const tip = document.getElementById("tip");
const MAX_COLORED = 12; // runs that have their own color, and are drawn first
const COLORS = 6; // number of colors; the second COLORS runs are dashed

function addSvg(name, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Axes

function linearTicks(low, high, count, whole) {
  const roughStep = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(roughStep));
  let step = [1, 2, 5, 10].find((factor) => factor * power >= roughStep) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const first = Math.ceil(low / step - 1e-9);
  const length = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of [1, 2, 5]) ticks.push(Number((factor * 10 ** power).toPrecision(3)));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  if (inside.length <= 7) return inside;
  return inside.filter((tick) => Number.isInteger(Math.log10(tick)));
}

/* Maps values to pixels from `from` to `to`. If `logarithmic` is set, a wide range of positive
   values has a logarithmic axis. `top` is the largest value that a metric can have. */
function makeAxis(values, from, to, { whole = false, logarithmic = false, top = Infinity } = {}) {
  let low = values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const isLog = logarithmic && low > 0 && high / low > 20;
  const scale = isLog ? Math.log10 : (value) => value;
  const unscale = isLog ? (value) => 10 ** value : (value) => value;
  if (!whole) {
    const range = scale(high) - scale(low);
    const margin = range * 0.06 || Math.abs(scale(high)) * 0.05 || 0.5;
    low = unscale(scale(low) - margin);
    high = Math.min(unscale(scale(high) + margin), Math.max(top, high));
  } else if (low === high) {
    low -= 1;
    high += 1;
  }
  const pixelsPerTick = from < to ? 70 : 40;
  const count = Math.max(2, Math.min(8, Math.abs(to - from) / pixelsPerTick));
  const toPixel = (value) =>
    from + ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (to - from);
  return { toPixel, ticks: isLog ? logTicks(low, high) : linearTicks(low, high, count, whole) };
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

/* All labels of an axis have as many decimals as the longest needs. */
function tickLabels(ticks) {
  const lengths = ticks.map((tick) => (String(tick).split(".")[1] ?? "").length);
  const decimals = Math.min(Math.max(...lengths), 6);
  return ticks.map((tick) => (tick < 1e4 ? tick.toFixed(decimals) : compact.format(tick)));
}

// Charts

/* Draws points, or curves if `joined` is set. sets: [{run, points: [[x, y, text]]}]. */
function drawChart(figure, { title, x, y, sets, joined }) {
  figure.replaceChildren();
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  figure.append(caption);
  const width = figure.clientWidth - 20;
  const height = Math.round(Math.min(280, Math.max(210, width * 0.55)));
  const viewBox = `0 0 ${width} ${height}`;
  const svg = addSvg("svg", { viewBox, height, role: "img", "aria-label": title }, figure);
  const points = sets.flatMap((set) => set.points);
  const centered = { "text-anchor": "middle" };
  if (!points.length) {
    addSvg("text", { x: width / 2, y: height / 2, ...centered }, svg, "nothing to draw");
    return;
  }
  const left = 52;
  const right = width - 14;
  const top = 12;
  const bottom = height - 42;
  const xAxis = makeAxis(points.map((point) => point[0]), left, right, x);
  const yAxis = makeAxis(y.values ?? points.map((point) => point[1]), bottom, top, y);
  const yLabels = tickLabels(yAxis.ticks);
  yAxis.ticks.forEach((tick, i) => {
    const pixel = yAxis.toPixel(tick);
    addSvg("line", { class: "rule", x1: left, x2: right, y1: pixel, y2: pixel }, svg);
    addSvg("text", { x: left - 8, y: pixel + 4, "text-anchor": "end" }, svg, yLabels[i]);
  });
  const xLabels = tickLabels(xAxis.ticks);
  xAxis.ticks.forEach((tick, i) => {
    addSvg("text", { x: xAxis.toPixel(tick), y: bottom + 18, ...centered }, svg, xLabels[i]);
  });
  addSvg("text", { x: (left + right) / 2, y: height - 6, ...centered }, svg, x.label);
  const pixelSets = sets.map((set) => ({
    run: set.run,
    points: set.points.map(([a, b, text]) => [xAxis.toPixel(a), yAxis.toPixel(b), text]),
  }));
  const drawSet = joined ? drawCurve : drawDots;
  for (const set of [...pixelSets].reverse()) drawSet(svg, set); // the best run is drawn on top
  addPointerEvents(svg, pixelSets);
}

function drawCurve(svg, { run, points }) {
  const commands = points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`);
  const isSingle = points.length === 1;
  const d = isSingle ? `${commands[0]}h.1` : commands.join("");
  const path = addSvg("path", { class: "curve plain", d, "data-run": run, ...color(run) }, svg);
  path.classList.toggle("single", isSingle);
  if (data.runs[run].paused && points.length) {
    const [cx, cy] = points.at(-1);
    const style = color(run)?.style ?? "";
    addSvg("circle", { class: "pause", cx, cy, r: 3.5, style, "data-run": run }, svg);
  }
}

function drawDots(svg, { run, points }) {
  const isBest = run === 0;
  const attributes = { class: isBest ? "dot best" : "dot", r: isBest ? 6 : 4.5, "data-run": run };
  for (const [cx, cy] of points) addSvg("circle", { ...attributes, cx, cy }, svg);
}

// Highlighting of the run under the pointer

/* run: null ends the highlighting. */
function highlight(run) {
  for (const element of document.querySelectorAll(".hot")) element.classList.remove("hot");
  for (const svg of document.querySelectorAll("svg"))
    svg.classList.toggle("highlighting", run !== null);
  if (run === null) return;
  for (const element of document.querySelectorAll(`[data-run="${run}"]`))
    element.classList.add("hot");
}

function addPointerEvents(svg, sets) {
  const onLeave = () => {
    tip.hidden = true;
    highlight(null);
  };
  const onMove = (event) => {
    const frame = svg.getBoundingClientRect();
    const point = nearestPoint(sets, event.clientX - frame.left, event.clientY - frame.top);
    if (point.distance > 40) {
      onLeave();
      return;
    }
    highlight(point.run);
    showTip(`${data.runs[point.run].name}\n${point.text}`, event);
  };
  svg.addEventListener("pointerleave", onLeave);
  svg.addEventListener("pointermove", onMove);
  svg.addEventListener("pointerdown", onMove);
}

function nearestPoint(sets, x, y) {
  let nearest = { distance: Infinity };
  for (const { run, points } of sets)
    for (const [a, b, text] of points) {
      const distance = Math.hypot(a - x, b - y);
      if (distance < nearest.distance) nearest = { distance, text, run };
    }
  return nearest;
}

function showTip(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  let left = event.clientX + 16;
  if (left + tip.offsetWidth > innerWidth) left = event.clientX - 16 - tip.offsetWidth;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
}

// Choice of the runs that are drawn, and their colors

const slots = new Map(); // index of a drawn run -> 0, 1, ...

/* Attributes of an element in the color of the run; null if the run has no color. */
function color(run) {
  const slot = slots.get(run);
  if (slot === undefined || slot >= MAX_COLORED) return null;
  const style = `--key: var(--c${slot % COLORS})`;
  return { style, class: slot < COLORS ? "curve" : "curve dashed" };
}

function checkboxOf(run) {
  return body.querySelector(`tr[data-run="${run}"] input`);
}

function select(run, selected) {
  const checkbox = checkboxOf(run);
  if (selected === slots.has(run) || checkbox.disabled) return;
  if (selected) {
    const used = new Set(slots.values());
    let slot = 0;
    while (used.has(slot)) slot++;
    slots.set(run, slot);
  } else {
    slots.delete(run);
  }
  checkbox.checked = selected;
  checkbox.style = color(run)?.style ?? "";
  checkbox.className = color(run)?.class ?? "";
}

function selectOnly(runs) {
  for (const run of [...slots.keys()]) select(run, false);
  for (const run of runs) select(run, true);
  drawCurves();
}

const PART_NAMES = { train: "Training", val: "Validation", test: "Test" };

function metricTitle(key) {
  const [part, metric] = key.split("/");
  return `${PART_NAMES[part]} ${metric}`;
}

function drawCurves() {
  const drawn = [...slots.keys()].sort((a, b) => a - b);
  const count = `${drawn.length} of ${withCurves.length}`;
  const paused = drawn.some((run) => data.runs[run].paused);
  const note = paused ? " A ring ends the curve of a run that is paused." : "";
  const text = `${count} runs with a finished epoch are drawn.${note}`;
  document.getElementById("curve-count").textContent = text;
  const panels = data.keys.map((key, index) =>
    drawn.map((run) => ({ run, points: curvePoints(data.runs[run], key, index + 1) })),
  );
  data.keys.forEach((key, index) => {
    const title = metricTitle(key);
    // The held-out metric and its training metric are neighbors and share a scale.
    const sharedSets = [...panels[index], ...panels[index ^ 1]];
    const values = sharedSets.flatMap((set) => set.points.map((point) => point[1]));
    const x = { label: "epoch", whole: true };
    const y = key.endsWith("accuracy") ? { values, top: 1 } : { values, logarithmic: true };
    drawChart(figures.curves[index], { title, x, y, sets: panels[index], joined: true });
  });
}

function curvePoints(run, key, column) {
  const name = metricTitle(key).toLowerCase();
  return run.curves
    .filter((row) => row[0] !== null && row[column] !== null)
    .map((row) => [row[0], row[column], `epoch ${row[0]}: ${name} ${row[column]}`]);
}

function timeUnit(seconds) {
  if (seconds < 120) return [1, "s"];
  return seconds < 7200 ? [60, "min"] : [3600, "h"];
}

function drawCosts() {
  const finished = data.runs
    .map((run, index) => ({ ...run, index }))
    .filter((run) => typeof run.score === "number");
  const [divisor, unit] = timeUnit(Math.max(0, ...finished.map((run) => run.seconds)));
  document.getElementById("costs").hidden = finished.length < 2;
  drawCost(figures.costs[0], finished, {
    key: "seconds",
    name: "time",
    label: `time of the whole run, ${unit}`,
    divisor,
  });
  drawCost(figures.costs[1], finished, {
    key: "parameters",
    name: "parameters",
    label: "parameters of the network",
    divisor: 1,
  });
}

function drawCost(figure, finished, { key, name, label, divisor }) {
  const known = finished.filter((run) => typeof run[key] === "number");
  figure.hidden = new Set(known.map((run) => run[key])).size < 2;
  if (figure.hidden) return;
  const sets = known.map((run) => {
    const score = `${metricTitle(data.score).toLowerCase()} ${run.score.toFixed(4)}`;
    const seconds = run.seconds?.toFixed(1) ?? "?";
    const parameters = run.parameters?.toLocaleString("en") ?? "?";
    const text = `${score}\n${seconds} s, ${parameters} parameters`;
    return { run: run.index, points: [[run[key] / divisor, run.score, text]] };
  });
  const title = `${metricTitle(data.score)} against ${name}`;
  const x = { label, logarithmic: true };
  drawChart(figure, { title, x, y: { top: 1 }, sets, joined: false });
}

// The table

function cellValue(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent;
}

/* Numbers are compared as numbers, and texts by the numbers in them. */
function compareValues(a, b) {
  return a - b || String(a).localeCompare(String(b), "en", { numeric: true });
}

/* The first click sorts the best to the top, a second click reverses. Empty cells stay last. */
function sortBy(header) {
  const column = header.cellIndex;
  const bestFirst = header.textContent.endsWith("accuracy") ? "descending" : "ascending";
  const reverse = bestFirst === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === bestFirst ? reverse : bestFirst;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [cellValue(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * compareValues(a, b);
  });
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  body.append(...rows.map(([, row]) => row));
}

function addFigures(id, count) {
  const charts = document.querySelector(`#${id} .charts`);
  return Array.from({ length: count }, () =>
    charts.appendChild(document.createElement("figure")),
  );
}

const figures = { curves: addFigures("curves", data.keys.length), costs: addFigures("costs", 2) };
const withCurves = [...data.runs.keys()].filter((run) => data.runs[run].curves.length);

table.tHead.addEventListener("click", (event) => {
  if (event.target.closest("button")) sortBy(event.target.closest("th"));
});
body.addEventListener("change", (event) => {
  select(Number(event.target.closest("tr").dataset.run), event.target.checked);
  drawCurves();
});
body.addEventListener("pointerover", (event) => {
  highlight(event.target.closest("tr").dataset.run);
});
body.addEventListener("pointerleave", () => highlight(null));
document.querySelector(".bar").addEventListener("click", (event) => {
  const choices = { best: withCurves.slice(0, MAX_COLORED), all: withCurves, none: [] };
  const runs = choices[event.target.dataset.show];
  if (runs) selectOnly(runs);
});
document.getElementById("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});

let drawnWidth = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === drawnWidth) return;
  drawnWidth = document.body.clientWidth;
  drawCurves();
  drawCosts();
}).observe(document.body);
selectOnly(withCurves.slice(0, MAX_COLORED));
drawCosts();
