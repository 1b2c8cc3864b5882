#!/usr/bin/env bash
# Runs inference.py with the settings below; each may be set from outside:
#   PROMPT="ocr" IMAGE_FILE_PATH=sign.png ./launch_inference.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

MODEL_PATH=${MODEL_PATH:-mini}
PROMPT=${PROMPT:-caption en}
IMAGE_FILE_PATH=${IMAGE_FILE_PATH:-$here/assets/scene.png}
MAX_TOKENS_TO_GENERATE=${MAX_TOKENS_TO_GENERATE:-100}
TEMPERATURE=${TEMPERATURE:-0.8}
TOP_P=${TOP_P:-0.9}
DO_SAMPLE=${DO_SAMPLE:-False}
ONLY_CPU=${ONLY_CPU:-False}

PYTHON=$here/.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=python3

exec "$PYTHON" "$here/inference.py" \
    --model_path "$MODEL_PATH" \
    --prompt "$PROMPT" \
    --image_file_path "$IMAGE_FILE_PATH" \
    --max_tokens_to_generate "$MAX_TOKENS_TO_GENERATE" \
    --temperature "$TEMPERATURE" \
    --top_p "$TOP_P" \
    --do_sample "$DO_SAMPLE" \
    --only_cpu "$ONLY_CPU"
