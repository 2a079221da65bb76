"""Traces summed by kind: made by hand as a GPU writes them, and refused where they are none."""

import gzip
import json

import pytest

from benchmarks.op_times import KINDS, Instruction, instructions, kind_of, op_seconds
from lowbit.errors import DataError

PROGRAM = """
ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %gemm.1 = (f32[4,4]{1,0}, s8[8]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/jvp(Transformer)/layers/mlp/up_proj/dot_general"}
  %gemm.2 = (f32[4,4]{1,0}, s8[8]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/jvp(loss)/while/body/dot_general"}
  %cudnn-fmha.3 = (f32[4,4]{1,0}) custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(step)/layers/attn/dot_product_attention"}
  %loop_exp_fusion.4 = f32[4,4]{1,0} fusion(%a), kind=kLoop, calls=%c, metadata={op_name="jit(step)/jvp(loss)/exp"}
  %loop_round_fusion = f32[4,4]{1,0} fusion(%a), kind=kLoop, calls=%c, metadata={op_name="jit(step)/fake_quant/round"}
  %loop_add_fusion.5 = f32[4,4]{1,0} fusion(%a), kind=kLoop, calls=%c, metadata={op_name="jit(step)/optimizer/add"}
  %all-reduce.6 = f32[4,4]{1,0} all-reduce(%a), to_apply=%sum, metadata={op_name="jit(step)/transpose(jvp(loss))/dot_general"}
  %while.7 = f32[4,4]{1,0} while(%a), condition=%b, body=%c
  ROOT %loop_mul_fusion.8 = f32[4,4]{1,0} fusion(%a), kind=kLoop, calls=%c, metadata={op_name="jit(step)/layers/mlp_norm/mul"}
}
"""  # noqa: E501
GPU = [
    {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}},
    {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "/host:CPU"}},
    {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name", "args": {"name": "Stream #7(Compute)"}},
    {"ph": "M", "pid": 1, "tid": 8, "name": "thread_name", "args": {"name": "XLA Modules"}},
    {"ph": "M", "pid": 2, "tid": 7, "name": "thread_name", "args": {"name": "python"}},
]


def event(name, microseconds, hlo_op=None, pid=1, tid=7):
    arguments = {} if hlo_op is None else {"args": {"hlo_op": hlo_op}}
    return {"ph": "X", "pid": pid, "tid": tid, "ts": 0, "dur": microseconds, "name": name, **arguments}


def write(folder, events):
    place = folder / "plugins" / "profile" / "now"
    place.mkdir(parents=True)
    with gzip.open(place / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    return folder


def test_events_of_a_gpu_are_summed_by_kind(tmp_path):
    events = [
        event("nvjet_sm90_tst_128x64", 1, "gemm.1"),
        event("nvjet_sm90_tst_128x64", 2, "gemm.2"),
        event("cudnn_generated_fort_native_sdpa", 4, "cudnn-fmha.3"),
        event("loop_exp_fusion_4", 8),  # launched by a graph: the kernel has its instruction's name alone
        event("loop_round_fusion", 16, "loop_round_fusion"),
        event("loop_add_fusion_5", 32, "loop_add_fusion.5"),
        event("ncclDevKernel_AllReduce", 64, "all-reduce.6"),
        event("loop_mul_fusion_8", 128, "loop_mul_fusion.8"),
        event("MemcpyD2D", 256),
        event("while.7", 10_000, "while.7"),  # holds others
        event("jit_step", 10_000, tid=8),  # another view of the same time
        event("loop_mul_fusion_8", 10_000, pid=2),  # the host that launches it
    ]
    seconds = op_seconds(write(tmp_path, GPU + events), PROGRAM)
    parts = {kind: round(1e6 * total) for kind, total in seconds.items()}
    expected = {"matmul": 1, "matmul of head": 2, "attention": 4, "loss": 8, "quantizer": 16, "optimizer": 32}
    assert parts == {**expected, "collective": 64, "elementwise": 128 + 256}


def test_every_instruction_of_a_program_is_read():
    found = instructions(PROGRAM)
    assert len(found) == 10
    assert found["gemm.1"].target == "__cublas$gemm"
    assert found["while.7"] == Instruction("while", "", "")
    assert {kind_of(name, instruction) for name, instruction in found.items()} == {*KINDS, None}


def test_what_is_no_trace_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.trace\.json\.gz below"):
        op_seconds(tmp_path, PROGRAM)
    with pytest.raises(DataError, match="has no event of the program"):
        op_seconds(write(tmp_path, [*GPU, event("python", 5, pid=2)]), PROGRAM)
