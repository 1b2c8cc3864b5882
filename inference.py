"""One picture, one prompt, one answer: PaliGemma's loop, step by step. `paliglass` does more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import paliglass
from paliglass.sampling import Sampling, choose


def boolean(text: str) -> bool:
    """What `--do_sample False` means: bool("False") would be True."""
    if text.lower() not in ("true", "1", "false", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() in ("true", "1")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The original script's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    scene = Path(__file__).parent / "assets" / "scene.png"
    parser.add_argument("--model_path", default="mini", help="mini, a folder, a hub id or an .npz")
    parser.add_argument("--prompt", default="caption en", help="what the model is to continue")
    parser.add_argument("--image_file_path", default=scene, help="the picture")
    parser.add_argument("--max_tokens_to_generate", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="used with --do_sample")
    parser.add_argument("--top_p", type=float, default=0.9, help="used with --do_sample")
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--do_sample", **flag, help="sample instead of taking the likeliest token")
    parser.add_argument("--only_cpu", **flag, help="leave a GPU alone")
    return parser.parse_args(arguments)


@torch.inference_mode()
def generate(
    m: paliglass.PaliGemma, picture: str | Path, prompt: str, max_tokens: int, sampling: Sampling
) -> str:
    """The answer: process, prefill, then choose and extend, a token at a time, and decode."""
    model, processor = m.model, m.processor
    # 1 · picture and prompt → pixel_values 1 × 3 × S × S, input_ids 1 × T and their masks
    batch = processor(text=[prompt], images=[picture])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    # 2 · prefill: the whole prompt at once; the cache keeps its keys and values
    cache = model.new_cache(1, batch["input_ids"].shape[1] + max_tokens)
    last = model.prefill(**batch, kv_cache=cache, last_only=True)  # 1 × D
    generator = np.random.default_rng()
    ids: list[int] = []
    while len(ids) < max_tokens:
        # 3 · what may come next, 1 × V, and the choice: the likeliest, or a sample
        logits = processor.word_logits(model.language_model.logits(last))
        token, _ = choose(logits, [sampling], [generator])
        if int(token) in model.config.text_config.eos_token_ids:
            break
        ids.append(int(token))
        # 4 · extend: the one new token goes through the decoder; the cache has all before it
        last = model.extend(token[:, None], cache)[:, -1]
    # 5 · ids → text
    return processor.decode(ids)


def main() -> None:
    """Loads, runs, prints the prompt and the answer."""
    flags = parse()
    try:
        sampling = Sampling(flags.temperature, top_p=flags.top_p) if flags.do_sample else Sampling()
        model = paliglass.load(flags.model_path, device="cpu" if flags.only_cpu else "auto")
        print("Device in use:", model.model.device, file=sys.stderr)
        answer = generate(
            model, flags.image_file_path, flags.prompt, flags.max_tokens_to_generate, sampling
        )
    except (paliglass.PaliglassError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(flags.prompt.rstrip(), answer)


if __name__ == "__main__":
    main()
