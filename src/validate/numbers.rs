//! The numbers of the scenarios, equal here and in `tools/make_validation_baselines.py`.

/// SplitMix64, with normal numbers by Box and Muller.
///
/// Only the logarithm and the cosine differ between machines, by a unit in the last place of
/// float64; that affects one in half a billion float32 numbers.
pub(super) struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in 0..1, 53 bits.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        r * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `len` standard normal numbers, multiplied by `scale`.
    pub fn normals(&mut self, len: usize, scale: f64) -> Vec<f32> {
        (0..len).map(|_| (scale * self.normal()) as f32).collect()
    }

    /// 1 or -1.
    pub fn sign(&mut self) -> f64 {
        if self.next() >> 63 == 0 { 1.0 } else { -1.0 }
    }
}
