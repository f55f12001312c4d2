// The samples browser: what was asked, what was written, and what it was worth.

const STAGES = ["cue encoding", "cue interpretation", "goal clarification", "response generation", "answer"];
const PAGE = 40;

async function samplesPart(part) {
  const waiting = make("p", { class: "count" }, "Unpacking …");
  part.append(waiting);
  const data = JSON.parse(await unpacked("samples"));
  waiting.remove();
  data.samples.forEach((one, i) => { one.at = i; one.text = one.pieces.map((piece) => piece[1]).join(""); });
  const state = { limit: PAGE };
  const list = make("div", {}), count = make("p", { class: "count", role: "status" });
  const more = make("button", { type: "button", class: "more" }, "Show more");
  const controls = filters(data, () => { state.limit = PAGE; show(); });
  more.addEventListener("click", () => { state.limit += PAGE; show(); });
  part.append(controls.element, key(data), count, list, more);

  function show() {
    const chosen = controls.chosen();
    const found = chosen.order === "changed" ? changed(data, chosen) : sorted(data.samples.filter((one) => fits(data, one, chosen)), chosen.order);
    const rows = found.slice(0, state.limit);
    list.replaceChildren(...rows.map((one) => Array.isArray(one) ? pair(data, one, chosen.words) : single(data, one, chosen.words)));
    const what = chosen.order === "changed" ? "questions answered otherwise" : "completions";
    count.textContent = `${found.length.toLocaleString("en")} ${what}${found.length > rows.length ? `, ${rows.length} shown` : ""}`;
    more.hidden = found.length <= rows.length;
  }
  show();
}

function filters(data, changed) {
  const sets = [...new Set(data.samples.map((one) => one.set || ""))];
  const select = (name, entries, hidden) => {
    const control = make("select", { name }, ...entries.map(([value, text]) => make("option", { value }, text)));
    control.addEventListener("change", changed);
    return [make("label", { hidden }, name, control), control];
  };
  const input = make("input", { type: "search", name: "search", placeholder: "words in prompt or completion", autocomplete: "off" });
  input.addEventListener("input", changed);
  const [runLabel, run] = select("run", [["", "all"], ...data.runs.map((name, i) => [i, name])], data.runs.length < 2);
  const [setLabel, set] = select("of", [["", "all"], ...sets.map((name) => [name || "\u0000", name ? `evaluation: ${name}` : "training"])], sets.length < 2);
  const [verdictLabel, verdict] = select("answer", [["", "any"], ["right", "right"], ["wrong", "wrong"], ["cut", "cut off"]]);
  const [orderLabel, order] = select("order", [["last", "latest first"], ["first", "earliest first"], ["best", "best first"],
    ["worst", "worst first"], ["longest", "longest first"], ["changed", "changed between evaluations"]]);
  const element = make("form", { class: "filters", role: "search" }, make("label", { class: "grow" }, "search", input), orderLabel, verdictLabel, setLabel, runLabel);
  element.addEventListener("submit", (event) => event.preventDefault());
  return { element, chosen: () => ({ run: run.value, set: set.value, verdict: verdict.value, order: order.value,
    words: input.value.toLowerCase().split(/\s+/).filter(Boolean) }) };
}

function fits(data, one, chosen) {
  if (chosen.run !== "" && one.run !== Number(chosen.run)) return false;
  if (chosen.set && (one.set || "\u0000") !== chosen.set) return false;
  if (chosen.verdict === "right" && one.right !== true) return false;
  if (chosen.verdict === "wrong" && one.right !== false) return false;
  if (chosen.verdict === "cut" && one.finish !== "length") return false;
  if (!chosen.words.length) return true;
  const text = `${data.prompts[one.prompt]} ${one.text} ${one.answer || ""}`.toLowerCase();
  return chosen.words.every((word) => text.includes(word));
}

function worth(one) {
  return one.reward ?? (one.right === true ? 1 : one.right === false ? 0 : -1e9);
}

function sorted(found, order) {
  const by = {
    last: (a, b) => b.at - a.at, first: (a, b) => a.at - b.at,
    best: (a, b) => worth(b) - worth(a) || (b.advantage ?? 0) - (a.advantage ?? 0),
    worst: (a, b) => worth(a) - worth(b) || (a.advantage ?? 0) - (b.advantage ?? 0),
    longest: (a, b) => (b.tokens ?? b.text.length) - (a.tokens ?? a.text.length),
  };
  return found.sort(by[order]);
}

// The evaluations that are compared: the last one, and that which the stage before has left, or else the first.
function compared(data, run) {
  const sets = [...new Set(data.samples.filter((one) => one.run === run && one.set).map((one) => one.set))];
  return [sets.filter((name) => name.startsWith("after ")).at(-2) ?? sets[0], sets.at(-1)];
}

// Of each question a completion of both evaluations, where the verdict or the reward moved; without evaluations the first
// and the last of training.
function changed(data, chosen) {
  const evaluated = data.samples.some((one) => one.set);
  const ends = data.runs.map((_, run) => compared(data, run));
  const first = new Map(), last = new Map();
  for (const one of data.samples) {
    if (evaluated && !ends[one.run].includes(one.set)) continue;
    const name = `${one.run} ${one.mode || ""} ${one.id || one.prompt}`;
    if (!first.has(name)) first.set(name, one);
    last.set(name, one);
  }
  const pairs = [...first].map(([name, one]) => [one, last.get(name)]).filter(([a, b]) => a !== b && worth(a) !== worth(b));
  const kept = pairs.filter(([a, b]) => fits(data, b, { ...chosen, set: "", words: [] })
    && [a, b].some((one) => fits(data, one, { ...chosen, set: "", verdict: "" })));
  return kept.sort((x, y) => (worth(x[1]) - worth(x[0])) - (worth(y[1]) - worth(y[0])));  // what got worse is looked at first
}

function where(data, one) {
  const run = data.runs.length > 1 ? `${data.runs[one.run]} ` : "";
  return one.set ? `${run}${one.set}${one.mode ? `, ${one.mode}` : ""}` : `${run}step ${one.step}`;
}

function verdict(one) {
  const [mark, text] = one.right === true ? ["\u2713", "right"] : one.right === false ? ["\u2717", "wrong"] : ["\u00b7", "not judged"];
  return make("span", { class: `verdict ${text}`, title: text, "aria-label": text, role: "img" }, mark);
}

function single(data, one, words) {
  const begin = one.text.replace(/\s+/g, " ").slice(0, 200);
  const value = one.reward === undefined ? "" : one.reward.toFixed(3);
  const element = make("details", { class: "sample" }, make("summary", {}, verdict(one), make("span", { class: "value number" }, value),
    make("span", { class: "value where" }, where(data, one)), make("span", { class: "begin" }, ...shown(begin))));
  element.addEventListener("toggle", () => {
    if (!element.open || element.querySelector(".body")) return;
    element.append(make("div", { class: "body" }, make("div", { class: "texts" },
      make("p", { class: "label" }, "Prompt"), make("p", { class: "text" }, ...marked(data.prompts[one.prompt], words)),
      make("p", { class: "label" }, "Completion"), completion(one, words)), facts(one)));
  });
  return element;
}

function pair(data, [before, after], words) {
  const direction = worth(after) > worth(before) ? ["up", "better"] : ["down", "worse"];
  const prompt = data.prompts[after.prompt];
  const element = make("details", { class: "sample" }, make("summary", {}, verdict(before), "\u2192", verdict(after),
    make("span", { class: `value ${direction[0]}` }, direction[1]), make("span", { class: "value" }, `${where(data, before)} \u2192 ${after.set || `step ${after.step}`}`),
    make("span", { class: "begin" }, ...shown(prompt.slice(0, 200)))));
  element.addEventListener("toggle", () => {
    if (!element.open || element.querySelector(".body")) return;
    const side = (one) => make("div", { class: "texts" }, make("p", { class: "label" }, where(data, one)), completion(one, words), facts(one));
    element.append(make("div", { class: "body" }, make("div", { class: "pair" }, make("div", { style: "grid-column: 1 / -1" },
      make("p", { class: "label" }, "Prompt"), make("p", { class: "text" }, ...marked(prompt, words))), side(before), side(after))));
  });
  return element;
}

function completion(one, words) {
  const text = make("p", { class: "text" }, ...one.pieces.map(([kind, part]) => kind
    ? make("span", { class: `s${kind}`, title: STAGES[kind - 1] }, ...marked(part, words)) : make("span", {}, ...marked(part, words))));
  if (one.cut) text.append(make("span", { class: "control" }, `${one.cut.toLocaleString("en")} more characters`));
  return text;
}

function marked(text, words) {
  if (!words.length) return shown(text);
  const found = [], lower = text.toLowerCase();
  if (lower.length !== text.length) return shown(text);
  let at = 0;
  while (at < text.length) {
    const hits = words.map((word) => [lower.indexOf(word, at), word.length]).filter(([hit]) => hit >= 0).sort((a, b) => a[0] - b[0]);
    if (!hits.length) break;
    const [hit, size] = hits[0];
    found.push(...shown(text.slice(at, hit)), make("mark", {}, ...shown(text.slice(hit, hit + size))));
    at = hit + size;
  }
  return [...found, ...shown(text.slice(at))];
}

function facts(one) {
  const rows = [];
  const number = (value) => typeof value === "number" ? Number(value.toPrecision(5)).toString() : String(value);
  const add = (name, value, style) => { if (value !== undefined) rows.push(make("dt", { class: style }, ...shown(name)), make("dd", { class: style }, ...shown(number(value)))); };
  Object.entries(one.parts || {}).forEach(([name, value]) => add(name, value));
  add("reward", one.reward, "total");
  add("advantage", one.advantage);
  add("right answer", one.answer);
  add("tokens", one.tokens);
  add("ended by", one.finish === "stop" ? "itself" : one.finish === "length" ? "the limit" : one.finish);
  Object.entries(one.facts || {}).forEach(([name, value]) => add(name, value));
  add("id", one.id);
  return make("dl", {}, ...rows);
}

function key(data) {
  if (!data.samples.some((one) => one.pieces.some(([kind]) => kind))) return "";
  return make("p", { class: "key" }, ...STAGES.map((name, i) => make("span", { class: `s${i + 1}` }, name)));
}
