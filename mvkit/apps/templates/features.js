// The table of features: what is observed and imputed of each, sorted by any column.

import { element, percent, shown } from "./drawing.js";

const FIRST = 50;
const COLUMNS = [
  { key: "seen", title: "seen", help: "untick a feature to hide it from the model" },
  { key: "feature", title: "feature" },
  { key: "real", title: "observed" },
  { key: "mean", title: "imputed" },
  { key: "interval", title: "interval" },
  { key: "inside", title: "holds it" },
  { key: "moved", title: "moved" },
  { key: "change", title: "by" },
  { key: "modality", title: "of" },
];

// What the table shows, and in which order.
const table = { lines: [], sorted: null, downwards: false, all: false, moves: false };

// One line for each feature of the modalities that are no pictures.
//
// model: the description of the model.
// answer: what was answered of a row.
// hidden: a Set of the features that are not ticked, by modality.
function linesOf(model, answer, hidden) {
  const lines = [];
  for (const view of model.modalities) {
    const values = answer.modalities[view.name];
    if (view.kind === "picture") {
      continue;
    }
    view.features.forEach((feature, i) => {
      const isHidden = Boolean(hidden[view.name] && hidden[view.name].has(feature));
      lines.push({
        view: view.name,
        modality: view.name,
        feature,
        real: values.real[i],
        mean: values.mean[i],
        share: values.share ? values.share[i] : null,
        interval: intervalOf(values, i),
        width: values.set ? values.set[i].length : values.width[i],
        inside: values.inside[i],
        moved: values.moved ? values.moved[i] : null,
        movedShare: values.moved_share ? values.moved_share[i] : null,
        change: values.change ? values.change[i] : null,
        hidden: isHidden,
        seen: values.given && values.real[i] !== null && !isHidden,
        ticked: values.given || isHidden,
      });
    });
  }
  return lines;
}

function intervalOf(values, i) {
  if (values.set) {
    return values.set[i].join(" | ");
  }
  return `${shown(values.low[i], 3)} to ${shown(values.high[i], 3)}`;
}

// What a column is sorted by.
function sortKey(line, key) {
  if (key === "interval") {
    return line.width;
  }
  if (key === "change" && line.change !== null) {
    return Math.abs(line.change);
  }
  return line[key];
}

function compare(a, b) {
  if (a === b) {
    return 0;
  }
  if (a === null || b === null) {
    return a === null ? 1 : -1;
  }
  if (typeof a === "string" || typeof b === "string") {
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }
  return Number(a) - Number(b);
}

function ordered(lines) {
  if (!table.sorted) {
    return lines;
  }
  const sorted = [...lines];
  sorted.sort((a, b) => {
    const first = sortKey(a, table.sorted);
    const second = sortKey(b, table.sorted);
    const missing = first === null || second === null;
    // what is missing stays at the end, whichever way the rest goes
    return table.downwards && !missing ? compare(second, first) : compare(first, second);
  });
  return sorted;
}

function wanted(line, text) {
  return `${line.modality} ${line.feature}`.toLowerCase().includes(text.toLowerCase());
}

function withShare(value, share) {
  return share === null || value === null ? shown(value) : `${shown(value)} (${percent(share)})`;
}

function headRow(columns, redraw) {
  const row = element("tr");
  for (const column of columns) {
    const cell = element("th", isNumber(column.key) ? "number" : "");
    cell.scope = "col";
    const button = element("button", "", column.title);
    button.type = "button";
    button.title = column.help || `sort by ${column.title}`;
    button.addEventListener("click", () => {
      table.downwards = table.sorted === column.key && !table.downwards;
      table.sorted = column.key;
      redraw();
    });
    if (table.sorted === column.key) {
      cell.setAttribute("aria-sort", table.downwards ? "descending" : "ascending");
      button.append(table.downwards ? " ▼" : " ▲");
    }
    cell.append(button);
    row.append(cell);
  }
  return row;
}

function isNumber(key) {
  return ["real", "mean", "interval", "moved", "change"].includes(key);
}

function tick(line, onTick) {
  const box = element("input");
  box.type = "checkbox";
  box.checked = line.seen;
  box.disabled = line.real === null || !line.ticked;
  box.setAttribute("aria-label", `${line.feature} of ${line.modality} is observed`);
  if (line.real === null) {
    box.title = "not in this row";
  }
  box.addEventListener("change", () => onTick(line.view, line.feature, box.checked));
  return box;
}

function bodyCell(line, key, onTick) {
  const cell = element(key === "feature" ? "th" : "td", isNumber(key) ? "number" : "");
  if (key === "seen") {
    cell.append(tick(line, onTick));
    return cell;
  }
  if (key === "mean") {
    cell.classList.add("imputed");
    cell.textContent = withShare(line.mean, line.share);
  } else if (key === "moved") {
    cell.textContent = withShare(line.moved, line.movedShare);
  } else if (key === "inside") {
    cell.textContent = line.inside === null ? "" : line.inside ? "yes" : "no";
    cell.classList.toggle("outside", line.inside === false);
  } else {
    cell.textContent = shown(line[key]);
  }
  if (key === "feature") {
    cell.scope = "row";
  }
  return cell;
}

// Draws the table again in its order.
function draw(onTick) {
  const redraw = () => draw(onTick);
  const columns = COLUMNS.filter((column) => {
    return table.moves || !["moved", "change"].includes(column.key);
  });
  const text = document.getElementById("filter").value;
  const lines = ordered(table.lines.filter((line) => wanted(line, text)));
  const first = table.all ? lines : lines.slice(0, FIRST);
  const head = element("thead");
  head.append(headRow(columns, redraw));
  const body = element("tbody");
  for (const line of first) {
    const row = element("tr", line.seen ? "" : "imputed");
    for (const column of columns) {
      row.append(bodyCell(line, column.key, onTick));
    }
    body.append(row);
  }
  document.getElementById("feature-table").replaceChildren(head, body);
  const count = `${first.length} of ${table.lines.length} features`;
  document.getElementById("feature-count").textContent = count;
  const button = document.getElementById("all-features");
  button.hidden = first.length === lines.length;
  button.textContent = `show all ${lines.length}`;
}

// Shows the features of an answer; onTick(modality, feature, ticked) is called for each tick.
export function showFeatures(model, answer, hidden, onTick) {
  table.lines = linesOf(model, answer, hidden);
  table.moves = table.lines.some((line) => line.change !== null);
  document.getElementById("features").hidden = table.lines.length === 0;
  document.getElementById("filter").oninput = () => draw(onTick);
  document.getElementById("all-features").onclick = () => {
    table.all = true;
    draw(onTick);
  };
  draw(onTick);
}
