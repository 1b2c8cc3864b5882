"""A token a row, replayed: it says what the plain loop says, whoever joins, leaves or fails.

Without a GPU a tape stands for the graph: it keeps the calls of one run, and makes them again on
the very same tensors.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, create_autospec, patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import GEMMA2, make_batch, tiny_config, tiny_model, worded_config
from tests.unit.test_generation import (
    ENDLESS,
    PROCESSOR,
    REQUESTS,
    all_events,
    answers,
    ask,
    requests_of,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from paliglass.fast import accelerate, cuda_graph, fused
from paliglass.fast.cuda_graph import GraphedPaliGemma
from paliglass.generation import RunningBatch
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
decoders = pytest.mark.parametrize(
    "decoder",
    [{}, {"num_key_value_heads": 4}, GEMMA2],
    ids=["gemma MQA", "gemma MHA", "gemma2"],
)


WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class Tape(TorchDispatchMode):
    """Calls that are made again: what was read and written is where it was, no Python runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        # A parameter may be given other memory; what was read is where it was.
        args = tree_map_only(torch.nn.Parameter, torch.Tensor.detach, args)
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # no view, nor written in place
                    old.copy_(new)


def record_by_hand(
    step: Callable[[], Tensor], device: torch.device
) -> tuple[Callable[[], None], Tensor]:
    with Tape() as tape:
        out = step()
    return tape.replay, out


@contextmanager
def recording(device: str = "cpu", slots: int = 16) -> Iterator[None]:
    """Few slots, so that answers outgrow them."""
    record = record_by_hand if device == "cpu" else cuda_graph.record
    with patch.multiple(cuda_graph, SLOTS=slots, record=record, DEVICES=(device,)):
        yield


def graphed(model: PaliGemmaForConditionalGeneration) -> GraphedPaliGemma:
    """A copy as a GPU has it."""
    fast = copy.deepcopy(model)
    fused.replace(fast)
    cuda_graph.replace(fast)
    assert isinstance(fast, GraphedPaliGemma)
    return fast


def filled(
    model: PaliGemmaForConditionalGeneration, lengths: tuple[int, ...] = (3, 9), **options: Any
) -> KVCache:
    batch = make_batch(model.config, lengths, **options)
    del batch["token_type_ids"]
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    cache = model.new_cache(len(lengths), 4)
    model.prefill(**batch, kv_cache=cache)
    return cache


def words(model: PaliGemmaForConditionalGeneration, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 200, shape, generator=generator).to(model.device)


def close(mine: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(mine, truth, atol=2e-5, rtol=1e-5)


@on_devices
@settings(max_examples=12)
@given(
    some=st.lists(REQUESTS, min_size=2, max_size=7),
    max_rows=st.integers(1, 4),
    gemma2=st.booleans(),
)
def test_the_loop_says_what_it_says_without(
    device: str, some: list[tuple[Any, ...]], max_rows: int, gemma2: bool
) -> None:
    """Joining and leaving at any step: grammars, several pictures, padding and seeds mixed."""
    config = worded_config(**(GEMMA2 if gemma2 else {}))
    model = tiny_model(config, std=0.15).to(device)
    fast, requests = graphed(model), requests_of(some)
    with recording(device):
        together = answers(fast, requests, max_rows)
    assert not fast.graphs.failed
    for mine, plain in zip(together, answers(model, requests, max_rows), strict=True):
        assert mine.ids == plain.ids
        assert mine.log_probs == pytest.approx(plain.log_probs, abs=1e-4)
        assert mine.end_log_prob == pytest.approx(plain.end_log_prob, abs=1e-4)
        assert mine.finish_reason == plain.finish_reason


@on_devices
def test_prompts_that_are_kept_and_alternatives_stay_as_they_are(device: str) -> None:
    model = tiny_model(ENDLESS).to(device)
    fast = graphed(model)
    told = []
    for one in (model, fast):
        batch = RunningBatch(one, PROCESSOR, prefix_bytes=1 << 20)
        with recording(device):
            events = []
            for pictures, limit in ((0, 9), (1, 4), (0, 30)):
                batch.admit([ask("a", pictures, max_new_tokens=limit, num_alternatives=2)])
                events += batch.step() + batch.step()
            events += all_events(batch)
        told.append([(e.token, [token for token, _ in e.alternatives]) for e in events])
    assert told[0] == told[1]
    assert fast.graphs.recorded > 0


@on_devices
@decoders
@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_one_token_and_several_may_alternate(
    decoder: dict[str, Any], side: str, device: str
) -> None:
    model = tiny_model(tiny_config(**decoder)).to(device)
    fast = graphed(model)
    lengths = (3, 9, 5)
    mine, theirs = (filled(one, lengths, side=side) for one in (fast, model))
    with recording(device):
        for step, count in enumerate([1, 1, 3, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]):
            ids = words(model, 3, count, seed=step)
            # Now and then a row has no new token.
            is_token = torch.arange(3, device=device)[:, None] != step % 4
            is_token = is_token.expand(3, count)
            hidden, plain = (
                one.extend(ids, cache, is_token.long())
                for one, cache in ((fast, mine), (model, theirs))
            )
            close(hidden[is_token], plain[is_token])
            assert torch.equal(mine.lengths, theirs.lengths)
            assert mine.max_length == theirs.max_length
    # The slots that the prompts need, and two or one times as many more.
    assert 1 < fast.graphs.recorded <= 3


@on_devices
@torch.inference_mode()
def test_what_came_out_stays_when_the_next_token_is_run(device: str) -> None:
    fast = graphed(tiny_model().to(device))
    cache = filled(fast)
    with recording(device):
        first = fast.extend(words(fast, 2, 1), cache)
        kept = first.clone()
        fast.extend(words(fast, 2, 1, seed=1), cache)
    assert torch.equal(first, kept)


@on_devices
def test_what_is_recorded_is_used_again(device: str) -> None:
    model = tiny_model(ENDLESS).to(device)
    fast = graphed(model)
    requests = [ask("what?" * i, max_new_tokens=3 + 5 * i) for i in range(1, 6)]
    with recording(device, 128):
        first = answers(fast, requests, 3)
        recorded = fast.graphs.recorded
        assert recorded <= 3  # one, two and four rows
        again = answers(fast, requests, 3)
    assert fast.graphs.recorded == recorded
    assert [a.ids for a in first] == [a.ids for a in again]


@on_devices
@torch.inference_mode()
def test_caches_at_the_same_time_have_steps_of_their_own(device: str) -> None:
    model = tiny_model().to(device)
    fast = graphed(model)
    pairs = [[filled(one, seed=seed) for one in (fast, model)] for seed in range(2)]
    with recording(device, 64):
        for step in range(4):
            for mine, theirs in pairs:
                ids = words(model, 2, 1, seed=step)
                close(fast.extend(ids, mine), model.extend(ids, theirs))
        assert fast.graphs.recorded == 2
        pairs[0][0].replace_rows([0, 1])  # it has moved, what was its own is free
        close(fast.extend(ids, pairs[0][0]), model.extend(ids, pairs[0][1]))
        del pairs[1], mine, theirs
        gc.collect()
        other = filled(fast, seed=2)
        close(fast.extend(ids, other), model.extend(ids, filled(model, seed=2)))
    assert fast.graphs.recorded == 2


@on_devices
@torch.inference_mode()
def test_numbers_that_are_none_do_not_outlive_their_cache(device: str) -> None:
    fast = graphed(tiny_model().to(device))
    ids = words(fast, 2, 1)
    with recording(device, 64):
        broken = filled(fast)
        fast.extend(ids, broken)
        for stored in (*broken.keys, *broken.values):
            stored.fill_(torch.nan)
        assert not fast.extend(ids, broken).isfinite().any()
        del broken, stored
        gc.collect()
        assert fast.extend(ids, filled(fast)).isfinite().all()
    assert fast.graphs.recorded == 1


@torch.inference_mode()
def test_what_nobody_uses_is_let_go_of_beyond_a_bound() -> None:
    fast = graphed(tiny_model())
    with recording(slots=64), patch.object(cuda_graph, "IDLE_BYTES", 0):
        for rows in (1, 2, 1):
            cache = filled(fast, (3,) * rows)
            fast.extend(words(fast, rows, 1), cache)
    assert fast.graphs.recorded == 3
    assert len(fast.graphs._steps) == 1


def test_what_cannot_be_recorded_is_decoded_as_ever() -> None:
    model = tiny_model(ENDLESS)
    fast = graphed(model)
    requests = [ask("what?" * i, max_new_tokens=9) for i in range(1, 4)]
    tries = []

    def fail(step: Callable[[], Tensor], device: torch.device) -> Any:
        tries.append(step())
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")

    with (
        patch.multiple(cuda_graph, record=fail, DEVICES=("cpu",)),
        pytest.warns(RuntimeWarning, match=r"no CUDA graph .*CUDA out of memory\.\)") as told,
    ):
        mine = answers(fast, requests, 2)
    assert [a.ids for a in mine] == [a.ids for a in answers(model, requests, 2)]
    assert len(told) == 1
    assert len(tries) == len(fast.graphs.failed)  # once a size
    assert not fast.graphs._steps


def test_a_call_that_waits_for_the_gpu_cannot_be_recorded() -> None:
    model = tiny_model(ENDLESS)
    fast = graphed(model)
    mlp = fast.language_model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) if x.sum().item() else x
    with recording(), pytest.warns(RuntimeWarning, match="not permitted"):
        [mine] = answers(fast, [ask(max_new_tokens=5)])
    assert mine.ids == answers(model, [ask(max_new_tokens=5)])[0].ids


@on_devices
def test_who_looks_learns_or_wants_gradients_has_the_modules_run(device: str) -> None:
    fast = graphed(tiny_model().to(device))
    seen: list[object] = []
    with recording(device, 64):
        with torch.no_grad():
            cache = filled(fast)
        ids = words(fast, 2, 1)
        with torch.no_grad():
            fast.extend(ids, cache)
            layer = fast.language_model.model.layers[1]
            handle = layer.register_forward_hook(lambda *_: seen.append(1))
            fast.extend(ids, cache)
            handle.remove()
            fast.extend(ids, cache)
        assert len(seen) == 1
        with patch.object(fast.graphs, "step_for", side_effect=AssertionError):
            assert fast.extend(ids, cache).requires_grad
            with torch.no_grad():
                with torch.autocast(device, torch.bfloat16):
                    fast.extend(ids, cache)
                fast.train()
                fast.extend(ids, cache)


@on_devices
@torch.inference_mode()
def test_weights_that_were_changed_are_seen(device: str) -> None:
    """In place, moved, cast: what was recorded with the old ones is not run."""
    model = tiny_model(std=0.1).to(device)
    fast = graphed(model)
    ids = words(model, 2, 1)
    with recording(device, 64):
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            for one in (model, fast):
                one.to(dtype)
            mine, theirs = filled(fast), filled(model)
            tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
            for _ in range(2):
                out, plain = fast.extend(ids, mine), model.extend(ids, theirs)
                assert (out - plain).norm() < tolerance * plain.norm()
        for one in (model, fast):  # somewhere else, while a cache goes on
            projection = one.language_model.model.layers[1].mlp.up_proj
            projection.weight.data = 3 * projection.weight.data
        close(fast.extend(ids, mine), model.extend(ids, theirs))
        other = tiny_model(std=0.1, seed=1).to(device).state_dict()
        for one in (model, fast):
            one.load_state_dict(other)
        close(fast.extend(ids, filled(fast)), model.extend(ids, filled(model)))


def _assign(model: PaliGemmaForConditionalGeneration) -> None:
    model.load_state_dict(tiny_model(std=0.1, seed=1).to(model.device).state_dict(), assign=True)
    model.tie_weights()


def _move_and_load(model: PaliGemmaForConditionalGeneration) -> None:
    """To where it is: what is computed of its norms is computed anew all the same."""
    model.to(model.device)
    state = tiny_model(std=0.1, seed=1).state_dict()
    norms = {name: weight + 0.5 for name, weight in state.items() if "norm" in name}
    model.load_state_dict(state | norms)


def _replace_module(model: PaliGemmaForConditionalGeneration) -> None:
    mlp = model.language_model.model.layers[1].mlp
    other = torch.nn.Linear(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)
    torch.nn.init.constant_(other.weight, 0.1)
    mlp.up_proj = other.to(model.device)


@on_devices
@pytest.mark.parametrize("change", [_assign, _move_and_load, _replace_module])
@torch.inference_mode()
def test_other_weights_in_their_place_are_seen(
    change: Callable[[PaliGemmaForConditionalGeneration], None], device: str
) -> None:
    """Those that were recorded are still there, where they were; the model has others."""
    with torch.inference_mode(False):
        model = tiny_model(std=0.1).to(device)
        fast = graphed(model)
    ids = words(model, 2, 1)
    with recording(device, 64):
        before = fast.extend(ids, filled(fast))
        with torch.inference_mode(False):
            for one in (model, fast):
                change(one)
        after, plain = fast.extend(ids, filled(fast)), model.extend(ids, filled(model))
    close(after, plain)
    assert (after - before).norm() > 0.1 * before.norm()
    assert fast.graphs.recorded == 2


@on_devices
def test_threads_may_share_a_model(device: str) -> None:
    model = tiny_model(ENDLESS).to(device)
    fast = graphed(model)
    lists = [[ask("what?" * (i + j), max_new_tokens=6 + j) for j in range(4)] for i in range(3)]
    found: dict[int, list[list[int]]] = {}

    def work(i: int) -> None:
        found[i] = [done.ids for done in answers(fast, lists[i], 2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    with recording(device, 64):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, requests in enumerate(lists):
        assert found[i] == [done.ids for done in answers(model, requests, 2)]
    assert not fast.graphs.failed


@torch.inference_mode()
def test_a_copied_model_records_its_own() -> None:
    fast = graphed(tiny_model())
    with recording(slots=64):
        ids, cache = words(fast, 2, 1), filled(fast)
        expected = fast.extend(ids, cache)
        other = copy.deepcopy(fast)
        assert other.graphs.recorded == 0
        assert torch.equal(other.extend(ids, filled(other)), expected)
        assert other.graphs.recorded == 1


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_on_a_gpu_accelerate_takes_it(quantize: str | None) -> None:
    """int8 as a GPU has it, the matrices widened at every use."""
    model = tiny_model(ENDLESS)
    accelerate(model, quantize, plain=True)
    fast = copy.deepcopy(model)
    fake = property(lambda _: torch.device("cuda"))
    with patch.object(PaliGemmaForConditionalGeneration, "device", fake):
        accelerate(fast)
    assert isinstance(fast, GraphedPaliGemma)
    requests = [ask("what?", max_new_tokens=12), ask("a", 1, max_new_tokens=7)]
    with recording():
        mine = answers(fast, requests)
    assert [a.ids for a in mine] == [a.ids for a in answers(model, requests)]
    assert fast.graphs.recorded > 0


def test_a_step_runs_twice_before_it_is_recorded_and_other_threads_are_let_be() -> None:
    """All of `record` but the GPU's part."""
    runs: list[bool] = []
    inside = MagicMock()
    names = ("CUDAGraph", "Stream", "current_stream", "device", "stream")
    fakes = {name: MagicMock() for name in names}
    asked = create_autospec(torch.cuda.graph, return_value=inside)
    with patch.multiple(torch.cuda, graph=asked, **fakes), patch.dict(cuda_graph._streams):
        replay, out = cuda_graph.record(
            lambda: runs.append(inside.__enter__.called) or torch.ones(1), torch.device("cuda:7")
        )
    assert runs == [False, False, True]
    assert asked.call_args.kwargs["capture_error_mode"] == "thread_local"
    assert asked.call_args.kwargs["stream"] is fakes["Stream"].return_value
    assert replay is fakes["CUDAGraph"].return_value.replay
    assert out == 1


def test_a_model_that_has_left_its_gpu_is_decoded_as_ever() -> None:
    model = tiny_model(ENDLESS)
    fast = graphed(model)
    [mine], [plain] = (answers(one, [ask(max_new_tokens=5)]) for one in (fast, model))
    assert mine.ids == plain.ids
    assert not fast.graphs.recorded
    assert not fast.graphs.failed


@GPU
@torch.inference_mode()
def test_another_stream_than_the_default_one_goes_without() -> None:
    fast = graphed(tiny_model().to("cuda"))
    cache = filled(fast)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        fast.extend(words(fast, 2, 1), cache)
    assert not fast.graphs.recorded


@GPU
def test_accelerate_on_a_gpu() -> None:
    model = tiny_model(ENDLESS).to("cuda")
    fast = copy.deepcopy(model)
    accelerate(fast)
    requests = [ask("what?" * i, max_new_tokens=5 * i) for i in range(1, 6)]
    mine = answers(fast, requests, 3)
    assert [a.ids for a in mine] == [a.ids for a in answers(model, requests, 3)]
    assert isinstance(fast, GraphedPaliGemma)
    assert fast.graphs.recorded > 0
    assert not fast.graphs.failed
