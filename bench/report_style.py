"""The style sheet and the script inside `report.html`; a module, so that every way of installing carries them."""

CSS = """\
:root {
  color-scheme: light dark;
  --ground: #f6f7f8; --paper: #ffffff; --ink: #1c2024; --quiet: #626a73; --line: #e3e6e9; --stripe: #f9fafb;
  --good: #15703a; --bad: #b42318; --good-wash: #eaf6ee; --bad-wash: #fdf0ee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #121417; --paper: #1a1d21; --ink: #e8eaed; --quiet: #9aa1a9; --line: #2e3338; --stripe: #1e2226;
    --good: #5fd38d; --bad: #ff8a7a; --good-wash: #16261c; --bad-wash: #2d1b19;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 14px; text-wrap: balance; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 0 0 8px; }
p, ul { margin: 0 0 12px; max-width: 75ch; }
ul { padding-left: 1.2em; }
li { margin: 4px 0; }
.quiet, figcaption, .origin, .was, .label { color: var(--quiet); }
.quiet, figcaption { font-size: 0.875rem; max-width: 80ch; }
code, pre { font: 0.86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
code { background: color-mix(in srgb, var(--quiet) 14%, transparent); padding: 1px 5px; border-radius: 4px; }
pre {
  margin: 0; padding: 12px 16px; overflow-x: auto;
  background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
}
section { margin-top: 40px; }
.ends { margin: 28px 0 12px; color: var(--quiet); }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); }
.card, .verdict, .scroll, .plot {
  background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
}
.card { padding: 14px 16px; }
.label { font-size: 0.8125rem; }
.now { font-size: 1.5rem; font-weight: 600; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.was { font-size: 0.8125rem; font-variant-numeric: tabular-nums; }
.verdict { padding: 18px 22px 8px; border-left-width: 4px; }
.verdict.good { background: var(--good-wash); border-left-color: var(--good); }
.verdict.bad { background: var(--bad-wash); border-left-color: var(--bad); }
.scroll { overflow-x: auto; margin-bottom: 14px; }
.long { max-height: 480px; overflow-y: auto; }
.long thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.9rem; }
th, td { padding: 10px 16px; text-align: right; vertical-align: top; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
thead button { all: unset; cursor: pointer; }
thead button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
[aria-sort="ascending"] button::after { content: " \\2191"; }
[aria-sort="descending"] button::after { content: " \\2193"; }
thead th { font-size: 0.8125rem; color: var(--quiet); border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 600; white-space: normal; min-width: 170px; }
tbody tr:nth-child(even) > * { background: var(--stripe); }
.origin { display: block; font-weight: 400; font-size: 0.8125rem; }
.change { color: var(--quiet); font-size: 0.8125rem; }
td .change { display: block; }
.change.good { color: var(--good); }
.change.bad { color: var(--bad); font-weight: 600; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { margin-top: 8px; }
.plot { padding: 18px 20px; }
.plot img { width: 100%; max-width: 880px; margin: 0 auto; }
.pictures { display: grid; gap: 24px; }
@media (min-width: 900px) { .pictures { grid-template-columns: 1fr 1fr; } }
dl { margin: 0; display: grid; gap: 4px 32px; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
dl div { display: flex; gap: 12px; justify-content: space-between; padding: 5px 0; }
dl div { border-bottom: 1px solid var(--line); }
dt { color: var(--quiet); }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 600px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 1.5rem; }
  .cards { grid-template-columns: repeat(2, 1fr); }
  tbody th { min-width: 130px; }
  th, td { padding: 8px 12px; }
  .plot { overflow-x: auto; }
  .plot img { min-width: 560px; max-width: none; }
}
@media print {
  body { background: none; font-size: 11pt; }
  section, figure, .card { break-inside: avoid; }
}
"""

SORTING = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return column ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent;
  };
  heads.forEach((head, column) => {
    head.innerHTML = `<button type="button">${head.innerHTML}</button>`;
    head.firstChild.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
      const known = (row) => value(row, column) !== null;
      const rows = [...body.rows];
      const sorted = rows.filter(known).sort((a, b) => order(value(a, column), value(b, column)));
      // what was not measured stays last, either way
      body.append(...sorted, ...rows.filter((row) => !known(row)));
    };
  });
}
"""
"""A click on a heading sorts its table by the numbers themselves, a second one the other way round."""
