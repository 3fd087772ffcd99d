// Controls of report.html: the horizontal axis, logarithms, smoothing, zoom, curves to hide, values
// at a position, and the difference of two samples. Without this script the page shows the same
// charts as still pictures. It reads the data of the page alone, and asks no network for anything.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("controls");
  data.namespace = document.querySelector("svg").namespaceURI;
  const { width: W, height: H, left, right, top, bottom } = data.frame;
  const plotRight = W - right, plotBottom = H - bottom;
  const START_SHARE = 0.1; // as in curves.py
  const hidden = new Set(); // names of curves
  const charts = [];

  // numbers

  function short(value) {
    const size = Math.abs(value);
    for (const [unit, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (size >= unit) return +(value / unit).toPrecision(4) + suffix;
    return String(+value.toPrecision(size < 1e-3 ? 3 : 4));
  }

  function tickText(value, step) {
    if (Math.abs(value) < step * 1e-6) return "0";
    const size = Math.abs(value);
    const [unit, suffix] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([one]) =>
      size >= one) || [1, ""];
    if (!suffix && size < 1e-3) return short(value);
    let digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(step / unit) + 1e-9)));
    if (digits < 6 && Math.abs(((step / unit) * 10 ** digits) % 1 - 0.5) < 1e-3) digits++;
    return (value / unit).toFixed(digits) + suffix;
  }

  function tickStep(low, high) {
    const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
    return unit * [1, 2, 2.5, 5, 10].find((factor) => factor >= (rough / unit) * (1 - 1e-9));
  }

  function scale(low, high, log, start, end) {
    const at = log ? Math.log : (value) => value, from = at(low), span = at(high) - from || 1;
    const step = !log && high > low ? tickStep(low, high) : 0;
    return {
      low, high, log, step,
      of: (value) => start + ((at(value) - from) / span) * (end - start),
      text: (value) => (step ? tickText(value, step) : short(value)),
    };
  }

  function ticks({ low, high, log, step }) {
    const found = [];
    if (log && high / low > 1.5) {
      const decades = Math.log10(high / low);
      const digits = decades > 3 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
      const every = Math.max(1, Math.ceil(decades / 9));
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every)
        for (const digit of digits) found.push(digit * 10 ** power);
    } else if (high > low) {
      step ||= tickStep(low, high);
      for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number++)
        found.push(number * step);
    }
    return found.filter((tick) => tick >= low - Math.abs(low) * 1e-9 && tick <= high * (1 + 1e-9));
  }

  // curves

  function interpolated(xs, ys, x) {
    let low = 0, high = xs.length - 1;
    if (x <= xs[0]) return xs[0] > 0 ? (ys[0] * x) / xs[0] : ys[0];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle;
      else high = middle;
    }
    if (high === low) return ys[low];
    return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low] || 1);
  }

  function along(curve, axis) {
    const tokens = data.xs[curve.x], run = data.runs[curve.run];
    return axis === "tokens" ? tokens : tokens.map((x) => interpolated(run.tokens, run[axis], x));
  }

  function smoothed(tokens, values, share) {
    const reachOfAll = Math.floor(values.length * share);
    if (reachOfAll < 1) return values;
    return values.map((_, place) => {
      // never further ahead than back; a point's weight is its distance from the one before
      const reach = Math.min(reachOfAll, place);
      let sum = 0, total = 0;
      for (let k = place - reach; k <= Math.min(place + reach, values.length - 1); k++) {
        const weight = k > 0 ? tokens[k] - tokens[k - 1] : tokens[1] - tokens[0];
        sum += values[k] * weight;
        total += weight;
      }
      return total > 0 ? sum / total : values[place];
    });
  }

  function timeUnit(seconds) {
    if (seconds > 2 * 86400) return [86400, "days"];
    if (seconds > 7200) return [3600, "hours"];
    return seconds > 120 ? [60, "minutes"] : [1, "seconds"];
  }

  // drawing

  function make(name, attributes, parent, text) {
    const node = document.createElementNS(data.namespace, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  function state() {
    const value = (name) => form.elements[name];
    return {
      axis: value("axis").value,
      logX: value("logx").checked,
      logY: value("logy").value,
      share: value("smooth").value / 100,
      from: value("from").value / 100,
      to: value("to").value / 100,
    };
  }

  function yRange(chart, shown, all, options, whole) {
    // at full width the start of a run may lie above the plot, as in the still picture
    let values = shown.flatMap((curve) => curve.ys), log = options.logY === "on";
    const positive = values.length > 0 && values.every((y) => y > 0);
    const later = shown.flatMap((curve) => curve.ys.filter((_, k) => curve.late[k]));
    const low = Math.min(...values), high = Math.max(...values), most = Math.max(...later);
    const cut = whole && later.length && high > most && high - low > 1.5 * (most - low) && most > low;
    if (options.logY === "auto") log = Boolean(cut && chart.log_y);
    log = log && positive;
    if (cut && !log) values = values.filter((y) => y <= most);
    if (chart.raw && options.share > 0) {
      const behind = all.flatMap((curve) => curve.rawYs).sort((a, b) => a - b);
      const shares = log ? [0, 1] : [0.05, 0.95];
      for (const share of shares)
        if (behind.length) values = [...values, behind[Math.round(share * (behind.length - 1))]];
    }
    let from = Math.min(...values), to = Math.max(...values);
    if (chart.from_zero && !log) [from, to] = [Math.min(from, 0), Math.max(to, 0)];
    if (to - from <= 1e-9 * Math.max(Math.abs(from), Math.abs(to), 1e-200))
      [from, to] = [from - (Math.abs(from) / 2 || 1), to + (Math.abs(to) / 2 || 1)];
    if (log && from > 0) {
      tell(chart, []);
      return scale(from / 1.02, to * 1.02, true, plotBottom, top);
    }
    const step = tickStep(from, to);
    from = Math.floor(from / step + 1e-9) * step;
    to = Math.ceil(to / step - 1e-9) * step;
    // what the axis leaves out, in the words of curves.py
    const drawn = shown.flatMap((curve) =>
      [curve.ys, ...(chart.raw && curve.smooth !== curve.y ? [curve.rawYs] : [])].flatMap((ys) =>
        ys.filter((_, k) => !cut || curve.late[k])));
    const highest = Math.max(...drawn), lowest = Math.min(...drawn);
    tell(chart, [
      cut && `begins at ${short(high)}`,
      highest > to + step * 1e-6 && `single steps up to ${short(highest)}`,
      lowest < from - step * 1e-6 && `single steps down to ${short(lowest)}`,
    ]);
    return scale(from, to, false, plotBottom, top);
  }

  function tell(chart, words) {
    chart.words.textContent = [chart.unit, ...words].filter(Boolean).join(", ");
  }

  function draw(chart) {
    const options = state(), { svg } = chart;
    svg.replaceChildren();
    const visible = chart.curves.filter((curve) => !hidden.has(curve.name));
    const curves = visible.map((curve) => {
      const tokens = data.xs[curve.x];
      return { ...curve, xs: along(curve, options.axis),
        smooth: chart.mean ? smoothed(tokens, curve.y, options.share) : curve.y };
    });
    chart.read = () => "no curve is shown";
    chart.cursor = make("g", { class: "cursor" });
    if (!curves.length) return;
    let unit = [1, options.axis];
    // all charts of the page have one horizontal axis
    const ends = data.runs.map((run) => run[options.axis].at(-1));
    const starts = data.runs.map((run) => run[options.axis].find((x) => x > 0) || 1);
    let xLow = options.logX ? Math.min(...starts) : 0, xHigh = Math.max(...ends);
    if (options.axis === "seconds") {
      unit = timeUnit(xHigh);
    } else if (!options.logX && xHigh > 0) {
      // a run of whole sequences ends a little before a round number of tokens
      const step = tickStep(0, xHigh), round = Math.round(xHigh / step) * step;
      if (xHigh < round && round < 1.01 * xHigh) xHigh = round;
    }
    const at = (share) =>
      options.logX ? xLow * (xHigh / xLow) ** share : xLow + (xHigh - xLow) * share;
    const whole = options.from === 0 && options.to === 1;
    const latest = at(options.from + START_SHARE * (options.to - options.from));
    [xLow, xHigh] = [at(options.from), at(options.to)];
    const x = scale(xLow / unit[0], xHigh / unit[0], options.logX, left, plotRight);
    for (const curve of curves) {
      curve.px = curve.xs.map((value) => x.of(Math.max(value, options.logX ? xLow / 2 : value) / unit[0]));
      const inside = curve.xs.map((value) => value >= xLow && value <= xHigh);
      curve.ys = curve.smooth.filter((_, k) => inside[k]);
      curve.late = curve.xs.filter((_, k) => inside[k]).map((value) => value > latest);
      curve.rawYs = curve.y.filter((_, k) => inside[k]);
    }
    const shown = curves.filter((curve) => curve.ys.length);
    if (shown.length) {
      drawCurves(chart, curves, shown, x, options, whole, unit);
    } else {
      make("text", { x: (left + plotRight) / 2, y: H / 2, "text-anchor": "middle" }, svg,
        "no value in this part");
    }
    chart.x = x;
    svg.append(chart.cursor);
    chart.select = make("rect", { class: "select", y: 0, height: plotBottom, width: 0 }, svg);
  }

  function drawCurves(chart, curves, shown, x, options, whole, unit) {
    const { svg } = chart, y = yRange(chart, shown, curves, options, whole);
    for (const tick of ticks(y)) {
      make("path", { class: "grid", d: `M${left} ${y.of(tick)}H${plotRight}` }, svg);
      make("text", { x: left - 6, y: y.of(tick) + 4, "text-anchor": "end" }, svg, y.text(tick));
    }
    ticks(x).forEach((tick) => {
      const anchor = x.of(tick) < left + 12 ? "start" : "middle";
      make("text", { x: x.of(tick), y: H - 6, "text-anchor": anchor }, svg, x.text(tick));
    });
    make("text", { x: left - 6, y: H - 6, "text-anchor": "end" }, svg, unit[1]);
    const box = { x: left, width: plotRight - left + 4, height: plotBottom + 2 };
    const inner = make("svg", { ...box, viewBox: `${left} 0 ${box.width} ${box.height}` }, svg);
    const line = (curve, values) =>
      "M" + values.map((value, k) => {
        const down = y.log && value <= 0 ? H : y.of(value);
        return `${curve.px[k].toFixed(1)} ${down.toFixed(1)}`;
      }).join("L");
    for (const curve of curves)
      if (chart.raw && curve.smooth !== curve.y)
        make("path", { class: `c${curve.color} raw`, d: line(curve, curve.y) }, inner);
    for (const curve of curves) {
      make("path", { class: `c${curve.color}`, d: line(curve, curve.smooth) }, inner);
      if (curve.y.length < 60) {
        const dots = make("g", { class: `c${curve.color}` }, inner);
        curve.y.forEach((value, k) => {
          if (!y.log || value > 0) make("circle", { cx: curve.px[k], cy: y.of(value), r: 2.5 }, dots);
        });
      }
    }
    chart.read = (place) => showValues(chart, shown, place, y, unit, options);
  }

  // values at a place, in px from the left of the plot
  function showValues(chart, shown, place, y, unit, options) {
    const near = (curve) => {
      let best = 0;
      curve.px.forEach((px, k) => {
        if (Math.abs(px - place) < Math.abs(curve.px[best] - place)) best = k;
      });
      return best;
    };
    const lead = shown.reduce((one, other) => {
      const distance = (curve) => Math.abs(curve.px[near(curve)] - place);
      return distance(other) < distance(one) ? other : one;
    });
    const here = near(lead), px = lead.px[here], onLeft = px < (left + W) / 2;
    const head = `${short(lead.xs[here] / unit[0])} ${unit[1]}`, words = [head];
    chart.cursor.replaceChildren();
    make("path", { d: `M${px} ${top}V${plotBottom}` }, chart.cursor);
    const text = make("text", { y: top + 10, "text-anchor": onLeft ? "start" : "end" });
    const textX = onLeft ? px + 8 : px - 8;
    make("tspan", { x: textX }, text, head);
    for (const curve of shown) {
      if (px < curve.px[0] - 1 || px > curve.px.at(-1) + 1) continue;
      const k = near(curve), value = `${curve.name} ${short(curve.smooth[k])}`.trim();
      words.push(value);
      make("tspan", { class: `t${curve.color}`, x: textX, dy: "1.3em" }, text, value);
      const down = y.of(curve.smooth[k]);
      if (down >= 0 && down <= plotBottom + 2)
        make("circle", { class: `c${curve.color}`, cx: curve.px[k], cy: down, r: 3.5 }, chart.cursor);
    }
    chart.cursor.append(text);
    return words.join(", ");
  }

  function drawAll() {
    form.elements.smoothed.value = `${form.elements.smooth.value} %`;
    const { axis, logX, logY, share, from, to } = state();
    form.elements.part.value = `${Math.round(from * 100)} to ${Math.round(to * 100)} %`;
    charts.forEach(draw);
    const view = new URLSearchParams({
      x: axis, logx: logX ? "on" : "off", logy: logY, smooth: share * 100,
      from: from * 100, to: to * 100, hide: [...hidden].join("\n"),
    });
    try {
      // a bookmark keeps the view
      history.replaceState(null, "", `#${view}`);
    } catch {
      // not allowed for a file in some browsers
    }
  }

  function restore() {
    const view = new URLSearchParams(location.hash.slice(1));
    const set = (name, key) => {
      if (view.has(key)) form.elements[name].value = view.get(key);
    };
    for (const [name, key] of [["axis", "x"], ["logy", "logy"], ["smooth", "smooth"]]) set(name, key);
    set("from", "from");
    set("to", "to");
    if (!form.elements.axis.value) form.elements.axis.value = "tokens";
    if (!form.elements.logy.value) form.elements.logy.value = "auto";
    form.elements.logx.checked = view.get("logx") === "on";
    for (const name of (view.get("hide") || "").split("\n")) if (name) hidden.add(name);
    keepOrder(form.elements.to);
  }

  // at least one hundredth of the run is shown
  function keepOrder(moved) {
    const { from, to } = form.elements;
    if (+to.value - +from.value >= 1) return;
    if (moved === from) from.value = Math.max(0, +to.value - 1);
    else to.value = Math.min(100, +from.value + 1);
    if (+to.value - +from.value < 1) from.value = +to.value - 1;
  }

  function zoom(start, end) {
    const { from, to } = state(), share = (px) => (px - left) / (plotRight - left);
    const part = (px) => 100 * (from + (to - from) * Math.min(1, Math.max(0, share(px))));
    form.elements.from.value = Math.floor(part(start));
    form.elements.to.value = Math.ceil(part(end));
    keepOrder(form.elements.to);
    drawAll();
  }

  function whole() {
    form.elements.from.value = 0;
    form.elements.to.value = 100;
    drawAll();
  }

  // set-up

  function setUp(section, number) {
    const chart = {
      ...data.charts[number],
      svg: section.querySelector(":scope > svg"),
      words: section.querySelector("h2 small"),
    };
    charts.push(chart);
    const key = section.querySelector(".key");
    chart.curves.filter((curve) => curve.name).forEach((curve, place) => {
      const box = Object.assign(document.createElement("input"), { type: "checkbox" });
      box.checked = !hidden.has(curve.name);
      box.dataset.curve = curve.name;
      const label = document.createElement("label");
      const entry = key.children[place];
      entry.replaceWith(label);
      label.append(box, ...entry.childNodes);
      box.addEventListener("change", () => {
        if (box.checked) hidden.delete(curve.name);
        else hidden.add(curve.name);
        for (const other of document.querySelectorAll("[data-curve]"))
          other.checked = !hidden.has(other.dataset.curve);
        drawAll();
      });
    });
    const reader = Object.assign(document.createElement("input"), {
      type: "range", min: 0, max: 1000, value: 1000, className: "reader" });
    reader.setAttribute("aria-label", `${chart.title}: position whose values are shown`);
    const read = () => {
      const words = chart.read(left + (reader.value / 1000) * (plotRight - left));
      reader.setAttribute("aria-valuetext", words);
    };
    reader.addEventListener("input", read);
    reader.addEventListener("focus", read);
    reader.addEventListener("blur", () => chart.cursor.replaceChildren());
    chart.svg.after(reader);
    pointer(chart);
  }

  function pointer(chart) {
    let start = null;
    const place = (event) => {
      const box = chart.svg.getBoundingClientRect();
      return Math.min(plotRight, Math.max(left, ((event.clientX - box.left) / box.width) * W));
    };
    chart.svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button !== 0) return;
      start = place(event);
      chart.svg.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    chart.svg.addEventListener("pointermove", (event) => {
      const here = place(event);
      chart.read(here);
      if (start === null || !chart.select) return;
      chart.select.setAttribute("x", Math.min(start, here));
      chart.select.setAttribute("width", Math.abs(here - start));
    });
    chart.svg.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const end = place(event), begin = start;
      start = null;
      if (Math.abs(end - begin) > 6) zoom(Math.min(begin, end), Math.max(begin, end));
    });
    chart.svg.addEventListener("pointercancel", () => { start = null; });
    chart.svg.addEventListener("pointerleave", () => chart.cursor.replaceChildren());
    chart.svg.addEventListener("dblclick", whole);
  }

  // the difference of two texts, word by word: the longest common subsequence
  function difference(before, after) {
    const a = before.match(/\s+|[^\s]+/g) || [], b = after.match(/\s+|[^\s]+/g) || [];
    const longest = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1
          : Math.max(longest[i + 1][j], longest[i][j + 1]);
    const pieces = [];
    const put = (kind, word) => {
      if (pieces.length && pieces.at(-1)[0] === kind) pieces.at(-1)[1] += word;
      else pieces.push([kind, word]);
    };
    let i = 0, j = 0;
    while (i < a.length || j < b.length)
      if (i < a.length && j < b.length && a[i] === b[j]) put("", a[i++]), j++;
      else if (i < a.length && (j === b.length || longest[i + 1][j] >= longest[i][j + 1]))
        put("del", a[i++]);
      else put("ins", b[j++]);
    return pieces;
  }

  function setUpSamples() {
    const tool = document.getElementById("compare");
    if (!tool) return;
    const cards = [...document.querySelectorAll("[data-sample]")];
    cards.sort((a, b) => a.dataset.sample - b.dataset.sample);
    const { first, second } = tool.elements, shown = tool.querySelector(".texts");
    for (const select of [first, second])
      cards.forEach((card, number) => select.append(new Option(card.querySelector("h3").textContent, number)));
    first.value = 0;
    second.value = cards.length - 1;
    const compare = () => {
      const texts = [first, second].map((select) => [...cards[select.value].querySelectorAll("blockquote")]);
      const count = Math.max(...texts.map((quotes) => quotes.length));
      shown.replaceChildren();
      for (let number = 0; number < count; number++) {
        const [before, after] = texts.map((quotes) => (quotes[number] ? quotes[number].textContent : ""));
        const card = document.createElement("div"), quote = document.createElement("blockquote");
        for (const [kind, words] of difference(before, after)) {
          if (!kind) quote.append(words);
          else quote.append(Object.assign(document.createElement(kind), { textContent: words }));
        }
        card.append(quote);
        shown.append(card);
      }
    };
    first.addEventListener("change", compare);
    second.addEventListener("change", compare);
    tool.hidden = false;
    compare();
  }

  restore();
  document.querySelectorAll("section[data-chart]").forEach((section) =>
    setUp(section, +section.dataset.chart));
  form.addEventListener("input", (event) => {
    keepOrder(event.target);
    drawAll();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.whole.addEventListener("click", whole);
  form.hidden = false;
  drawAll();
  setUpSamples();
})();
