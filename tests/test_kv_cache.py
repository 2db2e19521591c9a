"""A transformer read token by token: the same answers as read whole, from buffers that never move."""

import pytest
import torch
from torch import Tensor
from training_rig import awake, noise

from dalle_2.errors import UsageError
from dalle_2.models.layers.kv_cache import KVCache
from dalle_2.models.layers.transformer import Transformer

WIDTH, HEADS = 16, 4


def transformer(depth: int = 3) -> Transformer:
    torch.manual_seed(0)
    return awake(Transformer(WIDTH, depth, HEADS, causal=True)).eval().double()


def padding(rows: int, length: int) -> Tensor:
    """Padding on the right, on the left, in the middle, nowhere."""
    valid = torch.ones(rows, length, dtype=torch.bool)
    for row, hidden in enumerate([slice(length - 1, None), slice(0, 2), slice(1, 2)][:rows]):
        valid[row, hidden] = False
    return valid


def read(model: Transformer, x: Tensor, first: int, cache: KVCache) -> Tensor:
    states = [model.prefill(x[:, :first], cache)]
    states += [model.step(x[:, n : n + 1], cache) for n in range(first, x.shape[1])]
    return torch.cat(states, dim=1)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("first", "length"), [(1, 1), (1, 2), (3, 3), (4, 17), (30, 33)])
@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_token_by_token_is_as_all_at_once(depth: int, first: int, length: int, rows: int) -> None:
    model, x = transformer(depth), noise(rows, length, WIDTH).double()
    assert torch.allclose(read(model, x, first, model.cache(rows, length)), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extra", [0, 1, 9])
@torch.no_grad()
def test_padding_among_the_first_tokens_is_looked_at_by_none(extra: int) -> None:
    model, first, rows = transformer(), 5, 4
    x, valid = noise(rows, first + extra, WIDTH).double(), padding(rows, first)
    whole = torch.nn.functional.pad(valid, (0, extra), value=True)
    states = read(model, x, first, model.cache(rows, first + extra, valid))
    assert torch.allclose(states[whole], model(x, whole)[whole], rtol=0, atol=1e-12)
    assert torch.allclose(model.last(x, whole)[whole[:, -1]], states[:, -1][whole[:, -1]], rtol=0, atol=1e-12)
    other = torch.where(whole[..., None], x, 9.0)
    assert torch.equal(read(model, other, first, model.cache(rows, first + extra, valid))[whole], states[whole])
    assert not torch.allclose(states[:3], read(model, x, first, model.cache(rows, first + extra))[:3])


@torch.no_grad()
def test_a_row_is_as_without_the_padding_beside_it() -> None:
    model, x = transformer(), noise(1, 6, WIDTH).double()
    valid = torch.tensor([[True, False, True, True, False, True]])
    states = read(model, x, 6, model.cache(1, 8, valid))
    bare = x[:, valid[0]]
    assert torch.allclose(states[valid], model(bare)[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_in_float32_only_rounding_differs() -> None:
    model, x = transformer().float(), noise(2, 40, WIDTH)
    assert torch.allclose(read(model, x, 3, model.cache(2, 40)), model(x), rtol=0, atol=1e-5)


@torch.no_grad()
def test_autocast_reads_and_writes_one_dtype() -> None:
    model, x = transformer().float(), noise(2, 9, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model.cache(2, 9, torch.tensor([[True, True, True], [False, True, True]]))
        states = read(model, x, 3, cache)
    assert cache.stores[0].dtype == torch.bfloat16
    assert states.isfinite().all()


@torch.no_grad()
def test_the_buffers_are_laid_out_once_and_hold_what_was_read() -> None:
    model, x = transformer(2), noise(3, 8, WIDTH).double()
    cache = model.cache(3, 8)
    places = [store.data_ptr() for store in cache.stores]
    assert [tuple(store.shape) for store in cache.stores] == [(2, 3, HEADS, 8, WIDTH // HEADS)] * 2
    model.prefill(x[:, :2], cache)
    before = [store[:, :, :, :2].clone() for store in cache.stores]
    for n in range(2, 8):
        model.step(x[:, n : n + 1], cache)
        assert cache.length == n + 1
    assert [store.data_ptr() for store in cache.stores] == places
    assert all(torch.equal(store[:, :, :, :2], old) for store, old in zip(cache.stores, before, strict=True))
    with pytest.raises(UsageError, match="this cache holds 8 tokens, got 9: make a longer one"):
        model.step(x[:, :1], cache)


def test_only_what_looks_backwards_can_be_cached() -> None:
    with pytest.raises(UsageError, match="only a causal transformer can be read token by token"):
        Transformer(WIDTH, 1, HEADS).cache(1, 4)
