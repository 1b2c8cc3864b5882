import { fill, heading } from "../dom.js";
export const lensView = { id: "lens", title: "lens", mount(root) { fill(root, heading("lens", "", "x", "x")); return { update() {} }; } };
