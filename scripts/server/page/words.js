// The view "Words": bars of the next words, with bounds that tighten; two models side by side.

import { between, make, percent, tail, visible } from "./text.js";
import { filters, state } from "./state.js";

const TOP = 15, MOST_MOVED = 8;
const FIRST = 16;  // tokens read before bars are shown: the root alone knows only punctuation
const SCALES = [0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1];
const STOPPED = { searching: "Searching", certified: "Order proven", tolerance: "Nearly all probability found", max_tokens: "Stopped at the limit" };

/** The text with a word appended, with its space; null for what is no text: a special token, part of a character. */
export function appended(text, row) {
  if (row.kind === "special" || row.kind === "byte") return null;
  return text.replace(/ +$/, "") + (row.spaced > 0.5 ? " " : "") + row.word;
}

const keyOf = (row) => `${row.kind} ${row.word}`;
const named = (row) => row.kind === "byte" ? row.word : visible(row.word);

/** The bars of one model: a list of which one row is active. */
class Bars {
  rows = new Map();  // an element by the key of its word
  table = null;  // the newest one, and the text that it belongs to
  text = "";
  active = null;  // a key, once the reader has moved; until then the first row

  constructor(model, page, shown, number) {
    this.model = model;
    this.page = page;
    this.shown = shown;
    this.title = make("h2");
    this.list = make("div", { class: "bars", role: "listbox", tabindex: "0", id: `bars-${number}`,
      "aria-label": `Next words from ${model}`, onkeydown: (event) => this.key(event) });
    this.axis = make("p", { class: "axis", "aria-hidden": "true" });
    this.note = make("p", { class: "note" });
    this.box = make("section", { class: "side" }, this.title, this.list, this.axis, this.note);
    this.wait();
  }

  wait() {
    this.list.setAttribute("aria-busy", "true");
    this.active = null;
  }

  get waiting() { return this.list.getAttribute("aria-busy") === "true"; }

  async search(question, text) {
    const body = { model: this.model, prompt: text, top: TOP, ...filters() };
    let newest = null;
    const draw = () => {
      const table = newest;
      newest = null;
      if (!question.stale) this.show(table, text);
    };
    for await (const table of question.events("v1/next_words", body)) {
      if (table.stopped === "searching" && (table.evaluated < FIRST || !table.words.length)) continue;
      if (newest === null) requestAnimationFrame(draw);
      newest = table;
    }
  }

  show(table, text) {
    this.table = table;
    this.text = text;
    const words = table.words, kept = new Map(), free = [];
    for (const [key, element] of this.rows) {
      if (words.some((row) => keyOf(row) === key)) kept.set(key, element); else free.push(element);
    }
    this.rows = new Map(words.map((row) => [keyOf(row), kept.get(keyOf(row)) ?? free.shift() ?? this.row()]));
    for (const element of free) element.remove();
    this.list.setAttribute("aria-owns", [...this.rows.values()].map((element) => element.id).join(" "));
    this.list.style.height = `calc(${words.length} * var(--row))`;
    this.list.removeAttribute("aria-busy");
    const place = text ? `After “${tail(text)}”` : "At the start of a text";
    this.title.textContent = state.beside ? `${this.model}: ${place}` : place;
    const goes = table.continues > 0.001 && text ? ` The last word continues: at least ${percent(table.continues)}.` : "";
    this.note.textContent = words.length
      ? `${STOPPED[table.stopped]}, ${table.evaluated} tokens read; any other word: at most ${percent(table.unseen)}.${goes}`
      : "No new word can start here: the last one continues.";
    this.mark();
    this.shown();
  }

  /** The largest lower bound. */
  get most() { return Math.max(0, ...this.table?.words.map((row) => row.lower) ?? []); }

  layout(scale) {
    this.table?.words.forEach((row, n) => this.fill(this.rows.get(keyOf(row)), row, n, scale));
    this.axis.replaceChildren(make("span", { text: "0" }), make("span", { text: `${Math.round(100 * scale)}%` }));
  }

  row() {
    Bars.count = (Bars.count ?? 0) + 1;
    const element = make("div", { class: "choice", role: "option", id: `word-${Bars.count}` }, make("bdi"),
      make("span", { class: "track" }, make("i", { class: "upper" }), make("i", { class: "lower" })), make("b"));
    element.addEventListener("click", () => this.pick(element));
    this.list.append(element);
    return element;
  }

  fill(element, row, n, scale) {
    const [name, track, number] = element.children;
    const width = (p) => `${(100 * Math.min(1, p / scale)).toFixed(2)}%`;
    name.textContent = named(row);
    name.className = row.kind;
    element.title = row.kind;
    track.children[0].style.width = width(row.upper);
    track.children[1].style.width = width(row.lower);
    number.textContent = between(row.lower, row.upper);
    element.style.transform = `translateY(${100 * n}%)`;
    element.setAttribute("aria-posinset", n + 1);
    element.setAttribute("aria-setsize", this.table.words.length);
  }

  /** Shows which row is active. */
  mark() {
    const active = this.rows.get(this.active) ?? this.rows.values().next().value;
    for (const element of this.rows.values()) element.setAttribute("aria-selected", element === active);
    if (active) this.list.setAttribute("aria-activedescendant", active.id);
    else this.list.removeAttribute("aria-activedescendant");
    return active;
  }

  pick(element) {
    if (this.waiting || !element) return;  // these bars belong to an older text
    const row = this.table.words.find((one) => this.rows.get(keyOf(one)) === element);
    const text = row && appended(this.text, row);
    if (text !== null) this.page.pick(text);
    else this.page.problem("This token is not text, so it cannot be appended.");
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const keys = [...this.rows.keys()], active = this.mark();
    const at = [...this.rows.values()].indexOf(active);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: keys.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      if (to < 0) this.page.focusText();
      else if (!this.waiting && to < keys.length) {
        this.active = keys[to];
        this.mark().scrollIntoView({ block: "nearest" });
      }
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.pick(active);
    } else if (event.key === "Backspace") {
      event.preventDefault();
      this.page.takeBack();
    } else if (event.key === "Escape" || event.key.length === 1) this.page.focusText();  // which then gets the key
  }
}

export class Words {
  name = "Words";
  help = "The probability of each next word: the solid bar ends at the proven lower bound, the light bar at the upper bound. The search runs until the order is certain.";

  constructor(page) { this.page = page; }

  open(panel) {
    const names = [state.model, ...(state.beside ? [state.beside] : [])];
    this.sides = names.map((name, n) => new Bars(name, this.page, () => this.shown(), n));
    this.moved = make("section", { class: "moved", hidden: true });
    panel.append(make("div", { class: state.beside ? "sides two" : "sides" }, ...this.sides.map((side) => side.box)), this.moved);
  }

  wait() { for (const side of this.sides ?? []) side.wait(); }

  async ask(question) {
    this.wait();
    const text = state.text;
    await Promise.all(this.sides.map((side) => side.search(question, text)));
    await new Promise(requestAnimationFrame);  // the last table is drawn
    if (question.stale) return;
    this.page.say(this.sides.map((side) => side.table.words.slice(0, 3).map((row) => `${named(row)} ${percent(row.lower)}`).join(", ")).join("; "));
  }

  focus() { this.sides[0].list.focus(); }

  shown() {
    const [one, two] = this.sides, most = Math.max(...this.sides.map((side) => side.most));
    for (const side of this.sides) side.layout(SCALES.find((scale) => scale >= most) ?? 1);
    this.moved.hidden = !two || this.sides.some((side) => side.waiting || side.text !== one.text);
    if (this.moved.hidden) return;
    const rows = moves(one.table, two.table).slice(0, MOST_MOVED);
    const widest = Math.max(...rows.map((row) => Math.abs(row.change)));
    this.moved.replaceChildren(make("h2", { text: "Largest differences" }), make("table", {},
      make("thead", {}, make("tr", {}, ...["word", one.model, two.model, "points"].map((text, n) => make("th", { scope: "col", text, class: n ? "n" : "" })), make("td"))),
      make("tbody", {}, ...rows.map((row) => {
        const bar = make("i", { class: row.change < 0 ? "less" : "more" });
        bar.style.width = `${(50 * Math.abs(row.change) / widest).toFixed(1)}%`;
        const points = `${row.certain ? "" : "≈ "}${row.change < 0 ? "−" : "+"}${(100 * Math.abs(row.change)).toFixed(1)}`;
        return make("tr", {}, make("th", { scope: "row" }, make("bdi", { text: named(row) })),
          ...[...row.bounds.map(([lower, upper]) => lower ? between(lower, upper) : `< ${percent(upper)}`), points].map((text) => make("td", { class: "n", text })),
          make("td", { class: "change" }, bar));
      }))), make("p", { class: "note", text: "≈: the bounds of the two models still overlap." }));
  }

  sheet() {
    const sides = this.sides.filter((side) => side.table && !side.waiting);
    const columns = ["model", "text", "rank", "word", "kind", "lower", "upper", "space_before"];
    const rows = sides.flatMap((side) => side.table.words.map((row, n) => [side.model, side.text, n + 1, row.word, row.kind, row.lower, row.upper, row.spaced]));
    return { columns, rows };
  }
}

/** The words of two tables, those that moved most first. A word that a table lacks has at most what it left unseen. */
export function moves(one, two) {
  const found = new Map([...one.words, ...two.words].map((row) => [keyOf(row), row]));
  const bounds = (table, key) => {
    const row = table.words.find((other) => keyOf(other) === key);
    return row ? [row.lower, row.upper] : [0, table.unseen];
  };
  return [...found].map(([key, row]) => {
    const [a, b] = [bounds(one, key), bounds(two, key)];
    return { ...row, bounds: [a, b], change: b[0] - a[0], certain: a[1] < b[0] || b[1] < a[0] };
  }).sort((a, b) => Math.abs(b.change) - Math.abs(a.change));
}
