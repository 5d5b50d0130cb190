const data = JSON.parse(document.getElementById("data").textContent);
const [height, width, channels] = data.shape;
const pixels = height * width, size = pixels * channels;
const RAMP = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [214, 96, 77], [103, 0, 31]]; // as in the key below
const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const find = (selector, inside = document) => inside.querySelector(selector);
const findAll = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const most = (numbers) => numbers.reduce((largest, each) => Math.max(largest, each), -Infinity);
const average = (numbers) => numbers.reduce((sum, each) => sum + each, 0) / numbers.length;
const format = (number) => (Number.isFinite(number) ? String(Number(number.toPrecision(4))).replace("-", "−") : "not finite");

const x = Float32Array.from(decode(data.x), (level) => (2 * (level + 0.5)) / data.levels - 1);
for (const array of [data.eps, ...data.runs.flatMap((run) => [run.x_phi, run.x_hat, run.residual])]) {
  array.bytes = decode(array.values);
}
for (const run of data.runs) {
  run.bits = run.bits.map((row) => row.map((bits) => bits ?? NaN));
  run.mean = data.times.map((_, time) => average(run.bits.map((row) => row[time])));
}

const range = find("#t"), stretch = find("[data-stretch]"), picks = findAll("[data-pick]");
let image = 0, time = Number(range.value);

function valuesAt(array, place) {
  const scale = array.limit[Math.floor(place / array.limit[0].length)][place % array.limit[0].length] / 127;
  return Float32Array.from(array.bytes.subarray(place * size, (place + 1) * size), (byte) => scale * (byte - 128));
}

function channelMean(values) {
  return Float32Array.from({ length: pixels }, (_, pixel) =>
    average([...values.subarray(pixel * channels, (pixel + 1) * channels)]));
}

function paint(canvas, colour) {
  [canvas.width, canvas.height] = [width, height];
  const picture = new ImageData(width, height);
  for (let pixel = 0; pixel < pixels; pixel++) picture.data.set([...colour(pixel), 255], 4 * pixel);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function paintPixels(canvas, values, stretched) {
  const shown = channels === 3 ? values : channelMean(values);
  const [low, high] = stretched ? [-most(shown.map((value) => -value)), most(shown)] : [-1, 1];
  const level = (value) => (high > low ? (255 * (value - low)) / (high - low) : 127.5); // clipped by ImageData
  paint(canvas, channels === 3
    ? (pixel) => [0, 1, 2].map((channel) => level(shown[3 * pixel + channel]))
    : (pixel) => Array(3).fill(level(shown[pixel])));
}

function paintSigned(canvas, values, limit) {
  paint(canvas, (pixel) => {
    const place = 2 + 2 * Math.max(-1, Math.min(1, limit ? values[pixel] / limit : 0));
    const below = Math.min(3, Math.floor(place));
    return RAMP[below].map((from, channel) => from + (place - below) * (RAMP[below + 1][channel] - from));
  });
}

function draw() {
  const place = image * data.times.length + time;
  const residuals = data.runs.map((run) => channelMean(valuesAt(run.residual, place)));
  const limit = most(residuals.map((values) => most(values.map(Math.abs))));
  const top = most([1e-9, ...data.runs.flatMap((run) => [...run.bits[image], ...run.mean]).filter(Number.isFinite)]);
  const eps = valuesAt(data.eps, image);
  data.runs.forEach((run, index) => {
    const section = find(`[data-run="${index}"]`), panel = (name) => find(`[data-panel="${name}"]`, section);
    const x_phi = valuesAt(run.x_phi, place);
    const z = x_phi.map((value, at) => run.alpha[time] * value + run.sigma[time] * eps[at]);
    paintPixels(panel("x"), x.subarray(image * size, (image + 1) * size), false);
    paintPixels(panel("x_phi"), x_phi, stretch.checked);
    paintPixels(panel("z"), z, stretch.checked);
    paintPixels(panel("x_hat"), valuesAt(run.x_hat, place), stretch.checked);
    paintSigned(panel("residual"), residuals[index], limit);
    for (const end of findAll("[data-limit]", section)) end.textContent = format(end.dataset.limit * limit);
    const step = run.steps ? `step ${Math.round(run.time[time] * run.steps)} of ${run.steps}, from t = ${format(run.time[time])}: ` : "";
    find("[data-point]", section).textContent =
      `${step}λ = ${format(run.log_snr[time])}, α = ${format(run.alpha[time])}, σ = ${format(run.sigma[time])}`;
    for (const [name, bits] of [["image", run.bits[image]], ["mean", run.mean]]) {
      find(`[data-share="${name}"]`, section).textContent = format(bits[time]);
      find(`[data-total="${name}"]`, section).textContent = format(average(bits));
      find(`[data-line="${name}"]`, section).setAttribute("d", path(bits, top));
    }
    find("[data-top]", section).textContent = format(top);
    find("[data-at]", section).setAttribute("d", `M${1000 * data.times[time]} 0V1000`);
    find("[data-mark]", section).setAttribute("d", `${path([run.bits[image][time]], top, time)}h.01`);
  });
  range.value = time;
  const t = Number(data.times[time].toFixed(3));
  range.setAttribute("aria-valuetext", `t = ${t}`);
  find("[data-t]").textContent = t;
  for (const pick of picks) pick.setAttribute("aria-pressed", String(Number(pick.dataset.pick) === image));
}

function path(bits, top, first = 0) {
  const points = bits.map((each, at) => `${1000 * data.times[first + at]} ${1000 - 1000 * ((each || 0) / top)}`);
  return `M${points.join("L")}`;
}

function setTime(next) {
  time = Math.max(0, Math.min(data.times.length - 1, next));
  draw();
}

function setImage(next) {
  image = Math.max(0, Math.min(picks.length - 1, next));
  find("[data-chosen]").textContent = `${picks[image].title} (${image + 1} of ${picks.length} here)`;
  draw();
}

picks.forEach((pick, index) => {
  paintPixels(find("canvas", pick), x.subarray(index * size, (index + 1) * size), false);
  pick.addEventListener("click", () => setImage(index));
});
for (const button of findAll("[data-step]")) {
  button.addEventListener("click", () => setTime(time + Number(button.dataset.step)));
}
range.addEventListener("input", () => setTime(Number(range.value)));
stretch.addEventListener("change", draw);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  const moves = {
    ArrowLeft: () => setTime(time - 1), ArrowRight: () => setTime(time + 1),
    p: () => setImage(image - 1), n: () => setImage(image + 1),
  };
  // Elsewhere these scroll the page.
  if (event.target.closest(".controls")) Object.assign(moves, { ArrowUp: moves.p, ArrowDown: moves.n });
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
});
setImage(0);
