"""What the benchmarks read from the text of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from tests.benchmark_module import loaded

hlo = loaded("hlo")

TEXT = """HloModule jit_f, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %inner = f32[4]{0} fusion(%p), kind=kLoop, calls=%other
  ROOT %a = f32[4]{0} add(%inner, %p)
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%t), index=1
  %permuted = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)
  %done = f32[4]{0} collective-permute-done(%permuted)
  %f = f32[4]{0} fusion(%done), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[4]{0}) tuple(%f, %f)
}

%condition (t: (s32[], f32[4])) -> pred[] {
  %t = (s32[], f32[4]{0}) parameter(0)
  ROOT %lt = pred[] compare(%t, %t), direction=LT
}

ENTRY %main (x: f32[4]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  %w = (s32[], f32[4]{0}) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[4]{0} get-tuple-element(%w), index=1
  %d = f32[4,4]{1,0} dot(%y, %x), lhs_contracting_dims={}
  ROOT %g = bf16[8]{0} all-gather(%y), dimensions={0}
}
"""  # noqa: E501


def test_kernels_loops_products_and_collectives_of_a_program():
    found = hlo.work(TEXT)
    # The fusion and the permutation in the loop, the product and the gather; not what is inside.
    assert (found.kernels, found.fusions, found.loops, found.products) == (4, 1, 1, 1)
    assert found.collectives == {"collective-permute": 1, "all-gather": 1}
    assert found.traffic == {"collective-permute": 3 * 16, "all-gather": 16}
    assert found.largest["all-gather"] == 16


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [("f32[2,3]{1,0}", [24]), ("(bf16[4]{0}, pred[], s64[2])", [8, 1, 16]), ("f8e4m3fn[3]", [3])],
)
def test_bytes_of_shapes(shape, sizes):
    assert hlo.size(shape) == sizes


def test_a_program_of_this_backend():
    def f(x):
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: jnp.tanh(y @ x) + 1, x)

    found = hlo.work(jax.jit(f).lower(jnp.ones((3, 3))).compile().as_text())
    assert found.loops == 1
    assert found.kernels >= 1
    assert not found.traffic


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Error: Ran out of memory in memory space hbm. Used 16.91G of 15.75G hbm. Exceeded\nby",
            "Ran out of memory in memory space hbm. Used 16.91G of 15.75G",
        ),
        ("E: Ran out of memory on HBM, temporaries (1.2T) exceed (15.75G).", None),
        ("Traceback\nValueError: no", "ValueError: no"),
        ("", "no message"),
    ],
)
def test_a_compiler_that_gave_up_says_what_of_memory(text, reason):
    found = hlo.reason(text)
    assert found == (reason or "Ran out of memory on HBM, temporaries (1.2T) exceed (15.75G")
