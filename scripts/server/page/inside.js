// The views "Attention" and "Lens": what each head attends to, and what each layer would predict.

import { make, percent, roving, shown } from "./text.js";
import { state } from "./state.js";

const LAST = 40;  // tokens to show
const TAIL = 2000;  // characters to send: more than these tokens have, unless they are very long
const BEST = 5;

/** A row of the tokens that were looked at, of which one is chosen. */
class Tokens {
  constructor(tokens, label, choose) {
    this.buttons = tokens.map((token, n) => make("button", { onclick: () => choose(n), onmouseenter: () => choose(n) }, make("bdi", { text: shown(token.text) })));
    this.box = make("div", { class: "tokens", role: "group", "aria-label": label }, ...this.buttons);
    roving(this.buttons, { at: tokens.length - 1, choose });
  }

  paint(chosen, shadeOf) {
    this.buttons.forEach((button, n) => {
      button.setAttribute("aria-pressed", n === chosen);
      button.style.setProperty("--shade", shadeOf(n).toFixed(3));
    });
  }
}

class Inside {
  found = null;

  constructor(page) { this.page = page; }

  open(panel) {
    this.box = make("div", { class: "inside" });
    panel.append(this.box);
    this.found = null;
  }

  async ask(question) {
    this.box.setAttribute("aria-busy", "true");
    await new Promise((done) => setTimeout(done, 120));
    if (question.stale) return;
    this.found = await question.json(this.path, { model: state.model, prompt: state.text.slice(-TAIL), last: LAST });
    this.place = this.found.tokens.length - 1;
    this.box.removeAttribute("aria-busy");
    const omitted = this.found.omitted || state.text.length > TAIL ? [make("p", { class: "note", text: `Only the last ${LAST} tokens are shown.` })] : [];
    this.box.replaceChildren(...omitted, ...this.parts());
    this.paint();
  }

  choose(n) { this.place = n; this.paint(); }
  focus() { this.box.querySelector("[tabindex='0']")?.focus(); }
}

export class Attention extends Inside {
  name = "Attention";
  path = "v1/attention";
  help = "Choose a token: the tokens that it attends to are coloured by the head’s weights, which sum to 100%. Choose a head below: each row of its map attends to the columns.";

  parts() {
    const { attention, tokens } = this.found, heads = attention[0].length;
    state.layer = Math.min(state.layer, attention.length - 1);
    state.head = Math.min(state.head, heads - 1);
    this.tokens = new Tokens(tokens, "Tokens: choose the one that attends", (n) => this.choose(n));
    this.said = make("p", { class: "reads" });
    this.heads = attention.flatMap((layer, l) => layer.map((weights, h) => {
      const canvas = make("canvas", { width: weights.length, height: weights.length, "aria-hidden": "true" });
      const place = canvas.getContext("2d");
      place.fillStyle = this.page.color("--lower");
      weights.forEach((row, q) => row.forEach((weight, k) => {
        place.globalAlpha = weight;
        if (weight > 0) place.fillRect(k, q, 1, 1);
      }));
      return make("button", { "aria-label": `layer ${l}, head ${h}`, onclick: () => this.pick(l * heads + h) }, canvas, `${l}.${h}`);
    }));
    roving(this.heads, { width: heads, at: state.layer * heads + state.head, choose: (n) => this.pick(n) });
    const grid = make("div", { class: "heads", role: "group", "aria-label": "Heads: layer and number" }, ...this.heads);
    grid.style.gridTemplateColumns = `repeat(${heads}, minmax(3.4rem, 7rem))`;
    return [this.tokens.box, this.said, grid];
  }

  get weights() { return this.found.attention[state.layer][state.head]; }

  pick(n) {
    const heads = this.found.attention[0].length;
    [state.layer, state.head] = [Math.floor(n / heads), n % heads];
    this.page.changed();
    this.paint();
  }

  paint() {
    const heads = this.found.attention[0].length, row = this.weights[this.place], { tokens } = this.found;
    this.heads.forEach((button, n) => button.setAttribute("aria-pressed", n === state.layer * heads + state.head));
    this.tokens.paint(this.place, (n) => row[n]);
    const best = row.map((weight, n) => [weight, n]).filter(([weight]) => weight > 0.005).sort((a, b) => b[0] - a[0]).slice(0, BEST);
    this.said.textContent = `Layer ${state.layer}, head ${state.head}: “${shown(tokens[this.place].text)}” attends to ` + best.map(([weight, n]) => `“${shown(tokens[n].text)}” ${percent(weight)}`).join(", ") + ".";
    this.page.say(this.said.textContent);
  }

  sheet() {
    const { tokens } = this.found ?? { tokens: [] };
    const rows = !this.found ? [] : this.weights.flatMap((row, q) => row.slice(0, q + 1).map((weight, k) => [state.model, state.layer, state.head, q, tokens[q].text, k, tokens[k].text, weight]));
    return { columns: ["model", "layer", "head", "reader", "reader_text", "read", "read_text", "weight"], rows };
  }
}

export class Lens extends Inside {
  name = "Lens";
  path = "v1/lens";
  help = "The final norm and head applied after each layer: what the model would predict if it stopped there. KL: divergence from its final prediction, the last row, in nats.";

  parts() {
    const { tokens } = this.found;
    this.tokens = new Tokens(tokens, "Tokens: choose a position", (n) => this.choose(n));
    this.table = make("tbody");
    const caption = (text) => make("caption", { text });
    const head = (names) => make("thead", {}, make("tr", {}, ...names.map((text, n) => make("th", { scope: "col", text, class: text === "KL" ? "n" : "" }))));
    const table = make("table", { class: "lens" }, caption("The next token, as each layer would predict it"), head(["after", "KL", ...Array.from({ length: BEST }, (_, n) => `${n + 1}.`)]), this.table);
    const { names, layers } = this.found.lens, own = layers.at(-1).map((cell) => cell.tokens[0].id);
    const all = make("table", { class: "lens" }, caption("All positions: the most probable next token; bold where it is the model’s final choice"), head(["after", ...tokens.map((token) => shown(token.text))]),
      make("tbody", {}, ...layers.map((layer, l) => make("tr", {}, make("th", { scope: "row", text: names[l] }), ...layer.map((cell, n) => this.cell(cell.tokens[0], own[n], false))))));
    const scroll = (what, label) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, what);
    return [this.tokens.box, scroll(table, "Lens at one position"), scroll(all, "Lens at all positions")];
  }

  cell(token, own, number = true) {
    const cell = make("td", { class: token.id === own ? "own" : "" }, make("bdi", { text: shown(token.text) }), ...(number ? [make("small", { text: percent(token.probability) })] : []));
    cell.style.setProperty("--shade", token.probability.toFixed(3));
    return cell;
  }

  paint() {
    const { names, layers } = this.found.lens, own = layers.at(-1)[this.place].tokens[0].id;
    this.tokens.paint(this.place, (n) => n === this.place ? 0.25 : 0);
    this.table.replaceChildren(...layers.map((layer, l) => make("tr", {}, make("th", { scope: "row", text: names[l] }), make("td", { class: "n", text: layer[this.place].divergence.toFixed(2) }), ...layer[this.place].tokens.map((token) => this.cell(token, own)))));
    this.page.say(`After ${shown(this.found.tokens[this.place].text)}: ${layers.map((layer, l) => `${names[l]} ${shown(layer[this.place].tokens[0].text)}`).join(", ")}`);
  }

  sheet() {
    const rows = !this.found ? [] : this.found.lens.layers.flatMap((layer, l) => layer.flatMap((cell, n) => cell.tokens.map((token, rank) => [state.model, this.found.lens.names[l], n, this.found.tokens[n].text, cell.divergence, rank + 1, token.text, token.probability])));
    return { columns: ["model", "layer", "place", "token", "kl_nats", "rank", "next", "probability"], rows };
  }
}
