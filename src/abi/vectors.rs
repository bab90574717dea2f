//! The vectors of a product: x (n, cols), y (n, rows), and n if the prototype has one.

use super::args::{Arg, Arrays, Input, Length, Output, count};
use crate::error::Result;

/// The arguments of the caller, unchecked.
pub(super) struct Vectors<T> {
    x: Arg<*const T>,
    y: Arg<*mut T>,
    /// `None`: one vector, and messages do not mention `n`, because the prototype has none.
    n: Option<usize>,
}

impl<T> Vectors<T> {
    pub(super) fn one(x: Arg<*const T>, y: Arg<*mut T>) -> Vectors<T> {
        Vectors { x, y, n: None }
    }

    /// # Errors
    /// `ERR_RANGE`.
    pub(super) fn batch(x: Arg<*const T>, y: Arg<*mut T>, n: i64) -> Result<Vectors<T>> {
        let n = Some(count("n", n)?);
        Ok(Vectors { x, y, n })
    }

    /// The number of vectors.
    pub(super) fn count(&self) -> usize {
        self.n.unwrap_or(1)
    }

    /// Declares both arrays, for a matrix (rows, cols).
    pub(super) fn declare(
        self,
        arrays: &mut Arrays,
        rows: usize,
        cols: usize,
    ) -> (Input<T>, Output<T>) {
        let factors = [
            ("n", self.count()),
            ("cols", cols),
            ("n", self.count()),
            ("rows", rows),
        ];
        let first = usize::from(self.n.is_none());
        let x = arrays.input(self.x, Length::Product(&factors[first..2]));
        let y = arrays.output(self.y, Length::Product(&factors[2 + first..]));
        (x, y)
    }
}
