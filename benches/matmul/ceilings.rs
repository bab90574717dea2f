//! What the machine can do: reading memory, and multiplying in registers.
//!
//! A speed alone means little where the clock, the neighbours and the memory change within a
//! minute. So every product is timed alternately with the ceiling that bounds it, and its share is
//! computed round by round.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use apl_ffi::cpu::{Features, Isa};
use apl_ffi::matmul::Floats;

use crate::stats::median;

/// Bytes read per sample of the reading ceiling: a millisecond or two. Not a divisor of the usual
/// rotation, so that the competing readers do not each get the same part of memory every time.
const READ_SAMPLE: usize = 24 << 20;

/// Bytes that the widest reader reads per iteration.
const CHUNK: usize = 512;

/// Iterations of a compute loop per sample: a millisecond or two.
const PEAK_ITERATIONS: u64 = 1_000_000;

/// Samples per measurement of a ceiling, so that one interrupted by another process does not count.
const SAMPLES: usize = 5;

/// Rounds of the competition among prefetch strategies. The best one depends on the processor: on
/// one machine prefetching 1 to 2 KB ahead reads a fifth faster than 8 KB or none, on another 4 KB
/// was best.
const CONTEST_ROUNDS: usize = 15;

/// The ceilings of this machine, at one instruction-set level.
pub struct Ceilings {
    isa: Isa,
    rotation: Rotation,
    /// Where the next sample from memory starts, so that samples cycle through the rotation.
    cursor: usize,
    /// The fastest reader, by number of threads and footprint.
    winners: Vec<((usize, usize), Reader)>,
}

impl Ceilings {
    /// Ceilings at level `isa`; reading from memory cycles through `bytes` of it.
    pub fn new(isa: Isa, bytes: usize) -> Ceilings {
        Ceilings {
            isa,
            rotation: Rotation::new(bytes.max(1)),
            cursor: 0,
            winners: Vec::new(),
        }
    }

    /// Bytes per second that `threads` threads read from memory.
    pub fn read_memory(&mut self, threads: usize) -> f64 {
        let footprint = self.rotation.bytes().len();
        let reader = self.reader(threads, footprint);
        median(&mut [0; SAMPLES].map(|_| self.sample_memory(threads, reader)))
    }

    /// Bytes per second that `threads` threads together read from the same `footprint` bytes
    /// repeatedly.
    pub fn read_cached(&mut self, threads: usize, footprint: usize) -> f64 {
        let footprint = footprint.min(self.rotation.bytes().len());
        let reader = self.reader(threads, footprint);
        median(&mut [0; SAMPLES].map(|_| self.sample_cached(threads, footprint, reader)))
    }

    /// The fastest reader for this footprint, determined once.
    fn reader(&mut self, threads: usize, footprint: usize) -> Reader {
        if let Some((_, r)) = self
            .winners
            .iter()
            .find(|(k, _)| *k == (threads, footprint))
        {
            return *r;
        }
        let readers = Reader::all(self.isa);
        let mut rates = vec![Vec::new(); readers.len()];
        for _ in 0..CONTEST_ROUNDS {
            for (rate, &reader) in rates.iter_mut().zip(&readers) {
                rate.push(if footprint == self.rotation.bytes().len() {
                    self.sample_memory(threads, reader)
                } else {
                    self.sample_cached(threads, footprint, reader)
                });
            }
        }
        let best = rates
            .iter_mut()
            .map(|r| median(r))
            .zip(readers)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there is always the plain reader")
            .1;
        self.winners.push(((threads, footprint), best));
        best
    }

    fn sample_memory(&mut self, threads: usize, reader: Reader) -> f64 {
        let sample = READ_SAMPLE.min(self.rotation.bytes().len());
        if self.cursor + sample > self.rotation.bytes().len() {
            self.cursor = 0;
        }
        let part = &self.rotation.bytes()[self.cursor..self.cursor + sample];
        self.cursor += sample;
        let share = whole_chunks(sample / threads);
        let seconds = on_threads(threads, &|t| {
            black_box(reader.read(&part[t * share..(t + 1) * share]));
        });
        (share * threads) as f64 / seconds
    }

    fn sample_cached(&self, threads: usize, footprint: usize, reader: Reader) -> f64 {
        let share = whole_chunks(footprint / threads);
        let passes = (READ_SAMPLE / (share * threads)).max(1);
        let seconds = on_threads(threads, &|t| {
            let part = &self.rotation.bytes()[t * share..(t + 1) * share];
            for _ in 0..passes {
                black_box(reader.read(black_box(part)));
            }
        });
        (share * threads * passes) as f64 / seconds
    }

    /// Operations per second (two for a multiply-add) that `threads` threads execute in registers.
    ///
    /// `None` if the level has no vector instructions.
    pub fn peak(&self, arithmetic: Arithmetic, threads: usize) -> Option<f64> {
        let instruction = Instruction::best(arithmetic, self.isa)?;
        let operations = instruction.operations_an_iteration() * PEAK_ITERATIONS * threads as u64;
        // The best sample and not the median: nobody else uses this core's registers, so only an
        // interruption slows a sample down.
        let seconds = (0..SAMPLES)
            .map(|_| on_threads(threads, &|_| instruction.repeat(PEAK_ITERATIONS)))
            .fold(f64::INFINITY, f64::min);
        Some(operations as f64 / seconds)
    }

    /// The instruction whose rate `peak` measures.
    pub fn peak_name(&self, arithmetic: Arithmetic) -> &'static str {
        Instruction::best(arithmetic, self.isa).map_or("none", Instruction::name)
    }
}

/// `bytes` rounded down to whole iterations of the readers, at least one.
fn whole_chunks(bytes: usize) -> usize {
    (bytes / CHUNK).max(1) * CHUNK
}

/// Runs `work(thread)` on `threads` threads, including the calling one, and returns the seconds
/// from the first start to the last end.
fn on_threads(threads: usize, work: &(dyn Fn(usize) + Sync)) -> f64 {
    // Spinning: a thread woken from sleep would start late by a good part of a sample.
    let missing = AtomicUsize::new(threads);
    let timed = |t| {
        missing.fetch_sub(1, Ordering::AcqRel);
        while missing.load(Ordering::Acquire) > 0 {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        work(t);
        (start, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|s| {
        let others: Vec<_> = (1..threads).map(|t| s.spawn(move || timed(t))).collect();
        let mine = timed(0);
        others
            .into_iter()
            .map(|o| o.join().expect("a ceiling thread panicked"))
            .chain([mine])
            .collect()
    });
    let start = spans.iter().map(|s| s.0).min().expect("one thread");
    let end = spans.iter().map(|s| s.1).max().expect("one thread");
    (end - start).as_secs_f64()
}

/// The memory to read: like the library's weights, in huge pages if the system grants them.
struct Rotation(Floats);

impl Rotation {
    fn new(bytes: usize) -> Rotation {
        let len = bytes.next_multiple_of(1 << 20) / size_of::<f32>();
        let mut floats = Floats::zeros(len, "the rotation").expect("memory for the rotation");
        // Untouched pages all map to the one zero page, which never leaves the cache.
        floats.fill(1.0);
        Rotation(floats)
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// The cache level into which a reader prefetches, and how far ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefetch {
    Nothing,
    /// Into L1, this many bytes ahead.
    Near(usize),
    /// Into L2, this many bytes ahead.
    Far(usize),
}

/// One way of reading a linear stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reader {
    isa: Isa,
    prefetch: Prefetch,
}

impl Reader {
    /// Every reader of level `isa`.
    fn all(isa: Isa) -> Vec<Reader> {
        use Prefetch::*;
        let prefetches: &[Prefetch] = if isa == Isa::Scalar {
            &[Nothing]
        } else {
            &[
                Nothing,
                Near(1 << 10),
                Near(2 << 10),
                Near(4 << 10),
                Near(8 << 10),
                Far(4 << 10),
                Far(8 << 10),
                Far(16 << 10),
            ]
        };
        prefetches
            .iter()
            .map(|&prefetch| Reader { isa, prefetch })
            .collect()
    }

    /// Loads every byte once; the sum keeps the loads from being optimised away.
    fn read(self, data: &[u8]) -> u64 {
        assert!(self.isa.available());
        match self.isa {
            Isa::Scalar => data
                .chunks_exact(8)
                .map(|c| u64::from_ne_bytes(c.try_into().expect("8 bytes")))
                .fold(0, u64::wrapping_add),
            #[cfg(target_arch = "x86_64")]
            _ => x86::read(self, data),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("other architectures have the scalar level only"),
        }
    }
}

/// The two kinds of arithmetic that products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Products of bytes summed in int32.
    Integer,
    /// Float32 multiply-adds.
    Float,
}

/// The instruction (or sequence) with the highest throughput for one arithmetic at some level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Vpdpbusd512,
    Vpdpbusd256,
    /// `vpmaddubsw`, `vpmaddwd`, `vpaddd`.
    Vpmaddubsw256,
    Fma512,
    Fma256,
}

impl Instruction {
    fn best(arithmetic: Arithmetic, isa: Isa) -> Option<Instruction> {
        let has = Features::detect();
        match (arithmetic, isa) {
            (_, Isa::Scalar) => None,
            (Arithmetic::Float, Isa::Avx2) => Some(Instruction::Fma256),
            (Arithmetic::Float, Isa::Avx512) => Some(Instruction::Fma512),
            (Arithmetic::Integer, Isa::Avx512) if has.avx512_vnni() => {
                Some(Instruction::Vpdpbusd512)
            }
            (Arithmetic::Integer, _) if has.avx_vnni() => Some(Instruction::Vpdpbusd256),
            (Arithmetic::Integer, _) => Some(Instruction::Vpmaddubsw256),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Instruction::Vpdpbusd512 => "vpdpbusd zmm",
            Instruction::Vpdpbusd256 => "vpdpbusd ymm",
            Instruction::Vpmaddubsw256 => "vpmaddubsw ymm",
            Instruction::Fma512 => "vfmadd231ps zmm",
            Instruction::Fma256 => "vfmadd231ps ymm",
        }
    }

    /// Twelve multiply-add instructions, two operations per lane.
    fn operations_an_iteration(self) -> u64 {
        12 * 2
            * match self {
                Instruction::Vpdpbusd512 => 64,
                Instruction::Vpdpbusd256 | Instruction::Vpmaddubsw256 => 32,
                Instruction::Fma512 => 16,
                Instruction::Fma256 => 8,
            }
    }

    fn repeat(self, iterations: u64) {
        #[cfg(target_arch = "x86_64")]
        x86::repeat(self, iterations);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{self:?} on another architecture, {iterations} times");
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{Instruction, Prefetch, Reader};
    use apl_ffi::cpu::Isa;

    /// See [`Reader::read`], which has checked the level.
    pub(super) fn read(reader: Reader, data: &[u8]) -> u64 {
        // SAFETY: Reader::read asserted that the processor has `reader.isa`, which is above scalar
        // here.
        unsafe {
            match (reader.isa == Isa::Avx512, reader.prefetch) {
                (true, Prefetch::Nothing) => read512::<false, _MM_HINT_T0>(data, 0),
                (true, Prefetch::Near(n)) => read512::<true, _MM_HINT_T0>(data, n),
                (true, Prefetch::Far(n)) => read512::<true, _MM_HINT_T1>(data, n),
                (false, Prefetch::Nothing) => read256::<false, _MM_HINT_T0>(data, 0),
                (false, Prefetch::Near(n)) => read256::<true, _MM_HINT_T0>(data, n),
                (false, Prefetch::Far(n)) => read256::<true, _MM_HINT_T1>(data, n),
            }
        }
    }

    /// Defines a reader with eight loads per iteration into eight accumulators: as wide as the loop
    /// can be without spilling.
    macro_rules! reader {
        ($name:ident, $feature:literal, $vector:ty, $zero:ident, $load:ident, $add:ident) => {
            #[target_feature(enable = $feature)]
            fn $name<const PREFETCH: bool, const HINT: i32>(data: &[u8], ahead: usize) -> u64 {
                const LANE: usize = size_of::<$vector>();
                let mut sums = [$zero(); 8];
                for chunk in data.chunks_exact(8 * LANE) {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let p = chunk[i * LANE..].as_ptr();
                        if PREFETCH && i * LANE % 64 == 0 {
                            _mm_prefetch::<HINT>(p.wrapping_add(ahead).cast());
                        }
                        // SAFETY: the chunk has LANE bytes from `p` on; the load needs no
                        // alignment.
                        *sum = $add(*sum, unsafe { $load(p.cast()) });
                    }
                }
                let sum = sums.into_iter().fold($zero(), |a, b| $add(a, b));
                // SAFETY: both types are plain integers of the same size.
                let words: [u64; LANE / 8] = unsafe { std::mem::transmute(sum) };
                words.into_iter().fold(0, u64::wrapping_add)
            }
        };
    }
    reader!(
        read512,
        "avx512f",
        __m512i,
        _mm512_setzero_si512,
        _mm512_loadu_si512,
        _mm512_add_epi64
    );
    reader!(
        read256,
        "avx2",
        __m256i,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_add_epi64
    );

    /// See [`Instruction::repeat`]; `Instruction::best` chose it among what the processor has.
    pub(super) fn repeat(instruction: Instruction, iterations: u64) {
        // SAFETY: Instruction::best gives an instruction only where the processor has it.
        unsafe {
            match instruction {
                Instruction::Vpdpbusd512 => vpdpbusd512(iterations),
                Instruction::Vpdpbusd256 => vpdpbusd256(iterations),
                Instruction::Vpmaddubsw256 => vpmaddubsw256(iterations),
                Instruction::Fma512 => fma512(iterations),
                Instruction::Fma256 => fma256(iterations),
            }
        }
    }

    /// Defines a loop of twelve independent chains: enough to hide a latency of five or six cycles
    /// at two per cycle.
    ///
    /// The empty assembly makes one operand opaque before each step; otherwise the compiler would
    /// hoist a product of two constants out of the loop. The operands are small, so that float
    /// accumulators stay normal numbers.
    macro_rules! chains {
        ($name:ident, $feature:literal, $register:ident, $zero:ident, $operand:expr, $step:expr) => {
            #[target_feature(enable = $feature)]
            fn $name(iterations: u64) {
                let mut sums = [$zero(); 12];
                let (mut a, b) = ($operand, $operand);
                for _ in 0..iterations {
                    for sum in &mut sums {
                        // SAFETY: no instruction; the register keeps its value.
                        unsafe { asm!("/* {0} */", inout($register) a, options(nomem, nostack)) };
                        *sum = $step(*sum, a, b);
                    }
                }
                black_box(sums);
            }
        };
    }
    chains!(
        vpdpbusd512,
        "avx512f,avx512vnni",
        zmm_reg,
        _mm512_setzero_si512,
        _mm512_set1_epi8(1),
        |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
    );
    chains!(
        vpdpbusd256,
        "avx2,avxvnni",
        ymm_reg,
        _mm256_setzero_si256,
        _mm256_set1_epi8(1),
        |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b)
    );
    chains!(
        vpmaddubsw256,
        "avx2",
        ymm_reg,
        _mm256_setzero_si256,
        _mm256_set1_epi8(1),
        |sum, a, b| _mm256_add_epi32(
            sum,
            _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1))
        )
    );
    chains!(
        fma512,
        "avx512f",
        zmm_reg,
        _mm512_setzero_ps,
        _mm512_set1_ps(1e-3),
        |sum, a, b| _mm512_fmadd_ps(a, b, sum)
    );
    chains!(
        fma256,
        "avx2,fma",
        ymm_reg,
        _mm256_setzero_ps,
        _mm256_set1_ps(1e-3),
        |sum, a, b| _mm256_fmadd_ps(a, b, sum)
    );
}
