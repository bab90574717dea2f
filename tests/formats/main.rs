//! Files from outside: what other writers wrote, what our writer leaves, and what nobody should write.

mod malformed;
mod saving;
mod written_by_others;

use std::io::Write;
use std::path::{Path, PathBuf};

use apl_ffi::formats::{MatrixView, WeightFile};

/// A file of `tests/data`.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A fresh, empty folder for one test.
fn folder(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A matrix as float32: rows, columns, values.
fn floats(matrix: &MatrixView<'_>) -> (usize, usize, Vec<f32>) {
    match matrix {
        MatrixView::Floats(f) => (f.rows, f.cols, f.to_f32().unwrap().into_owned()),
        MatrixView::Codes(view) => {
            let codes = view.as_codes();
            let (rows, cols) = (codes.shape.rows, codes.shape.cols);
            let mut out = vec![0.0; rows * cols];
            for (row, out) in out.chunks_mut(cols.max(1)).enumerate() {
                codes.dequantize_row(row, out);
            }
            (rows, cols, out)
        }
    }
}

fn floats_of(file: &WeightFile, name: &str) -> (usize, usize, Vec<f32>) {
    floats(&file.matrix(name).unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Says that a test could not do its work, where the test runner does not swallow it.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Little-endian float32 numbers.
fn read_f32(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}
