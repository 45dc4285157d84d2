// How the explorer draws: pictures on canvases, lines and bars. Nothing is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const WIDEST = 860;
const HEIGHT = 180;
const MARGIN = { left: 46, right: 8, top: 8, bottom: 20 };
const MOST_CLUSTERS = 12;

// An element with a class and a text.
export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) {
    node.className = className;
  }
  if (text !== undefined) {
    node.textContent = text;
  }
  return node;
}

// A number or a word as people read it.
export function shown(value, digits = 4) {
  if (value === null || value === undefined) {
    return "–";
  }
  if (typeof value !== "number") {
    return value;
  }
  if (Number.isInteger(value)) {
    return String(value);
  }
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) {
    return value.toExponential(2);
  }
  return String(Number(value.toPrecision(digits)));
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// A picture on a canvas, each of its pixels as many pixels of the page, so that all are sharp.
//
// view: channels, height and width of the picture.
// pixels: its bytes by row, pixel and channel, in base64.
// absent: flags of pixels that are not there, likewise; null: all are there.
// room: pixels of the page that it may be wide.
function canvasOf(view, pixels, absent, room) {
  const canvas = document.createElement("canvas");
  canvas.width = view.width;
  canvas.height = view.height;
  const bytes = bytesOf(pixels);
  const missing = absent ? bytesOf(absent) : null;
  const context = canvas.getContext("2d");
  const image = context.createImageData(view.width, view.height);
  for (let i = 0; i < view.width * view.height; i += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      const from = view.channels === 1 ? i : 3 * i + channel;
      image.data[4 * i + channel] = bytes[from];
    }
    image.data[4 * i + 3] = missing && missing[i] ? 0 : 255;
  }
  context.putImageData(image, 0, 0);
  canvas.className = view.width <= room ? "enlarged" : "";
  return sized(canvas, view, room);
}

// A canvas or a box as large as a picture is shown: a whole number of times its own size, if it
// is small.
function sized(node, view, room) {
  const scale = Math.max(1, Math.round(room / view.width));
  const width = Math.min(scale * view.width, Math.max(room, 160));
  node.style.width = `${width}px`;
  node.style.height = `${Math.round((width * view.height) / view.width)}px`;
  return node;
}

// The pictures of a modality beside each other: the real one, imputed ones, and moved ones.
export function pictureCard(view, answer, level) {
  const card = element("div", "card");
  card.append(heading(view.name, answer));
  const strip = element("div", "strip");
  const room = window.innerWidth < 500 ? 72 : 96;
  const lines = [
    ["real", answer.real, answer.absent],
    [answer.given ? "rebuilt" : "imputed", answer.mean],
    ["a draw", answer.draws[0]],
    ["a draw", answer.draws[1]],
    [`${level} from`, answer.low],
    ["to", answer.high],
    ["unmoved", answer.centre],
    ["moved", answer.moved],
  ];
  for (const [title, pixels, absent] of lines) {
    if (pixels === undefined) {
      continue;
    }
    const figure = element("figure");
    const caption = pixels === null ? "not there" : title;
    const nothing = () => sized(element("div", "absent"), view, room);
    const drawn = pixels === null ? nothing() : canvasOf(view, pixels, absent, room);
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", `${view.name}, ${title}: ${caption}`);
    figure.append(drawn, element("figcaption", "", caption));
    strip.append(figure);
  }
  card.append(strip);
  return card;
}

function heading(name, answer) {
  const title = element("h3", "", `${name} `);
  title.append(element("span", "muted", stateOf(answer)));
  return title;
}

// Whether the model saw a modality of the row.
export function stateOf(answer) {
  if (answer.given) {
    return "observed";
  }
  const real = Array.isArray(answer.real) ? answer.real.some((cell) => cell !== null) : answer.real;
  return real ? "hidden, imputed" : "not in this row, imputed";
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  return node;
}

// A modality of numbers in order: a band, a line, and points where it is observed.
export function chartCard(view, answer) {
  const card = element("div", "card");
  card.append(heading(view.name, answer));
  const number = answer.mean.length;
  const width = Math.min(WIDEST, document.getElementById("results").clientWidth);
  const series = [answer.low, answer.high, answer.mean, answer.real, answer.moved || []];
  const values = series.flat().filter((value) => value !== null);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const inner = width - MARGIN.left - MARGIN.right;
  const x = (i) => MARGIN.left + (inner * (i + 0.5)) / number;
  const span = high > low ? high - low : 1;
  const y = (value) => {
    return HEIGHT - MARGIN.bottom - ((HEIGHT - MARGIN.top - MARGIN.bottom) * (value - low)) / span;
  };
  const line = (cells) => cells.map((cell, i) => `${x(i)},${y(cell ?? low)}`).join(" ");

  const label = `${view.name}: imputed numbers with intervals; the table of features has them`;
  const size = { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, class: "chart", role: "img" };
  const chart = svg("svg", { ...size, "aria-label": label });
  const bottom = HEIGHT - MARGIN.bottom;
  chart.append(svg("line", { x1: MARGIN.left, x2: width, y1: bottom, y2: bottom, class: "axis" }));
  const band = answer.low.map((cell, i) => [i, cell]).concat(
    answer.high.map((cell, i) => [i, cell]).reverse(),
  );
  const points = band.map(([i, cell]) => `${x(i)},${y(cell ?? low)}`).join(" ");
  chart.append(svg("polygon", { points, class: "band" }));
  chart.append(svg("polyline", { points: line(answer.mean), class: "mean" }));
  if (answer.moved) {
    chart.append(svg("polyline", { points: line(answer.moved), class: "moved" }));
  }
  answer.real.forEach((cell, i) => {
    if (cell !== null) {
      chart.append(svg("circle", { cx: x(i), cy: y(cell), r: 2, class: "real" }));
    }
  });
  for (const [value, place] of [[high, MARGIN.top + 8], [low, bottom]]) {
    const text = svg("text", { x: MARGIN.left - 5, y: place, "text-anchor": "end" });
    text.textContent = shown(value);
    chart.append(text);
  }
  const end = svg("text", { x: x(number - 1), y: HEIGHT - 5, "text-anchor": "end" });
  end.textContent = `${number} features, in order`;
  chart.append(end);
  card.append(chart);
  return card;
}

// The most probable clusters as bars, each with its share in words.
export function clusterBars(shares) {
  const order = shares.map((share, cluster) => [cluster, share]);
  order.sort((a, b) => b[1] - a[1]);
  const nodes = [];
  for (const [cluster, share] of order.slice(0, MOST_CLUSTERS)) {
    if (nodes.length && share < 0.001) {
      break;
    }
    const bar = element("div", "bar");
    const filled = element("span");
    filled.style.width = `${100 * share}%`;
    bar.append(filled);
    nodes.push(element("span", "", `cluster ${cluster}`), bar, element("span", "", percent(share)));
  }
  return nodes;
}

// A share as a percentage.
export function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}
