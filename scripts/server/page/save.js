// Saves what is shown: its figures as CSV, the panel as a picture.

const MARGIN = 24, RATIO = 2, HIGHEST = 16000;  // browsers draw no larger canvas

/** Comma-separated values as RFC 4180 has them, in UTF-8. */
export function csv(columns, rows) {
  const cell = (value) => /[",\r\n]/.test(value) || value === "" ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  return [columns, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** The colour that a custom property stands for at the moment, dark or light. */
export function color(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** A canvas with the backgrounds and texts of an element, where the browser has put them. */
export function picture(element) {
  const frame = element.getBoundingClientRect(), canvas = document.createElement("canvas");
  canvas.width = RATIO * (frame.width + 2 * MARGIN);
  canvas.height = Math.min(HIGHEST, RATIO * (frame.height + 2 * MARGIN));
  const context = canvas.getContext("2d");
  context.fillStyle = color("--paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(RATIO, RATIO);
  context.translate(MARGIN - frame.left, MARGIN - frame.top);
  context.imageSmoothingEnabled = false;
  draw(context, element);
  return canvas;
}

function draw(context, element) {
  const style = getComputedStyle(element), box = element.getBoundingClientRect();
  if (!box.width || style.visibility === "hidden") return;
  context.fillStyle = style.backgroundColor;
  context.fillRect(box.x, box.y, box.width, box.height);
  if (element.tagName === "CANVAS") context.drawImage(element, box.x, box.y, box.width, box.height);
  for (const node of element.childNodes) {
    if (node.nodeType === Node.ELEMENT_NODE) draw(context, node);
    else for (const { 0: word, index } of node.data.matchAll(/\S+/g)) {  // each may stand on a line of its own
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      const place = range.getBoundingClientRect();
      context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
      context.fillStyle = style.color;
      context.fillText(word, place.x, place.y + context.measureText(word).fontBoundingBoxAscent);
    }
  }
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
