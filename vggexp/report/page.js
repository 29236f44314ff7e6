// The tables, the choice of the drawn curves, and the panel of a run.

const page = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
const MAX_COLORED = 12; // runs of a table that have their own color, and are drawn first
const COLORS = 6; // number of colors; the second COLORS runs are dashed
const CURVE_ENDS = { failed: "cross", paused: "ring" }; // marks by the state of the run
const PART_NAMES = { train: "Training", val: "Validation", test: "Test" };

page.runs.forEach((run, index) => (run.index = index));

function metricTitle(key) {
  const [part, metric] = key.split("/");
  return `${PART_NAMES[part]} ${metric}`;
}

function curvePoints(run, key, column) {
  const name = metricTitle(key).toLowerCase();
  return run.curves
    .filter((row) => row[0] !== null && row[column] !== null)
    .map((row) => [row[0], row[column], `${run.name}\nepoch ${row[0]}: ${name} ${row[column]}`]);
}

/* A loss has no limit: the axis shows the runs that learn. */
function metricAxis(key) {
  const robust = { best: 0.25, reach: 1 };
  return key.endsWith("accuracy") ? { robust, top: 1 } : { robust, logarithmic: true };
}

/* The axis is logarithmic if a few runs are much longer than the others. */
function epochAxis(sets) {
  const lengths = sets.map((set) => set.points.at(-1)?.[0] ?? 0).sort((a, b) => a - b);
  const isUneven = lengths.at(-1) > 4 * lengths[Math.floor(lengths.length / 2)];
  return { label: "epoch", whole: true, logarithmic: isUneven };
}


/* Explains the marks at the ends of curves. */
function endNote(sets) {
  const ends = new Set(sets.filter((set) => set.points.length).map((set) => set.end));
  return [ends.has("cross") && "✕ failed", ends.has("ring") && "○ paused"]
    .filter(Boolean)
    .join(" · ");
}

// One data set: its table and its charts

class DataSection {
  constructor(element, { runs, keys, score, varying, groups, settings, environment }) {
    this.keys = keys;
    this.varying = varying; // keys of the settings in which the runs differ
    this.score = score;
    this.groups = groups; // key of the setting that colors the points of the costs
    this.shared = { settings, environment }; // by all runs
    this.runs = page.runs.slice(...runs);
    this.withCurves = this.runs.filter((run) => run.curves.length);
    this.slots = new Map(); // drawn run -> 0, 1, ...
    this.element = element;
    this.table = element.querySelector("table.runs");
    this.body = this.table.tBodies[0];
    this.curveFigures = addFigures(element.querySelector(".curves .charts"), keys.length);
    this.costFigures = addFigures(element.querySelector(".costs .charts"), 2);
    this.listen();
    this.selectOnly(this.withCurves.slice(0, MAX_COLORED));
  }

  listen() {
    this.table.tHead.addEventListener("click", (event) => {
      if (event.target.closest("button")) this.sortBy(event.target.closest("th"));
    });
    this.body.addEventListener("change", (event) => {
      this.select(runOf(event), event.target.checked);
      this.drawCurves();
    });
    this.body.addEventListener("click", (event) => {
      if (!event.target.closest("input")) openPanel(runOf(event));
    });
    this.body.addEventListener("pointerover", (event) => {
      highlight(event.target.closest("tr").dataset.run);
    });
    this.body.addEventListener("pointerleave", () => highlight(undefined));
    const bar = this.element.querySelector(".bar");
    bar.addEventListener("click", (event) => {
      const choices = {
        best: this.withCurves.slice(0, MAX_COLORED),
        all: this.withCurves,
        none: [],
      };
      const runs = choices[event.target.dataset.show];
      if (!runs) return;
      this.selectOnly(runs);
      this.drawCurves();
    });
    bar.querySelector("input").addEventListener("input", (event) => {
      this.filter(event.target.value.toLowerCase().split(/\s+/));
    });
  }

  /* The color of a drawn run; {} if it has none of its own. */
  color(run) {
    const slot = this.slots.get(run);
    if (slot === undefined || slot >= MAX_COLORED) return {};
    return { color: `var(--c${slot % COLORS})`, dashed: slot >= COLORS };
  }

  select(run, selected) {
    const checkbox = this.body.querySelector(`tr[data-run="${run.index}"] input`);
    if (selected === this.slots.has(run) || checkbox.disabled) return;
    if (selected) {
      const used = new Set(this.slots.values());
      let slot = 0;
      while (used.has(slot)) slot++;
      this.slots.set(run, slot);
    } else {
      this.slots.delete(run);
    }
    const { color, dashed } = this.color(run);
    checkbox.checked = selected;
    checkbox.style = color ? `--key: ${color}` : "";
    checkbox.classList.toggle("dashed", Boolean(dashed));
  }

  selectOnly(runs) {
    for (const run of [...this.slots.keys()]) this.select(run, false);
    for (const run of runs) this.select(run, true);
  }

  draw() {
    this.drawCurves();
    this.drawCosts();
  }

  drawCurves() {
    const drawn = [...this.slots.keys()].sort((a, b) => a.index - b.index);
    const count = `${drawn.length} of ${this.withCurves.length}`;
    this.element.querySelector(".curve-count").textContent =
      `${count} runs with a finished epoch are drawn.`;
    const panels = this.keys.map((key, i) =>
      drawn.map((run) => ({
        run: run.index,
        ...this.color(run),
        end: CURVE_ENDS[run.state],
        label: run.name,
        value: run.last[i],
        points: curvePoints(run, key, i + 1),
      })),
    );
    this.keys.forEach((key, i) => {
      const sets = panels[i];
      const colored = sets.filter((set) => set.color);
      const gray = sets.length - colored.length;
      const notes = [gray && `${gray} other runs: gray`, endNote(sets)];
      drawChart(this.curveFigures[i], {
        title: metricTitle(key),
        x: epochAxis(sets),
        y: metricAxis(key),
        sets,
        // Training and held-out metric share a scale.
        axisSets: sets.flatMap((set, rank) => [set, panels[i ^ 1][rank]]),
        legend: colored,
        note: notes.filter(Boolean).join(" · "),
        joined: true,
      });
    });
  }

  drawCosts() {
    const finished = this.runs.filter((run) => typeof run.score === "number");
    const [divisor, unit] = timeUnit(Math.max(0, ...finished.map((run) => run.seconds)));
    const time = { key: "seconds", name: "time", label: `time of the whole run, ${unit}`, divisor };
    const size = { key: "parameters", name: "parameters", label: "parameters of the network" };
    this.drawCost(this.costFigures[0], finished, time);
    this.drawCost(this.costFigures[1], finished, { ...size, divisor: 1 });
    const isEmpty = this.costFigures.every((figure) => figure.hidden);
    this.element.querySelector(".costs").hidden = isEmpty;
  }

  drawCost(figure, finished, { key, name, label, divisor }) {
    const known = finished.filter((run) => typeof run[key] === "number");
    figure.hidden = new Set(known.map((run) => run[key])).size < 2;
    if (figure.hidden) return;
    const groups = [...new Set(known.map((run) => run.group))].sort((a, b) =>
      compareValues(a, b),
    );
    const groupColor = (group) => `var(--c${groups.indexOf(group)})`;
    const legend = groups.map((group) => {
      const text = this.groups ? `${this.groups} ${group}` : "a run";
      return { label: text, mark: "point", color: groupColor(group) };
    });
    legend.push({ label: "the best run", mark: "ring" });
    const sets = known.map((run) => {
      const score = `${metricTitle(this.score).toLowerCase()} ${run.score.toFixed(4)}`;
      const seconds = run.seconds?.toFixed(1) ?? "?";
      const parameters = run.parameters?.toLocaleString("en") ?? "?";
      const text = `${run.name}\n${score}\n${seconds} s, ${parameters} parameters`;
      const point = [run[key] / divisor, run.score, text];
      const best = run === this.runs[0];
      return { run: run.index, color: groupColor(run.group), best, points: [point] };
    });
    drawChart(figure, {
      title: `${metricTitle(this.score)} against ${name}`,
      x: { label, logarithmic: true },
      y: { robust: { best: 0.5, reach: 3 }, top: 1 },
      sets,
      legend,
      joined: false,
    });
  }

  /* The first click sorts the best to the top, a second click reverses. Empty cells stay last. */
  sortBy(header) {
    const column = header.cellIndex;
    const bestFirst = header.textContent.endsWith("accuracy") ? "descending" : "ascending";
    const reverse = bestFirst === "ascending" ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === bestFirst ? reverse : bestFirst;
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...this.body.rows].map((row) => [cellValue(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * compareValues(a, b);
    });
    for (const cell of this.table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    this.body.append(...rows.map(([, row]) => row));
  }

  /* Shows the rows that have every word. */
  filter(words) {
    for (const row of this.body.rows) {
      const text = `${row.textContent} ${row.cells[0].dataset.value}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  }
}

const runOf = (event) => page.runs[event.target.closest("tr").dataset.run];
const cellValue = (cell) => cell.dataset.value ?? cell.textContent;

/* Numbers are compared as numbers, and texts by the numbers in them. */
function compareValues(a, b) {
  return a - b || String(a).localeCompare(String(b), "en", { numeric: true });
}

function timeUnit(seconds) {
  if (seconds < 120) return [1, "s"];
  return seconds < 7200 ? [60, "min"] : [3600, "h"];
}

const addFigures = (charts, count) =>
  Array.from({ length: count }, () => addElement("figure", {}, charts));

// The panel of a run

let drawPanel = () => {}; // draws the charts of the run in the panel

function openPanel(run) {
  const section = sections.find((candidate) => candidate.runs.includes(run));
  panel.replaceChildren();
  addPanelHeader(run, section);
  if (run.error) addElement("p", { class: "error" }, panel, run.error);
  addCommand(run, section);
  const charts = addElement("div", { class: "charts" }, panel);
  const figures = addFigures(charts, run.curves.length ? 2 : 0);
  const columns = addElement("div", { class: "columns" }, panel);
  addPairs(columns, "Scores", run.scores);
  addTime(columns, run);
  addSettings(run, section);
  const environment = { ...section.shared.environment, ...run.environment };
  addPairs(panel, "Environment", environment, true);
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
  drawPanel = () =>
    figures.forEach((figure, i) => drawRunCurves(figure, run, section.keys, 2 * i));
  drawPanel();
  history.replaceState(null, "", `#${encodeURIComponent(run.run)}`); // last: a browser may refuse
}

function addPanelHeader(run, section) {
  const header = addElement("header", {}, panel);
  const title = addElement("div", {}, header);
  addElement("h2", { id: "panel-name" }, title, run.name);
  const state = addElement("p", {}, title);
  const stateClass = run.state.replaceAll(/[^a-z]/g, "-");
  addElement("span", { class: `state ${stateClass}` }, state, run.state);
  state.append(run.date ? ` · ${run.date}` : "");
  addElement("p", { class: "path" }, title, run.folder);
  const buttons = addElement("nav", {}, header);
  const rank = section.runs.indexOf(run);
  addStep(buttons, "previous run", "↑", section.runs[rank - 1]);
  addStep(buttons, "next run", "↓", section.runs[rank + 1]);
  const close = addElement("button", { "aria-label": "close", autofocus: "" }, buttons, "✕");
  close.addEventListener("click", () => panel.close());
}

function addStep(parent, name, text, run) {
  const button = addElement("button", { "aria-label": name, title: name }, parent, text);
  button.disabled = !run;
  button.addEventListener("click", () => openPanel(run));
}

function addCommand(run, section) {
  addElement("h3", {}, panel, "Command");
  if (run.command === null) {
    addElement("p", {}, panel, "overrides.txt is missing, so the command is unknown.");
    return;
  }
  const row = addElement("div", { class: "command" }, panel);
  addElement("code", { tabindex: 0 }, row, run.command);
  const copy = addElement("button", {}, row, "copy");
  copy.addEventListener("click", () => {
    getSelection().selectAllChildren(row.firstChild); // a page from disk may have no clipboard
    navigator.clipboard?.writeText(run.command).then(() => (copy.textContent = "copied"));
  });
  const folder = run.environment.working_directory ?? section.shared.environment.working_directory;
  const place = folder ? `Typed in ${folder}. ` : "";
  addElement("p", { class: "small" }, panel, place + run.continuation);
}

function drawRunCurves(figure, run, keys, first) {
  const sets = keys.slice(first, first + 2).map((key, i) => ({
    label: metricTitle(key),
    color: `var(--c${i})`,
    end: CURVE_ENDS[run.state],
    value: run.last[first + i],
    points: curvePoints(run, key, first + i + 1),
  }));
  drawChart(figure, {
    title: keys[first].endsWith("accuracy") ? "Accuracy" : "Loss",
    x: epochAxis(sets),
    y: metricAxis(keys[first]),
    sets,
    legend: sets,
    note: endNote(sets),
    joined: true,
  });
}

function addTime(parent, run) {
  if (!run.time.length) return;
  const block = addElement("div", {}, parent);
  addElement("h3", {}, block, "Time");
  const total = run.time.reduce((sum, [, seconds]) => sum + seconds, 0);
  const table = addElement("table", { class: "pairs" }, block);
  const addRow = (name, seconds) => {
    const row = addElement("tr", {}, table);
    addElement("th", { scope: "row" }, row, name);
    addElement("td", { class: "number" }, row, `${seconds.toFixed(1)} s`);
    const bar = addElement("td", { class: "bar-cell" }, row);
    addElement("i", { style: `width: ${(100 * seconds) / total}%` }, bar);
  };
  for (const [name, seconds] of run.time) addRow(name, seconds);
  if (run.added_time) addElement("p", { class: "small" }, block, run.added_time);
}

/* The settings in which the runs of the data set differ come first. */
function addSettings(run, section) {
  const all = { ...section.shared.settings, ...run.settings };
  const varying = section.varying.filter((key) => key in all);
  const first = Object.fromEntries(varying.map((key) => [key, all[key]]));
  if (varying.length) addPairs(panel, "Settings that differ between the runs", first);
  addPairs(panel, "All settings", all, true);
}

/* Adds a table of names and values; closed at first if `folded` is set. */
function addPairs(parent, title, pairs, folded = false) {
  const entries = Object.entries(pairs);
  if (!entries.length) return;
  const block = addElement(folded ? "details" : "div", {}, parent);
  const heading = folded ? addElement("summary", {}, block) : block;
  addElement("h3", {}, heading, folded ? `${title} (${entries.length})` : title);
  const table = addElement("table", { class: "pairs" }, block);
  for (const [name, value] of entries) {
    const row = addElement("tr", {}, table);
    addElement("th", { scope: "row" }, row, name);
    addElement("td", {}, row, value);
  }
}

panel.addEventListener("close", () => history.replaceState(null, "", location.pathname));
panel.addEventListener("click", (event) => {
  if (event.target === panel) panel.close(); // beside the panel
});

// The whole page

/* Marks the edges of a box beyond which its content goes on. */
function markEdges(scroll) {
  const box = scroll.parentElement;
  const right = scroll.scrollWidth - scroll.clientWidth - scroll.scrollLeft;
  const below = scroll.scrollHeight - scroll.clientHeight - scroll.scrollTop;
  box.classList.toggle("more-left", scroll.scrollLeft > 1);
  box.classList.toggle("more-right", right > 1);
  box.classList.toggle("more-below", below > 1);
}

const scrolls = [...document.querySelectorAll(".scroll")];
for (const scroll of scrolls) scroll.addEventListener("scroll", () => markEdges(scroll));

const sections = page.sections.map(
  (chart, index) => new DataSection(document.getElementById(`data-${index}`), chart),
);

let drawnWidth = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === drawnWidth) return;
  drawnWidth = document.body.clientWidth;
  for (const section of sections) section.draw();
  drawPanel();
  scrolls.forEach(markEdges);
}).observe(document.body);

const named = location.hash.slice(1);
const linked = page.runs.find((run) => encodeURIComponent(run.run) === named);
for (const section of sections) section.draw();
if (linked) openPanel(linked);
