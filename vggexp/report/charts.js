"use strict";

// Draws charts as SVG. Nothing here knows of runs.

const MIN_SETS = 4; // with fewer sets, none is an outlier
const MAX_TICKS = 7; // of a logarithmic axis

function addElement(name, attributes, parent, text) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

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
  if (inside.length <= MAX_TICKS) return inside;
  const powers = inside.filter((tick) => Number.isInteger(Math.log10(tick)));
  const step = Math.ceil(powers.length / MAX_TICKS);
  return powers.filter((_, i) => i % step === 0);
}

const lowest = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const highest = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

/* Returns the limits of an axis: those of all sets, or those without outliers if that makes the
   axis less than half as long.

   sets: the values of each set, the best set first.
   best: the share of the sets that are never outliers.
   reach: a set is an outlier if it leaves the range of the best by more than `reach` times it. */
function limits(sets, { best, reach }) {
  const range = (list) => [lowest(list.flat()), highest(list.flat())];
  const full = range(sets);
  if (sets.length < MIN_SETS) return full;
  const [low, high] = range(sets.slice(0, Math.ceil(sets.length * best)));
  const margin = reach * (high - low);
  const isInside = (value) => value >= low - margin && value <= high + margin;
  const robust = range(sets.filter((set) => set.every(isInside)));
  const isShort = robust[1] - robust[0] < (full[1] - full[0]) / 2;
  return isShort && robust[0] < robust[1] ? robust : full;
}

/* Maps values to pixels from `from` to `to`.

   sets: the values of each set, the best set first.
   whole: ticks at whole numbers, and no margins.
   logarithmic: a wide range of positive values has a logarithmic axis.
   robust: outliers do not count; see `limits`.
   top: the largest value that a metric can have. */
function makeAxis(sets, from, to, { whole, logarithmic, robust, top = Infinity }) {
  const values = sets.flat();
  const isLog = logarithmic && lowest(values) > 0 && highest(values) / lowest(values) > 20;
  const scale = isLog ? Math.log10 : (value) => value;
  const unscale = isLog ? (value) => 10 ** value : (value) => value;
  const scaled = sets.map((set) => set.map(scale));
  const ends = robust ? limits(scaled, robust) : [lowest(scaled.flat()), highest(scaled.flat())];
  let [low, high] = ends.map(unscale);
  const inside = [low, high];
  if (!whole) {
    const margin = (ends[1] - ends[0]) * 0.06 || Math.abs(ends[1]) * 0.05 || 0.5;
    low = unscale(ends[0] - margin);
    high = Math.min(unscale(ends[1] + margin), Math.max(top, high));
  } else if (low === high) {
    low -= 1;
    high += 1;
  }
  const pixelsPerTick = from < to ? 70 : 40;
  const count = Math.max(2, Math.min(8, Math.abs(to - from) / pixelsPerTick));
  const toPixel = (value) =>
    from + ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (to - from);
  const ticks = isLog ? logTicks(low, high) : linearTicks(low, high, count, whole);
  return { toPixel, ticks, inside, isLog };
}

const compactFormat = new Intl.NumberFormat("en", {
  notation: "compact",
  maximumSignificantDigits: 4,
});

function compact(value) {
  return value < 1e12 ? compactFormat.format(value) : value.toExponential(3).replace(/\.?0*e\+/, "e");
}

/* Returns a number with four digits. */
function short(value) {
  return Math.abs(value) < 1e4 ? String(Number(value.toPrecision(4))) : compact(value);
}

/* All labels of an axis have as many decimals as the longest needs. */
function tickLabels(ticks) {
  const lengths = ticks.map((tick) => (String(tick).split(".")[1] ?? "").length);
  const decimals = Math.min(Math.max(...lengths), 6);
  return ticks.map((tick) => (tick < 1e4 ? tick.toFixed(decimals) : compact(tick)));
}

// Charts

/* Draws points, or curves if `joined` is set.

   sets: [{run, color, dashed, end, points: [[x, y, text]]}]; a set without a color is gray, and `end`
   is the mark at the end of a curve: "cross" or "ring".
   legend: [{label, value, color, dashed, run}].
   axisSets: the sets that the vertical axis is made for, if they are not those that are drawn. */
function drawChart(figure, { title, x, y, sets, axisSets = sets, legend, note, joined }) {
  figure.replaceChildren();
  addElement("figcaption", {}, figure, title);
  const width = figure.clientWidth - 20;
  const height = Math.round(Math.min(280, Math.max(210, width * 0.55)));
  const viewBox = `0 0 ${width} ${height}`;
  const svg = addSvg("svg", { viewBox, height, role: "img", "aria-label": title }, figure);
  const drawn = sets.filter((set) => set.points.length);
  const centered = { "text-anchor": "middle" };
  if (!drawn.length) {
    addSvg("text", { x: width / 2, y: height / 2, ...centered }, svg, "nothing to draw");
    return;
  }
  const left = 52;
  const right = width - 14;
  const top = 12;
  const bottom = height - 42;
  const column = (list, i) =>
    list.filter((set) => set.points.length).map((set) => set.points.map((point) => point[i]));
  const xAxis = makeAxis(column(drawn, 0), left, right, x);
  const yAxis = makeAxis(column(axisSets, 1), bottom, top, y);
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
  const xLabel = xAxis.isLog ? `${x.label}, logarithmic` : x.label;
  addSvg("text", { x: (left + right) / 2, y: height - 6, ...centered }, svg, xLabel);

  const frame = { left, right, top, bottom };
  const pixelSets = drawn.map((set) => ({
    ...set,
    points: set.points.map(([a, b, text]) => [xAxis.toPixel(a), yAxis.toPixel(b), text]),
  }));
  const bottomUp = [...pixelSets].reverse(); // the best is on top
  if (joined) drawCurves(svg, bottomUp, frame);
  else for (const set of bottomUp) drawDot(svg, set, frame);
  addLegend(figure, legend, [note, outlierNote(drawn, yAxis.inside)]);
  addPointerEvents(svg, pixelSets, frame);
}

const setStyle = ({ color }) => (color ? { style: `--key: ${color}` } : {});

function isInside([x, y], frame) {
  return y >= frame.top - 4 && y <= frame.bottom + 4 && x >= frame.left - 4 && x <= frame.right + 4;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/* Draws curves inside the frame, and a triangle where a curve leaves it. */
function drawCurves(svg, sets, { left, right, top, bottom }) {
  const box = { x: left - 6, y: top - 6, width: right - left + 12, height: bottom - top + 12 };
  const viewBox = `${box.x} ${box.y} ${box.width} ${box.height}`;
  const plot = addSvg("svg", { ...box, viewBox, class: "plot" }, svg); // cuts off what is outside
  const frame = { left, right, top, bottom };
  for (const set of sets) {
    drawCurve(plot, set);
    const outside = set.points.find((point) => !isInside(point, frame));
    if (outside) drawTriangle(svg, set, outside, frame);
  }
}

function drawCurve(plot, set) {
  const points = set.points.map(([a, b]) => [a, clamp(b, -1e4, 1e4)]);
  const commands = points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`);
  const isSingle = points.length === 1;
  const d = isSingle ? `${commands[0]}h.1` : commands.join("");
  const path = addSvg("path", { class: "curve", d, ...runData(set.run), ...setStyle(set) }, plot);
  path.classList.toggle("plain", !set.color);
  path.classList.toggle("dashed", Boolean(set.dashed));
  path.classList.toggle("single", isSingle);
  const [cx, cy] = points.at(-1);
  const attributes = { class: set.end, ...runData(set.run), ...setStyle(set) };
  const cross = `M${cx - 4} ${cy - 4}l8 8m0 -8l-8 8`;
  if (set.end === "cross") addSvg("path", { ...attributes, d: cross }, plot);
  if (set.end === "ring") addSvg("circle", { ...attributes, cx, cy, r: 3.5 }, plot);
}

function drawDot(svg, set, frame) {
  const [point] = set.points;
  if (!isInside(point, frame)) {
    drawTriangle(svg, set, point, frame);
    return;
  }
  const [cx, cy] = point;
  const attributes = { class: set.best ? "dot best" : "dot", r: set.best ? 6 : 4.5, cx, cy };
  addSvg("circle", { ...attributes, ...runData(set.run), ...setStyle(set) }, svg);
}

/* Marks a point outside the frame at the edge next to it. */
function drawTriangle(svg, set, [x, y], frame) {
  const a = clamp(x, frame.left + 5, frame.right - 5);
  const isHigh = y < frame.top;
  const b = isHigh ? frame.top - 8 : frame.bottom + 6;
  const d = isHigh ? `M${a - 5} ${b + 8}h10l-5 -8z` : `M${a - 5} ${b - 8}h10l-5 8z`;
  addSvg("path", { class: "outlier", d, ...runData(set.run), ...setStyle(set) }, svg);
}

const runData = (run) => (run === undefined ? {} : { "data-run": run });

/* Returns how many sets have values beyond the axis: ▲ 2 runs above 5.2, up to 1.2M. */
function outlierNote(sets, [low, high]) {
  const notes = [];
  const margin = 1e-9 * Math.max(Math.abs(low), Math.abs(high)); // of rounding
  const values = sets.map((set) => set.points.map((point) => point[1]));
  const above = values.filter((set) => highest(set) > high + margin);
  const below = values.filter((set) => lowest(set) < low - margin);
  const count = ({ length }) => (length === 1 ? "1 run" : `${length} runs`);
  if (above.length)
    notes.push(`▲ ${count(above)} above ${short(high)}, up to ${short(highest(above.flat()))}`);
  if (below.length)
    notes.push(`▼ ${count(below)} below ${short(low)}, down to ${short(lowest(below.flat()))}`);
  return notes.join(" · ");
}

function addLegend(figure, entries, notes) {
  const list = addElement("ul", { class: "legend" }, figure);
  for (const entry of entries) {
    const item = addElement("li", { ...runData(entry.run), ...setStyle(entry) }, list);
    addElement("i", { class: `${entry.mark ?? "line"} ${entry.dashed ? "dashed" : ""}` }, item);
    addElement("span", { title: entry.label }, item, entry.label);
    if (entry.value !== undefined) addElement("b", {}, item, entry.value);
  }
  for (const note of notes) if (note) addElement("li", { class: "note" }, list, note);
}

// The value under the pointer

const tip = document.getElementById("tip");

/* run: undefined ends the highlighting. */
function highlight(run) {
  for (const element of document.querySelectorAll(".hot")) element.classList.remove("hot");
  for (const svg of document.querySelectorAll("svg"))
    svg.classList.toggle("highlighting", run !== undefined);
  if (run === undefined) return;
  for (const element of document.querySelectorAll(`[data-run="${run}"]`))
    element.classList.add("hot");
}

function addPointerEvents(svg, sets, frame) {
  const onLeave = () => {
    tip.hidden = true;
    highlight(undefined);
  };
  const onMove = (event) => {
    const box = svg.getBoundingClientRect();
    const nearest = nearestPoint(sets, frame, event.clientX - box.left, event.clientY - box.top);
    if (nearest.distance > 40) {
      onLeave();
      return;
    }
    highlight(nearest.run);
    showTip(nearest.text, event);
  };
  svg.addEventListener("pointerleave", onLeave);
  svg.addEventListener("pointermove", onMove);
  svg.addEventListener("pointerdown", onMove);
}

function nearestPoint(sets, frame, x, y) {
  let nearest = { distance: Infinity };
  for (const { run, points } of sets)
    for (const [a, b, text] of points) {
      const distance = Math.hypot(
        clamp(a, frame.left, frame.right) - x,
        clamp(b, frame.top, frame.bottom) - y,
      );
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
