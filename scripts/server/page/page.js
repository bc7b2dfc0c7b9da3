// The page: what its controls do. Each view asks the server and shows the answer.

import { Gone, NeedsToken, Question, Refusal } from "./ask.js";
import { Attention, Lens } from "./inside.js";
import { color, csv, download, picture } from "./save.js";
import { DEFAULTS, filters, readAddress, state, watchAddress, writeAddress } from "./state.js";
import { Surprise } from "./surprise.js";
import { make, percent, roving } from "./text.js";
import { drawTree, remember } from "./tree.js";
import { Words } from "./words.js";

const TOP_K = [1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 0];  // 0: off
const MOST_WRITTEN = 48;  // tokens by one press of the button
const RETRY = 1500;  // milliseconds
const THEMES = { auto: "◐", light: "☀", dark: "☾" };
const at = (id) => document.getElementById(id);
const field = at("text");

let models = [], retry = 0, quiet = 0, writing = null;
const done = [];  // what was appended, for undo: [before, after]
const page = {
  pick, takeBack, problem, say, color,
  focusText() { field.focus(); field.setSelectionRange(field.value.length, field.value.length); },
  special: (name) => models.find((model) => model.id === name)?.special_tokens ?? [],
  changed: writeAddress,
};
const views = { words: new Words(page), surprise: new Surprise(page), attention: new Attention(page), lens: new Lens(page) };
const tabs = Object.keys(views).map((name) => make("button", { role: "tab", id: `tab-${name}`, "aria-controls": "panel", text: views[name].name, onclick: () => openView(name) }));

// ---- asking

/** Refreshes the view. An unreachable server is asked again until it answers. */
async function refresh() {
  if (!models.length) return start();
  const question = new Question();
  await attempt(question, () => Promise.all([views[state.view].ask(question), masses(question)]), refresh);
}

/** Runs work and shows its error, if any. Returns the error unless the question is stale. */
async function attempt(question, work, again) {
  clearTimeout(retry);
  try {
    await work();
    if (!question.stale) problem("");
  } catch (error) {
    if (error.name === "AbortError" || question.stale) return null;
    problem(error.message);
    at("key").hidden = !(error instanceof NeedsToken);
    if (error instanceof NeedsToken) at("token").focus();
    else if (error instanceof Gone && again) retry = setTimeout(again, RETRY);
    else if (!(error instanceof Refusal || error instanceof Gone)) console.error(error);
    return error;
  }
}

/** Asks which models there are, then opens the page. */
async function start() {
  const question = new Question();
  await attempt(question, async () => {
    models = (await question.json("v1/models")).data;
    at("key").hidden = true;
    fillModels();
    openView(state.view);
  }, start);
}

/** The mass that each filter removes from the next token's distribution. */
async function masses(question) {
  const on = filters(), found = {};
  showSampling();
  if (!Object.keys(on).length) return;
  for (const name of Object.keys(on)) said(name).classList.add("waiting");
  const answer = await question.json("v1/next_tokens", { model: state.model, prompt: await endOf(question), top: 1, ...on });
  for (const filter of answer.filters) found[filter.name] = filter;
  showSampling(found);
}

/** The ids of the text's end that fit the context, with room for an answer; the text itself if it is empty. */
async function endOf(question, room = 1) {
  const text = state.text.replace(/ +$/, ""), { context } = models.find((model) => model.id === state.model);
  if (!text) return "";
  const { tokens } = await question.json("tokenize", { model: state.model, prompt: text });
  return tokens.slice(-(context - room));
}

const said = (name) => at(name).parentElement.querySelector("output");

function showSampling(found = {}) {
  const values = { temperature: state.temperature.toFixed(2), top_k: state.top_k || "off", top_p: state.top_p < 1 ? state.top_p.toFixed(2) : "off" };
  for (const [name, value] of Object.entries(values)) {
    const output = said(name), slider = at(name), filter = name in filters() ? found[name] : undefined;
    const mass = filter ? `${name === "temperature" ? "shifts" : "removes"} ${percent(filter.moved)}` : "";
    output.replaceChildren(make("b", { text: value }), make("span", { text: mass }));
    output.classList.remove("waiting");
    output.parentElement.style.setProperty("--mass", filter ? `${100 * filter.moved}%` : "0%");
    slider.value = name === "top_k" ? nearest(state.top_k) : state[name];
    slider.setAttribute("aria-valuetext", `${value} ${mass}`);
  }
}

/** The place on the slider of a top-k that the address may have given. */
function nearest(k) {
  return k ? TOP_K.findIndex((one) => one >= k || one === 0) : TOP_K.length - 1;
}

// ---- the text

function setText(text) {
  state.text = text;
  if (field.value !== text) field.value = text;
  writing = null;
  at("write").textContent = "Generate";
  showBranches();
  writeAddress();
  return refresh();
}

/** Continues with a text that the reader chose, and keeps it as a branch. */
function pick(text) {
  keep(state.text, text);
  setText(text);
}

function keep(before, after) {
  done.push([before, after]);
  for (const text of [before, after]) state.branches = remember(state.branches, text);
}

function showBranches() {
  at("branches").hidden = !state.branches.length;
  at("back").disabled = done.at(-1)?.[1] !== state.text;
  drawTree(at("tree"), state.branches, state.text, pick);
}

/** Undoes the last addition if the text has not changed since. Returns whether it did. */
function takeBack() {
  if (done.at(-1)?.[1] !== state.text) return false;
  setText(done.pop()[0]);
  return true;
}

/** Generates token by token until the text ends or is stopped. */
async function write() {
  if (writing) return stop();
  const question = writing = new Question(), before = state.text;
  at("write").textContent = "Stop";
  views.words.wait();
  let text = before;
  const error = await attempt(question, async () => {
    const { context } = models.find((model) => model.id === state.model);
    const most = Math.min(MOST_WRITTEN, Math.floor(context / 2));
    const body = { model: state.model, prompt: await endOf(question, most), max_tokens: most, ...filters() };
    if (body.prompt) text = before.replace(/ +$/, "");
    for await (const event of question.events("v1/completions", body)) {
      text += event.choices[0]?.text ?? "";
      state.text = field.value = text;
      field.scrollTop = field.scrollHeight;
    }
  });
  if (writing !== question) return;  // the reader has typed since
  if (state.text !== before) keep(before, state.text);
  await setText(state.text);
  if (error) problem(error.message);
}

function stop() {
  if (writing) new Question();  // ends the one that writes
}

// ---- what is said

function problem(text) { if (at("problem").textContent !== text) at("problem").textContent = text; }

/** Says something to screen readers once nothing has moved for a while. */
function say(text) {
  clearTimeout(quiet);
  quiet = setTimeout(() => { at("said").textContent = text; }, 900);
}

// ---- views, models, settings

function openView(name) {
  state.view = views[name] ? name : DEFAULTS.view;
  const view = views[state.view], panel = at("panel");
  for (const tab of tabs) {
    const on = tab.id === `tab-${state.view}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
  }
  at("beside-box").hidden = models.length < 2 || state.view !== "words";
  panel.setAttribute("aria-labelledby", `tab-${state.view}`);
  panel.replaceChildren(make("p", { class: "help", text: view.help }));
  view.open(panel);
  writeAddress();
  refresh();
}

function fillModels() {
  const names = models.map((model) => model.id);
  if (!names.includes(state.model)) state.model = names[0];
  if (!names.includes(state.beside) || state.beside === state.model) state.beside = "";
  const options = (list) => list.map((name) => make("option", { value: name, text: name || "none" }));
  at("model").replaceChildren(...options(names));
  at("beside").replaceChildren(...options(["", ...names.filter((name) => name !== state.model)]));
  at("model").value = state.model;
  at("beside").value = state.beside;
}

function save(kind) {
  const { columns, rows } = views[state.view].sheet(), name = `${state.view}.${kind}`;
  if (!rows.length) return problem("There is nothing to save yet.");
  if (kind === "csv") download(new Blob([csv(columns, rows)], { type: "text/csv" }), name);
  else picture(at("panel")).toBlob((blob) => download(blob, name), "image/png");
}

function setTheme(name) {
  localStorage.setItem("theme", name);
  document.documentElement.dataset.theme = name;
  at("theme").textContent = THEMES[name];
  at("theme").ariaLabel = at("theme").title = `Colours: ${name}`;
}

field.addEventListener("input", () => { setText(field.value); });
field.addEventListener("keydown", (event) => {
  const { selectionStart: from, selectionEnd: to, value } = field, atEnd = from === to && to === value.length;
  if (event.isComposing || event.altKey || event.metaKey) return;
  if (event.key === "Enter" && event.ctrlKey) { event.preventDefault(); write(); }
  else if (event.ctrlKey || event.shiftKey) return;
  else if (event.key === "ArrowDown" && atEnd) { event.preventDefault(); views[state.view].focus(); }
  else if (event.key === "Backspace" && atEnd && takeBack()) event.preventDefault();
});
addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
at("write").addEventListener("click", write);
at("back").addEventListener("click", takeBack);
at("forget").addEventListener("click", () => { state.branches = []; showBranches(); writeAddress(); page.focusText(); });
at("csv").addEventListener("click", () => save("csv"));
at("png").addEventListener("click", () => save("png"));
at("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
  openView(state.view);  // canvases have colours of their own
});
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  start();
});
for (const name of ["model", "beside"]) {
  at(name).addEventListener("change", () => { state[name] = at(name).value; fillModels(); openView(state.view); });
}
at("top_k").max = TOP_K.length - 1;
for (const name of ["temperature", "top_k", "top_p"]) {
  at(name).addEventListener("input", () => {
    state[name] = name === "top_k" ? TOP_K[at(name).value] : Number(at(name).value);
    writeAddress();
    refresh();
  });
}
roving(tabs, { choose: (n) => openView(Object.keys(views)[n]) });
at("tabs").append(...tabs);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => openView(state.view));

function begin() {
  field.value = state.text;
  showSampling();
  showBranches();
  if (models.length) { fillModels(); openView(state.view); } else start();
}

setTheme(localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "auto");
readAddress();
watchAddress(begin);
begin();
page.focusText();
