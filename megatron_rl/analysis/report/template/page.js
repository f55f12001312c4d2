// The page: tabs, the colours of day and night, and parts that are made when they are first opened.

const CONTENT = JSON.parse(document.getElementById("content").textContent);

function begin() {
  document.title = `${CONTENT.title} · megatron_rl report`;
  document.getElementById("title").append(...shown(CONTENT.title));
  document.getElementById("made").textContent = CONTENT.made;
  const tabs = document.getElementById("tabs"), main = document.getElementById("main");
  for (const section of CONTENT.sections) {
    const tab = make("button", { type: "button", role: "tab", id: `tab-${section.name}`, "aria-controls": section.name }, section.title);
    tab.addEventListener("click", () => { history.replaceState(null, "", `#${section.name}`); open(section.name); });
    tabs.append(tab);
    main.append(make("div", { id: section.name, role: "tabpanel", "aria-labelledby": tab.id, hidden: true }));
  }
  tabs.addEventListener("keydown", step);
  window.addEventListener("hashchange", openAddressed);
  openAddressed();
  theme();
  const button = document.getElementById("smooth");
  button.addEventListener("click", () => {
    smooth = !smooth;
    button.setAttribute("aria-pressed", String(smooth));
    drawAgain();
  });
}

function openAddressed() {
  const asked = location.hash.slice(1);
  const known = CONTENT.sections.some((section) => section.name === asked);
  open(known ? asked : CONTENT.sections[0].name);
}

function open(name) {
  for (const section of CONTENT.sections) {
    const here = section.name === name;
    const part = document.getElementById(section.name), tab = document.getElementById(`tab-${section.name}`);
    tab.setAttribute("aria-selected", String(here));
    tab.tabIndex = here ? 0 : -1;
    part.hidden = !here;
    if (here && !part.filled) fill(part, section);
    if (here) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function fill(part, section) {
  part.filled = true;
  if (section.intro) part.append(make("p", { class: "intro" }, section.intro));
  if (section.name === "samples") { samplesPart(part); return; }
  if (CONTENT.experiments.length > 1 || section.name === "curves") {
    if (section.blocks.some((block) => block.legend === false)) part.append(whose());
  }
  part.append(make("div", { class: "blocks" }, ...section.blocks.flatMap((block) => BLOCKS[block.kind](block))));
}

// Which colour is whose, once for all charts of a part.
function whose() {
  return make("ul", { class: "legend page" }, ...CONTENT.experiments.map((one) =>
    make("li", { style: `--own: var(--c${one.colour % 8})` }, one.name)));
}

function step(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1 };
  const tabs = [...event.currentTarget.children], at = tabs.indexOf(document.activeElement);
  const to = event.key === "Home" ? 0 : event.key === "End" ? tabs.length - 1 : at + (moves[event.key] || 0);
  if (at < 0 || (to === at && !(event.key in moves))) return;
  event.preventDefault();
  const tab = tabs[(to + tabs.length) % tabs.length];
  tab.click();
  tab.focus();
}

function theme() {
  const button = document.getElementById("theme"), asked = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("megatron_rl report"); } catch { /* a page from a disk may have no storage */ }
  const set = () => {
    const dark = (chosen || (asked.matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    drawAgain();
  };
  button.addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("megatron_rl report", chosen); } catch { /* as above */ }
    set();
  });
  asked.addEventListener("change", set);
  set();
}

begin();
