import { fill, heading } from "../dom.js";
export const cacheView = { id: "cache", title: "cache", mount(root) { fill(root, heading("cache", "", "x", "x")); return { update() {} }; } };
