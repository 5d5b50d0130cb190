"""Counts of a program against those made by hand."""

import pytest

from diffenc.tools.planning import hlo

# A loop of 3 turns; main memory unless a layout has S(1). The convolution is in a fusion.
PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (param_0: f32[3,8,8], param_1: s32[], param_2: f32[4,8]) -> f32[4,8] {
  %param_0 = f32[3,8,8]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %slice.1 = f32[1,8,8]{2,1,0} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,8,8}
  %bitcast.1 = f32[8,8]{1,0} bitcast(%slice.1)
  %param_2 = f32[4,8]{1,0} parameter(2)
  ROOT %convolution.1 = f32[4,8]{1,0} convolution(%param_2, %bitcast.1), dim_labels=bf_io->bf
}

%update (param_0.1: f32[3,4,8], param_1.1: f32[4,8], param_2.1: s32[]) -> f32[3,4,8] {
  %param_0.1 = f32[3,4,8]{2,1,0} parameter(0)
  %param_1.1 = f32[4,8]{1,0} parameter(1)
  %bitcast.2 = f32[1,4,8]{2,1,0} bitcast(%param_1.1)
  %param_2.1 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[3,4,8]{2,1,0} dynamic-update-slice(%param_0.1, %bitcast.2, %param_2.1)
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%body (turn: (s32[], f32[4,8], f32[3,8,8], f32[3,4,8])) -> (s32[], f32[4,8], f32[3,8,8], /*index=3*/f32[3,4,8]) {
  %turn = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}, f32[3,8,8]{2,1,0:T(8,128)}, /*index=3*/f32[3,4,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%turn), index=0
  %h = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%turn), index=1
  %w = f32[3,8,8]{2,1,0:T(8,128)} get-tuple-element(%turn), index=2
  %kept = f32[3,4,8]{2,1,0} get-tuple-element(%turn), index=3
  %fusion.1 = f32[4,8]{1,0:T(8,128)S(1)} fusion(%w, %i, %h), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  %fusion.2 = f32[3,4,8]{2,1,0} fusion(%kept, %fusion.1, %i), kind=kLoop, calls=%update, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}, f32[3,8,8]{2,1,0:T(8,128)}, /*index=3*/f32[3,4,8]{2,1,0}) tuple(%i, %fusion.1, %w, %fusion.2)
}

%condition (turn.1: (s32[], f32[4,8], f32[3,8,8], f32[3,4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %turn.1 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}, f32[3,8,8]{2,1,0:T(8,128)}, /*index=3*/f32[3,4,8]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%turn.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (w.1: f32[3,8,8], x.1: bf16[4,8]) -> f32[3,4,8] {
  %w.1 = f32[3,8,8]{2,1,0:T(8,128)} parameter(0)
  %x.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start.1 = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x.1)
  %copy-done.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %convert.1 = f32[4,8]{1,0:T(8,128)S(1)} convert(%copy-done.1), backend_config={"window_config":{"estimated_cycles":"1000"}}
  %zero = s32[]{:T(128)} constant(0)
  %zeros = f32[3,4,8]{2,1,0} broadcast(%zero), dimensions={}
  %tuple.2 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}, f32[3,8,8]{2,1,0:T(8,128)}, /*index=3*/f32[3,4,8]{2,1,0}) tuple(%zero, %convert.1, %w.1, %zeros)
  %while.1 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}, f32[3,8,8]{2,1,0:T(8,128)}, /*index=3*/f32[3,4,8]{2,1,0}) while(%tuple.2), condition=%condition, body=%body
  %kept.1 = f32[3,4,8]{2,1,0} get-tuple-element(%while.1), index=3
  %all-gather-start.1 = (f32[3,4,8]{2,1,0}, f32[6,4,8]{2,1,0}) all-gather-start(%kept.1), dimensions={0}
  %all-gather-done.1 = f32[6,4,8]{2,1,0} all-gather-done(%all-gather-start.1)
  ROOT %all-reduce.1 = f32[3,4,8]{2,1,0} all-reduce(%kept.1), to_apply=%add
}
"""

INT, SLICE, STACK, X = 4, 4 * 64, 4 * 96, 2 * 32
FIRST = X + (INT + STACK)  # x is copied from main memory, of zeros the scalar is read and all written
TURN = (SLICE + INT) + (
    4 * 32 + INT
)  # a slice of w and i; the update alone and i: what it is made of is elsewhere
SHARED = (STACK + 2 * STACK) + (STACK + STACK)  # gathered of two devices; summed


def test_everything_counts_as_often_as_it_runs():
    counts = hlo.count_program(PROGRAM)
    assert counts.cycles == 1000 + 3 * (100 + 7)
    assert counts.traffic == FIRST + 3 * TURN + SHARED
    assert counts.collectives == {"all-gather": 1, "all-reduce": 1}
    assert counts.sent == {"all-gather": 2 * STACK, "all-reduce": STACK}
    assert (counts.fusions, counts.convolutions) == (2, 1)
    assert counts.lines == PROGRAM.count("\n")


def test_a_stated_number_of_turns_is_taken():
    stated = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert hlo.count_program(stated).cycles == 1000 + 5 * (100 + 7)


def test_convolutions_of_cudnn_are_some():
    called = (
        'ROOT %c = (f32[4,8]{1,0}, u8[0]{0}) custom-call(%a, %b), custom_call_target="__cudnn$convForward"'
    )
    assert hlo.count_program(f"ENTRY %main () -> f32[] {{\n  {called}\n}}\n").convolutions == 1


def test_turns_that_are_not_known_count_once():
    unknown = PROGRAM.replace("constant(3)", "custom-call()")
    assert hlo.count_program(unknown).cycles == 1000 + 100 + 7


@pytest.mark.parametrize(
    ("shape", "size", "main"),
    [
        ("f32[]", 4, 4),
        ("pred[3,5]{1,0}", 15, 15),
        ("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", 12, 0),
        ("(s4[8], (f8e4m3fn[2]{0}, c64[2]), token[])", 4 + 2 + 16, 4 + 2 + 16),
    ],
)
def test_bytes_of_a_shape(shape, size, main):
    assert (hlo.array_bytes(shape), hlo.main_memory_bytes(shape)) == (size, main)


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        hlo.parse("HloModule nothing\n")
