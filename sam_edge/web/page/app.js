// The page: what is asked, of which models, and what becomes of the answers.

import { Client } from "./client.js";
import { agreement, cocoOf, iou } from "./masks.js";
import { painted, unionOf } from "./paint.js";
import { Stage } from "./stage.js";

const MOST_PIXELS = 16_000_000; // what phones' browsers hold in one canvas
const MOST_THREADS = 4; // more meet slow cores

const $ = (id) => document.getElementById(id);
const threads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
let entries = [];
let client;
let photo = null; // {bitmap, url, name, width, height}
let stages = [];
let active;
let tool = "in";
let prompts = { points: [], box: null };
let history = [];
let asking = false;
let again = false;
let search = null; // of everything: what stops it
let silence;

// ---- the photo ----

async function open(file) {
  let bitmap;
  let shrunk = "";
  try {
    bitmap = await createImageBitmap(file);
    const share = Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height));
    if (share < 1) {
      const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((side) => Math.max(Math.floor(side * share), 1));
      bitmap = await createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
      shrunk = `Large photo: masks are found and saved at ${resizeWidth} × ${resizeHeight} pixels.`;
    }
  } catch {
    fail(new Error(`${file.name || "This"} is not a picture that this browser can read.`));
    return;
  }
  if (photo) URL.revokeObjectURL(photo.url);
  photo = { bitmap, url: URL.createObjectURL(file), name: file.name || "photo", width: bitmap.width, height: bitmap.height };
  $("welcome").hidden = true;
  $("stages").hidden = $("bar").hidden = false;
  document.body.classList.add("open");
  say(shrunk, 10_000);
  reset();
  await show();
}

/** The photo's pixels, on white where it is transparent. */
function pixels() {
  const canvas = new OffscreenCanvas(photo.width, photo.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, photo.width, photo.height);
  context.drawImage(photo.bitmap, 0, 0);
  return { canvas, context, image: context.getImageData(0, 0, photo.width, photo.height) };
}

/** Give the photo to the worker, and have every stage's model embed it. */
async function show() {
  for (const stage of stages) stage.show(photo.url, photo.width, photo.height);
  refresh();
  const { buffer } = pixels().image.data;
  const { width, height } = photo;
  client.call("photo", { rgba: buffer, width, height }, { transfer: [buffer] }).catch(fail);
  await embed(stages);
}

async function embed(some) {
  const [of, shown] = [client, photo];
  await Promise.all(
    some.map(async (stage) => {
      stage.busy(true);
      stage.times.textContent = "loading …";
      try {
        await of.call("load", { model: stage.entry.name });
        if (photo === shown) stage.times.textContent = "looking …";
        const { ms } = await of.call("embed", { model: stage.entry.name });
        if (of !== client || photo !== shown) return;
        stage.embedMs = ms;
        stage.took([["photo", ms]]);
        stage.busy(false);
      } catch (error) {
        stage.busy(false);
        if (of !== client) return;
        fail(error);
        if ($("provider").value !== "webgpu") return;
        // a GPU's driver may refuse what any processor can do
        $("provider").value = "wasm";
        await start("wasm");
      }
    }),
  );
}

// ---- prompts ----

function reset() {
  search?.abort();
  [prompts, history] = [{ points: [], box: null }, []];
}

function remember() {
  history.push({ prompts, masks: stages.map(({ entry, current, kept }) => [entry.name, { current, kept }]) });
}

/** Ask for the mask of other prompts; `since` is when the user did it. */
function change(next, since = performance.now()) {
  remember();
  prompts = next;
  refresh();
  ask(since);
}

async function ask(since) {
  if (asking) {
    // only the latest prompts matter
    again = since;
    return;
  }
  asking = true;
  const [of, shown, asked] = [client, photo, prompts];
  const nothing = !asked.points.length && !asked.box;
  await Promise.all(
    stages.map(async (stage) => {
      try {
        const found = nothing ? null : await of.call("prompt", { model: stage.entry.name, ...asked });
        // meanwhile cleared, or about another photo
        if (of !== client || photo !== shown || (prompts !== asked && again === false)) return;
        stage.current = found?.value ?? null;
        stage.paint();
        if (nothing) return;
        await painting();
        stage.took([["photo", stage.embedMs], ["mask", performance.now() - since]]);
        stage.view.dataset.ms = (performance.now() - since).toFixed(1);
      } catch (error) {
        if (of === client) fail(error);
      }
    }),
  );
  asking = false;
  if (again !== false) {
    const next = again;
    again = false;
    ask(next);
    return;
  }
  refresh();
  if (!nothing && stages[0]?.current) describe(stages[0].current);
}

function describe(mask) {
  const share = (100 * mask.area) / (photo.width * photo.height);
  say(mask.area ? `${share.toFixed(share < 10 ? 1 : 0)} % of the photo, predicted IoU ${mask.iou.toFixed(2)}` : "Nothing is there.");
}

const painting = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

async function everything() {
  if (search) {
    search.abort();
    return;
  }
  search = new AbortController();
  const { signal } = search;
  remember();
  prompts = { points: [], box: null };
  for (const stage of stages) [stage.current, stage.kept] = [null, []];
  refresh();
  const [of, shown, pointsPerSide] = [client, photo, Number($("points-per-side").value)];
  await Promise.all(
    stages.map(async (stage) => {
      stage.busy(0);
      const onProgress = ({ done, total }) => stage.busy(done / total);
      try {
        const { value, ms } = await of.call("everything", { model: stage.entry.name, pointsPerSide }, { signal, onProgress });
        if (of !== client || photo !== shown) return;
        stage.kept = value;
        stage.paint();
        stage.took([["photo", stage.embedMs], [counted(value), ms]]);
      } catch (error) {
        if (of === client) fail(error);
      }
      stage.busy(false);
    }),
  );
  search = null;
  refresh();
  if (photo === shown) say(stages.map(({ kept }) => counted(kept)).join(" and "));
}

const counted = (masks) => `${masks.length} mask${masks.length === 1 ? "" : "s"}`;

// ---- what is seen ----

function refresh() {
  for (const stage of stages) {
    stage.prompts = prompts;
    stage.mark();
    stage.paint();
    stage.element.classList.toggle("active", stages.length > 1 && stage === active);
  }
  const shown = active?.all.length ?? 0;
  const prompted = Boolean(prompts.points.length || prompts.box);
  setDisabled("keep", !active?.current?.area);
  setDisabled("undo", !history.length || Boolean(search));
  setDisabled("clear", !(shown || prompted) || Boolean(search));
  setDisabled("save", !shown);
  button("everything").textContent = search ? "Stop" : "Everything";
  for (const each of document.querySelectorAll("[data-tool]")) {
    each.setAttribute("aria-checked", String(each.dataset.tool === tool));
    each.tabIndex = each.dataset.tool === tool ? 0 : -1;
  }
  compareMasks();
}

/** Say of the second model how alike its masks are to the first's. */
function compareMasks() {
  const [first, second] = stages;
  let text = "";
  if (second && first.current && second.current) text = `IoU ${iou(first.current, second.current).toFixed(3)}`;
  else if (second && first.kept.length && second.kept.length && !search) {
    text = `agreement ${agreement(first.kept, second.kept).toFixed(3)}`;
  }
  for (const stage of stages) stage.alike.textContent = stage === second ? text : "";
}

function button(action) {
  return document.querySelector(`#bar [data-action=${action}], header [data-action=${action}]`);
}

function setDisabled(action, disabled) {
  button(action).disabled = disabled;
}

/** Tell the user something, for a while. */
function say(text, forMs = 4000) {
  clearTimeout(silence);
  $("message").textContent = text;
  silence = setTimeout(() => ($("message").textContent = ""), forMs);
}

function fail(error) {
  say(error.message, 30_000);
}

// ---- models ----

function entryOf(name) {
  return entries.find((entry) => entry.name === name);
}

function layStages() {
  const names = [$("model").value, $("compare").value].filter(Boolean);
  stages = names.map((name) => stages.find((stage) => stage.entry.name === name) ?? newStage(entryOf(name)));
  active = stages[0];
  $("stages").replaceChildren(...stages.map((stage) => stage.element));
  $("stages").classList.toggle("two", stages.length > 1);
}

function newStage(entry) {
  const stage = new Stage(
    entry,
    {
      point: (point, since) => change({ ...prompts, points: [...prompts.points, point] }, since),
      box: (box, since) => change({ points: [], box }, since),
      focus: () => {
        active = stage;
        refresh();
      },
    },
    () => tool,
  );
  return stage;
}

async function chooseModels() {
  const [model, compare] = [$("model"), $("compare")];
  for (const option of compare.options) option.disabled = option.value === model.value;
  if (compare.value === model.value) compare.value = "";
  const before = new Set(stages);
  layStages();
  if (!photo) return;
  const added = stages.filter((stage) => !before.has(stage));
  for (const stage of added) stage.show(photo.url, photo.width, photo.height);
  // masks of everything are the other model's; what was asked by hand is asked again
  refresh();
  await embed(added);
  ask(performance.now());
}

async function start(provider) {
  client?.close();
  search = null;
  asking = again = false;
  client = new Client(entries, provider, threads);
  $("machine").textContent = provider === "webgpu" ? "WebGPU" : `WASM · ${threads} thread${threads > 1 ? "s" : ""}`;
  if (!crossOriginIsolated) $("machine").title = "Threads need https, or `sam-edge serve`.";
  if (!photo) return;
  await show();
  ask(performance.now());
}

/** Whether there is a GPU that this browser lets WebAssembly wait for. */
async function hasGpu() {
  if (!navigator.gpu || !("Suspending" in WebAssembly)) return false;
  return Boolean(await navigator.gpu.requestAdapter().catch(() => null));
}

// ---- saving ----

const saving = {
  overlay() {
    const { canvas, context } = pixels();
    const masks = new OffscreenCanvas(photo.width, photo.height);
    const image = painted(active.all, [...active.all.keys()], photo.width, photo.height);
    masks.getContext("2d").putImageData(image, 0, 0);
    context.drawImage(masks, 0, 0);
    return canvas.convertToBlob();
  },
  cutout: () => asPng(unionOf(active.all, photo.width, photo.height, pixels().image)),
  mask: () => asPng(unionOf(active.all, photo.width, photo.height)),
  coco() {
    const coco = cocoOf(photo.name, photo.width, photo.height, active.entry.name, active.all);
    return new Blob([JSON.stringify(coco)], { type: "application/json" });
  },
};

function asPng(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.convertToBlob();
}

async function save(what) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await saving[what]());
  link.download = `${photo.name.replace(/\.\w+$/, "")}-${what === "coco" ? "masks.json" : `${what}.png`}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  say(`${link.download} saved.`);
}

function menu(shown) {
  $("save-menu").hidden = !shown;
  button("save").setAttribute("aria-expanded", String(shown));
  if (shown) $("save-menu").querySelector("button").focus();
}

// ---- what the user does ----

const actions = {
  open: () => $("file").click(),
  async sample() {
    const response = await fetch("sample.jpg");
    await open(new File([await response.blob()], "espresso.jpg"));
  },
  everything,
  keep() {
    remember();
    for (const stage of stages) {
      if (stage.current?.area) stage.kept = [...stage.kept, stage.current];
      stage.current = null;
    }
    prompts = { points: [], box: null };
    refresh();
    say(`${active.kept.length} kept.`);
  },
  undo() {
    const { prompts: before, masks } = history.pop();
    const byName = Object.fromEntries(masks);
    prompts = before;
    for (const stage of stages) Object.assign(stage, byName[stage.entry.name] ?? { current: null, kept: [] });
    refresh();
    say("");
  },
  clear() {
    remember();
    prompts = { points: [], box: null };
    for (const stage of stages) [stage.current, stage.kept] = [null, []];
    refresh();
    say("");
  },
  save: () => menu($("save-menu").hidden),
};

function choose(name) {
  tool = name;
  refresh();
}

addEventListener("click", (event) => {
  const pressed = event.target.closest?.("button");
  if (!pressed?.closest(".menu")) menu(false);
  if (!pressed) return;
  const { action, tool: named, save: what } = pressed.dataset;
  if (named) choose(named);
  if (action) actions[action]();
  if (what) {
    menu(false);
    button("save").focus();
    save(what).catch(fail);
  }
});

const keys = { 1: "in", 2: "out", 3: "box", e: "everything", k: "keep", z: "undo", Delete: "clear", Backspace: "clear", s: "save", o: "open" };
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (!$("save-menu").hidden) button("save").focus();
    menu(false);
    search?.abort();
    return;
  }
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const group = event.target.closest?.("[role=menu], [role=radiogroup]");
  if (step && group) {
    const items = [...group.querySelectorAll("button")];
    const next = items[(items.indexOf(document.activeElement) + step + items.length) % items.length];
    if (next.dataset.tool) choose(next.dataset.tool);
    next.focus();
    event.preventDefault();
    return;
  }
  const named = keys[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  const editing = event.target.closest?.("select, [role=menu]");
  if (!named || editing || event.altKey || ((event.ctrlKey || event.metaKey) && named !== "undo") || !photo) return;
  event.preventDefault();
  if (["in", "out", "box"].includes(named)) choose(named);
  else if (!button(named).disabled) actions[named]();
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file);
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) open(file);
  $("file").value = "";
});
$("model").addEventListener("change", chooseModels);
$("compare").addEventListener("change", chooseModels);
$("provider").addEventListener("change", () => start($("provider").value));

/** Have a service worker send the headers that threads need, where the server does not; true if the page reloads. */
async function isolate() {
  const workers = navigator.serviceWorker;
  // once: a browser that does not isolate the page even so would reload it for ever
  if (crossOriginIsolated || !isSecureContext || !workers || sessionStorage.getItem("isolated")) return false;
  sessionStorage.setItem("isolated", "tried");
  await workers.register("isolate.js");
  await workers.ready;
  location.reload();
  return true;
}

async function begin() {
  if (await isolate().catch(() => false)) return;
  const response = await fetch("site.json");
  entries = (await response.json()).models;
  const size = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  const option = (entry) => new Option(`${entry.name} · ${entry.precision.toUpperCase()} · ${size(entry.bytes)}`, entry.name);
  $("model").append(...entries.map(option));
  $("compare").append(new Option("no other model", ""), ...entries.map(option));
  $("compare-label").hidden = entries.length < 2;
  let provider = "wasm";
  if (await hasGpu()) {
    $("provider").append(new Option("Processor", "wasm"), new Option("Graphics", "webgpu"));
    $("provider-label").hidden = false;
    // integers are multiplied by processors' kernels; a GPU would turn them into floats
    if (entries.every((entry) => entry.precision !== "int8")) provider = "webgpu";
    $("provider").value = provider;
  }
  await start(provider);
  await chooseModels();
  refresh();
}

begin().catch(fail);
