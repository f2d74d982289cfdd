"use strict";
// Text from the server, file names and class names are set as text, never as HTML: the page's policy forbids it.

const at = (selector, within = document) => within.querySelector(selector);
const zone = at(".zone");
const video = at(".camera");
const button = at(".camera-button");
const shown = at("#shown");
let about; // of the server: runs, classes and limits
let current; // the last image: its name, the drawn picture and the server's answer
let sending; // aborts the request that a newer image replaces

/** A copy of a template that belongs to the page: elsewhere a canvas has no fonts. */
function copyOf(template) {
  return document.importNode(at(template).content, true);
}

function tell(text) {
  at(".state").textContent = text;
}

function complain(text) {
  const notice = at(".notice");
  notice.textContent = text;
  notice.hidden = !text;
}

async function start() {
  const answer = await fetch("about");
  if (!answer.ok) throw new Error("the page's description is missing");
  about = await answer.json();
  at("#runs").textContent = about.runs.join(" and ");
  at("#count").textContent = `${about.classes.length} class${about.classes.length === 1 ? "" : "es"}`;
  at("#most").textContent = `, up to ${about.bytes / 1e6} MB`;
  at("#list").append(...about.classes.map(choice));
}

// ---- sending an image

async function take(file) {
  if (!file || !about) return;
  complain("");
  if (file.size > about.bytes) {
    complain(`${file.name}: too large: ${(file.size / 1e6).toFixed(1)} MB, the page accepts ${about.bytes / 1e6} MB`);
    return;
  }
  sending?.abort();
  const mine = (sending = new AbortController());
  tell(`${file.name}: detecting …`);
  try {
    const answer = await ask(file, mine.signal);
    const picture = new Image();
    picture.src = answer.picture;
    await picture.decode();
    if (mine.signal.aborted) return;
    current = { name: file.name, picture, answer };
    tell(file.name);
    show();
  } catch (error) {
    if (mine.signal.aborted) return;
    tell("");
    complain(`${file.name}: ${error.message}`);
  }
}

async function ask(file, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  let response;
  try {
    response = await fetch("detect", { method: "POST", body: file, headers, signal });
  } catch {
    throw new Error("the server does not answer: try again");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `the server answers ${response.status}: try again`);
  return answer;
}

at("#file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}
zone.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

// A browser gives the camera only to a page of its own machine, or with https.
button.hidden = !navigator.mediaDevices;
function stop() {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  button.textContent = "Use the camera";
}
button.addEventListener("click", async () => {
  if (video.srcObject) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => take(new File([blob], "camera.jpg")), "image/jpeg", 0.95);
    stop();
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.hidden = false;
    button.textContent = "Take the picture";
  } catch {
    complain("The browser gives no camera to this page");
  }
});

// ---- filters: score and classes need no request

function choice({ name, colour }, label) {
  const item = document.createElement("li");
  const line = document.createElement("label");
  const box = document.createElement("input");
  [box.type, box.value] = ["checkbox", label];
  box.addEventListener("change", filter);
  line.append(box, swatch(colour), name);
  item.append(line);
  return item;
}

function wanted() {
  return new Set([...document.querySelectorAll("#list input:checked")].map((box) => Number(box.value)));
}

function filter() {
  const labels = [...wanted()];
  at("#chosen").textContent = labels.map((label) => about.classes[label].name).join(", ") || "all";
  show();
}

at("#search").addEventListener("input", (event) => {
  const text = event.target.value.toLowerCase();
  for (const item of at("#list").children) item.hidden = !item.textContent.toLowerCase().includes(text);
});
at("#clear").addEventListener("click", () => {
  for (const box of document.querySelectorAll("#list input")) box.checked = false;
  filter();
});
at("#score").addEventListener("input", (event) => {
  at("#number").value = event.target.value;
  show();
});
at("#number").addEventListener("input", (event) => {
  if (event.target.value === "" || !event.target.validity.valid) return;
  at("#score").value = event.target.value;
  show();
});

// ---- showing detections

function show() {
  if (!current) return;
  const note = copyOf("#note");
  const panels = document.createElement("div");
  panels.className = "panels";
  panels.append(...current.answer.runs.map(panel));
  shown.replaceChildren(panels, note);
}

function panel(run) {
  const { name, picture, answer } = current;
  const labels = wanted();
  const least = Number(at("#score").value);
  const rows = run.found.filter((one) => one.result.score >= least && (!labels.size || labels.has(one.label)));
  const count = `${rows.length} of ${run.found.length} boxes`;
  const section = copyOf("#panel").firstElementChild;
  at("h2", section).textContent = run.name;
  const time = run.seconds < 1 ? `${Math.round(run.seconds * 1000)} ms` : `${run.seconds.toFixed(1)} s`;
  at("header p", section).textContent = `${count} · ${time} · ${answer.width} × ${answer.height} px`;
  const canvas = at("canvas", section);
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  canvas.setAttribute("aria-label", `${name} with ${count}`);
  drawDetections(canvas, picture, rows.map(onPicture), about.classes);
  at(".hint", section).hidden = rows.length > 0;
  at(".boxes", section).hidden = rows.length === 0;
  at("tbody", section).append(...rows.map(row));
  at(".save", section).addEventListener("click", () => save(run.name, rows));
  return section;
}

/** A detection with its box in pixels of the shown picture. */
function onPicture(one) {
  const [x, y, width, height] = one.result.bbox;
  const across = current.picture.naturalWidth / current.answer.width;
  const down = current.picture.naturalHeight / current.answer.height;
  return { ...one, box: [x * across, y * down, (x + width) * across, (y + height) * down] };
}

function row({ label, stride, result }) {
  const [x, y, width, height] = result.bbox.map(Math.round);
  const { name, colour } = about.classes[label];
  const line = document.createElement("tr");
  const level = stride ? `P${Math.round(Math.log2(stride))} / ${stride}` : "–";
  const first = document.createElement("div");
  first.append(swatch(colour), name);
  const cells = [first, result.score.toFixed(2), `${x}, ${y}`, `${width} × ${height}`, level];
  line.append(
    ...cells.map((content, place) => {
      const cell = document.createElement("td");
      if (place === 2) cell.className = "corner";
      cell.append(content);
      return cell;
    }),
  );
  return line;
}

function swatch(colour) {
  const mark = document.createElement("i");
  mark.style.background = colour;
  return mark;
}

function save(run, rows) {
  const items = rows.map(({ result, category }) => ({ file_name: current.name, category, ...result }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(items, null, 1)], { type: "application/json" }));
  link.download = `${current.name.replace(/\.[^.]*$/, "")}-${run}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

start().catch(() => complain("The server does not answer: reload the page"));
