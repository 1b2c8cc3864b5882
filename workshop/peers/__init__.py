"""How fast and how large: paliglass beside transformers, llama.cpp and OpenVINO, in one run.

python -m workshop.peers checkpoint-3b --markdown --chart docs/bench.svg
"""
