//! The weight object: a matrix converted once for multiplication.

use super::activations::{Activations, all_finite};
use super::buffer::{Arena, Buffer};
use super::device::OnDevice;
use super::rows;
use super::tiles::{MAX_MATRICES, Tiles};
use super::workspace::Workspace;
use crate::cpu::layout::Layout;
use crate::cpu::rows::RowSource;
use crate::cuda;
use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{Bits, Codes, CodesBuf, ScalesBuf, Shape};
use crate::runtime::{Backend, Executor, Runtime};
use half::f16;

/// A matrix converted once for multiplication.
pub struct Weights {
    form: Form,
    activations: Activations,
}

/// How the weights are stored.
enum Form {
    /// Codes.
    Tiles(Tiles),
    /// Codes, for an empty matrix or one whose groups are too long for the sign kernels of tiles.
    Codes(CodesBuf),
    /// Float32 weights.
    F32(Floats<f32>),
    /// Float16 weights.
    F16(Floats<f16>),
    /// In device memory.
    Device(OnDevice),
}

/// A form that is not row-major.
enum NotRowMajor<'a> {
    Tiles(&'a Tiles),
    Device(&'a OnDevice),
}

/// Float weights: `(rows, cols)`.
struct Floats<T> {
    values: Vec<T>,
    rows: usize,
    cols: usize,
}

impl Weights {
    /// Converts a quantised matrix for the backend of the library: on `device` of its list, or the
    /// device with the most free memory, if that supports the shape and has room, else on the host.
    ///
    /// # Errors
    /// `ERR_CONFIG` for sign activations with more than one bit; `ERR_MEMORY`, for device memory
    /// only if CUDA is demanded; `ERR_BACKEND`.
    pub fn placed(
        rt: &Runtime,
        codes: &Codes<'_>,
        activations: Activations,
        device: Option<usize>,
    ) -> Result<Weights> {
        check(codes, activations)?;
        match OnDevice::place(rt, codes, device)? {
            Some(on_device) => Ok(Weights {
                form: Form::Device(on_device),
                activations,
            }),
            None => Weights::from_codes(rt, codes, activations),
        }
    }

    /// Converts a quantised matrix for the host.
    ///
    /// # Errors
    /// `ERR_CONFIG` for sign activations with more than one bit; `ERR_MEMORY`.
    pub fn from_codes(
        rt: &Runtime,
        codes: &Codes<'_>,
        activations: Activations,
    ) -> Result<Weights> {
        Weights::host(rt, codes, activations, Buffer::zeroed)
    }

    /// As [`Weights::from_codes`], in memory of an arena.
    ///
    /// # Errors
    /// As [`Weights::from_codes`].
    pub fn from_codes_in(
        arena: &Arena,
        rt: &Runtime,
        codes: &Codes<'_>,
        activations: Activations,
    ) -> Result<Weights> {
        Weights::host(rt, codes, activations, |len, what| arena.zeroed(len, what))
    }

    fn host(
        rt: &Runtime,
        codes: &Codes<'_>,
        activations: Activations,
        zeroed: impl Fn(usize, &str) -> Result<Buffer>,
    ) -> Result<Weights> {
        check(codes, activations)?;
        let form = match layout(codes, activations) {
            Some(layout) => {
                let buffer = zeroed(layout.tiles() * layout.tile_bytes(), "weights")?;
                let executor = Executor::Pool(rt.pool());
                Form::Tiles(Tiles::pack(executor, layout, codes, buffer)?)
            }
            None => Form::Codes(codes.to_buf()?),
        };
        Ok(Weights { form, activations })
    }

    /// Keeps float weights: `w` is `(rows, cols)`; with `half` they are rounded to float16.
    ///
    /// # Errors
    /// `ERR_RANGE` if a weight exceeds float16; `ERR_MEMORY`.
    pub fn from_f32(w: &[f32], rows: usize, cols: usize, half: bool) -> Result<Weights> {
        let form = if half {
            let mut values = memory::with_capacity(w.len(), "float16 weights")?;
            values.extend(w.iter().map(|&v| f16::from_f32(v)));
            if let Some(i) = values.iter().position(|v: &f16| !v.is_finite()) {
                return Err(Error::range(format!(
                    "w at row {}, column {} is {:e}, expected at most 65504, the largest float16",
                    i / cols,
                    i % cols,
                    w[i]
                )));
            }
            Form::F16(Floats { values, rows, cols })
        } else {
            let mut values = memory::with_capacity(w.len(), "float32 weights")?;
            values.extend_from_slice(w);
            Form::F32(Floats { values, rows, cols })
        };
        Ok(Weights {
            form,
            activations: Activations::F32,
        })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        match &self.form {
            Form::Tiles(t) => t.layout().shape.rows,
            Form::Codes(c) => c.shape.rows,
            Form::Device(d) => d.weights().shape().rows,
            Form::F32(f) => f.rows,
            Form::F16(f) => f.rows,
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match &self.form {
            Form::Tiles(t) => t.layout().shape.cols,
            Form::Codes(c) => c.shape.cols,
            Form::Device(d) => d.weights().shape().cols,
            Form::F32(f) => f.cols,
            Form::F16(f) => f.cols,
        }
    }

    /// Bits per weight: 1, 2, 4, 8; 16 and 32 for floats.
    pub fn bits(&self) -> usize {
        match &self.form {
            Form::Tiles(t) => t.layout().bits.get(),
            Form::Codes(c) => c.bits.get(),
            Form::Device(d) => d.weights().bits().get(),
            Form::F32(_) => 32,
            Form::F16(_) => 16,
        }
    }

    /// Columns per scale; `None` for float weights.
    pub fn group(&self) -> Option<usize> {
        self.shape().map(|s| s.group)
    }

    fn shape(&self) -> Option<Shape> {
        match &self.form {
            Form::Tiles(t) => Some(t.layout().shape),
            Form::Codes(c) => Some(c.shape),
            Form::Device(d) => Some(d.weights().shape()),
            Form::F32(_) | Form::F16(_) => None,
        }
    }

    /// Whether every zero point is the constant `2^(bits-1)`; `None` for float weights.
    pub fn symmetric(&self) -> Option<bool> {
        match &self.form {
            Form::Tiles(t) => Some(t.symmetric()),
            Form::Codes(c) => Some(c.zero_points.is_none()),
            Form::Device(d) => Some(d.weights().symmetric()),
            Form::F32(_) | Form::F16(_) => None,
        }
    }

    /// The type of the scales: `"float16"` or `"float32"`; `None` for float weights.
    pub fn scale_type(&self) -> Option<&'static str> {
        let half = match &self.form {
            Form::Tiles(t) => t.half_scales(),
            Form::Codes(c) => matches!(c.scales, ScalesBuf::F16(_)),
            Form::Device(d) => d.weights().half_scales(),
            Form::F32(_) | Form::F16(_) => return None,
        };
        Some(if half { "float16" } else { "float32" })
    }

    /// How products represent activations.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Bytes of memory: codes, scales, zero points and padding.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Tiles(t) => t.bytes(),
            Form::Codes(c) => {
                let scales = match &c.scales {
                    ScalesBuf::F32(v) => size_of_val(v.as_slice()),
                    ScalesBuf::F16(v) => size_of_val(v.as_slice()),
                };
                let zero_points = c.zero_points.as_deref().map_or(0, size_of_val);
                c.bytes.len() + scales + zero_points
            }
            Form::F32(f) => size_of_val(f.values.as_slice()),
            Form::F16(f) => size_of_val(f.values.as_slice()),
            Form::Device(d) => d.weights().bytes(),
        }
    }

    /// The path that products take, for display: `"tiles"` for codes, `"rows"` for floats and for
    /// what tiles do not support, or `"device"`.
    pub fn path(&self) -> &'static str {
        match self.form {
            Form::Tiles(_) => "tiles",
            Form::Device(_) => "device",
            _ => "rows",
        }
    }

    /// The backend that multiplies it.
    pub fn backend(&self) -> Backend {
        match self.form {
            Form::Device(_) => Backend::Cuda,
            _ => Backend::Cpu,
        }
    }

    /// The matrix on the device, if it is stored there.
    pub fn on_device(&self) -> Option<&cuda::Weights> {
        match &self.form {
            Form::Device(d) => Some(d.weights()),
            _ => None,
        }
    }

    /// The matrix in the form of the ABI, with the values that it was made of; `None` for float
    /// weights.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `ERR_BACKEND` if reading from a device fails.
    pub fn to_codes(&self) -> Result<Option<CodesBuf>> {
        match &self.form {
            Form::Tiles(t) => t.to_codes().map(Some),
            Form::Codes(c) => c.as_codes().to_buf().map(Some),
            Form::Device(d) => d.to_codes().map(Some),
            Form::F32(_) | Form::F16(_) => Ok(None),
        }
    }

    /// The weights as floats, row-major; `out` is `(rows, cols)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`; `ERR_BACKEND` if reading from a device fails.
    pub fn dequantize(&self, rt: &Runtime, out: &mut [f32]) -> Result<()> {
        match self.rows_form() {
            Ok(source) => rows::Driver::new(rt).dequantize(&source, out),
            Err(NotRowMajor::Tiles(tiles)) => tiles.dequantize(Executor::Pool(rt.pool()), out),
            Err(NotRowMajor::Device(device)) => {
                let codes = device.to_codes()?;
                rows::Driver::new(rt).dequantize(&RowSource::Codes(codes.as_codes()), out)
            }
        }
    }

    /// One row as floats, such as an embedding. `scratch` and `out` are `(cols)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND` if reading from a device fails; never on the host.
    pub fn row(&self, row: usize, scratch: &mut [u8], out: &mut [f32]) -> Result<()> {
        match &self.form {
            Form::Tiles(t) => t.row(row, scratch, out),
            Form::Codes(c) => c.as_codes().dequantize_row(row, out),
            Form::F32(f) => out.copy_from_slice(&f.values[row * f.cols..][..f.cols]),
            Form::F16(f) => {
                for (out, v) in out.iter_mut().zip(&f.values[row * f.cols..]) {
                    *out = v.to_f32();
                }
            }
            Form::Device(d) => return d.row(row, out),
        }
        Ok(())
    }

    /// `y[v] = W x[v]` for each of `n` vectors: `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_RANGE` if activations are int8 and a vector is not finite; `ERR_MEMORY`; `ERR_BACKEND`
    /// if a device fails. `y` is then unchanged.
    ///
    /// # Panics
    /// If `x` or `y` has any other length.
    pub fn multiply(&self, rt: &Runtime, x: &[f32], y: &mut [f32], n: usize) -> Result<()> {
        self.multiply_by(rt, Executor::Pool(rt.pool()), x, y, n)
    }

    /// As [`Weights::multiply`], on the threads of `executor`: a sequence of products wakes them
    /// once.
    ///
    /// # Errors
    /// As [`Weights::multiply`].
    ///
    /// # Panics
    /// As [`Weights::multiply`].
    pub fn multiply_by(
        &self,
        rt: &Runtime,
        executor: Executor<'_>,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let agrees = |len, side| n.checked_mul(side) == Some(len);
        assert!(
            agrees(x.len(), self.cols()) && agrees(y.len(), self.rows()),
            "{} and {} elements for {n} vectors of {} and {}",
            x.len(),
            y.len(),
            self.cols(),
            self.rows()
        );
        let source = match self.rows_form() {
            Ok(source) => source,
            Err(NotRowMajor::Tiles(tiles)) => {
                let kernels = &rt.kernels().tiles;
                return tiles.multiply(kernels, executor, self.activations, x, y, n);
            }
            Err(NotRowMajor::Device(device)) => return device.multiply(self.activations, x, y, n),
        };
        let driver = rows::Driver::with(rt, executor);
        match (self.activations, &source) {
            (Activations::Sign, RowSource::Codes(codes)) => driver.multiply_sign(codes, x, y, n),
            (Activations::Int8, RowSource::Codes(codes)) => {
                // Int8 weights are only stored by rows if the matrix is empty.
                all_finite(x, codes.shape.cols)?;
                driver.multiply(&source, x, y, n)
            }
            _ => driver.multiply(&source, x, y, n),
        }
    }

    /// Products of several matrices with the same vectors, on the threads of `executor`: `x` is
    /// `(n, cols)`, and each matrix comes with its `y` `(n, rows)`. If all of them take the same
    /// activations, int8 or float32, these are prepared once, the threads share one run of tasks,
    /// and nothing is allocated that `workspace` already has.
    ///
    /// # Errors
    /// As [`Weights::multiply`], except that some results may have been written.
    pub fn multiply_all(
        rt: &Runtime,
        executor: Executor<'_>,
        workspace: &mut Workspace,
        x: &[f32],
        n: usize,
        products: &mut [(&Weights, &mut [f32])],
    ) -> Result<()> {
        let first = products
            .first()
            .and_then(|(w, _)| Some((w.tiles()?, w.activations)));
        let together = first.filter(|(first, activations)| {
            products.len() <= MAX_MATRICES
                && products.iter().all(|(w, _)| {
                    let shares = |t: &Tiles| t.shares_activations(first.layout());
                    w.activations == *activations && w.tiles().is_some_and(shares)
                })
        });
        let Some((_, activations)) = together else {
            return products
                .iter_mut()
                .try_for_each(|(weights, y)| weights.multiply_by(rt, executor, x, y, n));
        };
        let mut rest = products.iter_mut();
        let tiles = std::array::from_fn(|_| {
            let (weights, y) = rest.next()?;
            Some((weights.tiles()?, &mut **y))
        });
        let kernels = &rt.kernels().tiles;
        Tiles::multiply_together(kernels, executor, activations, workspace, x, n, tiles)
    }

    /// The tiles, if it is stored in tiles.
    fn tiles(&self) -> Option<&Tiles> {
        match &self.form {
            Form::Tiles(tiles) => Some(tiles),
            _ => None,
        }
    }

    /// The weights as the row-major path reads them, or their other form.
    fn rows_form(&self) -> std::result::Result<RowSource<'_>, NotRowMajor<'_>> {
        match &self.form {
            Form::Tiles(t) => Err(NotRowMajor::Tiles(t)),
            Form::Device(d) => Err(NotRowMajor::Device(d)),
            Form::Codes(c) => Ok(RowSource::Codes(c.as_codes())),
            &Form::F32(Floats {
                ref values,
                rows,
                cols,
            }) => Ok(RowSource::F32 { values, rows, cols }),
            &Form::F16(Floats {
                ref values,
                rows,
                cols,
            }) => Ok(RowSource::F16 { values, rows, cols }),
        }
    }
}

/// # Errors
/// `ERR_CONFIG` for sign activations with more than one bit.
fn check(codes: &Codes<'_>, activations: Activations) -> Result<()> {
    if activations == Activations::Sign && codes.bits != Bits::One {
        return Err(Error::config(format!(
            "activations are \"sign\" and the weights have {} bits, expected 1",
            codes.bits.get()
        )));
    }
    Ok(())
}

/// The tile layout that a matrix is multiplied in; `None` if it is multiplied by rows.
fn layout(codes: &Codes<'_>, activations: Activations) -> Option<Layout> {
    Layout::new(codes).filter(|l| activations != Activations::Sign || l.signs_fit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Packing, Per, ScaleValues};
    use crate::runtime::Config;
    use crate::testing::{Kind, Random, random_codes};

    #[test]
    fn signs_of_groups_that_tiles_cannot_sum_go_by_rows() {
        let huge = |group| Codes {
            shape: Shape::new(3, 1 << 31, group),
            bits: Bits::One,
            packing: Packing::Msb,
            bytes: &[],
            scales: ScaleValues::F32(&[1.0]),
            scale_per: Per::Tensor,
            zero_points: None,
        };
        assert!(layout(&huge(0), Activations::Sign).is_none());
        assert!(layout(&huge(1 << 30), Activations::Sign).is_some());
        assert!(layout(&huge(0), Activations::Int8).is_some());

        // The same path on a matrix that fits in memory.
        let rt = Runtime::new(Config::from_json("{}").unwrap()).unwrap();
        let shape = Shape::new(40, 300, 0);
        let codes = random_codes(&mut Random::new(3), shape, Bits::One, Kind::ALL[0]);
        let by_rows = Weights {
            form: Form::Codes(codes.as_codes().to_buf().unwrap()),
            activations: Activations::Sign,
        };
        let tiles = Weights::from_codes(&rt, &codes.as_codes(), Activations::Sign).unwrap();
        let x = Random::new(4).gaussian(3 * 300);
        let (mut found, mut expected) = (vec![f32::NAN; 3 * 40], vec![0.0; 3 * 40]);
        by_rows.multiply(&rt, &x, &mut found, 3).unwrap();
        tiles.multiply(&rt, &x, &mut expected, 3).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn together_gives_the_bits_of_one_by_one() {
        let mut r = Random::new(8);
        for threads in [1, 3] {
            let config = format!(r#"{{"threads": {threads}}}"#);
            let rt = Runtime::new(Config::from_json(&config).unwrap()).unwrap();
            let mut matrix = |rows, cols, group, bits, activations| {
                let shape = Shape::new(rows, cols, group);
                let codes = random_codes(&mut r, shape, bits, Kind::ALL[0]);
                Weights::from_codes(&rt, &codes.as_codes(), activations).unwrap()
            };
            let int8 = Activations::Int8;
            // Has the same activations as one bit, whose zero point is 1 too.
            let two_bits = {
                let shape = Shape::new(100, 700, 64);
                let mut codes = random_codes(&mut Random::new(9), shape, Bits::Two, Kind::ALL[0]);
                codes.zero_points = Some(vec![1; 100 * shape.groups]);
                Weights::from_codes(&rt, &codes.as_codes(), int8).unwrap()
            };
            let sets = [
                [
                    matrix(1000, 700, 32, Bits::Four, int8),
                    matrix(40, 700, 32, Bits::Four, int8),
                    matrix(3, 700, 32, Bits::Four, int8),
                ],
                // Different widths, groups and activations.
                [
                    matrix(100, 700, 32, Bits::Four, int8),
                    matrix(40, 700, 32, Bits::Eight, int8),
                    matrix(33, 700, 32, Bits::Four, int8),
                ],
                [
                    matrix(100, 700, 64, Bits::Two, int8),
                    matrix(40, 700, 128, Bits::Two, int8),
                    matrix(33, 700, 9, Bits::Two, int8),
                ],
                // Equal short groups.
                [
                    matrix(100, 700, 9, Bits::Four, int8),
                    matrix(40, 700, 9, Bits::Four, int8),
                    matrix(33, 700, 9, Bits::Four, int8),
                ],
                // One bit, by look-ups where the processor has them, together with a matrix that
                // has none.
                [
                    matrix(1000, 700, 64, Bits::One, int8),
                    two_bits,
                    matrix(3, 700, 64, Bits::One, int8),
                ],
                [
                    matrix(40, 700, 32, Bits::One, int8),
                    matrix(1000, 700, 32, Bits::One, int8),
                    matrix(33, 700, 32, Bits::One, int8),
                ],
                [
                    matrix(64, 700, 0, Bits::One, int8),
                    matrix(64, 700, 0, Bits::One, Activations::F32),
                    matrix(64, 700, 0, Bits::One, Activations::Sign),
                ],
            ];
            let mut workspace = Workspace::default();
            for (round, n) in [1, 37, 2, 1].into_iter().enumerate() {
                let x = Random::new(round as u64).gaussian(n * 700);
                for set in &sets {
                    let mut found = set.each_ref().map(|w| vec![f32::NAN; n * w.rows()]);
                    let expected = set.each_ref().map(|w| {
                        let mut y = vec![f32::NAN; n * w.rows()];
                        w.multiply(&rt, &x, &mut y, n).unwrap();
                        y
                    });
                    let mut products: Vec<(&Weights, &mut [f32])> = set
                        .iter()
                        .zip(found.iter_mut().map(|y| &mut y[..]))
                        .collect();
                    for part in [0..3, 0..1, 1..3] {
                        let executor = Executor::Pool(rt.pool());
                        let part = &mut products[part];
                        Weights::multiply_all(&rt, executor, &mut workspace, &x, n, part).unwrap();
                    }
                    assert_eq!(found, expected, "{threads} {n}");
                }
            }
        }
    }
}
