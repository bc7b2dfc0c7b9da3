// Questions to the server. One is open at a time: a new one cancels the old one, whose late answers are dropped.

export class Refusal extends Error {}  // the server says what is wrong, in one line
export class Gone extends Error {}  // it does not answer, or is busy: worth trying again
export class NeedsToken extends Error {}

const GONE = "The server is not responding; trying again.";

export class Question {
  static #open = null;
  #controller = new AbortController();

  constructor() {
    Question.#open?.#controller.abort();  // the server then stops working on it
    Question.#open = this;
  }

  /** Whether another question has been asked since. */
  get stale() { return Question.#open !== this; }

  async #send(path, body) {
    const headers = { "content-type": "application/json" };
    const token = sessionStorage.getItem("token");
    if (token) headers.authorization = `Bearer ${token}`;
    const how = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
    let answer;
    try {
      answer = await fetch(path, { ...how, signal: this.#controller.signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Gone(GONE);
    }
    if (answer.ok) return answer;
    if (answer.status === 401) throw new NeedsToken("This server requires a token.");
    if (answer.status === 429 || answer.status === 503) throw new Gone("The server is busy; trying again.");
    const said = await answer.json().catch(() => ({}));
    throw new Refusal(said.error?.message ?? `The server answered with status ${answer.status}.`);
  }

  /** The answer as JSON. */
  async json(path, body) {
    const answer = await this.#send(path, body);
    return this.#kept(answer.json());
  }

  /** The events of a streamed answer, until it ends or another question is asked. */
  async * events(path, body) {
    const answer = await this.#send(path, { ...body, stream: true });
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    for (let rest = ""; ;) {
      const { value, done } = await this.#kept(reader.read());
      if (done) throw new Gone(GONE);
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (this.stale) return;
        if (part === "data: [DONE]") return;
        const event = JSON.parse(part.slice("data: ".length));
        if (event.error) throw new Refusal(event.error.message);
        yield event;
      }
    }
  }

  async #kept(promise) {
    let value;
    try {
      value = await promise;
    } catch (error) {
      throw error.name === "AbortError" ? error : new Gone(GONE);
    }
    if (this.stale) throw new DOMException("another question was asked", "AbortError");
    return value;
  }
}
