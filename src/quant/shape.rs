//! Shapes: bits per code, groups along a row, and how many scales a matrix has.

/// The width of a code. Any other number is rejected where it enters the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Bits {
    /// Sign only: `-scale` or `+scale`.
    One = 1,
    /// Four levels; three of them with zero point 1 are "ternary".
    Two = 2,
    /// Sixteen levels.
    Four = 4,
    /// 256 levels.
    Eight = 8,
}

impl Bits {
    /// Every width, narrowest first.
    pub const ALL: [Bits; 4] = [Bits::One, Bits::Two, Bits::Four, Bits::Eight];

    /// The width with this number of bits, if there is one.
    pub fn new(bits: i64) -> Option<Bits> {
        Bits::ALL.into_iter().find(|b| b.get() as i64 == bits)
    }

    /// The number of bits.
    pub const fn get(self) -> usize {
        self as usize
    }

    /// The least relative error of any fixed levels, as many as there are codes, on Gaussian
    /// weights (Lloyd 1957, Max 1960). A scale for each small group is additional information, and
    /// may lead to lower errors.
    pub const fn lloyd_max(self) -> f64 {
        match self {
            Bits::One => 0.6028,
            Bits::Two => 0.3428,
            Bits::Four => 0.0975,
            Bits::Eight => 0.00642,
        }
    }

    /// The largest code, `2^bits - 1`.
    pub const fn max_code(self) -> u8 {
        (u8::MAX as u16 >> (8 - self as u16)) as u8
    }

    /// The zero point where none is stored: `2^(bits-1)`. One bit has none.
    pub const fn default_zero_point(self) -> i32 {
        1 << (self as i32 - 1)
    }

    /// The integer that a code represents before scaling.
    ///
    /// For one bit `zero_point` is ignored: the levels are -1 and +1.
    pub const fn level(self, code: u8, zero_point: i32) -> i32 {
        match self {
            Bits::One => 2 * code as i32 - 1,
            _ => code as i32 - zero_point,
        }
    }
}

/// What one scale (or zero point) covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// One value for the whole matrix.
    Tensor,
    /// One value per row: `(rows)`.
    Row,
    /// One value per group: `(rows, groups)`, row-major.
    Group,
}

impl Per {
    /// The index of the value for `(row, group)`.
    pub const fn index(self, row: usize, group: usize, groups: usize) -> usize {
        match self {
            Per::Tensor => 0,
            Per::Row => row,
            Per::Group => row * groups + group,
        }
    }
}

/// A matrix whose rows are divided into groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Columns per group, at least 1. May exceed `cols`.
    pub group: usize,
    /// Groups per row: `ceil(cols / group)`, and 1 for "the whole row" even if `cols` is 0.
    pub groups: usize,
}

impl Shape {
    /// A shape; `group` 0 means the whole row.
    pub const fn new(rows: usize, cols: usize, group: usize) -> Shape {
        if group == 0 {
            Shape {
                rows,
                cols,
                group: if cols == 0 { 1 } else { cols },
                groups: 1,
            }
        } else {
            Shape {
                rows,
                cols,
                group,
                groups: cols.div_ceil(group),
            }
        }
    }

    /// The columns `start..end` of group `g`.
    pub fn group_columns(&self, g: usize) -> std::ops::Range<usize> {
        let start = g * self.group;
        start..start.saturating_add(self.group).min(self.cols)
    }

    /// Which of the three forms `len` values have, or `None` if they fit none.
    ///
    /// An empty matrix also takes no values at all.
    pub fn per(&self, len: usize) -> Option<Per> {
        if len == 1 {
            Some(Per::Tensor)
        } else if len == self.rows {
            Some(Per::Row)
        } else if Some(len) == self.rows.checked_mul(self.groups)
            || (len == 0 && (self.rows == 0 || self.cols == 0))
        {
            Some(Per::Group)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        let max: Vec<u8> = Bits::ALL.iter().map(|b| b.max_code()).collect();
        assert_eq!(max, [1, 3, 15, 255]);
        assert_eq!(Bits::new(3), None);
        assert_eq!(Bits::new(8), Some(Bits::Eight));
        assert_eq!(Bits::Two.level(0, 2), -2);
        assert_eq!((Bits::One.level(0, 9), Bits::One.level(1, 9)), (-1, 1));
    }

    #[test]
    fn groups() {
        assert_eq!(Shape::new(3, 70, 32).groups, 3);
        assert_eq!(Shape::new(3, 70, 32).group_columns(2), 64..70);
        assert_eq!(Shape::new(3, 70, 0).groups, 1);
        assert_eq!(Shape::new(3, 0, 0).groups, 1);
        assert_eq!(Shape::new(3, 0, 8).groups, 0);
        assert_eq!(Shape::new(3, 5, usize::MAX).group_columns(0), 0..5);
    }

    #[test]
    fn how_many_values() {
        let s = Shape::new(3, 64, 32);
        assert_eq!(s.per(1), Some(Per::Tensor));
        assert_eq!(s.per(3), Some(Per::Row));
        assert_eq!(s.per(6), Some(Per::Group));
        assert_eq!(s.per(0), None);
        assert_eq!(s.per(2), None);
        assert_eq!(Shape::new(0, 64, 32).per(0), Some(Per::Row));
        assert_eq!(Shape::new(4, 0, 32).per(0), Some(Per::Group));
    }
}
