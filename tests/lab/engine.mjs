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
  writeFileSync(
    path,
    Buffer.concat(arrays.map((a) => Buffer.from(a.buffer, a.byteOffset, a.byteLength))),
  );
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
    save(
      task.out,
      task.pictures.map((one) => square(picture(one), one.side)),
    );
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

  async traced() {
    const { model, processor } = await load(task.folder);
    const { Generator } = await engine("generation");
    const trace = await engine("trace");
    const generator = new Generator(model, processor);
    const run = generator.run(picture(task.picture), { prompt: task.prompt, edits: task.edits });
    const { vision, text } = model.config;
    const arrays = [];
    for (const [part, { layers, heads }] of Object.entries({ tower: vision, decoder: text })) {
      for (let layer = 0; layer < layers; layer++)
        for (let head = 0; head < heads; head++)
          arrays.push(trace.attention(run, part, layer, head));
      for (let layer = -1; layer < layers; layer++) arrays.push(trace.hidden(run, part, layer));
    }
    save(task.out, arrays);
    const position = run.prompt.length - 1;
    const { parts, logit } = trace.attribution(run, position, run.answer[0]);
    return {
      ids: run.ids,
      answer: run.answer,
      lens: trace.lens(run, 1, [position], 3)[0],
      logit: run.logits[0][run.answer[0]],
      attributed: parts.reduce((sum, { value }) => sum + value, 0),
      last: logit,
      cell: trace.cell(run, "decoder", 1, 2, position, 5),
      scores: trace.scoreByDistance(run, 1, 0, 20, [7, 8]).scores,
      stale: trace.exchanged(run, position - 1, 300, "stale").text,
      text: run.text,
    };
  },

  async protocol() {
    const { Lab } = await engine("lab");
    const lab = new Lab();
    const files = {
      config: json(`${task.folder}/config.json`),
      tokenizer: json(`${task.folder}/tokenizer.json`),
      preprocessor: json(`${task.folder}/preprocessor_config.json`),
      weights: bytes(`${task.folder}/model.safetensors`),
    };
    const answers = [lab.load(files, bytes(`${task.engine}/kernel.wasm`))];
    if (task.codec) lab.loadCodec(bytes(task.codec));
    lab.picture("p", picture(task.picture));
    for (const [method, values] of task.calls) answers.push(lab[method](values));
    const plain = (_, value) => (ArrayBuffer.isView(value) ? [...value] : value);
    writeFileSync(task.out, JSON.stringify(answers, plain));
    return {};
  },

  async dual() {
    const { readSafetensors } = await engine("safetensors");
    const { Dual } = await engine("contrastive");
    const { tensors } = readSafetensors(bytes(`${task.folder}/model.safetensors`));
    const [config, tokenizer] = ["config", "tokenizer"].map((name) =>
      json(`${task.folder}/${name}.json`),
    );
    const dual = new Dual(config, tensors, bytes(`${task.engine}/kernel.wasm`), tokenizer);
    save(task.out, [
      ...task.pictures.map((one) => dual.embedPicture(picture(one))),
      ...task.texts.map((text) => dual.embedText(text)),
    ]);
    return { scale: dual.scale };
  },

  async page() {
    const page = (name) => import(pathToFileURL(`${task.page}/${name}.js`).href);
    const { fit, accuracy } = await page("ridge");
    const { lossOf } = await page("contrastive_toy");
    const sample = { rows: task.rows.map((row) => Float32Array.from(row)), answers: task.answers };
    const plane = fit(sample, task.ridge);
    const losses = [true, false].map((isClip) => lossOf(task.logits, isClip));
    return { plane: [...plane], accuracy: accuracy(plane, sample), losses };
  },

  async costs() {
    const page = (name) => import(pathToFileURL(`${task.page}/${name}.js`).href);
    const { LARGE, decoderCost, phasesOf, towerCost } = await page("costs");
    return {
      large: LARGE,
      tower: towerCost(task.shape),
      decoder: task.calls.map((call) => decoderCost(task.shape, ...call)),
      phases: task.answers.map((answer) => phasesOf(task.shape, answer)),
    };
  },

  async sample() {
    const { distribution, draw } = await engine("sampling");
    const logits = new Float32Array(bytes(task.logits));
    save(
      task.out,
      task.settings.map((settings) => distribution(logits, settings)),
    );
    return task.uniforms.map((uniform) => draw(distribution(logits, {}), uniform));
  },

  async masks() {
    const { readSafetensors } = await engine("safetensors");
    const { MaskCodec } = await engine("mask_codec");
    const codec = new MaskCodec(readSafetensors(bytes(task.codec)).tensors);
    save(
      task.out,
      task.codes.map((codes) => codec.decode(codes)),
    );
    return {};
  },
};

process.stdout.write(JSON.stringify(await TASKS[task.task]()));
