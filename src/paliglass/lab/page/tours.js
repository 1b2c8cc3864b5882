import { el } from "./dom.js";
export class Tour {
  constructor(store) { this.store = store; this.root = el("div", { hidden: true }); }
  menu() { return el("span"); }
  resume() {}
}
