"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const versionOf = Object.assign(Object.create(null), Object.fromEntries(data.versions.map((version) => [version.name, version]))); // votes name versions, also `constructor`
const COLOURS = 12, DASHES = [["solid", []], ["dashed", [8, 4]], ["dotted", [2, 3]]]; // of curves: colours are in page.css; beyond them versions are told apart by dashes
const styleFor = (number) => ({ colour: `--curve-${number % COLOURS}`, dash: DASHES[Math.floor(number / COLOURS) % DASHES.length] });
const styleOf = Object.fromEntries(data.versions.map((version, number) => [version.name, styleFor(number)]));

/** An element with attributes and children; text is never read as markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== false) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const number = (value, digits = 3) => (value === undefined || value === null ? "" : Number(value) && Math.abs(value) < 10 ** -digits ? Number(value).toPrecision(2) : Number(value).toFixed(Math.abs(value) >= 10 ? Math.min(2, digits) : digits));
/** As under a picture: two decimals; below 1 as many as tables have, for losses and distances differ in the third. */
const brief = (value) => number(value, Math.abs(value) < 1 ? 3 : 2);
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
const metricsOf = (version) => Object.keys(version.metrics);
const allMetrics = [...new Set(data.versions.flatMap(metricsOf))].sort((a, b) => (b === data.chosen_by) - (a === data.chosen_by));

/** A version's name, which leads to its page where there was one when this page was written. */
const named = (version) => (version.page ? element("a", { href: `${data.root}/${version.name}/report/index.html` }, version.name) : version.name);

/* What was chosen, and why */
const ruleStep = (version) => (version.best.overruled ?? version.best).best_step; // a person may have chosen another
const drawnSteps = (version) => version.steps.filter((step) => version.samples[step]); // a comparison shows only those that were chosen
const stepOf = (version, step) => (!step ? "no LoRA" : version.foreign.length ? "as it came" : `step ${step}`);
const chosenOf = (version) => [...new Set([version.best.best_step, ruleStep(version)])].map((step) => ({ step, by: !version.best.overruled ? "" : step === ruleStep(version) ? "the rule" : "a person" }));
/** What may be said of the chosen step, in as few words as it takes; and how the table says it. */
const HEADLINES = {
  better: ["Better than without the LoRA", "yes"],
  worse: ["Worse than without the LoRA", "no, worse"],
  unresolved: ["Unresolved: these references show no sure difference", "unresolved"],
  untested: ["Not tested: too few references", "unresolved"],
  "by a person": ["Chosen by a person", "unresolved"],
};
/** The chosen step beside the references and the base, large: what a visitor looks for first. */
function glance(version) {
  const step = version.best.best_step, part = version.best.test ?? version.best.validation, references = data.references[version.references];
  const ids = part.references.filter((id) => references[id] && version.samples[0]?.[id] && version.samples[step]?.[id]).slice(0, several ? 4 : 6);
  const drawn = (at) => (id) => cell(sampleOf(version, at, id)[0], `${stepOf(version, at)}: ${references[id].prompt}`, "", whereOf(version, at, id));
  const rows = [[several ? "" : "reference", (id) => referenceCell(references[id])], ["no LoRA", drawn(0)], [stepOf(version, step), drawn(step)]];
  return ids.length ? element("div", { class: "scroll" }, element("table", { class: "glance" }, ...rows.slice(several ? 2 : 0).map(([head, make]) => element("tr", {}, several ? null : element("th", { scope: "row" }, head), ...ids.map((id) => element("td", {}, make(id))))))) : null;
}
function verdicts() {
  const box = $("verdicts");
  if (several) box.className = "cards";
  box.append(...data.versions.map((version) => element("div", { class: "verdict" },
    several ? element("strong", {}, named(version)) : null,
    element("p", { class: `headline ${version.verdict === "better" ? "better" : ""}` }, HEADLINES[version.verdict][0]),
    ...(several ? [element("details", { class: "more" }, element("summary", { "aria-label": `Pictures of ${version.name}, and why` }, "Pictures, and why"), ...reasons(version))] : reasons(version)))));
  foldCards();
}
const OPEN_CARDS = 3; // of many versions in a narrow window, where cards lie below each other
const narrow = matchMedia("(max-width: 40rem)"); // as in page.css
function foldCards() {
  document.querySelectorAll("#verdicts .more").forEach((card, place) => { card.open = !narrow.matches || place < OPEN_CARDS; });
}
narrow.addEventListener("change", foldCards);
/** What lies behind a version's headline. */
function reasons(version) {
  return [glance(version), element("p", {}, `${version.why}.`), element("p", { class: "rule" }, version.best.overruled ? `Chosen by a person. The rule, ${version.best.rule}, says: ${version.best.overruled.why}.` : version.foreign.length ? `From elsewhere: ${version.foreign.join("; ")}.` : `Chosen by: ${version.best.rule}${version.best.chosen ? ", and by a person" : ""}.`),
    ...version.best.warnings.map((warning) => element("p", { class: "warning" }, `${warning}.`)),
    version.accepted.length ? element("details", {}, element("summary", {}, "Accepted after an update of code or packages"), element("ul", {}, ...version.accepted.map((line) => element("li", {}, line)))) : null].filter(Boolean);
}

/* The grid */
const several = data.versions.length > 1;
const seeds = [...new Set(data.versions.flatMap((version) => Object.values(version.samples).flatMap((step) => Object.values(step).flatMap(Object.keys))))];
/** Whether the grid has every version of a dataset, whose place stands behind the star: other references are other rows. */
const isOfAll = () => $("columns").value.startsWith("*");
/** What a version's base drew: versions that share it have one column for it. */
const fingerprint = (version) => Object.values(Object.values(version.samples[0] ?? {})[0] ?? {})[0]?.[2] ?? version.name;
function columnsShown() {
  const chosen = $("columns").value;
  if (isOfAll()) {
    const versions = data.versions.filter((version) => version.references === chosen.slice(1));
    const bases = Object.values(Object.fromEntries(versions.map((version) => [fingerprint(version), version]).reverse())).reverse();
    return [...bases.map((version) => ({ version, step: 0, head: bases.length > 1 ? `${version.name} without its LoRA` : "no LoRA" })), ...versions.flatMap((version) => chosenOf(version).map(({ step, by }) => ({ version, step, head: `${version.name}, ${stepOf(version, step)}${by && `, by ${by}`}` })))];
  }
  const version = versionOf[chosen];
  const by = Object.fromEntries(chosenOf(version).map((choice) => [choice.step, choice.by && `, by ${choice.by}`]));
  return drawnSteps(version).map((step) => ({ version, step, head: stepOf(version, step) + (by[step] ?? ""), chosen: step === version.best.best_step }));
}
/** The seed that is asked for; of a picture that was not drawn with it, the first that it was. */
const seedOf = (version, step, reference) => {
  const drawn = version.samples[step]?.[reference] ?? {};
  return $("seed").value in drawn ? $("seed").value : Object.keys(drawn)[0];
};
/** Which picture it is, also when another seed is asked for later; and its thumbnail, file and hash. */
const whereOf = (version, step, reference) => ({ version: version.name, step, reference, seed: seedOf(version, step, reference) });
const sampleAt = ({ version, step, reference, seed }) => versionOf[version].samples[step]?.[reference]?.[seed];
const sampleOf = (version, step, reference) => sampleAt(whereOf(version, step, reference));
/** A picture's value, or its reference's where a metric has but that; and what the reference gained over the base, where it has enough seeds. */
function figureOf(version, step, reference) {
  const row = version.metrics[$("figure").value]?.[step], place = version.best.references.indexOf(reference);
  if (!row || place < 0) return ["", ""]; // of a test reference, only where it was drawn
  const gained = row.by_reference[reference], own = row.by_picture[reference]?.[seedOf(version, step, reference)];
  return [brief(own ?? row.values[place]), gained ? `${interval(gained)} over ${gained.seeds} seeds` : ""];
}
const interval = (figures) => `${signed(figures.delta)} [${number(figures.ci_low)},\u00a0${number(figures.ci_high)}]`;
/** A checkpoint's mean, and its difference to the base with its interval: of the references that report where every column has them. */
function meanOf(version, step, isTested) {
  const row = version.metrics[$("figure").value]?.[step];
  if (!row) return null;
  const part = isTested && row.test_mean !== undefined ? "test" : "validation", against = row.against[part];
  const luck = part === "validation" && version.steps.length > 2 ? `, for this checkpoint alone: not corrected for looking at ${version.steps.length - 1} of them` : "";
  const title = `Mean ${$("figure").value} over the ${version.best[part].references.length} references that ${part === "test" ? "report" : "chose"}.${against ? ` Then the paired difference to step 0, without the LoRA, and its 95 % interval over these references${luck}.` : ""}`;
  return element("span", { title }, brief(part === "test" ? row.test_mean : row.mean), against ? element("b", { class: "interval" }, interval(against)) : null);
}
function drawGrid() {
  const columns = columnsShown(), references = data.references[columns[0].version.references];
  const ids = [...new Set(columns.flatMap(({ version, step }) => Object.keys(version.samples[step] ?? {})))].filter((id) => references[id]).sort();
  const head = element("tr", {}, element("th", {}, ""), element("th", {}, "reference"), ...columns.map(({ head: text, chosen }) => element("th", { class: chosen && "chosen" }, text)));
  const rows = ids.map((id) => element("tr", {}, element("th", { scope: "row" }, element("div", { title: references[id].prompt, dir: "auto" }, references[id].prompt)),
    element("td", {}, referenceCell(references[id])),
    ...columns.map(({ version, step, chosen, head: text }) => {
      const sample = sampleOf(version, step, id);
      const [value, gained] = sample ? figureOf(version, step, id) : ["", ""];
      const figure = sample ? [value, seedOf(version, step, id) !== $("seed").value && `seed ${seedOf(version, step, id)}`].filter(Boolean).join(", ") : "";
      return element("td", { class: chosen && "chosen" }, sample ? cell(sample[0], text, figure, whereOf(version, step, id), gained) : "");
    })));
  const means = columns.map(({ version, step }) => meanOf(version, step, isOfAll()));
  const meansRow = element("tr", { class: "means" }, element("td", {}, "mean; difference to no LoRA"), element("td"), ...columns.map(({ chosen }, place) => element("td", { class: chosen && "chosen" }, means[place])));
  $("mean-note").textContent = !means.some(Boolean) ? "" : isOfAll() ? "Above the pictures: the mean over the references that report (over all, where nothing is tested) and its difference to no LoRA, with its 95 % interval." : "Above the pictures: the mean over the references that chose and its difference to no LoRA, with its 95 % interval, of each checkpoint alone: the best of several is also the luckiest.";
  $("grid").replaceChildren(element("thead", {}, head, means.some(Boolean) ? meansRow : null), element("tbody", {}, ...rows));
}
const referenceCell = (reference) => cell(reference.picture, "reference", "", null, "", reference);
function cell(key, label, figure, where, gained = "", reference = null) {
  const made = element("button", { type: "button", class: "cell", "aria-label": [label, [figure, gained].filter(Boolean).join(", ")].filter(Boolean).join(": ") },
    element("img", { src: data.thumbnails[key], alt: "", loading: "lazy", width: 104, height: 104 }), element("span", {}, figure),
    gained ? element("span", { class: "interval", title: "This picture's reference: the difference to the pictures without the LoRA, seed by seed, and its 95 % interval" }, gained) : null);
  made.addEventListener("click", () => view(where, key, label, reference));
  return made;
}
$("grid").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const here = event.target.closest("td");
  if (!move || !here) return;
  const row = here.parentElement, next = row.parentElement.rows[row.sectionRowIndex + move[0]]?.cells[here.cellIndex + move[1]]?.querySelector("button");
  if (next) { event.preventDefault(); next.focus(); next.scrollIntoView({ block: "nearest", inline: "nearest" }); }
});

/* One picture, and another beside it */
let shown = null;
const pathOf = (where) => `${data.root}/${where.version}/${sampleAt(where)[1]}`;
const pathOfReference = (reference) => `${data.root}/${reference.file}`;
/** A picture in full size; its thumbnail, where the page alone was moved. */
function large(path, key, alt) {
  const made = element("img", { src: path, alt, "data-small": data.thumbnails[key] });
  made.addEventListener("error", () => { made.src = data.thumbnails[key]; }, { once: true });
  return made;
}
const picture = (where, key) => large(pathOf(where), key, `${where.version}, ${stepOf(versionOf[where.version], where.step)}`);
const referenceIn = (reference) => large(pathOfReference(reference), reference.picture, "reference");
function view(where, key, label, reference = null) {
  const before = shown?.where && where && $("viewer").open ? $("beside").value : ""; // the arrow keys change one side alone
  shown = { where, key, reference };
  const options = [["", "nothing"]];
  if (where) {
    options.push(["reference", "the reference"]);
    // of one prompt and one seed: other noise is another picture, whatever was learnt
    for (const version of data.versions) for (const step of version.steps) if (version.references === versionOf[where.version].references && sampleAt({ ...where, version: version.name, step }) && (several || step !== where.step)) options.push([`${version.name}/${step}`, several ? `${version.name}, ${stepOf(version, step)}` : stepOf(version, step)]);
  }
  fill($("beside"), options);
  if (options.some(([value]) => value === before)) $("beside").value = before;
  $("viewer-title").textContent = where ? `${where.version}, ${stepOf(versionOf[where.version], where.step)}` : label;
  $("viewer-prompt").textContent = where ? data.references[versionOf[where.version].references][where.reference].prompt : "";
  $("viewer-file").href = where ? pathOf(where) : pathOfReference(reference);
  drawViewer();
  if (!$("viewer").open) $("viewer").showModal();
}
function drawViewer() {
  const { where, key, reference } = shown, beside = $("beside").value, own = where ? picture(where, key) : referenceIn(reference);
  if (!beside) return $("viewer-picture").replaceChildren(own);
  const references = data.references[versionOf[where.version].references];
  let other;
  if (beside === "reference") other = referenceIn(references[where.reference]);
  else {
    const [version, step] = [beside.slice(0, beside.lastIndexOf("/")), Number(beside.slice(beside.lastIndexOf("/") + 1))];
    const place = { ...where, version, step };
    other = picture(place, sampleAt(place)[0]);
  }
  other.slot = "first"; own.slot = "second";
  $("viewer-picture").replaceChildren(element("img-comparison-slider", { tabindex: "0", "aria-label": "Before and after: drag, or arrow keys" }, other, own));
}
$("viewer").addEventListener("keydown", (event) => {
  if (!shown?.where || event.target.closest("select, img-comparison-slider")) return;
  const version = versionOf[shown.where.version], step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], steps = drawnSteps(version).filter((at) => sampleAt({ ...shown.where, step: at }));
  const next = step && steps[steps.indexOf(shown.where.step) + step];
  if (next === undefined) return;
  const where = { ...shown.where, step: next };
  view(where, sampleAt(where)[0], "");
});
$("viewer").addEventListener("click", (event) => { // beside it, not on its own margin
  const { left, right, top, bottom } = $("viewer").getBoundingClientRect();
  if (event.target === $("viewer") && event.detail && (event.clientX < left || event.clientX > right || event.clientY < top || event.clientY > bottom)) $("viewer").close();
});

/* Curves */
const hidden = new Set();
const LOSS_WINDOW = 0.05; // share of the log's rows that a point of the loss is the mean of: a step's own is noise
/** A centred moving mean; at the ends over the rows that are there. */
function smoothed(values) {
  const half = Math.floor((values.length * LOSS_WINDOW) / 2), sums = [0];
  for (const value of values) sums.push(sums.at(-1) + value);
  return values.map((_, place) => { const from = Math.max(0, place - half), to = Math.min(values.length, place + half + 1); return (sums[to] - sums[from]) / (to - from); });
}
const isThere = (value) => value !== null && value !== undefined;
const precise = (value) => (isThere(value) ? Number(value).toPrecision(4) : "");
function drawCurves() {
  const versions = data.versions.filter((version) => !hidden.has(version.name));
  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim(), ink = colour("--ink"), line = colour("--line");
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
  const plots = [...allMetrics.map((metric) => [metric, (version) => version.steps.map((step) => [step, version.metrics[metric]?.[step]?.mean])]),
    ["loss, moving mean", (version) => { const means = smoothed(version.log.loss); return version.log.step.map((step, place) => [step, means[place]]); }],
    ["learning_rate", (version) => version.log.step.map((step, place) => [step, version.log.learning_rate[place]])]];
  $("plots").replaceChildren();
  for (const [title, points] of plots) {
    if (!versions.some((version) => points(version).some(([, value]) => isThere(value)))) continue; // a LoRA from elsewhere has no log
    const box = element("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${title}: values by the arrow keys` }, element("h3", {}, title + (data.lower_is_better.includes(title) ? " (lower is better)" : "")));
    $("plots").append(box);
    const lines = versions.map((version) => new Map(points(version)));
    const steps = [...new Set(lines.flatMap((map) => [...map.keys()]))].sort((a, b) => a - b);
    const plot = new uPlot({
      width: Math.max(260, box.clientWidth - 20), height: 220, cursor: { focus: { prox: 20 } }, axes: [axis, { ...axis, size: 62, values: (_, marks) => marks.map((mark) => (mark && Math.abs(mark) < 0.01 ? mark.toExponential(1) : String(mark))) }],
      scales: { x: { time: false } },
      series: [{ label: "step" }, ...versions.map((version) => ({ label: version.name, stroke: colour(styleOf[version.name].colour), dash: styleOf[version.name].dash[1], width: 1.6, spanGaps: true, points: { show: steps.length < 40, size: 5 }, value: (_, value) => precise(value) }))],
    }, [steps, ...lines.map((map) => steps.map((step) => map.get(step) ?? null))], box);
    const aloud = element("p", { class: "aloud", "aria-live": "polite" });
    box.append(aloud);
    box.addEventListener("keydown", (event) => readCurve(event, plot, aloud));
  }
}
/** Arrow keys move what hovering moves: the line under which the values are read. */
function readCurve(event, plot, aloud) {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key], last = plot.data[0].length - 1;
  if (!move) return;
  event.preventDefault();
  const place = Math.min(last, Math.max(0, (plot.cursor.idx ?? (move > 0 ? -1 : last + 1)) + move));
  plot.setCursor({ left: plot.valToPos(plot.data[0][place], "x"), top: 0 });
  aloud.textContent = [`step ${plot.data[0][place]}`, ...plot.series.slice(1).map(({ label }, line) => [label, plot.data[line + 1][place]]).filter(([, value]) => isThere(value)).map(([label, value]) => `${label} ${precise(value)}`)].join(", ");
}
function curveControls() {
  if (!several) return;
  $("curve-controls").append(...data.versions.map((version) => {
    const box = element("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => { box.checked ? hidden.delete(version.name) : hidden.add(version.name); drawCurves(); });
    return element("label", { class: "chip" }, box, element("i", { style: `border-top: 3px ${styleOf[version.name].dash[0]} var(${styleOf[version.name].colour})` }), version.name);
  }));
}

/* Numbers */
const NONE = -99999999; // sorts below every figure; Tablesort reads no exponents
function tables() {
  const settings = Object.keys(data.versions[0].settings).filter((key) => data.versions.some((version) => (version.settings[key] ?? "") !== ""));
  const voted = data.versions.some((version) => Object.keys(version.votes).length);
  const votesOf = (version, step) => { const found = version.votes[step]; return element("td", { "data-sort": found ? found.at_least : -1 }, found ? `${found.won} of ${found.of} (at least ${number(found.at_least, 2)})` : ""); };
  const heads = ["version", "chosen step", "tested on", "better than step 0", ...(voted ? ["votes won"] : []), ...allMetrics.flatMap((metric) => [metric, "against step 0"]), ...settings];
  const rows = data.versions.map((version, place) => element("tr", {},
    element("td", { "data-sort": place }, named(version)), // v10 after v9, as they came
    element("td", { "data-sort": version.best.best_step }, version.best.overruled ? `${version.best.best_step} (rule: ${ruleStep(version)})` : version.foreign.length ? "" : String(version.best.best_step)),
    element("td", {}, version.best.overruled ? "chosen by a person" : version.best.test ? `${version.best.test.references.length} references` : "no test"), element("td", {}, HEADLINES[version.verdict][1]), ...(voted ? [votesOf(version, version.best.best_step)] : []),
    ...allMetrics.flatMap((metric) => {
      const figure = version.figures[metric];
      return figure ? [element("td", { "data-sort": figure.best.toFixed(12) }, number(figure.best)), element("td", { "data-sort": figure.delta.toFixed(12), class: figure.p !== null && figure.p <= data.level && "sure" }, `${signed(figure.delta)} [${number(figure.ci_low)}, ${number(figure.ci_high)}]`)] : [element("td", { "data-sort": NONE }), element("td", { "data-sort": NONE })];
    }), ...settings.map((key) => element("td", {}, String(version.settings[key] ?? "")))));
  $("versions").replaceChildren(element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {}, head)))), element("tbody", {}, ...rows));
  new Tablesort($("versions"));
  $("note").textContent = data.note ? `Of versions, ${data.note}.` : "";
  const lines = data.versions.flatMap((version) => version.steps.map((step) => element("tr", { class: step === version.best.best_step && "chosen" },
    element("td", {}, version.name), element("td", {}, String(step)), ...(voted ? [votesOf(version, step)] : []),
    ...allMetrics.flatMap((metric) => { const row = version.metrics[metric]?.[step], against = row?.against.validation; return [element("td", {}, row ? `${number(row.mean)} [${number(row.ci_low)}, ${number(row.ci_high)}]${row.test_mean === undefined ? "" : `; test ${number(row.test_mean)} [${number(row.test_ci_low)}, ${number(row.test_ci_high)}]`}` : ""), element("td", {}, against ? interval(against) : "")]; }))));
  $("checkpoints").replaceChildren(element("thead", {}, element("tr", {}, ...["version", "step", ...(voted ? ["votes won"] : []), ...allMetrics.flatMap((metric) => [metric, "against step 0"])].map((head) => element("th", {}, head)))), element("tbody", {}, ...lines));
}

function overTrainings() {
  const found = Object.entries(data.trainings);
  if (!found.length) return;
  $("over-trainings").hidden = false;
  const metrics = allMetrics.filter((metric) => found.some(([, { figures }]) => figures[metric]));
  const cells = (figure) => (figure ? [element("td", {}, `${number(figure.mean)} (between ${number(figure.between)})`), element("td", { class: figure.p !== null && figure.p <= data.level && "sure" }, `${signed(figure.delta)} [${number(figure.ci_low)}, ${number(figure.ci_high)}]`)] : [element("td"), element("td")]);
  $("over-trainings").querySelector("table").replaceChildren(element("thead", {}, element("tr", {}, ...["version", "trainings", ...metrics.flatMap((metric) => [metric, "against step 0"])].map((head) => element("th", {}, head)))),
    element("tbody", {}, ...found.map(([name, { names, figures }]) => element("tr", {}, element("td", {}, name), element("td", {}, String(names.length)), ...metrics.flatMap((metric) => cells(figures[metric]))))));
}
function asReported() {
  const found = data.versions.flatMap((version) => Object.entries(version.tables).map(([metric, rows]) => ({ title: several ? `${version.name}: ${metric}` : metric, rows }))).filter(({ rows }) => rows.length);
  $("as-reported").hidden = !found.length;
  document.querySelector("#as-reported .tables").replaceChildren(...found.map(({ title, rows }) => element("div", { class: "scroll" }, element("h3", {}, title), element("table", {},
    element("thead", {}, element("tr", {}, ...Object.keys(rows[0]).map((head) => element("th", {}, head)))), element("tbody", {}, ...rows.map((row) => element("tr", {}, ...Object.values(row).map((text) => element("td", {}, text)))))))));
}

/* Two versions, or one and the base */
function comparison() {
  const rows = data.compared;
  if (!rows?.length) return;
  $("compared").hidden = $("compared-link").hidden = false;
  const side = (name, steps) => {
    const each = steps.split(" "); // of several trainings, each one's
    if (!(name in versionOf)) return "no LoRA";
    return each.length > 1 ? `${name}, ${each.length} trainings at steps ${each.join(", ")}` : `${name}, ${stepOf(versionOf[name], Number(steps))}`;
  };
  const heads = ["metric", side(rows[0].one, rows[0].step_one), side(rows[0].other, rows[0].step_other), "difference", "p", "better"];
  $("comparison").replaceChildren(element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {}, head)))), element("tbody", {}, ...rows.map((row) => element("tr", {},
    element("td", {}, row.metric, data.lower_is_better.includes(row.metric) ? element("span", { title: "lower is better" }, " ↓") : ""), element("td", {}, number(row.mean_one)), element("td", {}, number(row.mean_other)),
    element("td", { class: row.better !== "neither for sure" && "sure" }, `${signed(Number(row.delta))} [${number(row.ci_low)}, ${number(row.ci_high)}]`), element("td", {}, number(row.p)), element("td", {}, row.better)))));
  $("comparison-note").textContent = `${rows[0].note[0].toUpperCase()}${rows[0].note.slice(1)}.`;
}

/* Blind vote */
const candidates = data.versions.flatMap((version) => drawnSteps(version).map((step) => [`${version.name}/${step}`, several ? `${version.name}, ${stepOf(version, step)}` : stepOf(version, step)]));
const votes = [...data.votes]; // what votes.jsonl has, and what is voted here
const KEPT = "sdlora-votes"; // where this browser keeps what is voted until votes.jsonl has it, of all pages
let pair = null, keeps = true;
const isVote = (vote) => Array.isArray(vote?.pictures) && ["id", "reference", "seed", "winner", "loser"].every((key) => typeof vote[key] === "string");
function keptVotes() {
  try { return JSON.parse(localStorage.getItem(KEPT)).filter(isVote); } catch { return []; }
}
function keepVotes(all) {
  try { localStorage.setItem(KEPT, JSON.stringify(all)); } catch { keeps = false; }
}
/** What was voted before the page was left: on these very pictures, and not in votes.jsonl yet. */
function recallVotes() {
  const recorded = new Set(data.votes.map((vote) => vote.id)), all = keptVotes(), open = all.filter((vote) => !recorded.has(vote.id));
  if (open.length < all.length) keepVotes(open);
  votes.push(...open.filter((vote) => counted(vote, vote.winner, 0) && counted(vote, vote.loser, 1)));
}
function discardVotes() {
  const gone = new Set(votes.splice(data.votes.length).map((vote) => vote.id));
  keepVotes(keptVotes().filter((vote) => !gone.has(vote.id)));
  drawTally();
  $("ballot").querySelector("button")?.focus({ preventScroll: true }); // what was pressed is gone
}
const split = (name) => [versionOf[name.slice(0, name.lastIndexOf("/"))], Number(name.slice(name.lastIndexOf("/") + 1))];
/** Lower end of Wilson's 95 % interval of a share (Wilson 1927). */
function wilson(wins, count) {
  if (!count) return 0;
  const z = 1.96, share = wins / count;
  return (share + (z * z) / (2 * count) - z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count))) / (1 + (z * z) / count);
}
const sampleFor = ([version, step], { reference, seed }) => version.samples[step][reference][seed];
function drawBallot() {
  const names = [$("vote-a").value, $("vote-b").value], [one, other] = names.map(split);
  const references = data.references[one[0].references];
  const hashOf = ([version, step], id, seed) => version.samples[step]?.[id]?.[seed]?.[2];
  const common = (id) => Object.keys(one[0].samples[one[1]]?.[id] ?? {}).filter((seed) => ![undefined, hashOf(one, id, seed)].includes(hashOf(other, id, seed))); // what versions of one base draw without a LoRA is the same
  const ids = Object.keys(references).filter((id) => common(id).length);
  if (names[0] === names[1] || !ids.length) { pair = null; $("ballot").replaceChildren("Take two checkpoints of one dataset with different pictures."); return; }
  const counts = Object.fromEntries(ids.map((id) => [id, votes.filter((vote) => vote.reference === id && names.includes(vote.winner) && names.includes(vote.loser)).length]));
  const least = Math.min(...Object.values(counts)), open = ids.filter((id) => counts[id] === least);
  const reference = open[Math.floor(Math.random() * open.length)], order = Math.random() < 0.5 ? [0, 1] : [1, 0];
  const seed = common(reference).includes($("seed").value) ? $("seed").value : common(reference)[0];
  pair = { reference, seed, names: order.map((place) => names[place]) };
  const figures = order.map((place, side) => {
    const button = element("button", { type: "button" }, side ? "This one (2)" : "This one (1)");
    button.addEventListener("click", () => vote(side));
    const [key, file] = sampleFor([one, other][place], pair);
    return element("figure", {}, large(`${data.root}/${[one, other][place][0].name}/${file}`, key, side ? "second" : "first"), button);
  });
  $("ballot").replaceChildren(figures[0], element("figure", {}, referenceIn(references[reference]), "reference"), figures[1]);
}
function vote(side) {
  const sides = [pair.names[side], pair.names[1 - side]];
  const id = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  votes.push({ id, reference: pair.reference, seed: pair.seed, winner: sides[0], loser: sides[1], pictures: sides.map((name) => sampleFor(split(name), pair)[2]) });
  keepVotes([...keptVotes(), votes[votes.length - 1]]);
  drawTally();
  drawBallot();
  $("ballot").querySelectorAll("button")[side]?.focus({ preventScroll: true }); // the keys go on where they were
}
/** A vote counts for a side whose picture is still the one that was seen. */
const counted = (vote, name, side) => { const [version, step] = split(name); return name === [vote.winner, vote.loser][side] && version?.samples[step]?.[vote.reference]?.[vote.seed]?.[2] === vote.pictures[side]; };
const nameOf = (name) => { const [version, step] = split(name); return `${several ? `${version.name}, ` : ""}${stepOf(version, step)}`; };
/** Who leads stands folded: it would tell a voter whose picture the last one was. */
function drawTally() {
  const standings = $("standings");
  standings.hidden = !votes.length;
  if (!votes.length) { $("cast").replaceChildren(); return; }
  const names = [...new Set(votes.flatMap((vote) => [vote.winner, vote.loser]))];
  const rows = names.map((name) => { const wins = votes.filter((vote) => counted(vote, name, 0)).length, count = wins + votes.filter((vote) => counted(vote, name, 1)).length; return { name, wins, count, bound: wilson(wins, count) }; }).filter((row) => row.count).sort((a, b) => b.bound - a.bound);
  const cast = votes.slice(data.votes.length), name = "new-votes.jsonl"; // those alone: other pages have votes of their own
  const save = element("a", { download: name, href: URL.createObjectURL(new Blob(cast.map((row) => JSON.stringify(row) + "\n"), { type: "application/jsonl" })) }, `Save ${name}`);
  const discard = element("button", { type: "button" }, "Discard them");
  discard.addEventListener("click", discardVotes);
  standings.querySelector("summary").textContent = `Who leads, by ${votes.length} vote${votes.length > 1 ? "s" : ""}`;
  standings.querySelector("table").replaceChildren(element("thead", {}, element("tr", {}, ...["checkpoint", "won", "of", "at least"].map((head) => element("th", {}, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...[nameOf(row.name), row.wins, row.count, number(row.bound, 2)].map((text) => element("td", {}, String(text)))))));
  $("cast").replaceChildren(...(!cast.length ? [] : [element("p", {}, save, ` (${cast.length} new, ${data.votes.length} from votes.jsonl). Add its lines to votes.jsonl beside params.yaml: the table of versions counts them when the page is made again. ${keeps ? "Until then this browser keeps them." : "This browser keeps nothing: save them before you leave."} `, discard)]));
}
addEventListener("beforeunload", (event) => { if (!keeps && votes.length > data.votes.length) event.preventDefault(); });
$("vote").addEventListener("keydown", (event) => { if (pair && ["1", "2"].includes(event.key) && event.target.tagName !== "SELECT" && !event.repeat && !event.altKey && !event.ctrlKey && !event.metaKey) vote(Number(event.key) - 1); });
