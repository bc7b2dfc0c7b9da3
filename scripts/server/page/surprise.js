// The view "Surprise": each word of the text with its bits, and what the model expected there.

import { bits, make, percent, roving, shown, isBytes, tail, visible } from "./text.js";
import { state } from "./state.js";

const MOST = 12000;  // characters
const MOST_ALTERNATIVES = 10, MOST_PARTS = 4;
const FULL = 14;  // bits at which the colour is full

const encoder = new TextEncoder(), decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const shade = (n) => Math.min(1, Math.max(0, n / FULL));

/** The text up to a byte, and a token in place of what came there; null if either is no text. */
export function rewritten(raw, start, token, special) {
  if (isBytes(token) || special.includes(token)) return null;
  try {
    return decoder.decode(raw.slice(0, start)) + token;
  } catch {
    return null;  // the place is inside a character
  }
}

export class Surprise {
  name = "Surprise";
  help = "Surprise is −log₂ of a word’s probability: 1 bit is a coin toss, 10 bits are 1 in 1,024. Point at a word to see what the model expected; choose a token to rewrite from there.";
  found = null;

  constructor(page) { this.page = page; }

  open(panel) {
    this.title = make("h2");
    this.words = make("div", { class: "words", role: "group", "aria-label": "Words and their bits" });
    this.pop = make("div", { class: "pop", role: "group", hidden: true, onkeydown: (event) => this.leave(event),
      onmouseenter: () => clearTimeout(this.timer), onmouseleave: () => this.hideSoon(), onfocusin: () => clearTimeout(this.timer) });
    this.pop.addEventListener("focusout", (event) => { if (!this.pop.contains(event.relatedTarget)) this.hideSoon(); });
    panel.append(this.title, make("div", { class: "place" }, this.words, this.pop));
    this.found = null;
  }

  async ask(question) {
    this.hide();
    this.words.setAttribute("aria-busy", "true");
    const text = state.text.slice(0, MOST);
    if (!text) return this.show(null);
    await new Promise((done) => setTimeout(done, 120));  // while one types, nothing is asked
    if (question.stale) return;
    const found = await question.json("v1/surprisal", { model: state.model, text, top: MOST_ALTERNATIVES });
    this.show(found);
    this.page.say(this.title.textContent);
  }

  show(found) {
    this.found = found;
    this.words.removeAttribute("aria-busy");
    if (!found) {
      this.title.textContent = "Type or paste text above";
      return this.words.replaceChildren();
    }
    this.raw = encoder.encode(found.text);
    const total = bits(found.logprob), cut = state.text.length > MOST ? `; only the first ${MOST.toLocaleString("en")} characters` : "";
    this.title.textContent = `${total.toFixed(0)} bits for ${found.words.length} words: ${(total / found.words.length).toFixed(1)} bits per word, ${(total / found.bytes).toFixed(2)} per byte${cut}`;
    const buttons = found.words.map((word) => {
      const said = bits(word.logprob).toFixed(1), body = word.text.trim();
      const button = make("button", { "aria-expanded": "false", "aria-label": `${visible(body || word.text)}, ${said} bits`,
        onmouseenter: () => this.open_at(button, word), onmouseleave: () => this.hideSoon(),
        onfocus: () => this.open_at(button, word), onblur: () => this.hideSoon(),
        onclick: () => this.enter(button, word), onkeydown: (event) => this.key(event) },
      make("span", { class: "piece" }, make("bdi", { text: visible(body || word.text) })), make("small", { text: said }));
      button.style.setProperty("--shade", shade(bits(word.logprob)).toFixed(3));
      return button;
    });
    roving(buttons);
    this.words.replaceChildren(...buttons.flatMap((button, n) => {
      const space = /^\s*/.exec(found.words[n].text)[0], whole = found.words[n].text.trim() === "";
      const lines = whole ? [] : [...space].filter((c) => c === "\n").map(() => [make("span", { class: "sign", text: "↵" }), make("br")]).flat();
      return [...lines, ...(whole && found.words[n].text.includes("\n") ? [button, make("br")] : [button])];
    }));
  }

  key(event) {
    if (event.key === "Escape") this.hide();
  }

  /** Shows the alternatives at a word, beside it. */
  open_at(button, word) {
    clearTimeout(this.timer);
    if (this.at === button && !this.pop.hidden) return;
    this.hide();
    this.at = button;
    button.setAttribute("aria-expanded", "true");
    const [first, end] = word.tokens, tokens = this.found.tokens.slice(first, Math.min(end, first + MOST_PARTS));
    const parts = tokens.map((token) => make("section", {},
      make("h3", {}, make("bdi", { text: shown(token.token) }), ` ${bits(token.logprob).toFixed(1)} bits, rank ${token.rank.toLocaleString("en")}`),
      ...token.top.slice(0, tokens.length > 1 ? 6 : MOST_ALTERNATIVES).map((other) => this.alternative(token, other))));
    this.pop.setAttribute("aria-label", `Alternatives to ${visible(word.text.trim())}`);
    this.pop.replaceChildren(...parts);
    roving([...this.pop.querySelectorAll("button:not(:disabled)")], { vertical: true });
    this.pop.hidden = false;
    const box = this.words.getBoundingClientRect(), place = button.getBoundingClientRect();
    this.pop.style.top = `${place.bottom - box.top}px`;
    this.pop.style.left = `${Math.max(0, Math.min(place.left - box.left, box.width - this.pop.offsetWidth))}px`;
  }

  alternative(token, other) {
    const text = rewritten(this.raw, token.start, other.token, this.page.special(state.model));
    const p = Math.exp(other.logprob);
    const button = make("button", { disabled: text === null, class: other.id === token.id ? "own" : "",
      title: text === null ? "not valid text on its own" : "",
      onclick: () => { this.hide(); this.page.pick(text); this.page.focusText(); } },
    make("bdi", { text: shown(other.token) }), make("b", { text: percent(p) }));
    button.style.setProperty("--p", `${(100 * p).toFixed(1)}%`);
    return button;
  }

  enter(button, word) {
    this.open_at(button, word);
    this.pop.querySelector("button:not(:disabled)")?.focus();
  }

  leave(event) {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    const at = this.at;
    at.focus();
    this.hide();
  }

  hideSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.hide(), 200);
  }

  hide() {
    clearTimeout(this.timer);
    this.at?.setAttribute("aria-expanded", "false");
    this.at = null;
    this.pop.hidden = true;
  }

  focus() { this.words.querySelector("[tabindex='0']")?.focus(); }

  sheet() {
    const words = this.found?.words ?? [];
    const rows = words.map((word, n) => [state.model, n + 1, word.text, bits(word.logprob), word.start, word.end, word.tokens[1] - word.tokens[0]]);
    return { columns: ["model", "number", "word", "bits", "first_byte", "end_byte", "tokens"], rows };
  }
}
