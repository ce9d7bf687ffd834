"""Checks of the exercises of Part 3: one for each function, named for it."""

import cmath
import math

from part_3.kv_cache import StaticCache
from part_3.modern_config import ModernGPTConfig
from tests.exercises.compare import check


def test_rotate_pair(answers):
    check("rotate_pair(a=1, b=2, position=1, frequency=pi/2), a quarter turn",
          answers.rotate_pair(1.0, 2.0, 1, math.pi / 2), (-2, 1), {"the pair is turned the other way round": (2, -1)})
    for position, frequency in ((0, 1.0), (7, 0.1), (300, 0.01)):
        turned = complex(1.5, -0.5) * cmath.exp(1j * position * frequency)
        back = complex(1.5, -0.5) * cmath.exp(-1j * position * frequency)
        check(f"rotate_pair(a=1.5, b=-0.5, position={position}, frequency={frequency})",
              answers.rotate_pair(1.5, -0.5, position, frequency), (turned.real, turned.imag),
              {"the pair is turned the other way round": (back.real, back.imag)} if position else {})


def test_visible_keys(answers):
    check("visible_keys(query=9, window=3, sinks=2)", answers.visible_keys(9, 3, 2), [0, 1, 7, 8, 9], {
        "the window is one token too long: it counts the query": [0, 1, 6, 7, 8, 9],
        "the query does not see itself": [0, 1, 7, 8], "the sinks are left out": [7, 8, 9],
        "the sinks take places of the window": [0, 1, 9]})
    check("visible_keys(query=3, window=3, sinks=2), where window and sinks overlap", answers.visible_keys(3, 3, 2),
          [0, 1, 2, 3], {"a sink that the window shows is counted twice": [0, 1, 1, 2, 3]})
    check("visible_keys(query=1, window=3, sinks=4), before there are four tokens", answers.visible_keys(1, 3, 4), [0, 1],
          {"a query sees sinks that come after it": [0, 1, 2, 3], "there are keys before the text": [-1, 0, 1]})


def test_cache_bytes(answers):
    # 32 layers, 8 key-value heads of width 4096/32 = 128 (Llama 3 8B), bf16: 2 x 32 x 8 x 128 x 2 bytes = 128 KiB a token
    check("cache_bytes(n_layer=32, n_head=32, n_kv_head=8, d_model=4096, n_tokens=1, n_rows=1, bytes_each=2)",
          answers.cache_bytes(32, 32, 8, 4096, 1, 1, 2), 128 * 1024, {
              "there is a key-value head for each query head": 512 * 1024,
              "keys are counted and values are not": 64 * 1024, "a single layer is counted": 4 * 1024,
              "D is taken for C/H_kv": 512 * 1024, "the bytes of a number are left out": 64 * 1024})
    # The cache of the lesson has one place more than its capacity, so a capacity of 8 has 9 places.
    cache = StaticCache(ModernGPTConfig(64, 16, 3, 6, 48, n_kv_head=2), batch_size=5, capacity=8)
    check("cache_bytes(n_layer=3, n_head=6, n_kv_head=2, d_model=48, n_tokens=9, n_rows=5, bytes_each=4)",
          answers.cache_bytes(3, 6, 2, 48, 9, 5, 4), cache.n_bytes)
