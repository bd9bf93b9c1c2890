// All the arithmetic, away from the page's own thread. The page sends {id, kind, ...}, and gets {id, result}, {id, error}
// or, in between, {id, progress}.

import { everything } from "./everything.js";
import { Model } from "./model.js";

const models = new Map();
const pictures = new Map(); // the current photo, embedded by each model
const cancelled = new Set();
let ort;
let photo = null;

const kinds = {
  /** Load ONNX Runtime and hear of the models. */
  async start({ entries, provider, threads }) {
    ort = await import(provider === "webgpu" ? "./runtime/ort.jspi.min.mjs" : "./runtime/ort.wasm.min.mjs");
    ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    for (const entry of entries) models.set(entry.name, new Model(ort, entry, provider));
  },

  /** Take a photo: RGBA bytes. */
  async photo({ rgba, width, height }) {
    photo = { rgba: new Uint8Array(rgba), width, height };
    pictures.clear();
  },

  /** Load a model's graphs for prompts. */
  async load({ model }) {
    return timed(() => models.get(model).load());
  },

  /** Embed the photo. */
  async embed({ model }) {
    return timed(() => pictureOf(model));
  },

  /** The mask of points and a box. */
  async prompt({ model, points, box }) {
    const picture = await pictureOf(model);
    return timed(() => picture.prompted(points, box));
  },

  /** The masks of everything. */
  async everything({ id, model, pointsPerSide }) {
    const picture = await pictureOf(model);
    return timed(() =>
      everything(picture, photo.rgba, pointsPerSide, (done, total) => {
        postMessage({ id, progress: { done, total } });
        return !cancelled.has(id);
      }),
    );
  },
};

async function pictureOf(name) {
  if (!photo) throw new Error("There is no photo yet.");
  if (!pictures.has(name)) pictures.set(name, await models.get(name).look(photo.rgba, photo.width, photo.height));
  return pictures.get(name);
}

async function timed(work) {
  const started = performance.now();
  const value = await work();
  return { value: value?.runs || Array.isArray(value) ? value : null, ms: performance.now() - started };
}

// one thing after another: two models at once would only take each other's cores, and spoil each other's times
let last = Promise.resolve();
addEventListener("message", ({ data }) => {
  if (data.kind === "cancel") {
    cancelled.add(data.cancel);
    return;
  }
  last = last.then(async () => {
    try {
      postMessage({ id: data.id, result: await kinds[data.kind](data) });
    } catch (error) {
      postMessage({ id: data.id, error: error?.message ?? String(error) });
    }
  });
});
