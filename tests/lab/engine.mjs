// The lab's engine in node: reads one JSON task from standard input, writes one JSON result.
// Numbers that are many go through files: float32, row-major.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const task = JSON.parse(readFileSync(0, "utf8"));
const engine = (name) => import(pathToFileURL(`${task.engine}/${name}.js`).href);
const bytes = (path) => {
  const buffer = readFileSync(path);
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
};
const json = (path) => JSON.parse(readFileSync(path, "utf8"));
const save = (path, arrays) =>
  writeFileSync(path, Buffer.concat(arrays.map((a) => Buffer.from(a.buffer, a.byteOffset, a.byteLength))));
const picture = ({ path, width, height }) => ({ width, height, data: new Uint8Array(bytes(path)) });

async function load(folder, wasm = true) {
  const { readSafetensors } = await engine("safetensors");
  const { PaliGemma } = await engine("paligemma");
  const { Processor } = await engine("processing");
  const { tensors } = readSafetensors(bytes(`${folder}/model.safetensors`));
  const kernel = wasm ? bytes(`${task.engine}/kernel.wasm`) : null;
  const model = new PaliGemma(json(`${folder}/config.json`), tensors, kernel);
  return { model, processor: new Processor(json(`${folder}/tokenizer.json`), model.config) };
}

const TASKS = {
  async tokenize() {
    const { Tokenizer } = await engine("tokenizer");
    const tokenizer = new Tokenizer(json(task.tokenizer));
    return {
      plain: task.texts.map((text) => tokenizer.encodePlain(text)),
      special: task.texts.map((text) => tokenizer.encode(text)),
      decoded: task.ids.map((ids) => tokenizer.decode(ids)),
    };
  },

  async resize() {
    const { square } = await engine("processing");
    save(task.out, task.pictures.map((one) => square(picture(one), one.side)));
    return {};
  },

  async answers() {
    const { model, processor } = await load(task.folder, task.wasm);
    const { Generator } = await engine("generation");
    const { ObjectGrammar } = await engine("grammar");
    const generator = new Generator(model, processor);
    const logits = [];
    const found = [];
    for (const one of task.pictures) {
      const seen = picture(one);
      for (const { prompt, edits, labels, masks, maxNewTokens, forced } of task.requests) {
        const grammar = labels ? new ObjectGrammar(processor, labels, masks) : null;
        const run = generator.run(seen, { prompt, edits, grammar, maxNewTokens, forced });
        found.push({ ids: run.answer, text: run.text, prompt: run.prompt });
        logits.push(...run.logits);
      }
    }
    save(task.out, logits);
    return { found };
  },

  async masks() {
    const { readSafetensors } = await engine("safetensors");
    const { MaskCodec } = await engine("mask_codec");
    const codec = new MaskCodec(readSafetensors(bytes(task.codec)).tensors);
    save(task.out, task.codes.map((codes) => codec.decode(codes)));
    return {};
  },
};

process.stdout.write(JSON.stringify(await TASKS[task.task]()));
