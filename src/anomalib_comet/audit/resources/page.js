// The page of an audit. Only the tiles in view are in the document; pictures are decoded a block at a time.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const join = (folder, name) => folder + (folder === "" || folder.endsWith(data.separator) ? "" : data.separator) + name;
  const images = data.rows.map(([folder, name, score, weight, rank, problem, injected, kind], id) => ({
    id, folder, score, weight, rank, problem, injected, kind,
    path: join(data.folders[folder], name),
  }));
  for (const image of images) image.search = image.path.toLowerCase();

  const number = (value) => (value === null ? "–" : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4)));
  const count = (value, word) => `${value.toLocaleString("en")} ${word}${value === 1 ? "" : "s"}`;

  // ------------------------------------------------------------------------------------------------- pictures
  const blocks = new Map();
  function pictures(id) {
    const block = Math.floor(id / data.chunk);
    let parsed = blocks.get(block);
    if (!parsed) {
      parsed = JSON.parse($(`block${block}`).textContent);
      if (blocks.size >= 24) blocks.delete(blocks.keys().next().value);
    } else blocks.delete(block);
    blocks.set(block, parsed); // the latest used is the last one
    return parsed[id % data.chunk];
  }
  const source = (encoded) => `data:image/webp;base64,${encoded}`;

  // Colours of the heat maps: clear below, then blue, red and yellow.
  const stops = [[0, 60, 20, 160, 0], [0.25, 110, 30, 190, 0.4], [0.5, 215, 40, 110, 0.6], [0.75, 250, 120, 30, 0.7], [1, 255, 235, 60, 0.8]];
  const palette = new Uint8ClampedArray(256 * 4);
  for (let grey = 0; grey < 256; grey++) {
    const share = grey / 255;
    const k = Math.max(1, stops.findIndex((stop) => stop[0] >= share));
    const [low, high] = [stops[k - 1], stops[k]];
    const t = (share - low[0]) / (high[0] - low[0]);
    for (let c = 0; c < 4; c++) palette[grey * 4 + c] = (low[c + 1] + t * (high[c + 1] - low[c + 1])) * (c === 3 ? 255 : 1);
  }
  function paint(canvas, encoded) {
    const picture = new Image();
    picture.onload = () => {
      canvas.width = picture.naturalWidth;
      canvas.height = picture.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
      for (let i = 0; i < pixels.data.length; i += 4) {
        const grey = pixels.data[i] * 4;
        for (let c = 0; c < 4; c++) pixels.data[i + c] = palette[grey + c];
      }
      context.putImageData(pixels, 0, 0);
      canvas.dataset.painted = "yes";
    };
    picture.src = source(encoded);
  }

  // ---------------------------------------------------------------------------------------------------- state
  const key = `anomalib_comet.audit.${data.run}`;
  const state = { selected: new Set(), by: "score", score: null, weight: 1, anchor: null, active: 0 };
  const scores = images.map((image) => image.score).filter((score) => score !== null);
  const range = { score: [Math.min(...chunked(scores, Math.min)), Math.max(...chunked(scores, Math.max))], weight: [0, 1] };
  if (!scores.length) range.score = [0, 1];
  state.score = Math.min(Math.max(data.fence ?? range.score[1], range.score[0]), range.score[1]);
  // Math.min of a hundred thousand arguments overflows the stack.
  function chunked(values, reduce) {
    const parts = [];
    for (let i = 0; i < values.length; i += 4096) parts.push(reduce(...values.slice(i, i + 4096)));
    return parts;
  }
  const beyond = (image) => (state.by === "score" ? image.score !== null && image.score > state.score : image.weight !== null && image.weight < state.weight);

  function remember() {
    try {
      localStorage.setItem(key, JSON.stringify({ selected: [...state.selected], by: state.by, score: state.score, weight: state.weight }));
    } catch { /* a browser that keeps nothing for files: the selection lasts as long as the page */ }
  }
  function recall() {
    try {
      const kept = JSON.parse(localStorage.getItem(key));
      if (!kept) return;
      state.selected = new Set(kept.selected.filter((id) => Number.isInteger(id) && id >= 0 && id < images.length));
      if (kept.by === "weight" || kept.by === "score") state.by = kept.by;
      for (const by of ["score", "weight"]) if (Number.isFinite(kept[by])) state[by] = kept[by];
    } catch { /* nothing to recall */ }
  }

  // ----------------------------------------------------------------------------------------- order and filters
  let shown = images;
  const text = (a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0);
  const last = (value, missing) => (value === null ? missing : value);
  const orders = {
    suspicious: (a, b) => a.id - b.id,
    normal: (a, b) => last(b.rank, -Infinity) - last(a.rank, -Infinity) || a.id - b.id,
    weight: (a, b) => last(a.weight, Infinity) - last(b.weight, Infinity) || a.id - b.id,
    path: text,
  };
  function arrange() {
    const folder = $("folder").value, wanted = $("text").value.trim().toLowerCase(), only = $("only").value;
    const keep = {
      "": () => true, above: beyond, selected: (image) => state.selected.has(image.id), unreadable: (image) => image.problem !== "",
    }[only];
    shown = images.filter((image) => (folder === "" || image.folder === +folder) && image.search.includes(wanted) && keep(image));
    shown.sort((a, b) => { const order = orders[$("order").value](a, b); return Number.isNaN(order) ? a.id - b.id : order; });
    state.active = Math.min(state.active, Math.max(0, shown.length - 1));
    state.anchor = null;
    $("empty").hidden = shown.length > 0;
    $("summary").textContent = `${shown.length === images.length ? "" : `${shown.length.toLocaleString("en")} of `}${count(images.length, "image")}${data.leftOut ? `, ${data.leftOut.toLocaleString("en")} less suspicious ones left out` : ""}`;
    layout(true);
  }

  // ----------------------------------------------------------------------------------------------------- grid
  const grid = $("grid"), canvas = $("canvas"), gap = 10, edge = 14;
  const tiles = new Map(); // position in `shown` -> element
  let columns = 1, width = 0, height = 0;
  function layout(anew) {
    const space = grid.clientWidth - 2 * edge;
    columns = Math.max(1, Math.floor((space + gap) / (data.thumbnail + gap)));
    width = Math.floor((space - (columns - 1) * gap) / columns);
    height = width + 46;
    canvas.style.height = `${2 * edge + Math.max(0, Math.ceil(shown.length / columns) * (height + gap) - gap)}px`;
    for (const tile of tiles.values()) tile.remove();
    tiles.clear();
    if (anew) grid.scrollTop = 0;
    render();
  }
  function render() {
    const first = Math.max(0, Math.floor((grid.scrollTop - edge) / (height + gap)) - 1) * columns;
    const end = Math.min(shown.length, (Math.ceil((grid.scrollTop + grid.clientHeight) / (height + gap)) + 1) * columns);
    for (const [position, tile] of tiles) if (position < first || position >= end) { tile.remove(); tiles.delete(position); }
    for (let position = first; position < end; position++) if (!tiles.has(position)) {
      const tile = build(position);
      tiles.set(position, tile);
      canvas.append(tile);
      mark(tile);
    }
    const active = tiles.get(state.active);
    if (active) grid.setAttribute("aria-activedescendant", active.id); else grid.removeAttribute("aria-activedescendant");
  }
  function element(name, className, content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (content !== undefined) made.textContent = content;
    return made;
  }
  function build(position) {
    const image = shown[position], tile = element("div", "tile");
    tile.id = `tile${image.id}`;
    tile.dataset.position = position;
    tile.setAttribute("role", "option");
    tile.setAttribute("aria-posinset", position + 1);
    tile.setAttribute("aria-setsize", shown.length);
    Object.assign(tile.style, {
      width: `${width}px`, height: `${height}px`,
      left: `${edge + (position % columns) * (width + gap)}px`, top: `${edge + Math.floor(position / columns) * (height + gap)}px`,
    });
    const view = element("div", "view");
    view.style.height = `${width}px`;
    const [thumbnail] = pictures(image.id);
    if (thumbnail) {
      const stack = element("div", "stack"), picture = element("img");
      picture.alt = "";
      picture.decoding = "async";
      picture.draggable = false;
      picture.src = source(thumbnail);
      stack.append(picture);
      view.append(stack);
    } else view.append(element("div", "missing", image.problem || "no picture"));
    const numbers = element("div", "numbers");
    numbers.append(element("b", "", image.rank === null ? "–" : `#${image.rank}`), element("span", "", number(image.score)), element("span", "", `w ${image.weight === null ? "–" : image.weight.toFixed(2)}`));
    const name = element("div", "name");
    name.append(element("bdi", "", image.path));
    tile.title = image.path;
    tile.append(view, numbers, name, element("div", "tick", "✓"));
    return tile;
  }
  function mark(tile) {
    const position = +tile.dataset.position, image = shown[position], selected = state.selected.has(image.id);
    tile.classList.toggle("selected", selected);
    tile.classList.toggle("beyond", beyond(image));
    tile.classList.toggle("active", position === state.active && document.activeElement === grid);
    tile.setAttribute("aria-selected", selected);
    const revealed = $("truth").checked && image.injected === true;
    let flag = tile.querySelector(".flag");
    if (revealed && !flag) { flag = element("div", "flag", image.kind || "injected"); tile.append(flag); }
    if (!revealed && flag) flag.remove();
    tile.setAttribute("aria-label", [
      image.rank === null ? "no rank" : `rank ${image.rank}`, `score ${number(image.score)}`, `weight ${image.weight === null ? "unknown" : image.weight.toFixed(2)}`,
      beyond(image) ? "beyond the threshold" : "", image.problem, revealed ? `injected ${image.kind}` : "", image.path,
    ].filter(Boolean).join(", "));
    heat(tile, image);
  }
  function heat(tile, image) {
    const wanted = $("heat").checked !== (tile === hovered) && data.limits !== null;
    const stack = tile.querySelector(".stack");
    if (!stack) return;
    const layer = stack.querySelector("canvas");
    if (!wanted) { if (layer) layer.remove(); return; }
    const encoded = pictures(image.id)[1];
    if (layer || !encoded) return;
    const made = element("canvas");
    stack.append(made);
    paint(made, encoded);
  }
  let hovered = null;
  function point(tile) {
    const before = hovered;
    hovered = tile;
    for (const one of new Set([before, tile])) if (one && one.isConnected) heat(one, shown[+one.dataset.position]);
  }
  const remark = () => { for (const tile of tiles.values()) mark(tile); };

  // ------------------------------------------------------------------------------------------------ threshold
  const bins = 60;
  // Scores of some detectors span orders of magnitude: a linear slider would have all images but a few in its first step.
  const byOrders = () => state.by === "score" && range.score[0] > 0 && range.score[1] > 200 * range.score[0];
  function shareOf(value) {
    const [low, high] = range[state.by];
    return byOrders() ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low || 1);
  }
  function valueAt(share) {
    const [low, high] = range[state.by];
    return byOrders() ? low * (high / low) ** share : low + share * (high - low);
  }
  function drawHistogram() {
    const amounts = new Array(bins).fill(0);
    for (const image of images) {
      const value = image[state.by];
      if (value !== null) amounts[Math.min(bins - 1, Math.max(0, Math.floor(shareOf(value) * bins)))] += 1;
    }
    const most = Math.sqrt(Math.max(1, ...amounts));
    $("histogram").replaceChildren(...amounts.map((amount, k) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect"), tall = Math.sqrt(amount) / most * 44;
      for (const [name, value] of Object.entries({ x: k * 4, y: 44 - tall, width: 3.4, height: tall })) bar.setAttribute(name, value);
      return bar;
    }));
  }
  function showThreshold() {
    const value = state[state.by], share = shareOf(value);
    $("slider").value = Math.round(share * 1000);
    $("slider").setAttribute("aria-valuetext", `${state.by} ${number(value)}`);
    if (document.activeElement !== $("value")) $("value").value = +value.toPrecision(6);
    const amount = images.reduce((sum, image) => sum + beyond(image), 0);
    $("above").textContent = `${count(amount, "image")} ${state.by === "score" ? "above" : "below"}`;
    [...$("histogram").children].forEach((bar, k) => bar.classList.toggle("beyond", state.by === "score" ? (k + 1) / bins > share : k / bins < share));
    for (const radio of document.getElementsByName("by")) radio.checked = radio.value === state.by;
    remember();
    if ($("only").value === "above") arrange(); else remark();
  }
  function setThreshold(value) {
    if (!Number.isFinite(value)) return;
    state[state.by] = value;
    showThreshold();
  }

  // ------------------------------------------------------------------------------------------------ selection
  function showSelection() {
    const hidden = state.selected.size - shown.reduce((sum, image) => sum + state.selected.has(image.id), 0);
    $("selected").textContent = state.selected.size ? `${count(state.selected.size, "image")} selected${hidden > 0 ? ` (${hidden.toLocaleString("en")} not shown)` : ""}` : "Nothing selected";
    for (const id of ["save-text", "save-csv", "copy", "clear"]) $(id).disabled = !state.selected.size;
    remark();
    remember();
  }
  function select(position, through) {
    if (!shown.length) return;
    if (through && state.anchor !== null) {
      for (let k = Math.min(position, state.anchor); k <= Math.max(position, state.anchor); k++) state.selected.add(shown[k].id);
    } else {
      const id = shown[position].id;
      if (!state.selected.delete(id)) state.selected.add(id);
      state.anchor = position;
    }
    state.active = position;
    showSelection();
  }
  function move(position) {
    state.active = Math.min(Math.max(0, position), Math.max(0, shown.length - 1));
    const top = edge + Math.floor(state.active / columns) * (height + gap);
    if (top < grid.scrollTop + edge) grid.scrollTop = top - edge;
    else if (top + height > grid.scrollTop + grid.clientHeight - edge) grid.scrollTop = top + height - grid.clientHeight + edge;
    render();
    remark();
  }

  // --------------------------------------------------------------------------------------------------- export
  const chosen = () => images.filter((image) => state.selected.has(image.id));
  const purpose = () => document.querySelector("input[name=purpose]:checked").value;
  const say = (message) => { $("message").textContent = message; };
  function lines() {
    const wanted = chosen(), whole = wanted.filter((image) => !/[\r\n]/.test(image.path));
    const broken = wanted.length - whole.length;
    return [whole.map((image) => `${image.path}\n`).join(""), broken ? ` ${count(broken, "path")} with a line break left out: use the CSV.` : "", whole.length];
  }
  function table() {
    const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const label = purpose() === "delete" ? "remove" : "abnormal";
    const rows = chosen().map((image) => [image.path, label, image.rank ?? "", image.score ?? "", image.weight ?? ""].map((value) => quoted(String(value))).join(","));
    return ["image_path,label,rank,anomaly_score,confidence_weight", ...rows, ""].join("\n");
  }
  function save(content, type, ending) {
    const link = element("a"), name = `audit_${purpose()}.${ending}`;
    link.href = URL.createObjectURL(new Blob([content], { type: `${type};charset=utf-8` }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    return name;
  }
  async function copy() {
    const [content, note, amount] = lines();
    try {
      await navigator.clipboard.writeText(content);
    } catch {
      const area = element("textarea", "hidden");
      area.value = content;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) { say("The browser refuses to copy; save the list instead."); return; }
    }
    say(`${count(amount, "path")} copied.${note}`);
  }

  // --------------------------------------------------------------------------------------------------- detail
  function file(path) {
    const slashes = data.separator === "\\" ? path.replaceAll("\\", "/") : path;
    if (!/^(\/|[A-Za-z]:\/)/.test(slashes)) return null;
    return `file://${slashes.startsWith("/") ? "" : "/"}${slashes.split("/").map((part) => encodeURIComponent(part).replace(/^([A-Za-z])%3A$/, "$1:")).join("/")}`;
  }
  function detail(position) {
    const image = shown[position], [thumbnail, map] = pictures(image.id);
    $("detail-path").textContent = image.path;
    $("detail-image").src = $("detail-under").src = thumbnail ? source(thumbnail) : "data:,";
    $("detail-heat").hidden = !map;
    if (map) paint($("detail-heat").querySelector("canvas"), map);
    $("detail-numbers").textContent = [
      image.rank === null ? "no rank" : `rank ${image.rank} of ${scores.length + (data.leftOut || 0)}`, `score ${number(image.score)}`, `weight ${number(image.weight)}`, image.problem,
      $("truth").checked && image.injected ? `injected: ${image.kind}` : "",
    ].filter(Boolean).join(" · ");
    let address = null;
    try { address = file(image.path); } catch { /* a name that is no valid text has no address */ }
    $("detail-open").hidden = !address;
    if (address) $("detail-open").href = address;
    const toggle = () => { $("detail-select").textContent = state.selected.has(image.id) ? "Unselect" : "Select"; };
    toggle();
    $("detail-select").onclick = () => { select(position, false); toggle(); };
    if (!$("detail").open) $("detail").showModal();
  }

  // --------------------------------------------------------------------------------------------------- events
  const counts = new Map();
  for (const image of images) counts.set(image.folder, (counts.get(image.folder) || 0) + 1);
  for (const [folder, name] of [...data.folders.entries()].sort((a, b) => (a[1] < b[1] ? -1 : 1))) {
    const option = element("option", "", `${name.length > 60 ? `…${name.slice(-58)}` : name || "."} (${counts.get(folder)})`);
    option.value = folder;
    option.title = name;
    $("folder").append(option);
  }
  for (const id of ["order", "folder", "only"]) $(id).addEventListener("change", () => { arrange(); showSelection(); });
  $("text").addEventListener("input", () => { arrange(); showSelection(); });
  $("truth").addEventListener("change", remark);
  $("heat").addEventListener("change", remark);
  $("truth-label").hidden = !data.truth;
  $("heat-label").hidden = $("scale").hidden = data.limits === null;
  if (data.limits) {
    const context = $("ramp").getContext("2d"), pixels = context.createImageData(256, 1);
    pixels.data.set(palette);
    context.putImageData(pixels, 0, 0);
    [$("low").textContent, $("high").textContent] = data.limits.map(number);
    $("scale-note").textContent = `One scale for all images: from the ${data.quantiles[0] * 100} % to the ${+(data.quantiles[1] * 100).toFixed(3)} % quantile of all map values.${data.mapped < images.length ? ` ${count(data.mapped, "image")} of ${images.length.toLocaleString("en")} ${data.mapped === 1 ? "has" : "have"} a map.` : ""}`;
  }
  for (const radio of document.getElementsByName("by")) radio.addEventListener("change", () => { state.by = radio.value; drawHistogram(); showThreshold(); });
  $("slider").addEventListener("input", () => setThreshold(valueAt($("slider").value / 1000)));
  $("value").addEventListener("input", () => { if ($("value").value !== "") setThreshold(+$("value").value); });
  $("value").addEventListener("blur", showThreshold);
  $("select-above").addEventListener("click", () => { for (const image of shown) if (beyond(image)) state.selected.add(image.id); showSelection(); });
  $("select-shown").addEventListener("click", () => { for (const image of shown) state.selected.add(image.id); showSelection(); });
  const clear = () => { state.selected.clear(); state.anchor = null; showSelection(); };
  $("clear").addEventListener("click", clear);
  $("save-text").addEventListener("click", () => { const [content, note, amount] = lines(); say(`${count(amount, "path")} in ${save(content, "text/plain", "txt")}.${note}`); });
  $("save-csv").addEventListener("click", () => say(`${count(state.selected.size, "row")} in ${save(table(), "text/csv", "csv")}.`));
  $("copy").addEventListener("click", copy);
  grid.addEventListener("scroll", () => requestAnimationFrame(render), { passive: true });
  grid.addEventListener("focus", remark);
  grid.addEventListener("blur", remark);
  const under = (event) => (event.target instanceof Element ? event.target.closest(".tile") : null);
  grid.addEventListener("mouseover", (event) => { const tile = under(event); if (tile !== hovered) point(tile); });
  grid.addEventListener("mouseleave", () => point(null));
  grid.addEventListener("click", (event) => { const tile = under(event); if (tile) select(+tile.dataset.position, event.shiftKey); });
  // Its two clicks have undone each other.
  grid.addEventListener("dblclick", (event) => { const tile = under(event); if (tile && !event.shiftKey) detail(+tile.dataset.position); });
  grid.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(grid.clientHeight / (height + gap))) * columns;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
    if (event.key in steps) {
      if (event.shiftKey && state.anchor === null) state.anchor = state.active;
      move(state.active + steps[event.key]);
      if (event.shiftKey) select(state.active, true);
    } else if (event.key === " ") select(state.active, event.shiftKey);
    else if (event.key === "Enter" && shown.length) detail(state.active);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) $("select-shown").click();
    else if (event.key === "Escape") clear();
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.matches("input[type=search], input[type=number], select");
    if (event.key.toLowerCase() !== "h" || typing || event.ctrlKey || event.metaKey || event.altKey || data.limits === null) return;
    $("heat").checked = !$("heat").checked;
    remark();
  });
  new ResizeObserver(() => { if (grid.clientWidth) layout(false); }).observe(grid);

  recall();
  drawHistogram();
  arrange();
  showThreshold();
  showSelection();
  document.documentElement.dataset.ready = "yes";
})();
