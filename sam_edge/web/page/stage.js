// A photo as one model sees it: the photo, its masks, the prompts, and what it took.

import { painted } from "./paint.js";

const LONGEST = 1600; // pixels of the picture of masks: more are not seen
const DRAG = 5; // pixels of the page from which a press is a box

export class Stage {
  /** `on` has `point(x, y, label)`, `box(corners)` and `focus()`; `tool()` says what a press means. */
  constructor(entry, on, tool) {
    this.entry = entry;
    this.on = on;
    this.tool = tool;
    this.current = null;
    this.kept = [];
    this.prompts = { points: [], box: null };
    this.cursor = null;
    this.drag = null;
    this.element = element("figure", "stage");
    this.caption = element("figcaption");
    this.name = element("b", "", entry.name);
    this.times = element("span", "times");
    this.times.title = "To embed the photo once, and from a click to its mask on the screen";
    this.alike = element("span", "tag alike");
    this.caption.append(this.name, element("span", "tag", entry.precision.toUpperCase()), this.alike, this.times);
    this.frame = element("div", "frame");
    this.view = element("div", "view");
    this.view.tabIndex = 0;
    this.view.setAttribute("role", "application");
    this.view.setAttribute(
      "aria-label",
      `Photo, segmented by ${entry.name}. Arrow keys move a cursor, Enter sets a point or a corner with the chosen tool.`,
    );
    this.photo = element("img");
    this.photo.alt = "";
    this.photo.draggable = false;
    this.masks = element("canvas", "masks");
    this.marks = element("canvas", "marks");
    this.progress = element("progress");
    this.progress.hidden = true;
    this.progress.setAttribute("aria-label", "Working");
    this.view.append(this.photo, this.masks, this.marks);
    this.frame.append(this.view);
    this.element.append(this.caption, this.progress, this.frame);
    this.listen();
    new ResizeObserver(() => this.mark()).observe(this.view);
  }

  /** Show another photo. */
  show(url, width, height) {
    this.size = [width, height];
    this.view.style.setProperty("--ratio", width / height);
    this.photo.src = url;
    const scale = Math.min(LONGEST / Math.max(width, height), 1);
    this.masks.width = Math.max(Math.round(width * scale), 1);
    this.masks.height = Math.max(Math.round(height * scale), 1);
    [this.current, this.kept, this.cursor] = [null, [], null];
    this.paint();
  }

  /** All masks, the one in the making last. */
  get all() {
    return this.current?.area ? [...this.kept, this.current] : this.kept;
  }

  /** Draw the masks. */
  paint() {
    const { width, height } = this.masks;
    const image = painted(this.all, [...this.all.keys()], width, height);
    this.masks.getContext("2d").putImageData(image, 0, 0);
  }

  /** Say what it took: [label, milliseconds] each. */
  took(times) {
    const shown = times.filter(([, ms]) => ms !== undefined);
    this.times.textContent = shown.map(([label, ms]) => `${label} ${duration(ms)}`).join(" · ");
  }

  /** Show that something is going on: a share in [0, 1], true for an unknown one, false when it is over. */
  busy(share) {
    this.progress.hidden = share === false;
    if (typeof share === "number") this.progress.value = share;
    else this.progress.removeAttribute("value");
    this.element.setAttribute("aria-busy", String(share !== false));
  }

  /** Draw points, boxes and the keyboard's cursor, at the screen's resolution. */
  mark() {
    const { clientWidth: width, clientHeight: height } = this.view;
    const dense = devicePixelRatio || 1;
    this.marks.width = Math.round(width * dense);
    this.marks.height = Math.round(height * dense);
    if (!this.size) return;
    const context = this.marks.getContext("2d");
    context.scale(dense, dense);
    const place = ([x, y]) => [(x / this.size[0]) * width, (y / this.size[1]) * height];
    const box = this.drag?.box ?? this.prompts.box;
    if (box) {
      const [[x0, y0], [x1, y1]] = [place(box.slice(0, 2)), place(box.slice(2))];
      for (const [colour, line] of [["#0009", 4], ["#fff", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = line;
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
    }
    for (const point of this.prompts.points) {
      const [x, y] = place(point);
      disc(context, x, y, 8, "#0006");
      disc(context, x, y, 7, "#fff");
      disc(context, x, y, 5, point[2] === 1 ? "#12a150" : "#e5343d");
    }
    if (this.cursor && document.activeElement === this.view) {
      const [x, y] = place(this.cursor);
      for (const [colour, line] of [["#000a", 4], ["#fff", 1.5]]) {
        context.strokeStyle = colour;
        context.lineWidth = line;
        context.beginPath();
        context.moveTo(x - 12, y);
        context.lineTo(x + 12, y);
        context.moveTo(x, y - 12);
        context.lineTo(x, y + 12);
        context.stroke();
      }
    }
  }

  listen() {
    const { view } = this;
    view.addEventListener("pointerdown", (event) => {
      if (event.button > 2 || event.button === 1 || !this.size) return;
      event.preventDefault();
      view.focus({ preventScroll: true });
      view.setPointerCapture(event.pointerId);
      this.cursor = null;
      this.drag = { from: this.at(event), page: [event.clientX, event.clientY], button: event.button, box: null };
    });
    view.addEventListener("pointermove", (event) => {
      const { drag } = this;
      if (!drag || drag.button === 2) return;
      const far = Math.hypot(event.clientX - drag.page[0], event.clientY - drag.page[1]) > DRAG;
      if (far || drag.box) drag.box = corners(drag.from, this.at(event));
      this.mark();
    });
    view.addEventListener("pointerup", (event) => {
      const { drag } = this;
      this.drag = null;
      if (!drag) return;
      if (drag.box) this.give(drag.box, event.timeStamp);
      else if (this.tool() !== "box" || drag.button === 2) {
        const label = drag.button === 2 || this.tool() === "out" ? 0 : 1;
        this.on.point([...drag.from, label], event.timeStamp);
      }
      this.mark();
    });
    view.addEventListener("pointercancel", () => {
      this.drag = null;
      this.mark();
    });
    view.addEventListener("contextmenu", (event) => event.preventDefault());
    view.addEventListener("focus", () => this.on.focus());
    view.addEventListener("blur", () => {
      // a box begun by keys is given up
      [this.cursor, this.drag] = [null, null];
      this.mark();
    });
    view.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.size || event.ctrlKey || event.metaKey || event.altKey) return;
    const [width, height] = this.size;
    const cursor = this.cursor ?? [width / 2, height / 2];
    if (event.key in steps) {
      const step = (Math.max(width, height) * (event.shiftKey ? 5 : 1)) / 100;
      const inside = (value, side) => Math.min(Math.max(value, 0), side - 1);
      this.cursor = [inside(cursor[0] + steps[event.key][0] * step, width), inside(cursor[1] + steps[event.key][1] * step, height)];
      if (this.drag) this.drag.box = corners(this.drag.from, this.cursor);
    } else if (event.key === "Enter" || event.key === " ") {
      this.cursor = cursor;
      if (this.tool() !== "box") this.on.point([...cursor, this.tool() === "in" ? 1 : 0], event.timeStamp);
      else if (!this.drag) this.drag = { from: cursor, box: corners(cursor, cursor) };
      else {
        const { box } = this.drag;
        this.drag = null;
        this.give(box, event.timeStamp);
      }
    } else if (event.key === "Escape" && this.drag) {
      this.drag = null;
    } else return;
    event.preventDefault();
    event.stopPropagation();
    this.mark();
  }

  /** Hand on a box that has an area. */
  give(box, since) {
    if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) this.on.box(box, since);
  }

  /** The photo's pixel under the pointer. */
  at(event) {
    const { left, top, width, height } = this.view.getBoundingClientRect();
    const inside = (value, side) => Math.min(Math.max(value, 0), side - 1);
    return [
      inside(((event.clientX - left) / width) * this.size[0], this.size[0]),
      inside(((event.clientY - top) / height) * this.size[1], this.size[1]),
    ];
  }
}

function corners([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

function disc(context, x, y, radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Milliseconds for people. */
export function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
}
