/* Dataset */
const FRAME_PX = 96;
const said = (count, one, many) => `${count} ${count === 1 ? one : many}`;
/** A picture as it was fitted, under two layers that a control shows: its padding, and what its mask leaves out. */
function framed(row) {
  const frame = element("div", { class: "framed" }, element("img", { src: data.thumbnails[row.picture], alt: row.name, loading: "lazy" }),
    row.mask ? element("img", { class: "mask", src: data.thumbnails[row.mask], alt: "what its mask leaves out" }) : null,
    row.share < 1 ? element("i", { class: "padding", title: "padding" }) : null);
  frame.style.width = `${FRAME_PX * Math.min(1, row.aspect)}px`;
  frame.style.aspectRatio = row.aspect;
  const [left, top, right, bottom] = [row.box[0], row.box[1], row.box[0] + row.box[2], row.box[1] + row.box[3]].map((part) => `${100 * part}%`);
  const padding = frame.querySelector(".padding"); // a polygon around everything, and the picture cut out of it
  if (padding) padding.style.clipPath = `polygon(evenodd, 0 0, 100% 0, 100% 100%, 0 100%, 0 0, ${left} ${top}, ${left} ${bottom}, ${right} ${bottom}, ${right} ${top}, ${left} ${top})`;
  return frame;
}
/** A link to an entry of the dataset, which opens and shows it wherever it is. */
function leadTo(id, ...children) {
  const link = element("a", { href: `#${id}` }, ...children);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    if (!$(id) || $(id).hidden) { $("find").value = ""; drawDataset(); } // the search hides it
    $(id).closest("details")?.setAttribute("open", "");
    $(id).scrollIntoView({ block: "center" });
    $(id).focus({ preventScroll: true });
  });
  return link;
}
const small = (key, alt) => (key ? element("img", { src: data.thumbnails[key], alt, loading: "lazy" }) : null);
/** Where a picture stands: in the gallery, or among what was refused. */
const placeOf = (row) => `picture-${row.id}`;
const refusedPlace = (row, set) => `refused-${set.refused.indexOf(row)}`;
/** Rows by what they have in common. */
function grouped(rows, key) {
  const found = new Map();
  for (const row of rows) found.has(key(row)) ? found.get(key(row)).push(row) : found.set(key(row), [row]);
  return found;
}
const firstOf = (row) => row.copy_of ?? row.id;
/** All that looks like a picture: what was refused for it, and what was kept beside it. */
function alike(row, set, families, refusals) {
  const kept = families.get(firstOf(row)).filter((other) => other !== row), refused = refusals.get(row.id) ?? [];
  const group = (rows, text, place) => (rows.length ? element("small", { class: "alike" }, text, ...rows.map((other) => leadTo(place(other), small(other.picture, other.name) ?? other.name))) : null);
  return [group(kept, "looks like ", placeOf), group(refused, `${said(refused.length, "copy", "copies")} refused: `, (other) => refusedPlace(other, set))];
}
const GALLERIES = {}; // each set's figures, made once: a search hides some
function galleryOf(name) {
  const set = data.datasets[name], families = grouped(set.pictures, firstOf), refusals = grouped(set.refused, (row) => row.copy_of?.id);
  return set.pictures.map((row) => element("figure", { id: placeOf(row), tabindex: "-1" }, framed(row),
    element("figcaption", { dir: "auto" }, row.caption, element("small", {}, `caption ${row.by}`),
      element("small", {}, `${row.name}, ${row.original.join(" x ")} px, ${row.share < 1 ? `${Math.round(100 * (1 - row.share))}\u00a0% padding` : "no padding"}${row.mask ? ", a mask" : ""}`),
      element("small", {}, [row.engine, row.licence && `licence: ${row.licence}`].filter(Boolean).join(", ")),
      row.page && /^https?:/.test(row.page) ? element("small", {}, element("a", { href: row.page, rel: "noreferrer noopener", target: "_blank" }, "source")) : null,
      ...alike(row, set, families, refusals))));
}
function drawDataset() {
  const name = $("set").value, set = data.datasets[name], word = $("find").value.trim().toLowerCase();
  const figures = (GALLERIES[name] ??= galleryOf(name));
  set.pictures.forEach((row, place) => { figures[place].hidden = word !== "" && !`${row.caption} ${row.name}`.toLowerCase().includes(word); });
  if ($("gallery").firstChild !== (figures[0] ?? null)) $("gallery").replaceChildren(...figures);
  const masked = set.pictures.filter((row) => row.mask).length, padded = set.pictures.filter((row) => row.share < 1).length;
  $("mask-note").textContent = `Striped: padding (${said(padded, "picture", "pictures")}). Red: what a mask of the dataset leaves out (${said(masked, "picture", "pictures")}). train.mask says whether a training leaves them out.`;
  drawRefused(set);
}
function drawRefused(set) {
  $("refused").hidden = !set.refused.length;
  const listed = set.refused.length < set.refused_of ? `${set.refused.length} of ${set.refused_of}` : set.refused_of;
  $("refused").querySelector("summary").textContent = `${listed} refused, and why`;
  $("refused").querySelector("ul").replaceChildren(...set.refused.map((row) => {
    const kept = row.copy_of, other = kept && [small(kept.picture, ""), element("span", {}, `${kept.reference ? "the reference " : ""}${kept.name}`)];
    return element("li", { id: refusedPlace(row, set), tabindex: "-1" }, small(row.picture, "") ?? element("span", { class: "gone", title: "Its file was deleted when it was refused" }, "no file"),
      element("span", {}, `${row.name}: ${row.reason}`, other ? element("span", { class: "kept" }, "stayed: ", kept.reference ? element("span", {}, ...other) : leadTo(placeOf(kept), ...other)) : null));
  }));
}
