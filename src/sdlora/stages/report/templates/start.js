/* Start */
const shortOf = (set) => set.replace(/^data\/sets\//, "");
const sets = [...new Set(data.versions.map((version) => version.references))];
fill($("columns"), [...(several ? sets.map((set) => [`*${set}`, `every version${sets.length > 1 ? ` of ${shortOf(set).split("/")[0]}` : ""} at its chosen step`]) : []), ...data.versions.map((version) => [version.name, `checkpoints of ${version.name}`])]);
fill($("figure"), [...allMetrics.map((metric) => [metric, metric]), ["", "nothing"]]);
fill($("seed"), seeds.map((seed) => [seed, seed]));
verdicts();
$("seed-label").hidden = seeds.length < 2;
if (data.versions.some((version) => version.best.test)) $("parts-note").textContent = "The references that report are drawn with the chosen step and without the LoRA alone; a picture whose seed is not the one above says which it has.";
for (const id of ["columns", "figure", "seed"]) $(id).addEventListener("change", drawGrid);
$("beside").addEventListener("change", drawViewer);
fill($("set"), Object.keys(data.datasets).map((name) => [name, shortOf(name)]));
$("set").addEventListener("change", drawDataset);
$("find").addEventListener("input", drawDataset);
$("masks").addEventListener("change", () => { $("mask-note").hidden = !$("gallery").classList.toggle("masks", $("masks").checked); });
$("export").addEventListener("click", exportGrid);
$("export-viewer").addEventListener("click", exportViewer);
for (const id of ["vote-a", "vote-b"]) { fill($(id), candidates); $(id).addEventListener("change", drawBallot); }
const first = data.versions[0];
$("vote-a").value = `${first.name}/0`;
$("vote-b").value = `${first.name}/${first.best.best_step}`;
for (const form of document.querySelectorAll("form.controls")) form.addEventListener("submit", (event) => event.preventDefault());
recallVotes(); drawGrid(); curveControls(); tables(); overTrainings(); asReported(); comparison(); drawDataset(); drawBallot(); drawTally(); drawCurves();
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCurves(); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCurves);
