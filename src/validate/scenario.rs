//! The dense layers that are tried: their sizes, and the distributions of their weights.

use super::numbers::Numbers;

/// The number of vectors that each layer multiplies: the batch.
pub const VECTORS: usize = 16;

/// A dense layer `y = W x` and its inputs, always the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name in reports.
    pub name: &'static str,
    /// The name of its tensors in the file of baselines.
    pub key: &'static str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The distribution of its weights.
    pub kind: Kind,
}

/// A distribution of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Independent and standard normal, as assumed by theory.
    Gaussian,
    /// The same, but one column in 64 is 10 times as large, like the outlier channels of real
    /// checkpoints.
    OutlierColumns,
    /// Student's t with 4 degrees of freedom, with tails like those of trained layers.
    HeavyTails,
}

const fn scenario(
    name: &'static str,
    key: &'static str,
    rows: usize,
    cols: usize,
    kind: Kind,
) -> Scenario {
    Scenario {
        name,
        key,
        rows,
        cols,
        kind,
    }
}

/// The dense layers, in the order of reports.
pub const SCENARIOS: [Scenario; 4] = [
    scenario(
        "dense 32x64, Gaussian",
        "dense_32x64",
        32,
        64,
        Kind::Gaussian,
    ),
    scenario(
        "dense 256x512, Gaussian",
        "dense_256x512",
        256,
        512,
        Kind::Gaussian,
    ),
    scenario(
        "dense 256x512, outlier columns",
        "outlier_columns",
        256,
        512,
        Kind::OutlierColumns,
    ),
    scenario(
        "dense 256x512, heavy tails",
        "heavy_tails",
        256,
        512,
        Kind::HeavyTails,
    ),
];

impl Scenario {
    /// The weights `(rows, cols)`.
    pub fn weights(&self) -> Vec<f32> {
        let mut numbers = Numbers::new(1);
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

    /// Standard normal inputs, `(VECTORS, cols)`.
    pub fn inputs(&self) -> Vec<f32> {
        Numbers::new(2).normals(VECTORS * self.cols, 1.0)
    }
}
