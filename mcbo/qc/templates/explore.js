// The crosshair: what lies under it, and the slices through it, drawn from the small volumes that the page holds.
const IMAGES = ["fixed", "moving", "warped"];
// Edges: longest side of their drawing; smoothing in voxels; share of the pixels that are steep enough.
const EDGE_PIXELS = 400, EDGE_WIDTH = 1.8, EDGE_SHARE = 0.2;

async function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));
  const whole = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  const values = new Kind(await whole.arrayBuffer());
  for (let n = 1; n < values.length; n += 1) values[n] += values[n - 1];  // differences, modulo the type's range
  return values;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const applied = (matrix, [i, j, k]) => matrix.map(([x, y, z, shift = 0]) => x * i + y * j + z * k + shift);

// The displacement at a position, voxels, trilinear between the nodes; the outermost lie at the outermost voxels.
function displacementAt(pair, position) {
  const { shape, nodes, step } = pair;
  const low = [], part = [];
  for (let a = 0; a < 3; a += 1) {
    const at = (clamp(position[a], 0, shape[a] - 1) * (nodes[a] - 1)) / (shape[a] - 1);
    low[a] = Math.min(Math.floor(at), nodes[a] - 2);
    part[a] = at - low[a];
  }
  const strides = [nodes[1] * nodes[2], nodes[2], 1];
  const first = low[0] * strides[0] + low[1] * strides[1] + low[2];
  const count = nodes[0] * strides[0];
  return [0, 1, 2].map((component) => {
    let sum = 0;
    for (let corner = 0; corner < 8; corner += 1) {
      let weight = 1, at = component * count + first;
      for (let a = 0; a < 3; a += 1) {
        const upper = (corner >> a) & 1;
        weight *= upper ? part[a] : 1 - part[a];
        at += upper * strides[a];
      }
      sum += weight * pair.field[at];
    }
    return sum * step;
  });
}

// Fills a canvas with a plane through a point; `color` gives a voxel's red, green and blue.
function paint(canvas, pair, plane, point, color) {
  const { shape, images } = pair;
  canvas.width = images[plane.across];
  canvas.height = images[plane.down];
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(canvas.width, canvas.height);
  const voxel = [0, 0, 0];
  voxel[plane.axis] = Math.floor(((point[plane.axis] + 0.5) * images[plane.axis]) / shape[plane.axis]);
  for (let row = 0, at = 0; row < canvas.height; row += 1) {
    voxel[plane.down] = plane.downFlipped ? canvas.height - 1 - row : row;
    for (let column = 0; column < canvas.width; column += 1, at += 4) {
      voxel[plane.across] = plane.acrossFlipped ? canvas.width - 1 - column : column;
      drawn.data.set(color(voxel), at);
      drawn.data[at + 3] = 255;
    }
  }
  context.putImageData(drawn, 0, 0);
}

function grayOf(pair, name) {
  const [, columns, slices] = pair.images, values = pair.volumes[name];
  return ([i, j, k]) => { const gray = values[(i * columns + j) * slices + k]; return [gray, gray, gray]; };
}

const lengthAt = (pair, position) => Math.hypot(...applied(pair.along, displacementAt(pair, position)));

// The picture's slice is the point's own, since the displacement can be told anywhere.
function magnitudeOf(pair, plane, point) {
  const center = pair.images.map((count, a) => (index) => ((index + 0.5) * pair.shape[a]) / count - 0.5);
  return (voxel) => {
    const position = voxel.map((index, a) => (a === plane.axis ? point[a] : center[a](index)));
    const at = clamp(lengthAt(pair, position) / pair.high, 0, 1) * (pair.palette.length - 1);
    const low = Math.min(Math.floor(at), pair.palette.length - 2);
    return pair.palette[low].map((part, n) => part + (at - low) * (pair.palette[low + 1][n] - part));
  };
}

// Edges as the page's pictures have them: zero crossings of the Laplacian of a smoothed image where its gradient is steep.
function outline(canvas, pair, plane, point) {
  const axes = [plane.across, plane.down], voxels = axes.map((axis) => Math.hypot(...pair.along.map((row) => row[axis])));
  const sides = axes.map((axis, n) => pair.shape[axis] * voxels[n]);
  const scale = EDGE_PIXELS / Math.max(...sides);
  const [width, height] = sides.map((side) => Math.max(3, Math.round(side * scale)));
  const finest = Math.min(...axes.map((axis, n) => sides[n] / pair.images[axis]));
  const sigma = scale * Math.max(EDGE_WIDTH * Math.min(...voxels), finest);
  const [gray, seen] = ["fixed", "seen"].map((name) => {
    const small = document.createElement("canvas"), large = document.createElement("canvas");
    paint(small, pair, plane, point, grayOf(pair, name));
    [large.width, large.height] = [width, height];
    const context = large.getContext("2d");
    context.drawImage(small, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    return smoothed(Float32Array.from({ length: width * height }, (_, n) => data[4 * n]), width, height, sigma);
  });
  [canvas.width, canvas.height] = [width, height];
  const inside = new Uint8Array(gray.length), steep = new Float32Array(gray.length), known = [];
  for (let y = 1; y < height - 1; y += 1) {
    for (let x = 1; x < width - 1; x += 1) {
      const at = y * width + x;
      inside[at] = gray[at - 1] + gray[at + 1] + gray[at - width] + gray[at + width] > 4 * gray[at];
      if (seen[at] < 240) continue;  // its outline is not an edge
      steep[at] = Math.hypot(gray[at + 1] - gray[at - 1], gray[at + width] - gray[at - width]);
      known.push(steep[at]);
    }
  }
  const least = Math.max(1e-3, Float32Array.from(known).sort()[Math.floor((1 - EDGE_SHARE) * known.length)] ?? Infinity);
  const context = canvas.getContext("2d");
  for (const [color, size] of [["#0009", 4], ["#ffb000", 2]]) {
    context.fillStyle = color;
    for (let at = width; at < gray.length - width; at += 1) {
      if (steep[at] < least || !inside[at]) continue;
      if (inside[at - 1] && inside[at + 1] && inside[at - width] && inside[at + width]) continue;
      context.fillRect((at % width) + 0.5 - size / 2, Math.floor(at / width) + 0.5 - size / 2, size, size);
    }
  }
}

// By a Gaussian whose standard deviation is in pixels, along both axes; beyond the border, its value counts.
function smoothed(values, width, height, sigma) {
  const reach = Math.ceil(3 * sigma);
  const weights = Array.from({ length: 2 * reach + 1 }, (_, n) => Math.exp(-((n - reach) ** 2) / (2 * sigma ** 2)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  for (const [count, stride, lines, apart] of [[width, 1, height, width], [height, width, width, 1]]) {
    const result = new Float32Array(values.length);
    for (let line = 0; line < lines; line += 1) {
      for (let at = 0; at < count; at += 1) {
        let sum = 0;
        for (let n = -reach; n <= reach; n += 1) sum += weights[n + reach] * values[line * apart + clamp(at + n, 0, count - 1) * stride];
        result[line * apart + at * stride] = sum / total;
      }
    }
    values = result;
  }
  return values;
}

// Where a voxel of an axis lies on a picture, from 0 to 1, and the reverse.
const placed = (pair, axis, flipped, index) => { const at = (index + 0.5) / pair.shape[axis]; return flipped ? 1 - at : at; };
const indexAt = (pair, axis, flipped, at) => clamp(Math.floor((flipped ? 1 - at : at) * pair.shape[axis]), 0, pair.shape[axis] - 1);

function show(pair, point) {
  pair.point = point;
  for (const { picture, plane, caption, canvases } of pair.pictures) {
    picture.style.setProperty("--x", 100 * placed(pair, plane.across, plane.acrossFlipped, point[plane.across]) + "%");
    picture.style.setProperty("--y", 100 * placed(pair, plane.down, plane.downFlipped, point[plane.down]) + "%");
    caption.textContent = point[plane.axis];
    const edges = canvases.edges && picture.closest(".viewer").querySelector("[value=edges]").checked;
    const drawn = `${point[plane.axis]} ${edges}`;
    if (canvases.drawn === drawn) continue;
    canvases.drawn = drawn;
    const moved = point[plane.axis] !== plane.index;
    picture.classList.toggle("moved", moved);
    for (const mark of picture.querySelectorAll(".marks g")) {
      mark.classList.toggle("far", Math.abs(mark.dataset.at - point[plane.axis]) > pair.shape[plane.axis] / 10);
    }
    if (moved && edges) outline(canvases.edges, pair, plane, point);
    for (const [name, canvas] of canvases.all) {
      if (moved) paint(canvas, pair, plane, point, name === "magnitude" ? magnitudeOf(pair, plane, point) : grayOf(pair, name));
    }
  }
  tell(pair, point);
}

function tell(pair, point) {
  const put = (name, numbers, digits) => {
    const field = pair.panel.querySelector(".of-" + name);
    if (field) field.textContent = numbers.map((number) => number.toFixed(digits).replace(/^-(0\.?0*)$/, "$1")).join(", ");
  };
  const vector = applied(pair.along, displacementAt(pair, point));
  const length = Math.hypot(...vector);
  put("voxel", point, 0);
  put("start", pair.microscopy ? applied(pair.along, point) : point, 2);
  put("world", applied(pair.place, point), 2);
  put("vector", vector, 2);
  put("length", [length], 2);
  if (pair.now) pair.now.style.left = 100 * clamp(length / pair.high, 0, 1) + "%";
}

// What was set stays; a mouse that passes only looks.
function set(pair, point) {
  pair.set = point;
  show(pair, point);
}

function pointUnder(pair, { picture, plane }, event) {
  const box = picture.getBoundingClientRect();
  const rows = picture.querySelector(".fixed") && chosen(picture.closest(".viewer")) === "all" ? 3 : 1;
  const height = (box.height - 4 * (rows - 1)) / rows;  // 4 pixels lie between them
  const point = [...pair.set];
  const right = (event.clientX - box.left) / box.width;
  const down = ((event.clientY - box.top) % (height + 4)) / height;
  point[plane.across] = indexAt(pair, plane.across, plane.acrossFlipped, right);
  point[plane.down] = indexAt(pair, plane.down, plane.downFlipped, clamp(down, 0, 1));
  return point;
}

function onKey(pair, { plane }, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const far = event.shiftKey ? 10 : 1;
  const across = plane.acrossFlipped ? -far : far, down = plane.downFlipped ? -far : far;
  const steps = {
    ArrowRight: [plane.across, across],
    ArrowLeft: [plane.across, -across],
    ArrowDown: [plane.down, down],
    ArrowUp: [plane.down, -down],
    PageUp: [plane.axis, far],
    PageDown: [plane.axis, -far],
  };
  const step = steps[event.key];
  if (!step && event.key !== "Home") return;
  event.preventDefault();
  const point = step ? [...pair.set] : pair.start;
  if (step) point[step[0]] = clamp(point[step[0]] + step[1], 0, pair.shape[step[0]] - 1);
  pair.panel.querySelector("dl").setAttribute("aria-live", "polite");
  set(pair, point);
}

function listen(pair, one) {
  const { picture, plane } = one;
  let frame = 0, from = null;
  picture.tabIndex = 0;
  picture.setAttribute("role", "application");
  picture.setAttribute("aria-label", `${plane.name}: arrow keys move the crosshair, Page Up and Page Down change the slice`);
  picture.setAttribute("aria-describedby", pair.panel.querySelector("dl").id);
  picture.addEventListener("keydown", (event) => onKey(pair, one, event));
  picture.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
  picture.addEventListener("pointermove", (event) => {
    const slides = picture.closest(".viewer") && chosen(picture.closest(".viewer")) === "slider";
    if (frame || (event.buttons && slides)) return;
    const point = pointUnder(pair, one, event);
    pair.panel.querySelector("dl").setAttribute("aria-live", "off");
    frame = requestAnimationFrame(() => { frame = 0; (event.buttons === 1 ? set : show)(pair, point); });
  });
  picture.addEventListener("pointerup", (event) => {
    if (from && Math.hypot(event.clientX - from[0], event.clientY - from[1]) < 4) set(pair, pointUnder(pair, one, event));
    from = null;
  });
  picture.addEventListener("pointerleave", () => { cancelAnimationFrame(frame); frame = 0; show(pair, pair.set); });
}

async function start(panel) {
  const pair = JSON.parse(panel.dataset.small);
  const section = panel.parentElement;
  pair.panel = panel;
  pair.field = await unpack(panel.dataset.displacement, Int16Array);
  pair.volumes = {};
  for (const name of [...IMAGES, "seen"]) if (panel.dataset[name]) pair.volumes[name] = await unpack(panel.dataset[name], Uint8Array);
  pair.palette = pair.colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  pair.now = section.querySelector(".colorbar b");
  pair.pictures = [];
  for (const row of section.querySelectorAll(".viewer .planes, .magnitudes .planes")) {
    [...row.querySelectorAll(".pic")].forEach((picture, n) => {
      const canvases = { all: new Map(), drawn: null };
      for (const image of picture.querySelectorAll("img:not(.edges)")) {
        const canvas = document.createElement("canvas");
        canvas.className = image.className;
        image.after(canvas);
        canvases.all.set(image.className, canvas);
        const cross = document.createElement("i");
        cross.className = "cross of-" + image.className;
        picture.append(cross);
      }
      const drawing = picture.querySelector("img.edges");
      if (drawing) {
        canvases.edges = document.createElement("canvas");
        canvases.edges.className = "edges";
        drawing.after(canvases.edges);
      }
      const one = { picture, plane: pair.planes[n], caption: picture.parentElement.querySelector(".slice"), canvases };
      pair.pictures.push(one);
      listen(pair, one);
    });
  }
  pair.start = [0, 0, 0];
  for (const plane of pair.planes) pair.start[plane.axis] = plane.index;
  section.querySelector("[value=edges]")?.addEventListener("change", () => show(pair, pair.point));
  panel.querySelector(".center").addEventListener("click", () => set(pair, pair.start));
  panel.querySelector(".download").addEventListener("click", () => download(pair, section));
  panel.hidden = false;
  if (pair.now) pair.now.hidden = false;
  set(pair, pair.start);
}

// A figure of what is shown: a row for each image and for the displacement, a column for each plane, black on white.
async function compose(pair, section) {
  const width = 1500, edge = 24, gap = 10, left = 170;
  const planes = pair.pictures.filter(({ picture }) => picture.matches(".magnitude")).map((one) => {
    const style = getComputedStyle(one.picture);
    return { ...one, size: ["--w", "--h"].map((name) => parseFloat(style.getPropertyValue(name))) };
  });
  const scale = (width - left - edge - gap * (planes.length - 1)) / planes.reduce((sum, { size }) => sum + size[0], 0);
  const tallest = Math.max(...planes.map(({ size }) => size[1])) * scale;
  const rows = [...IMAGES.filter((name) => pair.volumes[name]), "magnitude"];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = edge + 84 + rows.length * (tallest + gap) + 130;
  const draw = canvas.getContext("2d");
  draw.fillStyle = "#fff";
  draw.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, { align = "left", color = "#000", font = "20px system-ui, sans-serif" } = {}) => {
    Object.assign(draw, { font, fillStyle: color, textAlign: align });
    draw.fillText(text, x, y);
  };
  let y = edge + 60;
  write(section.querySelector("h3").textContent, edge, edge + 22, { font: "bold 22px system-ui, sans-serif" });
  let x = left;
  for (const { plane, size } of planes) {
    write(`${plane.name}, slice ${pair.point[plane.axis]}`, x, y);
    x += size[0] * scale + gap;
  }
  y += 16;
  for (const name of rows) {
    write(name === "magnitude" ? "displacement" : name, edge, y + 24);
    x = left;
    for (const { plane, size } of planes) {
      const one = pair.pictures.find(({ plane: its, canvases }) => its === plane && canvases.all.has(name));
      const [w, h] = size.map((side) => side * scale);
      const moved = one.picture.classList.contains("moved");
      const source = moved ? one.canvases.all.get(name) : one.picture.querySelector("img." + name);
      if (!moved) await source.decode();
      draw.imageSmoothingQuality = "high";
      draw.drawImage(source, x, y, w, h);
      draw.strokeStyle = "#5df2ff";
      draw.lineWidth = 1;
      const right = x + w * placed(pair, plane.across, plane.acrossFlipped, pair.point[plane.across]);
      const down = y + h * placed(pair, plane.down, plane.downFlipped, pair.point[plane.down]);
      draw.beginPath();
      for (const [x0, y0, x1, y1] of [[x, down, right - 12, down], [right + 12, down, x + w, down],
        [right, y, right, down - 12], [right, down + 12, right, y + h]]) { draw.moveTo(x0, y0); draw.lineTo(x1, y1); }
      draw.stroke();
      label(draw, write, one.picture, x, y, w, h);
      x += w + gap;
    }
    y += tallest + gap;
  }
  const bar = section.querySelector(".colorbar");
  const shade = draw.createLinearGradient(left, 0, left + 400, 0);
  pair.colors.forEach((color, n) => shade.addColorStop(n / (pair.colors.length - 1), color));
  draw.fillStyle = shade;
  draw.fillRect(left, y + 6, 400, 16);
  for (const tick of bar.querySelectorAll("span")) {
    const last = !tick.nextElementSibling.matches("span");
    write(tick.textContent, left + 4 * parseFloat(tick.style.left) - (last ? 12 : 0), y + 44, { align: last ? "left" : "center" });
  }
  const told = [...pair.panel.querySelectorAll("dl div")].map((row) => [...row.children].map((part) => part.textContent).join(" "));
  write(told.slice(0, -2).join("    "), edge, y + 82);
  write(told.slice(-2).join("    "), edge, y + 110);
  return canvas;
}

// The letters at the edges and the scale bar of a picture of the page.
function label(draw, write, picture, x, y, w, h) {
  const look = { color: "#fff", font: "bold 18px system-ui, sans-serif" };
  draw.shadowColor = "#000";
  draw.shadowBlur = 5;
  for (const [name, right, down, align] of [["left", 8, h / 2 + 6, "left"], ["right", w - 8, h / 2 + 6, "right"],
    ["top", w / 2, 22, "center"], ["bottom", w / 2, h - 8, "center"]]) {
    write(picture.querySelector("b." + name).textContent, x + right, y + down, { ...look, align });
  }
  const bar = picture.querySelector(".bar");
  draw.fillRect(x + 12, y + h - 12, (w * parseFloat(bar.style.width)) / 100, 4);
  write(bar.textContent, x + 12, y + h - 18, { ...look, align: "left", font: "18px system-ui, sans-serif" });
  draw.shadowBlur = 0;
}

async function download(pair, section) {
  const canvas = await compose(pair, section);
  const link = document.createElement("a");
  link.download = section.querySelector("h3").textContent.replace(/[^\w.-]+/g, "_").slice(0, 80) + ".png";
  canvas.toBlob((blob) => {
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

if ("DecompressionStream" in window) {
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      start(target.querySelector(".explore"));
    }
  }, { rootMargin: "400px" });
  for (const panel of document.querySelectorAll(".explore")) seen.observe(panel.parentElement);
}
