"""How fast and how large: paliglass beside transformers and llama.cpp, in turn in one run."""
