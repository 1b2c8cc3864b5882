import { fill, heading } from "../dom.js";
export const breakView = { id: "break", title: "break", mount(root) { fill(root, heading("break", "", "x", "x")); return { update() {} }; } };
