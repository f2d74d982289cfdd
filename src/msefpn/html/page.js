"use strict";
const root = document.documentElement;
const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a page without storage forgets it */ }
});

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((link) => link.classList.remove("here"));
    const link = links.get(entry.target.id);
    link.classList.add("here");
    link.parentElement.scrollTo({ left: link.offsetLeft - link.parentElement.offsetLeft - 60 });
  }
}, { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("section[id]").forEach((section) => seen.observe(section));

const box = document.querySelector("dialog");
document.querySelectorAll(".shots img, .shot img").forEach((img) => img.addEventListener("click", () => {
  box.firstElementChild.src = img.src;
  box.firstElementChild.alt = img.alt;
  box.showModal();
}));
box.addEventListener("click", () => box.close());

for (const plot of document.querySelectorAll("[data-series]")) {
  const { series, left, right, log } = JSON.parse(plot.dataset.series);
  const scale = (x) => log ? (Math.log(x) - Math.log(left)) / (Math.log(right) - Math.log(left)) : (x - left) / (right - left);
  const all = [...new Set(series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  const hair = Object.assign(document.createElement("div"), { className: "hair", hidden: true });
  const readout = Object.assign(document.createElement("div"), { className: "readout", hidden: true });
  plot.append(hair, readout);
  let at = -1;
  const nearest = (points, x) => points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
  const show = (index) => {
    at = Math.max(0, Math.min(all.length - 1, index));
    const x = all[at];
    readout.replaceChildren(document.createTextNode(`${plot.dataset.x} ${+x.toPrecision(6)}`));
    for (const one of series) {
      if (!one.points.length) continue;
      const point = nearest(one.points, x);
      const line = document.createElement("div");
      const mark = Object.assign(document.createElement("span"), { className: "swatch" });
      mark.style.setProperty("--c", `var(--s${one.color})`);
      line.append(mark, `${one.name} `, Object.assign(document.createElement("b"), { textContent: `${+point[1].toPrecision(4)}` }));
      readout.append(line);
    }
    hair.hidden = readout.hidden = false;
    const share = scale(x);
    hair.style.left = `${100 * share}%`;
    readout.style.left = share < 0.5 ? `calc(${100 * share}% + 10px)` : "";
    readout.style.right = share < 0.5 ? "" : `calc(${100 - 100 * share}% + 10px)`;
  };
  const hide = () => { hair.hidden = readout.hidden = true; };
  const follow = (event) => {
    const edge = plot.getBoundingClientRect();
    const share = (event.clientX - edge.left) / edge.width;
    let best = 0;
    all.forEach((x, index) => { if (Math.abs(scale(x) - share) < Math.abs(scale(all[best]) - share)) best = index; });
    show(best);
  };
  if (!all.length) continue;
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(at + step);
  });
}
