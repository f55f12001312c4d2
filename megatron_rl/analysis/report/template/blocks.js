// Elements of the page. Whatever comes from a run becomes text (a text node), never markup.

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// What the page carries packed stands behind this script: it is there when the whole page has been read.
const whole = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
});

async function unpacked(name) {
  await whole;
  const packed = document.getElementById(`packed-${name}`).textContent;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const BLOCKS = {
  heading: (block) => {
    const title = make("h2", {}, block.title);
    if (!block.text) return [title];
    return [title, make("p", { class: "sub" }, block.text)];
  },
  notes: (block) => [make("section", { class: "card notes wide", "aria-label": "Notes" },
    make("ul", {}, ...block.notes.map(([run, text]) =>
      make("li", {}, run ? make("strong", {}, run + " ") : null, text))))],
  table: (block) => {
    const cell = (tag, text, i) => make(tag, { class: i < block.left ? "left" : null, scope: tag === "th" ? "col" : null },
      ...shown(String(text)));
    const grid = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": block.title || "Table" },
      make("table", {},
        make("thead", {}, make("tr", {}, ...block.head.map((text, i) => cell("th", text, i)))),
        make("tbody", {}, ...block.rows.map((row) => make("tr", {}, ...row.map((text, i) => cell("td", text, i)))))));
    const caption = block.caption ? make("p", { class: "caption" }, block.caption) : null;
    if (block.folded) {
      return [make("details", { class: "card wide" }, make("summary", {}, block.title), grid, caption)];
    }
    return [make("section", { class: "card wide" }, block.title ? make("h3", {}, block.title) : null, grid, caption)];
  },
  chart: (block) => {
    const plot = make("div", { class: "plot", role: "img", "aria-label": described(block) });
    const several = block.legend && block.series.length > 1;
    const legend = several ? make("ul", { class: "legend" }, ...block.series.map((one) =>
      make("li", { class: one.dash ? "dash" : null, style: `--own: var(--c${one.colour % 8})` }, one.name))) : null;
    const card = make("figure", { class: block.wide ? "card wide" : "card" },
      make("h3", {}, block.title), legend, plot, block.caption ? make("figcaption", { class: "caption" }, block.caption) : null);
    plot.block = block;
    drawWhenSeen(plot);
    return [card];
  },
};

function described(block) {
  const said = block.series.map((one) => {
    const last = one.y.filter((value) => value !== null).at(-1);
    return `${one.name}: last ${last === undefined ? "unknown" : last}`;
  });
  return `${block.title}. ${said.join("; ")}`;
}

// Characters that cannot be seen, or that turn text around, are shown as what they are.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function shown(text) {
  const found = [];
  let at = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > at) found.push(text.slice(at, match.index));
    const code = match[0].charCodeAt(0);
    const name = code < 32 ? String.fromCharCode(0x2400 + code) : code === 127 ? "\u2421" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    found.push(make("span", { class: "control", title: `U+${code.toString(16).toUpperCase().padStart(4, "0")}` }, name));
    at = match.index + 1;
  }
  if (at < text.length) found.push(text.slice(at));
  return found;
}
