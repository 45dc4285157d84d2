// The explorer: what is chosen is kept here, what it means is asked of the server.

import { chartCard, clusterBars, element, pictureCard, shown } from "./drawing.js";
import { showFeatures } from "./features.js";

const PAUSE = 120; // milliseconds after the last change, so that a slider asks once
const UNSAID = "";

// What is chosen. Modalities and features that are unticked stay so from row to row.
const state = {
  model: null,
  row: null,
  unticked: new Set(),
  hidden: {},
  covariates: {},
  asked: 0,
  rowsAsked: 0,
  timer: null,
};

function byId(id) {
  return document.getElementById(id);
}

// Asks the server; the error that is thrown says in its words why it cannot answer.
async function ask(name, question) {
  const options = { headers: { "Content-Type": "application/json" }, method: "POST" };
  const sent = question === undefined ? {} : { ...options, body: JSON.stringify(question) };
  let response;
  try {
    response = await fetch(name, { ...sent, cache: "no-store", referrerPolicy: "no-referrer" });
  } catch {
    throw new Error("The explorer does not answer; is `mvkit explore` still running?");
  }
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) {
    throw new Error(answer.error);
  }
  return answer;
}

function say(error) {
  byId("error").textContent = error ? error.message : "";
  byId("error").hidden = !error;
}

// Whether an answer is waited for, which the page shows.
function wait(flag) {
  byId("results").setAttribute("aria-busy", String(flag));
}

function given() {
  return state.row.observed.filter((name) => !state.unticked.has(name));
}

function hiddenFeatures() {
  const hidden = {};
  for (const name of given()) {
    if (state.hidden[name] && state.hidden[name].size) {
      hidden[name] = [...state.hidden[name]];
    }
  }
  return hidden;
}

// All that is chosen, as the server wants it.
function question() {
  const shift = Number(byId("shift").value);
  const [kind, name] = byId("source").value.split(":", 2);
  return {
    number: state.row.number,
    given: given(),
    hidden: hiddenFeatures(),
    sampler: kind === "sampler" ? samplerNamed(name) : null,
    cluster: kind === "cluster" ? Number(name) : null,
    refine: byId("refine").checked,
    covariates: state.covariates,
    dim: shift === 0 || !state.model.latents ? null : Number(byId("dim").value),
    shift,
    level: Number(byId("level").value),
    seed: Number(byId("seed").value),
  };
}

function samplerNamed(index) {
  return state.model.samplers[Number(index)].name;
}

// Asks for what is chosen, a moment after the last change; an answer that comes late is dropped.
function update() {
  wait(true);
  clearTimeout(state.timer);
  state.timer = setTimeout(answerNow, PAUSE);
}

async function answerNow() {
  state.asked += 1;
  const turn = state.asked;
  try {
    const answer = await ask("answer", question());
    if (turn === state.asked) {
      say(null);
      show(answer);
    }
  } catch (error) {
    if (turn === state.asked) {
      say(error);
    }
  }
  if (turn === state.asked) {
    wait(false);
  }
}

// Goes to a row, {row: its id} or {number: its place}.
async function goTo(place) {
  state.rowsAsked += 1;
  const turn = state.rowsAsked;
  wait(true);
  let row;
  try {
    row = await ask("row", place);
  } catch (error) {
    say(error);
    wait(false);
    return;
  }
  if (turn !== state.rowsAsked) {
    return;
  }
  state.row = row;
  say(null);
  showRow();
  update();
}

function showRow() {
  const { row, model } = state;
  byId("row").value = row.id;
  byId("previous").disabled = row.number === 0;
  byId("next").disabled = row.number === model.rows - 1;
  const label = row.label === null ? "" : ` · label ${shown(row.label)}`;
  byId("place").textContent = `${row.number + 1} of ${model.rows} test rows${label}`;
  showTicks();
  for (const covariate of model.covariates) {
    showOwn(covariate);
  }
}

// Boxes of the modalities; what the row lacks cannot be ticked.
function showTicks() {
  const boxes = [];
  for (const view of state.model.modalities) {
    const lacking = !state.row.observed.includes(view.name);
    const label = element("label", lacking ? "tick lacking" : "tick");
    const box = element("input");
    box.type = "checkbox";
    box.value = view.name;
    box.disabled = lacking;
    box.checked = !lacking && !state.unticked.has(view.name);
    box.addEventListener("change", () => {
      if (box.checked) {
        state.unticked.delete(view.name);
      } else {
        state.unticked.add(view.name);
      }
      update();
    });
    const text = lacking ? `${view.name} (not in this row)` : view.name;
    label.append(box, element("span", "", text));
    boxes.push(label);
  }
  byId("observed").replaceChildren(...boxes);
}

function tickFeature(modality, feature, ticked) {
  state.hidden[modality] ??= new Set();
  if (ticked) {
    state.hidden[modality].delete(feature);
  } else {
    state.hidden[modality].add(feature);
  }
  update();
}

// A sentence about what is shown.
function summary() {
  const level = byId("level").selectedOptions[0].text;
  const draws = `intervals: ${level} of ${state.model.draws} draws`;
  if (byId("source").selectedOptions[0].text.startsWith("new rows")) {
    return `New rows, whatever is ticked; ${draws}.`;
  }
  const names = given();
  const seen = names.length ? `Imputed from ${names.join(", ")}` : "Nothing is ticked: drawn from the prior";
  return `${seen}; ${draws}.`;
}

function show(answer) {
  byId("status").textContent = summary();
  const notes = answer.notes.map((note) => element("li", "", note));
  byId("notes").replaceChildren(...notes);
  byId("notes").hidden = notes.length === 0;
  showCards(answer);
  byId("clusters").hidden = answer.clusters === null;
  if (answer.clusters !== null) {
    byId("cluster-bars").replaceChildren(...clusterBars(answer.clusters));
  }
  showFeatures(state.model, answer, state.hidden, tickFeature);
}

function showCards(answer) {
  const level = byId("level").selectedOptions[0].text;
  const pictures = [];
  const charts = [];
  for (const view of state.model.modalities) {
    const values = answer.modalities[view.name];
    if (view.kind === "picture") {
      pictures.push(pictureCard(view, values, level));
    } else if (view.chart && view.features.length > 4) {
      charts.push(chartCard(view, values));
    }
  }
  byId("pictures").replaceChildren(...pictures);
  byId("pictures").hidden = pictures.length === 0;
  byId("charts").replaceChildren(...charts);
  byId("charts").hidden = charts.length === 0;
}

function option(value, text) {
  const node = element("option", "", text);
  node.value = value;
  return node;
}

// Where latents come from: what is ticked, a sampler, or a cluster of the prior.
function fillSources() {
  const { samplers, clusters } = state.model;
  byId("source").append(option(UNSAID, "what is ticked"));
  samplers.forEach((sampler, i) => {
    const text = sampler.given ? `what is ticked, by ${sampler.name}` : `new rows, by ${sampler.name}`;
    byId("source").append(option(`sampler:${i}`, text));
  });
  for (let cluster = 0; cluster < clusters; cluster += 1) {
    byId("source").append(option(`cluster:${cluster}`, `new rows of cluster ${cluster}`));
  }
  byId("sources").hidden = samplers.length === 0 && clusters === 0;
}

// A control of one covariate: its levels, or a slider; the row's own by default.
function covariateControl(covariate) {
  const box = element("div", "covariate");
  const label = element("label", "", covariate.name);
  if (covariate.levels.length) {
    const choice = element("select");
    choice.append(option(UNSAID, "as it is"));
    covariate.levels.forEach((level, i) => choice.append(option(String(i), String(level))));
    choice.addEventListener("change", () => {
      choose(covariate.name, choice.value === UNSAID ? null : covariate.levels[Number(choice.value)]);
    });
    label.append(choice);
    box.append(label);
  } else {
    const own = element("input");
    own.type = "checkbox";
    own.checked = true;
    const slider = element("input");
    slider.type = "range";
    slider.min = covariate.low;
    slider.max = covariate.high;
    slider.step = (covariate.high - covariate.low) / 60;
    slider.setAttribute("aria-label", covariate.name);
    const value = element("output");
    const change = () => {
      value.textContent = own.checked ? "" : ` ${shown(Number(slider.value))}`;
      choose(covariate.name, own.checked ? null : Number(slider.value));
    };
    own.addEventListener("change", change);
    slider.addEventListener("input", () => {
      own.checked = false;
      change();
    });
    const tick = element("label", "tick");
    tick.append(own, element("span", "own"));
    label.append(value);
    box.append(label, slider, tick);
  }
  box.dataset.covariate = covariate.name;
  return box;
}

function choose(name, value) {
  if (value === null) {
    delete state.covariates[name];
  } else {
    state.covariates[name] = value;
  }
  update();
}

// Writes the row's own value of a covariate where it can be chosen.
function showOwn(covariate) {
  const own = shown(state.row.covariates[covariate.name]);
  const boxes = [...byId("covariate-list").children];
  const box = boxes.find((node) => node.dataset.covariate === covariate.name);
  const text = `as it is: ${own}`;
  if (covariate.levels.length) {
    box.querySelector("option").textContent = text;
  } else {
    box.querySelector(".own").textContent = text;
  }
}

function fillControls() {
  const { model } = state;
  document.title = `${model.title} · mvkit explorer`;
  byId("title").textContent = model.title;
  byId("ids").replaceChildren(...model.ids.map((id) => option(id, id)));
  byId("row").inputMode = model.numbered ? "numeric" : "text";
  for (let dim = 0; dim < model.latents; dim += 1) {
    byId("dim").append(option(String(dim), `z${dim}`));
  }
  byId("moving").hidden = model.latents === 0;
  fillSources();
  byId("covariate-list").replaceChildren(...model.covariates.map(covariateControl));
  byId("covariates").hidden = model.covariates.length === 0;
  byId("refine").disabled = model.unrefined !== "";
  const refined = model.unrefined ? `(${model.unrefined})` : `: ${model.refiners.join(", ")}`;
  byId("refine-text").textContent = `refined ${refined}`;
  byId("more").open = window.innerWidth >= 800;
}

function listen() {
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("row").addEventListener("change", () => goTo({ row: byId("row").value.trim() }));
  byId("previous").addEventListener("click", () => goTo({ number: state.row.number - 1 }));
  byId("next").addEventListener("click", () => goTo({ number: state.row.number + 1 }));
  byId("shift").addEventListener("input", () => {
    const shift = Number(byId("shift").value);
    byId("shift-value").textContent = shift > 0 ? `+${shift}` : String(shift);
    update();
  });
  for (const id of ["source", "dim", "level", "seed", "refine"]) {
    byId(id).addEventListener("change", update);
  }
}

async function start() {
  try {
    state.model = await ask("model.json");
    fillControls();
    listen();
    await goTo({ number: 0 });
  } catch (error) {
    say(error);
    wait(false);
  }
}

start();
