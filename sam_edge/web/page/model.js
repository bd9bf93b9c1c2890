// An exported SAM over ONNX Runtime's sessions: the runtime contract of sam_edge.runtimes.graphs, asynchronously.

import { frameOf, toInput, toPixels } from "./frame.js";
import { maskOf, scalingOf } from "./masks.js";

export const [FOREGROUND, BOX_START, BOX_END, NOT_A_POINT] = [1, 2, 3, -1];
const SETS_AT_ONCE = 4; // few enough for a processor's cache

export class Model {
  /** `entry` is the model's in site.json; `provider` is wasm or webgpu. A graph is loaded when it is first called. */
  constructor(ort, entry, provider) {
    Object.assign(this, entry);
    this.ort = ort;
    this.provider = provider;
    this.sessions = {};
    this.maskSize = (4 * entry.image_size) / entry.patch_size;
  }

  session(graph) {
    this.sessions[graph] ??= this.open(graph).catch((error) => {
      delete this.sessions[graph];
      throw error;
    });
    return this.sessions[graph];
  }

  async open(graph) {
    const { file, integers } = this.graphs[graph];
    const response = await fetch(file);
    if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
    // weights of float layers are dequantized when they are loaded, not in every call
    const session = integers ? {} : { disable_quant_qdq: "1" };
    // threads that wait let a phone rest
    const extra = { session: { ...session, intra_op: { allow_spinning: "0" } } };
    const options = { executionProviders: [this.provider], logSeverityLevel: 3, extra };
    return this.ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()), options);
  }

  /** Load all graphs that prompts may need. */
  async load() {
    for (const graph of Object.keys(this.graphs)) {
      if (graph !== "decoder" || this.draws_boxes || this.draws_points) await this.session(graph);
    }
  }

  async run(graph, inputs) {
    const session = await this.session(graph);
    const given = Object.fromEntries(session.inputNames.map((name) => [name, inputs[name]]));
    return session.run(given);
  }

  float(data, dims) {
    return new this.ort.Tensor("float32", data, dims);
  }

  int(values, dims) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  }

  /** Embed a photo (RGBA bytes); what is asked of it then is a matter of `Picture`. */
  async look(rgba, width, height) {
    const frame = frameOf(width, height, this.image_size);
    const side = this.image_size;
    const { embeddings } = await this.run("encoder", {
      pixels: this.float(toPixels(rgba, frame, this), [1, 3, side, side]),
    });
    const picture = new Picture(this, frame, embeddings);
    await picture.state();
    return picture;
  }
}

/** A photo embedded by one model. */
export class Picture {
  constructor(model, frame, embeddings) {
    Object.assign(this, { model, frame, embeddings });
    this.scaling = scalingOf(frame, model.maskSize);
  }

  /**
   * The mask of points [x, y, label] and a box XYXY (or null), in the photo's pixels. For a single point, which may mean
   * a thing, its part or its whole, it is the best of three by predicted IoU, else the single one.
   */
  async prompted(points, box) {
    const coords = points.map((point) => toInput(this.frame, point));
    const labels = points.map((point) => point[2]);
    if (box) {
      coords.push(toInput(this.frame, box.slice(0, 2)), toInput(this.frame, box.slice(2)));
      labels.push(BOX_START, BOX_END);
    } else {
      coords.push([0, 0]);
      labels.push(NOT_A_POINT);
    }
    const candidates = points.length === 1 && !box ? [1, 2, 3] : [0];
    const best = (iou) => candidates.reduce((one, other) => (iou[other] > iou[one] ? other : one));
    const answer = this.inParts(labels) ? this.byParts : this.byDecoder;
    const { logits, iou } = await answer.call(this, { coords, labels }, best);
    return { ...maskOf(logits, this.scaling), iou, points: points.map(([x, y]) => [x, y]) };
  }

  /** Whether the decoder in parts answers a set: a model that draws its prompts needs the whole for some. */
  inParts(labels) {
    const { draws_boxes, draws_points } = this.model;
    const boxed = labels.includes(BOX_START);
    if (draws_boxes && boxed) return false;
    return !draws_points || (labels[0] === FOREGROUND && !boxed);
  }

  /** A third of the whole decoder's time: what the photo's prompts share is at hand, and one mask is up-scaled. */
  async byParts(set, best) {
    const { value: batch } = await this.predict([set]).next();
    const mask = best(batch.iou);
    const [logits] = await this.upscale(batch.parts, [[0, mask]]);
    return { logits, iou: batch.iou[mask] };
  }

  async byDecoder({ coords, labels }, best) {
    const { model } = this;
    const side = model.maskSize;
    const { logits, iou } = await model.run("decoder", {
      embeddings: this.embeddings,
      point_coords: model.float(Float32Array.from(coords.flat()), [1, 1, labels.length, 2]),
      point_labels: model.int(labels, [1, 1, labels.length]),
      mask_input: model.float(new Float32Array(side * side), [1, 1, 1, side, side]),
      has_mask_input: model.float(new Float32Array(1), [1, 1]),
    });
    const mask = best(iou.data);
    return { logits: logits.data.subarray(mask * side * side, (mask + 1) * side * side), iou: iou.data[mask] };
  }

  /** What this photo's prompts share, for `predict` and `upscale`. */
  async state() {
    this.prepared ??= await this.model.run("prepare", { embeddings: this.embeddings });
    return { embeddings: this.embeddings, ...this.prepared };
  }

  /**
   * Batches of prompt sets {coords, labels} of one length, in the model's input, each with its predicted IoU (n x 4) and
   * the parts that `upscale` takes.
   */
  async *predict(sets) {
    const { model } = this;
    const state = await this.state();
    for (let first = 0; first < sets.length; first += SETS_AT_ONCE) {
      const batch = sets.slice(first, first + SETS_AT_ONCE);
      const shape = [1, batch.length, batch[0].labels.length];
      const parts = await model.run("predict", {
        ...state,
        point_coords: model.float(Float32Array.from(batch.flatMap(({ coords }) => coords.flat())), [...shape, 2]),
        point_labels: model.int(batch.flatMap(({ labels }) => labels), shape),
      });
      yield { first, count: batch.length, iou: parts.iou.data, parts };
    }
  }

  /** Low-resolution logits of masks [set, mask] of a batch, one after the other. */
  async upscale(parts, wanted) {
    const { model } = this;
    const sets = [...new Set(wanted.map(([set]) => set))];
    const { logits } = await model.run("upscale", {
      ...(await this.state()),
      ...this.rows(parts, sets),
      places: model.int(wanted.map(([set]) => sets.indexOf(set)), [wanted.length]),
      masks: model.int(wanted.map(([, mask]) => mask), [wanted.length]),
    });
    const size = model.maskSize ** 2;
    return wanted.map((_, index) => logits.data.subarray(index * size, (index + 1) * size));
  }

  /** The entries of some sets in what `predict` gave. */
  rows(parts, sets) {
    const picked = Object.entries(parts).map(([name, { data, dims, type }]) => {
      const size = data.length / dims[0];
      const rows = new data.constructor(sets.length * size);
      sets.forEach((set, place) => rows.set(data.subarray(set * size, (set + 1) * size), place * size));
      return [name, new this.model.ort.Tensor(type, rows, [sets.length, ...dims.slice(1)])];
    });
    return Object.fromEntries(picked);
  }
}
