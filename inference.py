"""One picture, one prompt, one answer: PaliGemma in a few lines. `paliglass` does more."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import paliglass


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


def main() -> None:
    """Loads, runs, prints the prompt and the answer."""
    flags = parse()
    sampling = {"temperature": flags.temperature, "top_p": flags.top_p} if flags.do_sample else {}
    try:
        model = paliglass.load(flags.model_path, device="cpu" if flags.only_cpu else "auto")
        print("Device in use:", model.model.device, file=sys.stderr)
        answer = model.generate(
            flags.image_file_path,
            flags.prompt,
            max_new_tokens=flags.max_tokens_to_generate,
            **sampling,
        )
    except (paliglass.PaliglassError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(flags.prompt.rstrip(), answer)


if __name__ == "__main__":
    main()
