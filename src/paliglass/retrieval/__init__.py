"""ColPali (arXiv 2407.01449): the pages that a text asks for, found by how they look.

- `modeling_colpali`  PaliGemma with a vector for every token; late interaction
- `processing`        pages and queries → the model's inputs
- `folders`           load, in transformers' and colpali-engine's layouts, and save
- `index`             pages kept on the disk, and the search in them
- `drawing`           where on a page the words of a query are
"""

from __future__ import annotations

from paliglass.retrieval.folders import load_colpali, save_colpali

__all__ = ["load_colpali", "save_colpali"]
