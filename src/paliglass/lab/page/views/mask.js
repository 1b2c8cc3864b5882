import { fill, heading } from "../dom.js";
export const maskView = { id: "mask", title: "mask", mount(root) { fill(root, heading("mask", "", "x", "x")); return { update() {} }; } };
