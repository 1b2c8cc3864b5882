import { fill, heading } from "../dom.js";
export const ropeView = { id: "rope", title: "rope", mount(root) { fill(root, heading("rope", "", "x", "x")); return { update() {} }; } };
