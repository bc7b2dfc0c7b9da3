// Text on the page: what is invisible becomes visible, numbers get their units, elements are made.

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}\p{Cs}\p{Co}\p{Cn}]/gu;

/** White space and characters that have no shape, as signs or \u{…}; joiners inside a word stay. */
export function visible(text, { spaces = true } = {}) {
  return text.replace(INVISIBLE, (c, place) => {
    if (c === " " && !spaces) return c;
    const joins = (c === "\u200c" || c === "\u200d") && place > 0 && place < text.length - 1;
    return joins ? c : SIGNS[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`;
  });
}

/** A token as the server names it: text, or bytes:\xe2\x80 for a part of a character. */
export const isBytes = (token) => token.startsWith("bytes:\\x");
export const shown = (token) => isBytes(token) ? token.slice("bytes:".length) : visible(token);

/** The end of a text, for a title. */
export function tail(text, most = 40) {
  const letters = [...text];
  return visible(letters.length > most ? "…" + letters.slice(-most).join("") : text, { spaces: false });
}

/** A probability in percent: three digits at most. */
export function percent(p) {
  const value = 100 * p;
  return (value >= 99.95 || value === 0 ? value.toFixed(0) : value >= 0.995 ? value.toFixed(1) : value.toFixed(2)) + "%";
}

/** Bounds as one number if they agree, or as a range. */
export function between(lower, upper) {
  const [low, high] = [percent(lower), percent(upper)];
  return low === high ? low : `${low.slice(0, -1)}–${high}`;
}

export const bits = (logprob) => -logprob / Math.LN2;

/** A new element. Text enters through textContent only, so that a model's text never becomes HTML. */
export function make(name, options = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Buttons of which one is in the tab order: arrow keys move on, Home and End jump, and `choose(n)` hears of it. */
export function roving(buttons, { width = 1, at = 0, choose = () => {}, vertical = false } = {}) {
  const enter = (n) => buttons.forEach((button, k) => { button.tabIndex = k === n ? 0 : -1; });
  buttons.forEach((button, n) => {
    button.addEventListener("focus", () => enter(n));
    button.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const one = vertical ? 0 : 1;
      const to = { ArrowLeft: n - one, ArrowRight: n + one, ArrowUp: n - width, ArrowDown: n + width,
        Home: 0, End: buttons.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      if (to < 0 || to >= buttons.length || to === n) return;
      buttons[to].focus();
      choose(to);
    });
  });
  enter(Math.min(at, buttons.length - 1));
}
