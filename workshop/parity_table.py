"""How far from the others: the README's table, from small random models and the original's files.

python -m workshop.parity_table
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tests.parity.reference import logits_of, pair
from tests.parity.reference_colpali import (
    QUERIES,
    pictures,
    reference_processor,
    their_pages,
    their_queries,
)
from tests.tiny import GEMMA2, make_batch, tiny_config
from tests.tiny_colpali import colpali_folder

from paliglass.checkpoints import load_big_vision
from paliglass.checkpoints.layouts import module_name
from paliglass.inspect.bench import greedy
from paliglass.retrieval import load_colpali
from paliglass.retrieval.index import embed_pages, embed_query
from paliglass.retrieval.modeling_colpali import late_interaction
from workshop.commands import run

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "big_vision"
NOTHING: dict[str, Any] = {}
PG2: dict[str, Any] = {
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 12,
}


def transformers_rows() -> list[tuple[str, str, float]]:
    """Logits, loss and gradients on a padded batch with suffixes."""
    rows = []
    for name, text in (("PaliGemma", {}), ("PaliGemma 2", GEMMA2)):
        config = tiny_config(**text)
        theirs, ours = pair(config)
        batch = make_batch(config, [9, 4], [5, 7])
        gap = (logits_of(ours, batch) - logits_of(theirs, batch)).abs().max().item()
        rows.append(("transformers", f"{name}, logits, float32", gap))
        losses = [model(**batch).loss for model in (ours, theirs)]
        for loss in losses:
            loss.backward()
        rows.append(("transformers", f"{name}, loss", abs(losses[0] - losses[1]).item()))
        gradients = {module_name(n): p.grad for n, p in theirs.named_parameters()}
        gaps = [(p.grad - gradients[n]).abs().max().item() for n, p in ours.named_parameters()]
        rows.append(("transformers", f"{name}, {len(gaps)} gradients", max(gaps)))
    return rows


def big_vision_rows() -> list[tuple[str, str, float]]:
    """The original's numbers: image features, logits, and greedy tokens of two rows."""
    rows = []
    for name, file, overrides in (("PaliGemma", "pg1", NOTHING), ("PaliGemma 2", "pg2", PG2)):
        model = load_big_vision(FIXTURES / f"{file}_ckpt.npz", device="cpu", **overrides)
        expected = np.load(FIXTURES / f"{file}_io.npz")
        pixels = torch.from_numpy(expected["image"]).permute(0, 3, 1, 2)
        places = torch.full((2, model.config.num_image_tokens), model.config.image_token_index)
        ids = torch.cat((places, torch.from_numpy(expected["text"]).long()), dim=1)
        types = torch.cat((places * 0, torch.from_numpy(expected["mask_ar"]).long()), dim=1)
        with torch.inference_mode():
            features = model.get_image_features(pixels).numpy()
            logits = model(ids, pixels, token_type_ids=types).logits.numpy()
        gap = float(np.abs(features - expected["zimg"]).max())
        rows.append(("big_vision (JAX)", f"{name}, image features, float32", gap))
        gap = float(np.abs(logits - expected["logits"]).max())
        rows.append(("big_vision (JAX)", f"{name}, logits, float32", gap))
        prompts = torch.cat((places, torch.from_numpy(expected["dec_text"]).long()), dim=1)
        mask = torch.cat((places * 0 + 1, torch.from_numpy(expected["dec_mask_input"]).long()), 1)
        batch = {"input_ids": prompts, "attention_mask": mask, "pixel_values": pixels}
        steps = list(greedy(model, batch, expected["dec_tokens"].shape[1]))
        different = float((torch.stack(steps, 1).numpy() != expected["dec_tokens"]).sum())
        rows.append(("big_vision (JAX)", f"{name}, greedy tokens that differ, of 24", different))
    return rows


def colpali_rows() -> list[tuple[str, str, float]]:
    """Vectors of pages and padded queries and their scores; and what int8 makes of the vectors."""
    with tempfile.TemporaryDirectory() as place:
        folder = colpali_folder(Path(place) / "colpali")
        theirs = transformers.ColPaliForRetrieval.from_pretrained(folder).eval()
        ours, processor = load_colpali(folder, device="cpu")
        small, _ = load_colpali(folder, device="cpu", quantize="int8")
        with torch.inference_mode():
            queries = ours(**processor.queries(QUERIES))
        pages, their_vectors = embed_pages(ours, processor, pictures()), their_pages(theirs)
        alone = [embed_query(ours, processor, text) for text in QUERIES]
        scores = torch.stack([late_interaction(query, pages) for query in alone])
        expected = reference_processor().score_retrieval(their_queries(theirs), their_vectors)
        cosines = (pages * embed_pages(small, processor, pictures())).sum(-1)
    gaps = {
        "vectors of pages": pages - their_vectors,
        "vectors of queries": queries - their_queries(theirs),
        "scores": scores - expected,
    }
    rows = [
        ("transformers", f"ColPali, {w}, float32", g.abs().max().item()) for w, g in gaps.items()
    ]
    mean, least = 1 - cosines.mean().item(), 1 - cosines.min().item()
    rows += [("ours in float32", "ColPali in int8, 1 − cosine of vectors, mean", mean)]
    return [*rows, ("ours in float32", "ColPali in int8, 1 − cosine of vectors", least)]


def parity_table() -> None:
    """Print how far logits, losses, gradients and tokens lie from the others'."""
    print("| compared with | what | largest difference |\n|---|---|---|")
    for reference, what, gap in [*transformers_rows(), *colpali_rows(), *big_vision_rows()]:
        print(f"| {reference} | {what} | {gap:.1e} |" if gap else f"| {reference} | {what} | 0 |")


if __name__ == "__main__":
    run(parity_table)
