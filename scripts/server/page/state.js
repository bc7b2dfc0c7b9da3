// The state of the page, which the address keeps: everything after # in the URL.

export const DEFAULTS = {
  text: "", view: "words", model: "", beside: "", temperature: 1, top_k: 0, top_p: 1, layer: 0, head: 0,
};
export const state = { ...DEFAULTS, branches: [] };
const LONGEST = 8000;  // characters of text, and of branches, in the address
let timer = 0;

export function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const found = given.get(name);
    const number = typeof value === "number";
    state[name] = found === null || (number && !Number.isFinite(Number(found))) ? value : number ? Number(found) : found;
  }
  state.temperature = Math.min(2, Math.max(0.1, state.temperature));
  state.top_p = Math.min(1, Math.max(0.05, state.top_p));
  for (const name of ["top_k", "layer", "head"]) state[name] = Math.max(0, Math.floor(state[name]));
  state.branches = given.getAll("branch");
}

/** Writes the address, but not at each key: browsers limit how often. */
export function writeAddress() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const found = new URLSearchParams();
    for (const [name, value] of Object.entries(DEFAULTS)) {
      if (state[name] !== value && String(state[name]).length <= LONGEST) found.set(name, state[name]);
    }
    let left = LONGEST;
    for (const text of state.branches) if ((left -= text.length) > 0) found.append("branch", text);
    history.replaceState(null, "", found.size ? `#${found}` : location.pathname);
  }, 250);
}

/** Calls `changed` when somebody else, such as the reader, changes the address. */
export function watchAddress(changed) {
  addEventListener("hashchange", () => {
    readAddress();
    changed();
  });
}

/** The filters of the distribution that are on. */
export function filters() {
  const found = {};
  if (state.temperature !== 1) found.temperature = state.temperature;
  if (state.top_k) found.top_k = state.top_k;
  if (state.top_p < 1) found.top_p = state.top_p;
  return found;
}
