import { fill, heading } from "../dom.js";
export const benchView = { id: "bench", title: "bench", mount(root) { fill(root, heading("bench", "", "x", "x")); return { update() {} }; } };
