import { fill, heading } from "../dom.js";
export const contrastiveView = { id: "contrastive", title: "contrastive", mount(root) { fill(root, heading("contrastive", "", "x", "x")); return { update() {} }; } };
