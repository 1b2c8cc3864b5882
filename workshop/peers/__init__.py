"""How fast and how large: paliglass beside transformers and llama.cpp, in turn in one run.

python -m workshop.peers checkpoint-3b --markdown --chart docs/bench.svg
"""
