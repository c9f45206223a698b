"use strict";
// Draws the map of a slot and the series of a cell from the numbers in the page, and loads nothing from outside.
(async () => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const state = { service: 0, slot: page.slot, cell: page.cell, view: "truth" };
  const VIEWS = ["truth", "forecast", "error"];
  const INK = "#1c2733", BLUE = "#0072b2", MARK = "#d55e00";
  const CONFIG = { displayModeBar: false, responsive: true };
  const MAP = { ...CONFIG, doubleClick: false, doubleClickDelay: 1 }; // two quick taps choose two cells
  const byId = (id) => document.getElementById(id);
  const MISSING = { u1: 255, u2: 65535 };
  const narrow = () => window.matchMedia("(max-width: 760px)").matches;

  function fail(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = false;
    document.documentElement.dataset.state = "failed";
  }

  async function inflated(id) {
    const packed = Uint8Array.from(atob(byId(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  function array(entry, buffer) {
    const size = entry.shape.reduce((a, b) => a * b, 1);
    if (entry.type === "f4") return new Float32Array(buffer, entry.at, size);
    if (entry.type === "u1") return new Uint8Array(buffer, entry.at, size);
    const bytes = new Uint8Array(buffer, entry.at, 2 * size), numbers = new Uint16Array(size);
    for (let i = 0; i < size; i++) numbers[i] = bytes[i] | (bytes[size + i] << 8);
    return numbers;
  }

  if (typeof DecompressionStream === "undefined") {
    fail("The map and the curves need a newer browser: Chrome 80, Firefox 113, Safari 16.4 or later.");
    return;
  }
  const arrays = {}, types = {};
  try {
    const buffer = await inflated("page-arrays");
    for (const entry of page.arrays) {
      arrays[entry.name] = array(entry, buffer);
      types[entry.name] = entry.type;
    }
    const library = document.createElement("script");
    library.textContent = new TextDecoder().decode(await inflated("plotly"));
    document.head.append(library);
    if (typeof Plotly === "undefined") throw new Error("the drawing library did not start");
  } catch (error) {
    fail(`This page is damaged, or was cut short: ${error.message}. Write it again with simmst report.`);
    return;
  }

  const cells = page.names.length, slots = page.labels.length;
  const value = (name, service, cell, slot) => {
    const series = service * cells + cell, number = arrays[name][series * slots + slot], missing = MISSING[types[name]];
    if (number === missing) return NaN;
    const low = arrays.limits[2 * series], high = arrays.limits[2 * series + 1];
    return low + (number * (high - low)) / (missing - 1);
  };
  const known = (x) => (Number.isNaN(x) ? null : x);
  const shown = (view, cell) => {
    const { service, slot } = state;
    if (view !== "error") return known(value(view, service, cell, slot));
    return known(value("forecast", service, cell, slot) - value("truth", service, cell, slot));
  };
  // Plotly interprets some HTML in its texts, so names are escaped.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const names = page.names.map(plain);
  const number = (x) => (Number.isFinite(x) ? x.toLocaleString("en", { maximumSignificantDigits: 4 }) : "-");
  const numbered = (count) => Array.from({ length: count }, (_, i) => i);

  // After a tap Plotly reports a second click, from the emulated mouse, with the point of the tap before.
  function onClick(div, act) {
    let tapped = null;
    div.addEventListener("pointerdown", (event) => { tapped = event.pointerType === "touch" ? { told: false } : null; }, true);
    div.on("plotly_click", (event) => {
      if (tapped?.told) return;
      if (tapped) tapped.told = true;
      act(event.points);
    });
  }

  // The map ---------------------------------------------------------------------------------------------------------

  const { geometry } = page;
  const cellAt = new Map();
  if (geometry.kind === "grid") {
    for (let i = 0; i < cells; i++) cellAt.set(arrays.row[i] * geometry.columns + arrays.column[i], i);
  }
  const raster = (of) => {
    const rows = Array.from({ length: geometry.rows }, () => new Array(geometry.columns).fill(null));
    for (let i = 0; i < cells; i++) rows[arrays.row[i]][arrays.column[i]] = of(i);
    return rows;
  };
  const place = (cell) => {
    if (geometry.kind === "grid") return [arrays.column[cell], arrays.row[cell]];
    return geometry.kind === "places" ? [arrays.lon[cell], arrays.lat[cell]] : [cell, 0];
  };
  const selected = () => {
    const [x, y] = place(state.cell);
    return { x: [[x]], y: [[y]] };
  };
  const barColours = () => numbered(cells).map((i) => (i === state.cell ? MARK : BLUE));

  function colours(view) {
    const [limit, error] = page.colours[state.service];
    return view === "error"
      ? { colorscale: [[0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1, "#b2182b"]], min: -error, max: error }
      : { colorscale: "Viridis", min: page.signed ? -limit : 0, max: limit };
  }

  function mapTraces(view) {
    const { colorscale, min, max } = colours(view);
    const bar = { orientation: "h", thickness: 10, len: 1, y: -0.02, yanchor: "top", outlinewidth: 0, title: { text: plain(page.unit), side: "bottom" } };
    const all = numbered(cells), values = all.map((i) => shown(view, i));
    const [x, y] = place(state.cell);
    const mark = { type: "scatter", mode: "markers", x: [x], y: [y], hoverinfo: "skip", showlegend: false,
      marker: { symbol: "square-open", size: 13, color: MARK, line: { width: 2.5 } } };
    const hover = (what) => `%{text}<br>%{${what}:,.4~g} ${plain(page.unit)}<extra></extra>`;
    if (geometry.kind === "grid") {
      return [{ type: "heatmap", z: raster((i) => values[i]), text: raster((i) => names[i]), hovertemplate: hover("z"),
        colorscale, zmin: min, zmax: max, colorbar: bar, hoverongaps: false }, mark];
    }
    if (geometry.kind === "places") {
      mark.marker.symbol = "circle-open";
      const size = cells > 2000 ? 4 : cells > 200 ? 8 : 12;
      return [{ type: cells > 2000 ? "scattergl" : "scatter", mode: "markers", x: Array.from(arrays.lon), y: Array.from(arrays.lat), text: names,
        marker: { size, color: values, colorscale, cmin: min, cmax: max, colorbar: bar },
        customdata: values, hovertemplate: hover("customdata") }, mark];
    }
    return [{ type: "bar", x: all, y: values, text: names, textposition: "none", hovertemplate: hover("y"), marker: { color: barColours() } }];
  }

  function mapLayout(view) {
    const layout = { margin: { l: 8, r: 8, t: 6, b: 46 }, dragmode: false, showlegend: false, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      font: { family: "inherit", size: 12, color: INK }, xaxis: { fixedrange: true }, yaxis: { fixedrange: true } };
    if (geometry.kind === "grid") {
      Object.assign(layout.xaxis, { visible: false, constrain: "domain", range: [-0.5, geometry.columns - 0.5] });
      Object.assign(layout.yaxis, { visible: false, constrain: "domain", scaleanchor: "x", range: [-0.5, geometry.rows - 0.5] });
    } else if (geometry.kind === "places") {
      Object.assign(layout.xaxis, { title: { text: "" }, zeroline: false, nticks: 4 });
      Object.assign(layout.yaxis, { zeroline: false, nticks: 5, scaleanchor: "x", scaleratio: geometry.ratio });
      Object.assign(layout.margin, { l: 44, b: 66 });
    } else {
      const { min, max } = colours(view), each = Math.max(1, Math.ceil(cells / 12));
      const ticks = numbered(cells).filter((i) => i % each === 0);
      Object.assign(layout.xaxis, { tickvals: ticks, ticktext: ticks.map((i) => names[i]), tickangle: -45, automargin: true });
      Object.assign(layout.yaxis, { title: { text: plain(page.unit) }, range: [min, 1.1 * max] });
      Object.assign(layout.margin, { l: 56 });
    }
    return layout;
  }

  const visible = () => (narrow() ? [state.view] : VIEWS);

  async function drawMaps() {
    for (const view of visible()) {
      const div = byId(`map-${view}`), fresh = !div.data;
      await Plotly.react(div, mapTraces(view), mapLayout(view), MAP);
      if (fresh) {
        onClick(div, (points) => {
          const point = points.find((one) => one.curveNumber === 0);
          if (!point) return;
          const cell = geometry.kind === "grid" ? cellAt.get(point.y * geometry.columns + point.x) : point.pointNumber;
          if (cell !== undefined) choose(cell);
        });
      }
    }
  }

  function moveMaps() {
    for (const view of visible()) {
      const div = byId(`map-${view}`);
      if (geometry.kind === "grid") Plotly.restyle(div, { z: [raster((i) => shown(view, i))] }, [0]);
      else {
        const values = numbered(cells).map((i) => shown(view, i));
        if (geometry.kind === "places") Plotly.restyle(div, { "marker.color": [values], customdata: [values] }, [0]);
        else Plotly.restyle(div, { y: [values] }, [0]);
      }
    }
  }

  function markCell() {
    for (const view of visible()) {
      const div = byId(`map-${view}`);
      if (geometry.kind === "bars") Plotly.restyle(div, { "marker.color": [barColours()] }, [0]);
      else Plotly.restyle(div, selected(), [1]);
    }
  }

  // The series of a cell --------------------------------------------------------------------------------------------

  const start = Date.parse(`${page.start}Z`); // the local time of the first slot, read as if it were UTC
  const times = numbered(slots).map((i) => new Date(start + i * page.step_minutes * 60000).toISOString().slice(0, 19));
  const series = (name) => numbered(slots).map((i) => known(value(name, state.service, state.cell, i)));
  const here = () => [{ type: "line", x0: times[state.slot], x1: times[state.slot], yref: "paper", y0: 0, y1: 1,
    line: { color: MARK, width: 1.5, dash: "dot" } }];

  async function drawSeries() {
    const truth = series("truth"), forecast = series("forecast"), traces = [];
    if (arrays.low) {
      const low = series("low"), high = series("high");
      const band = { type: "scatter", mode: "lines", x: times, line: { width: 0 }, hoverinfo: "skip" };
      traces.push({ ...band, y: low, showlegend: false });
      traces.push({ ...band, y: high, fill: "tonexty", fillcolor: "rgba(0,114,178,0.18)", name: `${page.level} % interval` });
    }
    traces.push({ type: "scatter", mode: "lines", x: times, y: forecast, name: plain(page.model), line: { color: BLUE, width: 2 },
      customdata: page.ahead, hovertemplate: "%{y:,.4~g} (%{customdata} ahead)" });
    traces.push({ type: "scatter", mode: "lines", x: times, y: truth, name: "truth", line: { color: INK, width: 1.4 }, hovertemplate: "%{y:,.4~g}" });
    const layout = { margin: { l: 56, r: 10, t: 30, b: 40 }, dragmode: narrow() ? false : "zoom", hovermode: "x unified", shapes: here(),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, font: { family: "inherit", size: 12, color: INK },
      xaxis: { fixedrange: narrow() }, yaxis: { fixedrange: true, rangemode: page.signed ? "normal" : "tozero", title: { text: plain(page.unit) } } };
    const div = byId("series"), fresh = !div.data;
    await Plotly.react(div, traces, layout, CONFIG);
    if (fresh) onClick(div, (points) => move(points[0].pointNumber));
    const both = numbered(slots).filter((i) => truth[i] !== null && forecast[i] !== null);
    const errors = both.map((i) => Math.abs(truth[i] - forecast[i]));
    let text = both.length ? `mean absolute error here ${number(errors.reduce((a, b) => a + b, 0) / both.length)} ${page.unit}` : "no slot here has both a truth and a forecast";
    if (arrays.low && both.length) {
      const held = both.filter((i) => value("low", state.service, state.cell, i) <= truth[i] && truth[i] <= value("high", state.service, state.cell, i));
      text += `; the ${page.level} % interval holds ${Math.round((100 * held.length) / both.length)} % of its ${both.length} slots`;
    }
    byId("cell-errors").textContent = text;
    byId("cell-title").textContent = `cell ${page.names[state.cell]}, ${page.services[state.service]}`;
  }

  // Input of the reader ----------------------------------------------------------------------------------------------

  let waiting = false;
  function move(slot) {
    state.slot = Math.max(0, Math.min(slots - 1, slot));
    byId("slot").value = state.slot;
    byId("when").textContent = page.labels[state.slot];
    byId("slot").setAttribute("aria-valuetext", page.labels[state.slot]);
    if (waiting) return;
    waiting = true; // one drawing per frame, however fast the slider moves
    requestAnimationFrame(() => {
      waiting = false;
      moveMaps();
      Plotly.relayout("series", { shapes: here() });
    });
  }

  function choose(cell) {
    state.cell = cell;
    byId("find").value = page.names[cell];
    markCell();
    drawSeries();
  }

  byId("slot").addEventListener("input", (event) => move(Number(event.target.value)));
  byId("service").addEventListener("change", (event) => {
    state.service = Number(event.target.value);
    drawMaps();
    drawSeries();
  });
  byId("find").addEventListener("change", (event) => {
    const cell = page.names.indexOf(event.target.value.trim());
    if (cell >= 0) choose(cell);
    else byId("cell-errors").textContent = `there is no cell ${event.target.value}; the first is ${page.names[0]}, the last ${page.names[cells - 1]}`;
  });
  for (const button of document.querySelectorAll(".views button")) {
    button.addEventListener("click", () => {
      state.view = button.dataset.view;
      for (const one of document.querySelectorAll(".views button")) one.setAttribute("aria-pressed", String(one === button));
      for (const one of document.querySelectorAll(".maps figure")) one.classList.toggle("shown", one.dataset.view === state.view);
      drawMaps();
    });
  }
  let playing = null;
  byId("play").addEventListener("click", () => {
    if (playing) clearInterval(playing);
    playing = playing ? null : setInterval(() => move((state.slot + 1) % slots), 300);
    byId("play").textContent = playing ? "\u23f8" : "\u25b6";
    byId("play").setAttribute("aria-label", playing ? "stop" : "play the slots");
  });
  window.matchMedia("(max-width: 760px)").addEventListener("change", () => { drawMaps(); drawSeries(); });

  byId("find").value = page.names[state.cell];
  await drawMaps();
  await drawSeries();
  move(state.slot);
  for (const figure of page.figures) {
    const layout = { margin: { l: 56, r: 10, t: 34, b: 44 }, dragmode: false, font: { family: "inherit", size: 12, color: INK }, ...figure.layout };
    layout.legend = { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", ...layout.legend };
    await Plotly.newPlot(figure.id, figure.data, layout, CONFIG);
  }
  document.documentElement.dataset.milliseconds = Math.round(performance.now());
  document.documentElement.dataset.state = "ready";
})();
