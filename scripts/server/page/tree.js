// The texts that were tried, as a tree: a text hangs from the longest other one that it continues.

import { make, roving, tail, visible } from "./text.js";

const MOST = 60;

/** Keeps a text; the oldest ones are forgotten. */
export function remember(texts, text) {
  if (!text) return texts;
  return [...texts.filter((other) => other !== text), text].slice(-MOST);
}

/** [{text, rest, children}]: the roots; `rest` is what a text adds to the one that it hangs from. */
export function nest(texts) {
  const nodes = [...texts].sort((a, b) => a.length - b.length).map((text) => ({ text, rest: text, children: [] }));
  return nodes.filter((node, n) => {
    const above = nodes.slice(0, n).reverse().find((other) => node.text.startsWith(other.text));
    if (above) {
      node.rest = node.text.slice(above.text.length);
      above.children.push(node);
    }
    return !above;
  });
}

/** Draws the tree into `place`. A text with one continuation has it on the same line. */
export function drawTree(place, texts, current, go) {
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.text : null;
  const buttons = [];
  const list = (nodes) => make("ul", {}, ...nodes.map((node) => {
    const item = make("li");
    for (let one = node; ; [one] = one.children) {
      const { text } = one, root = one === node && node.rest === node.text;
      const button = make("button", {
        text: root ? tail(text, 60) : visible(one.rest, { spaces: one.rest.trim() === "" }).trim(),
        "aria-current": text === current ? "true" : undefined, onclick: () => go(text),
      });
      button.dataset.text = text;
      buttons.push(button);
      item.append(button, " ");
      if (one.children.length > 1) item.append(list(one.children));
      if (one.children.length !== 1) return item;
    }
  }));
  place.replaceChildren(list(nest(texts)));
  if (!buttons.length) return;
  roving(buttons, { at: Math.max(0, buttons.findIndex((button) => button.dataset.text === (focused ?? current))) });
  if (focused !== null) (buttons.find((button) => button.dataset.text === focused) ?? buttons[0]).focus();
}
