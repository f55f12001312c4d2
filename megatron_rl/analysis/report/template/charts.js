// Charts are drawn by Plotly, which is unpacked after the page has been painted; each when it comes into view.

const drawn = new Set();
const WEIGHT = 0.85;  // of the past in a smoothed line
let smooth = false;
let library = null;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    loaded().then(() => draw(entry.target));
  }
}, { rootMargin: "300px" });

function drawWhenSeen(plot) {
  seen.observe(plot);
}

function loaded() {
  library ??= unpacked("plotly").then((code) => {
    document.head.append(Object.assign(document.createElement("script"), { textContent: code }));
  });
  return library;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function faded(hex, alpha) {
  const part = (i) => parseInt(hex.slice(i, i + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
}

function traces(block) {
  const found = [];
  for (const one of block.series) {
    const own = colour(`--c${one.colour % 8}`);
    const hover = block.percent ? "%{y:.1%}" : "%{y:.4~g}";
    const name = escaped(one.name);
    if (one.bars) {
      const text = one.text.map(escaped);
      found.push({ type: "bar", name, x: one.x.map((x) => typeof x === "string" ? escaped(x) : x), y: one.y,
        marker: { color: faded(own, 0.85) }, customdata: text,
        hovertemplate: hover + (text.length ? " (%{customdata})" : "") + `<extra>${name}</extra>` });
      continue;
    }
    if (one.low) {
      const edge = { x: one.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
      found.push({ ...edge, y: one.low }, { ...edge, y: one.high, fill: "tonexty", fillcolor: faded(own, 0.16) });
    }
    const soft = smooth && block.form === "lines" && one.x.length > 10 && !one.marks;
    if (soft) {
      found.push({ type: "scatter", x: one.x, y: one.y, mode: "lines", line: { color: faded(own, 0.25), width: 1 }, hoverinfo: "skip" });
    }
    const trace = { type: "scatter", name, x: one.x, y: soft ? smoothed(one.y) : one.y, mode: one.marks || one.x.length === 1 ? "lines+markers" : "lines",
      line: { color: own, width: 1.8, dash: one.dash ? "4px,3px" : "solid" }, marker: { size: 6, color: own },
      hovertemplate: hover + `<extra>${name}</extra>` };
    if (block.form === "stack") Object.assign(trace, { stackgroup: "all", fillcolor: faded(own, 0.55), line: { color: own, width: 0.6 } });
    found.push(trace);
  }
  return found;
}

// The exponential moving mean, without the bias to its beginning that it has at first.
function smoothed(values) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = WEIGHT * sum + (1 - WEIGHT) * value;
    weight = WEIGHT * weight + (1 - WEIGHT);
    return sum / weight;
  });
}

// Plotly reads a little markup in its texts.
function escaped(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("%{", "% {");
}

function layout(block) {
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true,
    tickfont: { size: 11 }, nticks: 6, fixedrange: true };
  const categories = block.series.some((one) => one.x.some((x) => typeof x === "string"));
  const values = block.series.flatMap((one) => one.y.filter((y) => y !== null));
  const wide = Math.max(...values.map(Math.abs), 0);
  return {
    margin: { l: 8, r: 10, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--soft") },
    hovermode: block.form === "bars" ? "closest" : "x unified", dragmode: false, bargap: 0.12,
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 }, namelength: 40 },
    xaxis: { ...axis, showgrid: false, title: { text: escaped(block.x), font: { size: 11 }, standoff: 6 },
      ...(categories ? { type: "category" } : {}) },
    yaxis: { ...axis, rangemode: block.form === "lines" ? "normal" : "tozero",
      tickformat: block.percent ? ".0%" : wide && wide < 1e-3 ? ".1e" : wide >= 1e4 ? "~s" : "~g",
      ...still(values),
      ...(block.form === "bars" ? { range: shares(block.series.filter((one) => one.bars).flatMap((one) => one.y)) } : {}),
      ...(block.percent ? { range: shares(values) } : { title: { text: escaped(block.y), font: { size: 11 }, standoff: 6 } }) },
  };
}

// A number that never changes is drawn on an axis that begins at 0.
function still(values) {
  const [value] = values;
  return values.some((other) => other !== value) ? {} : { range: value ? [Math.min(0, 1.2 * value), Math.max(0, 1.2 * value)] : [0, 1] };
}

// Shares are drawn from 0, so that heights can be compared, and a little above the highest.
function shares(values) {
  return [Math.min(0, ...values), Math.max(0.02, ...values) * 1.06];
}

function draw(plot) {
  Plotly.react(plot, traces(plot.block), layout(plot.block), { displayModeBar: false, responsive: true });
  drawn.add(plot);
}

function drawAgain() {
  drawn.forEach(draw);
}
