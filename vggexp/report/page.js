"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("runs");
const body = table.tBodies[0];
const tip = document.getElementById("tip");
const SHOWN = 12; // runs whose curves are drawn at first, and that get a colour of their own
const HUES = 6; // the second half of the colours is dashed

function make(name, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// Axes

function steps(low, high, count, whole) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const first = Math.ceil(low / step - 1e-9);
  const many = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: many }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function decades(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of [1, 2, 5]) ticks.push(Number((factor * 10 ** power).toPrecision(3)));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 7 ? inside.filter((tick) => Number.isInteger(Math.log10(tick))) : inside;
}

/* From values to pixels. A wide range of positive values gets a logarithmic axis. */
function axis(values, from, to, { whole = false, logarithmic = false, top = Infinity } = {}) {
  let low = values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const wide = logarithmic && low > 0 && high / low > 20;
  const of = wide ? Math.log10 : (value) => value;
  if (!whole) {
    const room = (of(high) - of(low)) * 0.06 || Math.abs(of(high)) * 0.05 || 0.5;
    const undo = wide ? (value) => 10 ** value : (value) => value;
    [low, high] = [undo(of(low) - room), Math.min(undo(of(high) + room), Math.max(top, high))];
  } else if (low === high) [low, high] = [low - 1, high + 1];
  const count = Math.max(2, Math.min(8, Math.abs(to - from) / (from < to ? 70 : 40)));
  const place = (value) => from + ((of(value) - of(low)) / (of(high) - of(low))) * (to - from);
  return { place, ticks: wide ? decades(low, high) : steps(low, high, count, whole) };
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

/* The marks of an axis, all with as many decimals as one of them needs. */
function labels(ticks) {
  const decimals = Math.max(...ticks.map((tick) => (String(tick).split(".")[1] ?? "").length));
  return ticks.map((tick) => (tick < 1e4 ? tick.toFixed(Math.min(decimals, 6)) : compact.format(tick)));
}

/* A chart of points, joined to lines where they are curves. sets: [{run, points: [[x, y, text]]}]. */
function chart(box, { title, x, y, sets, joined }) {
  box.replaceChildren();
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  box.append(caption);
  const width = box.clientWidth - 20;
  const height = Math.round(Math.min(280, Math.max(210, width * 0.55)));
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title }, box);
  const points = sets.flatMap((set) => set.points);
  if (!points.length) return void make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "nothing to draw");
  const [left, right, top, bottom] = [52, width - 14, 12, height - 42];
  const across = axis(points.map((point) => point[0]), left, right, x);
  const up = axis(y.values ?? points.map((point) => point[1]), bottom, top, y);
  const marks = labels(up.ticks);
  up.ticks.forEach((tick, i) => {
    make("line", { class: "rule", x1: left, x2: right, y1: up.place(tick), y2: up.place(tick) }, svg);
    make("text", { x: left - 8, y: up.place(tick) + 4, "text-anchor": "end" }, svg, marks[i]);
  });
  const feet = labels(across.ticks);
  across.ticks.forEach((tick, i) => make("text", { x: across.place(tick), y: bottom + 18, "text-anchor": "middle" }, svg, feet[i]));
  make("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, svg, x.label);
  const drawn = sets.map((set) => ({ run: set.run, points: set.points.map(([a, b, text]) => [across.place(a), up.place(b), text]) }));
  for (const set of [...drawn].reverse()) (joined ? curve : dots)(svg, set);
  listen(svg, drawn);
}

function curve(svg, { run, points }) {
  const path = points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  const alone = !path.includes("L");
  const d = alone ? `${path}h.1` : path;
  make("path", { class: "curve many", d, "data-run": run, ...colour(run) }, svg).classList.toggle("alone", alone);
}

function dots(svg, { run, points }) {
  for (const [cx, cy] of points)
    make("circle", { class: run === 0 ? "dot first" : "dot", cx, cy, r: run === 0 ? 6 : 4.5, "data-run": run }, svg);
}

// Pointing at a run

function point(run) {
  for (const element of document.querySelectorAll(".hot")) element.classList.remove("hot");
  for (const svg of document.querySelectorAll("svg")) svg.classList.toggle("asking", run !== null);
  if (run !== null) for (const element of document.querySelectorAll(`[data-run="${run}"]`)) element.classList.add("hot");
}

function listen(svg, sets) {
  const leave = () => {
    tip.hidden = true;
    point(null);
  };
  svg.addEventListener("pointerleave", leave);
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, (event) => {
    const frame = svg.getBoundingClientRect();
    const [near, text, run] = nearest(sets, event.clientX - frame.left, event.clientY - frame.top);
    if (near > 40) return leave();
    point(run);
    say(`${data.runs[run].name}\n${text}`, event);
  });
}

function nearest(sets, x, y) {
  let found = [Infinity];
  for (const { run, points } of sets)
    for (const [a, b, text] of points) {
      const far = Math.hypot(a - x, b - y);
      if (far < found[0]) found = [far, text, run];
    }
  return found;
}

function say(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const beside = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
  tip.style.left = `${Math.max(4, beside)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4)}px`;
}

// Which runs are drawn, and in which colour

const slots = new Map(); // run -> 0, 1, ...

function colour(run) {
  const slot = slots.get(run);
  if (slot === undefined || slot >= SHOWN) return null;
  return { style: `--key: var(--c${slot % HUES})`, class: slot < HUES ? "curve" : "curve dashed" };
}

function box(run) {
  return body.querySelector(`tr[data-run="${run}"] input`);
}

function show(run, wanted) {
  if (wanted === slots.has(run) || box(run).disabled) return;
  if (wanted) {
    const taken = new Set(slots.values());
    let free = 0;
    while (taken.has(free)) free++;
    slots.set(run, free);
  } else slots.delete(run);
  box(run).checked = wanted;
  box(run).style = colour(run)?.style ?? "";
  box(run).className = colour(run)?.class ?? "";
}

function showOnly(runs) {
  for (const run of [...slots.keys()]) show(run, false);
  for (const run of runs) show(run, true);
  draw();
}

const WORDS = { train: "Training", val: "Validation", test: "Test" };

function named(key) {
  const [part, what] = key.split("/");
  return `${WORDS[part]} ${what}`;
}

function draw() {
  const shown = [...slots.keys()].sort((a, b) => a - b);
  const able = data.runs.filter((run) => run.curves.length).length;
  document.getElementById("curve-count").textContent = `${shown.length} of ${able} runs with a finished epoch are drawn.`;
  const panels = data.keys.map((key, index) => shown.map((run) => ({ run, points: epochs(data.runs[run], key, index + 1) })));
  data.keys.forEach((key, index) => {
    const pair = [panels[index], panels[index ^ 1]].flat(); // held out and training side by side, on one scale
    const values = pair.flatMap((set) => set.points.map((point) => point[1]));
    const y = key.endsWith("accuracy") ? { values, top: 1 } : { values, logarithmic: true };
    chart(figures.curves[index], { title: named(key), x: { label: "epoch", whole: true }, y, sets: panels[index], joined: true });
  });
}

function epochs(run, key, column) {
  const known = run.curves.filter((row) => row[0] !== null && row[column] !== null);
  return known.map((row) => [row[0], row[column], `epoch ${row[0]}: ${named(key).toLowerCase()} ${row[column]}`]);
}

function unit(seconds) {
  if (seconds < 120) return [1, "s"];
  return seconds < 7200 ? [60, "min"] : [3600, "h"];
}

function drawCosts() {
  const finished = data.runs.flatMap((run, index) => (typeof run.score === "number" ? [{ ...run, index }] : []));
  const [divisor, word] = unit(Math.max(0, ...finished.map((run) => run.seconds)));
  const costs = [
    ["seconds", `time of the whole run, ${word}`, divisor, "time"],
    ["parameters", "parameters of the network", 1, "parameters"],
  ];
  document.getElementById("costs").hidden = finished.length < 2;
  costs.forEach(([key, label, per, name], place) => {
    const known = finished.filter((run) => typeof run[key] === "number");
    figures.costs[place].hidden = new Set(known.map((run) => run[key])).size < 2;
    const text = (run) => `${named(data.score).toLowerCase()} ${run.score.toFixed(4)}\n${run.seconds?.toFixed(1) ?? "?"} s, ${run.parameters?.toLocaleString("en") ?? "?"} parameters`;
    const sets = known.map((run) => ({ run: run.index, points: [[run[key] / per, run.score, text(run)]] }));
    if (!figures.costs[place].hidden) chart(figures.costs[place], { title: `${named(data.score)} against ${name}`, x: { label, logarithmic: true }, y: { top: 1 }, sets, joined: false });
  });
}

// The table

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent;
}

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return a - b || String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(head) {
  const column = head.cellIndex;
  const best = ["run", "state", "error"].includes(head.textContent) ? "ascending" : head.textContent.endsWith("accuracy") ? "descending" : "ascending";
  const other = best === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === best ? other : best;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : sign * compare(a, b)));
  for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  body.append(...rows.map(([, row]) => row));
}

function figuresIn(id, count) {
  const place = document.querySelector(`#${id} .charts`);
  return Array.from({ length: count }, () => place.appendChild(document.createElement("figure")));
}

const figures = { curves: figuresIn("curves", data.keys.length), costs: figuresIn("costs", 2) };
const withCurves = data.runs.flatMap((run, index) => (run.curves.length ? [index] : []));

table.tHead.addEventListener("click", (event) => event.target.closest("button") && sortBy(event.target.closest("th")));
body.addEventListener("change", (event) => {
  show(Number(event.target.closest("tr").dataset.run), event.target.checked);
  draw();
});
body.addEventListener("pointerover", (event) => point(event.target.closest("tr").dataset.run));
body.addEventListener("pointerleave", () => point(null));
document.querySelector(".bar").addEventListener("click", (event) => {
  const wanted = { best: withCurves.slice(0, SHOWN), all: withCurves, none: [] }[event.target.dataset.show];
  if (wanted) showOnly(wanted);
});
document.getElementById("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
});

let width = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  draw();
  drawCosts();
}).observe(document.body);
showOnly(withCurves.slice(0, SHOWN));
drawCosts();
