//! The Rust counterparts of the argument structs of `transformer.cu` and `attention.cu`; the fields
//! are those of `kernels/args.h`.

use std::mem::{offset_of, size_of};

use crate::cuda::kernels::{Arguments, Quantized};
use crate::cuda::layout::Columns;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct EmbedArgs {
    pub codes: u64,
    pub scales: u64,
    pub zeros: u64,
    pub ids: u64,
    pub out: u64,
    pub columns: Columns,
    pub n: u32,
    pub bits: u32,
    pub half_scales: u32,
    pub factor: f32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AngleArgs {
    pub frequencies: u64,
    pub position: u64,
    pub out: u64,
    pub amplitude: f64,
    pub pairs: u32,
    pub n: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct NormArgs {
    pub x: u64,
    pub y: u64,
    pub bias: u64,
    pub inner: u64,
    pub sum: u64,
    pub outer: u64,
    pub out: u64,
    pub quantized: Quantized,
    pub width: u32,
    pub n: u32,
    pub eps: f32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadArgs {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub q_bias: u64,
    pub k_bias: u64,
    pub v_bias: u64,
    pub q_norm: u64,
    pub k_norm: u64,
    pub angles: u64,
    pub position: u64,
    pub out: u64,
    pub keys: u64,
    pub values: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub slots: u32,
    pub n: u32,
    pub neighbours: u32,
    pub half_cache: u32,
    pub eps: f32,
    pub query_scale: f32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionArgs {
    pub q: u64,
    pub keys: u64,
    pub values: u64,
    pub position: u64,
    pub out: u64,
    pub parts: u64,
    pub ends: u64,
    pub quantized: Quantized,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub slots: u32,
    pub window: u32,
    pub n: u32,
    pub splits: u32,
    pub half_cache: u32,
    pub cap: f32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct GateArgs {
    pub gate: u64,
    pub up: u64,
    pub gate_bias: u64,
    pub up_bias: u64,
    pub out: u64,
    pub quantized: Quantized,
    pub width: u32,
    pub n: u32,
    pub gelu: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct LogitArgs {
    pub logits: u64,
    pub parts: u64,
    pub token: u64,
    pub id: u64,
    pub position: u64,
    pub count: u64,
    pub blocks: u32,
    pub cap: f32,
}

// SAFETY: `repr(C)`; the assertions below compare sizes and offsets with those of args.h.
unsafe impl Arguments for EmbedArgs {}
// SAFETY: as above.
unsafe impl Arguments for AngleArgs {}
// SAFETY: as above.
unsafe impl Arguments for NormArgs {}
// SAFETY: as above.
unsafe impl Arguments for HeadArgs {}
// SAFETY: as above.
unsafe impl Arguments for AttentionArgs {}
// SAFETY: as above.
unsafe impl Arguments for GateArgs {}
// SAFETY: as above.
unsafe impl Arguments for LogitArgs {}

const _: () = {
    assert!(size_of::<EmbedArgs>() == 80 && offset_of!(EmbedArgs, n) == 60);
    assert!(size_of::<AngleArgs>() == 40 && offset_of!(AngleArgs, pairs) == 32);
    assert!(size_of::<NormArgs>() == 128 && offset_of!(NormArgs, width) == 112);
    assert!(size_of::<HeadArgs>() == 144 && offset_of!(HeadArgs, heads) == 104);
    assert!(size_of::<AttentionArgs>() == 152 && offset_of!(AttentionArgs, heads) == 112);
    assert!(size_of::<GateArgs>() == 112 && offset_of!(GateArgs, width) == 96);
    assert!(size_of::<LogitArgs>() == 56 && offset_of!(LogitArgs, blocks) == 48);
};
