// The page's end of the worker: calls become promises.

export class Client {
  /** `provider` is wasm or webgpu; `threads` is 1 where the page may not share memory. */
  constructor(entries, provider, threads) {
    this.calls = new Map();
    this.next = 1;
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.addEventListener("message", ({ data }) => this.hear(data));
    this.worker.addEventListener("error", (event) => {
      for (const call of this.calls.values()) call.reject(new Error(event.message || "The worker did not start."));
      this.calls.clear();
    });
    this.started = this.call("start", { entries, provider, threads });
    // whoever asks for something hears of it by that
    this.started.catch(() => {});
  }

  /** Ask the worker; `signal` stops what can be stopped, `onProgress` hears of {done, total}. */
  call(kind, values = {}, { transfer = [], signal, onProgress } = {}) {
    const id = this.next++;
    signal?.addEventListener("abort", () => this.worker.postMessage({ kind: "cancel", cancel: id }));
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject, onProgress });
      this.worker.postMessage({ id, kind, ...values }, transfer);
    });
  }

  hear({ id, result, error, progress }) {
    const call = this.calls.get(id);
    if (!call) return;
    if (progress) {
      call.onProgress?.(progress);
      return;
    }
    this.calls.delete(id);
    if (error === undefined) call.resolve(result);
    else call.reject(new Error(error));
  }

  /** End the worker; what is still asked of it is never answered. */
  close() {
    this.worker.terminate();
    this.calls.clear();
  }
}
