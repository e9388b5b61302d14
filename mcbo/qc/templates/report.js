"use strict";
// Style sheets switch the pictures; this script moves the slider and handles keys.
const viewers = [...document.querySelectorAll(".viewer")];
let last = viewers[0];

function slide(viewer, percent) {
  const share = Math.min(100, Math.max(0, percent));
  viewer.querySelector("[type=range]").value = share;
  for (const picture of viewer.querySelectorAll(".pic")) {
    picture.style.setProperty("--cut", share + "%");
    picture.style.setProperty("--tile", 24 + 1.6 * share + "px");
  }
}

function chosen(viewer) {
  return viewer.querySelector(".modes input:checked").value;
}

function choose(viewer, mode) {
  viewer.querySelector(`.modes [value=${mode}]`).checked = true;
}

function other(viewer) {
  return viewer.querySelector("[value=before]").checked ? "moving" : "warped";
}

for (const viewer of viewers) {
  for (const event of ["pointerenter", "focusin"]) viewer.addEventListener(event, () => { last = viewer; });
  viewer.querySelector("[type=range]").addEventListener("input", (event) => slide(viewer, +event.target.value));
  for (const picture of viewer.querySelectorAll(".pic")) {
    let from = 0;
    picture.addEventListener("pointerdown", (event) => { picture.setPointerCapture(event.pointerId); from = event.clientX; });
    picture.addEventListener("pointermove", (event) => {
      if (chosen(viewer) !== "slider" || event.buttons !== 1 || Math.abs(event.clientX - from) < 4) return;
      from = -Infinity;  // a click moves the crosshair, not the slider
      const box = picture.getBoundingClientRect();
      slide(viewer, (100 * (event.clientX - box.left)) / box.width);
    });
    picture.addEventListener("dragstart", (event) => event.preventDefault());
  }
}

document.addEventListener("keydown", (event) => {
  if (!last || event.ctrlKey || event.metaKey || event.altKey) return;
  const inputs = [...last.querySelectorAll(".modes input")];
  const key = event.key.toLowerCase();
  if (key === "b") choose(last, chosen(last) === "fixed" ? other(last) : "fixed");
  else if (key === "m") last.querySelector(other(last) === "moving" ? "[value=after]" : "[value=before]").checked = true;
  else if (key === "e") last.querySelector("[value=edges]").click();
  else if (key === "l") last.querySelector("[value=marks]")?.click();
  else if (inputs[+key - 1]) inputs[+key - 1].checked = true;
});

const cases = [...document.querySelectorAll("details.case")];
function open() {
  const wanted = location.hash && document.getElementById(location.hash.slice(1));
  const holder = wanted && wanted.closest("details.case");
  if (holder) { holder.open = true; wanted.scrollIntoView(); }
}
addEventListener("hashchange", open);
open();
document.getElementById("open-all")?.addEventListener("click", () => cases.forEach((one) => { one.open = true; }));
document.getElementById("close-all")?.addEventListener("click", () => cases.forEach((one) => { one.open = false; }));
