import { fill, heading } from "../dom.js";
export const boxesView = { id: "boxes", title: "boxes", mount(root) { fill(root, heading("boxes", "", "x", "x")); return { update() {} }; } };
