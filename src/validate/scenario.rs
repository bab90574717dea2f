//! The layers that are tried: sizes, and how their weights are distributed.

/// A dense layer `y = W x` and what it is given, always the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What it is called in reports.
    pub name: &'static str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Independent and standard normal, what theory speaks of.
    Gaussian,
    /// The same, but one column in 64 is 10 times as large, as the channels of real checkpoints are that carry outliers.
    OutlierColumns,
    /// Student's t with 4 degrees of freedom: the tails of trained layers.
    HeavyTails,
}

/// All of them.
pub const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "dense 32x64, Gaussian",
        rows: 32,
        cols: 64,
        kind: Kind::Gaussian,
    },
    Scenario {
        name: "dense 256x512, Gaussian",
        rows: 256,
        cols: 512,
        kind: Kind::Gaussian,
    },
    Scenario {
        name: "dense 256x512, outlier columns",
        rows: 256,
        cols: 512,
        kind: Kind::OutlierColumns,
    },
    Scenario {
        name: "dense 256x512, heavy tails",
        rows: 256,
        cols: 512,
        kind: Kind::HeavyTails,
    },
];

impl Scenario {
    /// The weights `(rows, cols)`.
    pub fn weights(&self) -> Vec<f32> {
        let mut numbers = Numbers(1);
        let weight = |i: usize| match self.kind {
            Kind::Gaussian => numbers.normal(),
            Kind::OutlierColumns if (i % self.cols).is_multiple_of(64) => 10.0 * numbers.normal(),
            Kind::OutlierColumns => numbers.normal(),
            Kind::HeavyTails => {
                let spread: f64 = (0..4).map(|_| numbers.normal().powi(2)).sum();
                numbers.normal() / (spread / 4.0).sqrt()
            }
        };
        let weights: Vec<f64> = (0..self.rows * self.cols).map(weight).collect();
        weights.into_iter().map(|w| w as f32).collect()
    }

    /// `n` standard normal inputs, `(n, cols)`.
    pub fn inputs(&self, n: usize) -> Vec<f32> {
        let mut numbers = Numbers(2);
        (0..n * self.cols)
            .map(|_| numbers.normal() as f32)
            .collect()
    }
}

/// splitmix64, the same everywhere.
struct Numbers(u64);

impl Numbers {
    /// Uniform in 0..1, 53 bits.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box–Muller).
    fn normal(&mut self) -> f64 {
        let r = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        r * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
