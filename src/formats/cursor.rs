//! The checked cursor, through which every binary header is read.

use crate::error::{Error, Result};

/// Reads little-endian values from bytes, never past their end.
///
/// Every method takes the name of the field, for the message.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The number of bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: u64, field: &str) -> Result<&'a [u8]> {
        match usize::try_from(n) {
            Ok(n) if n <= self.remaining() => {
                let bytes = &self.bytes[self.position..self.position + n];
                self.position += n;
                Ok(bytes)
            }
            _ => Err(Error::format(format!(
                "{field} needs {n} bytes at offset {}, {} are left",
                self.position,
                self.remaining()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    pub fn u16(&mut self, field: &str) -> Result<u16> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, field: &str) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, field: &str) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A 64-bit count of items that take at least `bytes_each`: at most `cap`, and no more than the
    /// remaining bytes can hold.
    pub fn count(&mut self, cap: u64, bytes_each: u64, field: &str) -> Result<u64> {
        let n = self.u64(field)?;
        if n > cap {
            return Err(Error::format(format!(
                "{field} is {n}, at most {cap} is accepted"
            )));
        }
        if n.saturating_mul(bytes_each) > self.remaining() as u64 {
            return Err(Error::format(format!(
                "{field} is {n}, which cannot fit the {} bytes left",
                self.remaining()
            )));
        }
        Ok(n)
    }

    /// UTF-8 text, preceded by a 64-bit length of at most `cap`.
    pub fn text(&mut self, cap: u64, field: &str) -> Result<&'a str> {
        let n = self.count(cap, 1, field)?;
        std::str::from_utf8(self.take(n, field)?)
            .map_err(|_| Error::format(format!("{field} is not UTF-8")))
    }
}

/// Refuses byte ranges that overlap; each is `(start, end, name)`.
pub(super) fn refuse_overlap(mut ranges: Vec<(u64, u64, &str)>) -> Result<()> {
    ranges.retain(|(start, end, _)| start < end);
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, end, a), (start, _, b)) = (pair[0], pair[1]);
        if start < end {
            return Err(Error::format(format!("the data of {a} and {b} overlap")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_stops_at_the_end() {
        let bytes = [1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c'];
        let mut c = Cursor::new(&bytes);
        assert_eq!(c.u16("a").unwrap(), 1);
        assert_eq!(c.u32("b").unwrap(), 2);
        assert_eq!(c.text(3, "c").unwrap(), "abc");
        assert_eq!((c.position(), c.remaining()), (17, 0));
        assert!(c.take(0, "nothing").unwrap().is_empty());
        let e = c.u16("version").unwrap_err();
        assert_eq!(
            e.message(),
            "version needs 2 bytes at offset 17, 0 are left"
        );
        assert!(c.take(u64::MAX, "all").is_err());
    }

    #[test]
    fn counts_are_capped_and_must_fit() {
        let eight = 8u64.to_le_bytes();
        let of = |cap, each| {
            let bytes = [&eight[..], &[0; 16]].concat();
            let count = Cursor::new(&bytes).count(cap, each, "count");
            count.map_err(|e| e.message().to_owned())
        };
        assert_eq!(of(8, 2), Ok(8));
        assert_eq!(of(7, 2).unwrap_err(), "count is 8, at most 7 is accepted");
        assert_eq!(
            of(8, 3).unwrap_err(),
            "count is 8, which cannot fit the 16 bytes left"
        );
    }

    #[test]
    fn overlap() {
        assert!(refuse_overlap(vec![(4, 8, "b"), (0, 4, "a"), (4, 4, "empty")]).is_ok());
        let e = refuse_overlap(vec![(3, 8, "b"), (0, 4, "a")]).unwrap_err();
        assert_eq!(e.message(), "the data of a and b overlap");
    }
}
