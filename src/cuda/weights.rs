//! A quantised matrix on the device, in the layout of `kernels/README.md`.

use std::sync::{Arc, Mutex, PoisonError};

use half::f16;

use super::device::Device;
use super::layout::{Columns, supports};
use super::memory::{Memory, Part};
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{
    Bits, Codes, CodesBuf, ScaleValues, ScalesBuf, Shape, pack_row, packed_row_bytes,
};

/// The number of words packed on the host before they are sent: 16 MiB.
const BAND: usize = 4 << 20;

/// Runs a job once for each of `tasks` tasks, shared between threads, and waits.
pub type Share<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

/// A matrix on the device.
pub struct Weights {
    shape: Shape,
    bits: Bits,
    columns: Columns,
    /// Whether the scales were given as float16. They are stored as float16 if they are exactly
    /// representable, whatever they were given as.
    came_half: bool,
    half: bool,
    /// words `(rows, slices, bits)`
    codes: Memory,
    /// float16 or float32 `(rows, groups)`
    scales: Memory,
    /// bytes `(rows, groups)`; `None`: all are `2^(bits-1)`
    zeros: Option<Memory>,
}

impl Weights {
    /// Packs a matrix, with the work shared by `share`, and copies it to the device of `stream`.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` if the kernels do not support the shape (see [`supports`]); `ERR_MEMORY`;
    /// `ERR_BACKEND`.
    pub fn new(stream: &Stream, codes: &Codes<'_>, share: Share<'_>) -> Result<Weights> {
        let (shape, bits) = (codes.shape, codes.bits);
        let columns = Columns::new(&shape)
            .filter(|_| supports(&shape))
            .ok_or_else(|| {
                Error::unsupported(format!(
                    "the CUDA kernels take no matrix of {} rows and {} columns in groups of {}",
                    shape.rows, shape.cols, shape.group
                ))
            })?;
        let values = shape.rows * columns.groups as usize;
        let each = || (0..values).map(|i| (i / shape.groups, i % shape.groups));

        let mut scales = memory::with_capacity(values, "scales")?;
        scales.extend(each().map(|(r, g)| codes.scale(r, g)));
        let came_half = matches!(codes.scales, ScaleValues::F16(_));
        let half = came_half || scales.iter().all(|&s| exactly_half(s));

        let device = stream.device();
        let row_words = columns.row_words(bits);
        let on_device = Weights {
            shape,
            bits,
            columns,
            came_half,
            half,
            codes: Memory::new(device, shape.rows * row_words * 4, "codes")?,
            scales: Memory::new(device, values * if half { 2 } else { 4 }, "scales")?,
            zeros: match codes.zero_points {
                Some((zeros, _)) if zeros.iter().any(|&z| z != bits.default_zero_point()) => {
                    Some(Memory::new(device, values, "zero points")?)
                }
                _ => None,
            },
        };
        if half {
            let mut halves = memory::with_capacity(values, "scales")?;
            halves.extend(scales.iter().map(|&s| f16::from_f32(s)));
            stream.write(on_device.scales.all(), bytemuck::cast_slice(&halves))?;
        } else {
            stream.write(on_device.scales.all(), bytemuck::cast_slice(&scales))?;
        }
        if let Some(zeros) = &on_device.zeros {
            let mut bytes = memory::with_capacity(values, "zero points")?;
            bytes.extend(each().map(|(r, g)| codes.zero_point(r, g) as u8));
            stream.write(zeros.all(), &bytes)?;
        }
        on_device.send_codes(stream, codes, share)?;
        Ok(on_device)
    }

    /// Sends a band of rows at a time, so that the host holds only a small part of them twice.
    fn send_codes(&self, stream: &Stream, codes: &Codes<'_>, share: Share<'_>) -> Result<()> {
        /// Codes per task: about 0.1 ms of packing.
        const TASK: usize = 1 << 16;
        let row_words = self.columns.row_words(self.bits);
        let cols = self.shape.cols;
        let task_rows = (TASK / cols).max(1);
        let band_rows = (BAND / row_words)
            .max(1)
            .next_multiple_of(task_rows)
            .min(self.shape.rows);
        let mut words = memory::filled(band_rows * row_words, 0u32, "packed codes")?;
        for first in (0..self.shape.rows).step_by(band_rows) {
            let rows = band_rows.min(self.shape.rows - first);
            let words = &mut words[..rows * row_words];
            let pieces = words.len().div_ceil(task_rows * row_words);
            let mut tasks = memory::with_capacity(pieces, "the list of tasks")?;
            for words in words.chunks_mut(task_rows * row_words) {
                tasks.push(Mutex::new((
                    words,
                    memory::filled(cols, 0u8, "a row of codes")?,
                )));
            }
            share(tasks.len(), &|task| {
                let mut task_of = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
                let (words, row) = &mut *task_of;
                for (i, words) in words.chunks_exact_mut(row_words).enumerate() {
                    codes.row_codes(first + task * task_rows + i, row);
                    self.columns.pack_row(self.bits, row, words);
                }
            });
            drop(tasks);
            let to = self.codes.part(first * row_words * 4, words.len() * 4);
            stream.write(to, bytemuck::cast_slice(words))?;
        }
        Ok(())
    }

    /// The device that it is on.
    pub fn device(&self) -> &Arc<Device> {
        self.codes.device()
    }

    /// Rows, columns and groups.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bits per code.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Its columns in the layout of the device.
    pub fn columns(&self) -> Columns {
        self.columns
    }

    /// Whether every zero point is the constant `2^(bits-1)`.
    pub fn symmetric(&self) -> bool {
        self.zeros.is_none()
    }

    /// Whether its scales were given as float16.
    pub fn half_scales(&self) -> bool {
        self.came_half
    }

    /// Its size in device memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.codes.bytes() + self.scales.bytes() + self.zeros.as_ref().map_or(0, Memory::bytes)
    }

    /// words `(rows, slices, bits)`
    pub(super) fn codes(&self) -> Part<'_> {
        self.codes.all()
    }

    /// `(rows, groups)`, and whether they are float16.
    pub(super) fn scales(&self) -> (Part<'_>, bool) {
        (self.scales.all(), self.half)
    }

    /// bytes `(rows, groups)`
    pub(super) fn zeros(&self) -> Option<Part<'_>> {
        self.zeros.as_ref().map(Memory::all)
    }

    /// Reads the matrix back in the form of the ABI, with the original values.
    ///
    /// The host keeps no copy: it would take as much memory as weights on the host, for a call that
    /// is made once, if ever.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn to_codes(&self, stream: &Stream) -> Result<CodesBuf> {
        let Shape { rows, cols, .. } = self.shape;
        let row_words = self.columns.row_words(self.bits);
        let row_bytes = packed_row_bytes(cols, self.bits);
        let mut bytes = memory::zeroed(rows * row_bytes, "codes")?;
        let mut row = memory::filled(cols, 0u8, "a row of codes")?;
        let band_rows = (BAND / row_words).clamp(1, rows);
        let mut words = memory::filled(band_rows * row_words, 0u32, "packed codes")?;
        for (band, out) in bytes.chunks_mut(band_rows * row_bytes).enumerate() {
            let words = &mut words[..out.len() / row_bytes * row_words];
            let from = self
                .codes
                .part(band * band_rows * row_words * 4, words.len() * 4);
            stream.read(bytemuck::cast_slice_mut(words), from)?;
            for (words, out) in words
                .chunks_exact(row_words)
                .zip(out.chunks_exact_mut(row_bytes))
            {
                self.columns.unpack_row(self.bits, words, &mut row);
                pack_row(&row, self.bits, out);
            }
        }
        let values = rows * self.columns.groups as usize;
        let zero_points = match &self.zeros {
            None => None,
            Some(zeros) => {
                let mut bytes = memory::filled(values, 0u8, "zero points")?;
                stream.read(&mut bytes, zeros.all())?;
                let mut wide = memory::with_capacity(values, "zero points")?;
                wide.extend(bytes.iter().map(|&z| i32::from(z)));
                Some(wide)
            }
        };
        Ok(CodesBuf {
            shape: self.shape,
            bits: self.bits,
            bytes,
            scales: self.read_scales(stream, values)?,
            zero_points,
        })
    }

    fn read_scales(&self, stream: &Stream, values: usize) -> Result<ScalesBuf> {
        if !self.half {
            let mut scales = memory::filled(values, 0f32, "scales")?;
            stream.read(bytemuck::cast_slice_mut(&mut scales), self.scales.all())?;
            return Ok(ScalesBuf::F32(scales));
        }
        let mut halves = memory::filled(values, f16::ZERO, "scales")?;
        stream.read(bytemuck::cast_slice_mut(&mut halves), self.scales.all())?;
        if self.came_half {
            return Ok(ScalesBuf::F16(halves));
        }
        let mut scales = memory::with_capacity(values, "scales")?;
        scales.extend(halves.iter().map(|s| s.to_f32()));
        Ok(ScalesBuf::F32(scales))
    }

    /// Reads one row as floats; `out` is `(cols)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn row(&self, stream: &Stream, row: usize, out: &mut [f32]) -> Result<()> {
        let (row_words, groups) = (
            self.columns.row_words(self.bits),
            self.columns.groups as usize,
        );
        let mut words = memory::filled(row_words, 0u32, "a row of packed codes")?;
        let from = self.codes.part(row * row_words * 4, row_words * 4);
        stream.read(bytemuck::cast_slice_mut(&mut words), from)?;
        let mut codes = memory::filled(self.shape.cols, 0u8, "a row of codes")?;
        self.columns.unpack_row(self.bits, &words, &mut codes);

        let size = if self.half { 2 } else { 4 };
        let mut raw = memory::filled(groups * size, 0u8, "the scales of a row")?;
        stream.read(
            &mut raw,
            self.scales.part(row * groups * size, groups * size),
        )?;
        let mut zeros = memory::filled(groups, 0u8, "the zero points of a row")?;
        if let Some(z) = &self.zeros {
            stream.read(&mut zeros, z.part(row * groups, groups))?;
        }
        for (c, out) in out.iter_mut().enumerate() {
            let g = c / self.shape.group;
            let scale = match raw[g * size..][..size] {
                [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => unreachable!("two or four bytes"),
            };
            let zero = match self.zeros {
                Some(_) => i32::from(zeros[g]),
                None => self.bits.default_zero_point(),
            };
            *out = scale * self.bits.level(codes[c], zero) as f32;
        }
        Ok(())
    }
}

/// Whether float16 represents the number exactly.
fn exactly_half(s: f32) -> bool {
    f16::from_f32(s).to_f32().to_bits() == s.to_bits()
}
