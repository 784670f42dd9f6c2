/* What is looked at, as one picture */
const GAP_PX = 8, LINE_PX = 17, TEXT_PX = 150, SMALL_PX = 256;
const MOST_PX = 16000, MOST_AREA_PX = 16e6; // the longest and the largest canvas of any browser of today
const FONT = '13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** A text in lines that are no wider than some pixels; a word that is longer goes on in the next line. */
function wrapped(pen, text, width) {
  const lines = [""];
  for (const word of text.split(/[ \n]+/).filter(Boolean)) {
    const longer = lines[lines.length - 1] ? `${lines[lines.length - 1]} ${word}` : word;
    if (pen.measureText(longer).width <= width) { lines[lines.length - 1] = longer; continue; }
    if (lines[lines.length - 1]) lines.push("");
    for (const letter of word) {
      const last = lines[lines.length - 1];
      last && pen.measureText(last + letter).width > width ? lines.push(letter) : (lines[lines.length - 1] = last + letter);
    }
  }
  return text ? lines : [];
}
async function loaded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}
/** One canvas of a title and rows of cells `{ image, text, chosen }`, the images at most `side` pixels. */
async function canvasOf(title, rows, side) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  pen.font = FONT;
  const columns = Math.max(...rows.map((row) => row.length));
  const widths = Array.from({ length: columns }, (_, place) => (rows.some((row) => row[place]?.image) ? side : rows.some((row) => row[place]?.text) ? TEXT_PX : 0));
  const drawn = await Promise.all(rows.map((row) => Promise.all(row.map(async (cell, place) => ({ ...cell, image: cell.image && (await loaded(cell.image)), lines: wrapped(pen, cell.text, widths[place]) })))));
  pen.font = `bold ${FONT}`;
  const width = widths.reduce((sum, one) => sum + one + GAP_PX, GAP_PX), heading = wrapped(pen, title, width - 2 * GAP_PX);
  const heights = drawn.map((row) => Math.max(...row.map((cell) => (cell.image ? side + 4 : 0) + cell.lines.length * LINE_PX)));
  const height = heights.reduce((sum, one) => sum + one + GAP_PX, 2 * GAP_PX + heading.length * LINE_PX);
  const scale = Math.min(1, MOST_PX / Math.max(width, height), Math.sqrt(MOST_AREA_PX / (width * height)));
  [canvas.width, canvas.height] = [width, height].map((length) => Math.floor(length * scale));
  pen.scale(scale, scale);
  pen.fillStyle = colour("--paper");
  pen.fillRect(0, 0, width, height);
  pen.textBaseline = "top";
  const write = (lines, left, top, font) => { pen.fillStyle = colour("--ink"); pen.font = font; lines.forEach((line, number) => pen.fillText(line, left, top + number * LINE_PX)); };
  write(heading, GAP_PX, GAP_PX, `bold ${FONT}`);
  let top = 2 * GAP_PX + heading.length * LINE_PX;
  drawn.forEach((row, number) => {
    let left = GAP_PX;
    row.forEach((cell, place) => {
      if (cell.chosen) { pen.fillStyle = colour("--chosen"); pen.fillRect(left - GAP_PX / 2, top - GAP_PX / 2, widths[place] + GAP_PX, heights[number] + GAP_PX); }
      if (cell.image) {
        const larger = side / Math.max(cell.image.naturalWidth, cell.image.naturalHeight), size = [cell.image.naturalWidth * larger, cell.image.naturalHeight * larger];
        pen.drawImage(cell.image, left + (side - size[0]) / 2, top + (side - size[1]) / 2, ...size);
      }
      write(cell.lines, left, top + (cell.image ? side + 4 : 0), FONT);
      left += widths[place] + GAP_PX;
    });
    top += heights[number] + GAP_PX;
  });
  return canvas;
}
function download(canvas, name) {
  return new Promise((resolve, reject) => {
    const give = (blob) => {
      const link = element("a", { download: `${name.replace(/[^\p{L}\p{N}.,-]+/gu, " ").trim()}.png`, href: URL.createObjectURL(blob) });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      resolve();
    };
    try { canvas.toBlob(give, "image/png"); } catch (error) { reject(error); }
  });
}
/** The grid as it is shown: the same columns, figures and pictures. */
async function exportGrid() {
  const rows = [...$("grid").rows].map((row) => [...row.cells].map((cell) => ({
    image: cell.querySelector("img")?.src, text: (cell.querySelector("button") ?? cell).innerText.trim(), chosen: cell.classList.contains("chosen"),
  })));
  const asked = (id) => $(id).selectedOptions[0].textContent, title = `${document.title}: ${asked("columns")}${$("figure").value && `; ${asked("figure")}`}${$("seed-label").hidden ? "" : `; seed ${asked("seed")}`}`;
  await download(await canvasOf(title, rows, 128), `${document.title}, ${asked("columns")}`);
}
/** What the viewer shows, full size; where the page was opened from a disk, a browser lets nobody copy files' pixels: small. */
async function exportViewer() {
  const images = [...$("viewer-picture").querySelectorAll("img")];
  const cells = (full) => [images.map((image) => ({ image: full ? image.src : image.dataset.small, text: image.alt }))];
  const title = [$("viewer-title").textContent, $("viewer-prompt").textContent].filter(Boolean).join(": ");
  const side = Math.max(SMALL_PX, ...images.map((image) => Math.max(image.naturalWidth, image.naturalHeight)));
  const name = `${document.title}, ${images.map((image) => image.alt).join(" beside ")}`;
  try {
    await download(await canvasOf(title, cells(true), side), name);
  } catch {
    await download(await canvasOf(title, cells(false), SMALL_PX), name);
  }
}
