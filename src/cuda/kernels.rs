//! The kernels by name, and the Rust counterparts of their argument structs (`kernels/args.h`),
//! which are passed by value.

use std::mem::{offset_of, size_of};

use super::layout::Columns;

/// Every kernel of the images, in the order of `kernels/images/index.json`.
pub(super) const KERNELS: [&str; 43] = [
    "add_norm",
    "advance",
    "attend_r1",
    "attend_r4",
    "attend_r8",
    "combine_parts",
    "combine_parts_quantize",
    "embed_rows",
    "gate_up",
    "gate_up_quantize",
    "greatest",
    "matmul_f32_b1_n1",
    "matmul_f32_b1_n4",
    "matmul_f32_b2_n1",
    "matmul_f32_b2_n4",
    "matmul_f32_b4_n1",
    "matmul_f32_b4_n4",
    "matmul_f32_b8_n1",
    "matmul_f32_b8_n4",
    "matmul_i8_b1_n1",
    "matmul_i8_b1_n4",
    "matmul_i8_b2_n1",
    "matmul_i8_b2_n4",
    "matmul_i8_b4_n1",
    "matmul_i8_b4_n4",
    "matmul_i8_b8_n1",
    "matmul_i8_b8_n4",
    "matmul_mma_b1_n64",
    "matmul_mma_b1_n8",
    "matmul_mma_b2_n64",
    "matmul_mma_b2_n8",
    "matmul_mma_b4_n64",
    "matmul_mma_b4_n8",
    "matmul_mma_b8_n64",
    "matmul_mma_b8_n8",
    "matmul_sign_n1",
    "matmul_sign_n4",
    "place_heads",
    "quantize_activations",
    "rotary_angles",
    "sign_activations",
    "softcap",
    "spread_activations",
];

/// A kernel of the images, as an index into the list, so that an unknown name does not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(u8);

impl Kernel {
    /// The kernel with this name; intended for constants.
    ///
    /// # Panics
    /// If there is none, which in a constant is a compile-time error.
    pub const fn named(name: &str) -> Kernel {
        let mut i = 0;
        while i < KERNELS.len() {
            if same(KERNELS[i].as_bytes(), name.as_bytes()) {
                return Kernel(i as u8);
            }
            i += 1;
        }
        panic!("no kernel of this name");
    }

    /// Its index in the list.
    pub(super) fn index(self) -> usize {
        self.0.into()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        KERNELS[self.index()]
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The single parameter of a kernel.
///
/// # Safety
/// The type is `repr(C)` and has the layout of its counterpart in `kernels/args.h`.
pub unsafe trait Arguments: Copy {}

/// int8 vectors, and the flag for one that is not finite; the fields are those of `kernels/args.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quantized {
    pub codes: u64,
    pub scales: u64,
    pub sums: u64,
    pub bad: u64,
    pub columns: Columns,
    pub block: u32,
}

/// For `spread_activations` and `sign_activations`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ActivationArgs {
    pub x: u64,
    pub out: u64,
    pub columns: Columns,
    pub n: u32,
}

/// For `quantize_activations`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantizeArgs {
    pub x: u64,
    pub to: Quantized,
    pub n: u32,
    pub reserved: u32,
}

/// One of the matrices of a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Matrix {
    pub codes: u64,
    pub scales: u64,
    pub zeros: u64,
    pub y: u64,
    pub rows: u32,
    pub half_scales: u32,
    pub split: u32,
    pub blocks: u32,
}

/// For every `matmul_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct MatmulArgs {
    pub x: u64,
    pub xscales: u64,
    pub xsums: u64,
    pub columns: Columns,
    pub n: u32,
    pub matrices: [Matrix; 3],
}

// SAFETY: `repr(C)`; the assertions below compare sizes and offsets with those of args.h.
unsafe impl Arguments for ActivationArgs {}
// SAFETY: as above.
unsafe impl Arguments for QuantizeArgs {}
// SAFETY: as above.
unsafe impl Arguments for MatmulArgs {}

const _: () = {
    assert!(size_of::<Columns>() == 20);
    assert!(size_of::<Quantized>() == 56 && offset_of!(Quantized, columns) == 32);
    assert!(size_of::<ActivationArgs>() == 40 && offset_of!(ActivationArgs, n) == 36);
    assert!(size_of::<QuantizeArgs>() == 72 && offset_of!(QuantizeArgs, n) == 64);
    assert!(size_of::<Matrix>() == 48 && offset_of!(Matrix, rows) == 32);
    assert!(size_of::<MatmulArgs>() == 192);
    assert!(offset_of!(MatmulArgs, columns) == 24 && offset_of!(MatmulArgs, matrices) == 48);
};
