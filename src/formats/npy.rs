//! The .npy format of NumPy: a text header with type and shape, then the elements.

use std::borrow::Cow;

use super::bytes::numbers_of;
use super::cursor::Cursor;
use super::limits;
use super::matrix::{FloatValues, ScalesView};
use crate::error::{Error, Result};
use crate::{members, memory};

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    U8,
    I8,
    I32,
    I64,
    F16,
    F32,
    F64,
}

impl Dtype {
    const ALL: [Dtype; 7] = [
        Dtype::U8,
        Dtype::I8,
        Dtype::I32,
        Dtype::I64,
        Dtype::F16,
        Dtype::F32,
        Dtype::F64,
    ];

    /// Its name in NumPy.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "|u1",
            Dtype::I8 => "|i1",
            Dtype::I32 => "<i4",
            Dtype::I64 => "<i8",
            Dtype::F16 => "<f2",
            Dtype::F32 => "<f4",
            Dtype::F64 => "<f8",
        }
    }

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::F16 => 2,
            Dtype::I32 | Dtype::F32 => 4,
            Dtype::I64 | Dtype::F64 => 8,
        }
    }
}

/// An array: `data` has as many elements as `shape` requires, in row-major order.
#[derive(Debug)]
pub(super) struct Array<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Cow<'a, [u8]>,
}

const MAGIC: &[u8] = b"\x93NUMPY";

impl<'a> Array<'a> {
    /// Parses a whole .npy.
    pub fn parse(npy: Cow<'a, [u8]>) -> Result<Array<'a>> {
        let mut c = Cursor::new(&npy);
        if c.take(MAGIC.len() as u64, "the magic")? != MAGIC {
            return Err(Error::format("not an .npy array"));
        }
        let len = match c.u16("the .npy version")? {
            // The low byte is the major number; minor numbers have always been 0.
            1 => u64::from(c.u16("the length of the .npy header")?),
            2 | 3 => u64::from(c.u32("the length of the .npy header")?),
            v => return Err(Error::unsupported(format!(".npy version {}", v & 0xff))),
        };
        if len > limits::NPY_HEADER_BYTES {
            return Err(Error::format(format!("an .npy header of {len} bytes")));
        }
        let text = std::str::from_utf8(c.take(len, "the .npy header")?)
            .map_err(|_| Error::format("the .npy header is not text"))?;
        let header = Header::parse(text)?;
        let start = c.position();
        let expected =
            super::product(&header.shape).and_then(|n| n.checked_mul(header.dtype.bytes()));
        if expected != Some(c.remaining()) {
            return Err(Error::format(format!(
                "{} bytes of data do not make {:?} of {}",
                c.remaining(),
                header.shape,
                header.dtype.name()
            )));
        }
        let data = match npy {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[start..]),
            Cow::Owned(mut bytes) => {
                bytes.drain(..start);
                Cow::Owned(bytes)
            }
        };
        Ok(Array {
            dtype: header.dtype,
            shape: header.shape,
            data,
        })
    }

    /// The elements as scales.
    pub fn scales(self) -> Result<ScalesView<'a>> {
        match self.dtype {
            Dtype::F16 => Ok(ScalesView::F16(numbers_of(self.data)?)),
            Dtype::F32 => Ok(ScalesView::F32(numbers_of(self.data)?)),
            Dtype::F64 => {
                let wide: Cow<'_, [f64]> = numbers_of(self.data)?;
                converted(&wide, |&v| Some(v as f32)).map(|v| ScalesView::F32(v.into()))
            }
            other => Err(unread("scales", other, "<f2, <f4 and <f8")),
        }
    }

    /// The elements as weights.
    pub fn floats(self) -> Result<FloatValues<'a>> {
        match self.dtype {
            Dtype::F16 => Ok(FloatValues::F16(numbers_of(self.data)?)),
            Dtype::F32 => Ok(FloatValues::F32(numbers_of(self.data)?)),
            Dtype::F64 => {
                let wide: Cow<'_, [f64]> = numbers_of(self.data)?;
                // A value that is not finite stays so, for later checks; a finite number must not
                // become infinite.
                let narrow = |&v: &f64| Some(v as f32).filter(|n| n.is_finite() || !v.is_finite());
                converted(&wide, narrow).map(|v| FloatValues::F32(v.into()))
            }
            other => Err(unread("weights", other, "<f2, <f4 and <f8")),
        }
    }

    /// The elements as integers that fit in 32 bits.
    pub fn integers(self) -> Result<Cow<'a, [i32]>> {
        let values = match self.dtype {
            Dtype::I32 => return numbers_of(self.data),
            Dtype::U8 => converted(&self.data, |&v| Some(i32::from(v)))?,
            Dtype::I8 => converted(&self.data, |&v| Some(i32::from(v as i8)))?,
            Dtype::I64 => {
                let wide: Cow<'_, [i64]> = numbers_of(self.data)?;
                converted(&wide, |&v| i32::try_from(v).ok())?
            }
            // Early writers rounded zero points but stored them as floats.
            Dtype::F32 => {
                let floats: Cow<'_, [f32]> = numbers_of(self.data)?;
                // Every float32 from -2^31 to below 2^31 without a fraction is an int32; a cast
                // alone would saturate 2^31 to the largest.
                const END: f32 = 2_147_483_648.0;
                let is_integer = |v: f32| (-END..END).contains(&v) && v.fract() == 0.0;
                converted(&floats, |&v| is_integer(v).then_some(v as i32))?
            }
            other => return Err(unread("integers", other, "|u1, |i1, <i4, <i8 and <f4")),
        };
        Ok(values.into())
    }
}

/// `ERR_UNSUPPORTED` for a valid array whose type is not supported in this place.
pub(super) fn unread(what: &str, dtype: Dtype, read: &str) -> Error {
    Error::unsupported(format!("{what} of type {}; {read} are read", dtype.name()))
}

fn converted<T, U>(values: &[T], convert: impl Fn(&T) -> Option<U>) -> Result<Vec<U>> {
    let mut out = memory::with_capacity(values.len(), "converted numbers")?;
    for (i, v) in values.iter().enumerate() {
        let v = convert(v).ok_or_else(|| Error::format(format!("number {i} is out of range")))?;
        out.push(v);
    }
    Ok(out)
}

struct Header {
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Header {
    /// Parses the header, a Python dictionary, in the only form that NumPy writes: three quoted
    /// keys, a string, a boolean and a tuple of integers, in any order.
    fn parse(text: &str) -> Result<Header> {
        let malformed = || {
            let shown = members::abridged(text.trim());
            Error::format(format!("the .npy header is malformed: {shown}"))
        };
        let inner = text
            .trim()
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'));
        let mut rest = inner.ok_or_else(malformed)?.trim();
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, after) = quoted(rest).ok_or_else(malformed)?;
            let value = after.trim_start().strip_prefix(':').ok_or_else(malformed)?;
            let value = value.trim_start();
            rest = match key {
                "descr" => {
                    let (v, after) = quoted(value).ok_or_else(malformed)?;
                    descr = Some(v);
                    after
                }
                "fortran_order" => {
                    let (v, after) = boolean(value).ok_or_else(malformed)?;
                    fortran = Some(v);
                    after
                }
                "shape" => {
                    let (v, after) = tuple(value).ok_or_else(malformed)?;
                    shape = Some(v);
                    after
                }
                _ => return Err(malformed()),
            };
            rest = rest.trim_start();
            rest = match rest.strip_prefix(',') {
                Some(after) => after.trim_start(),
                None if rest.is_empty() => rest,
                None => return Err(malformed()),
            };
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err(malformed());
        };
        let dtype = Dtype::ALL.into_iter().find(|d| d.name() == descr);
        let dtype =
            dtype.ok_or_else(|| Error::unsupported(format!("arrays of NumPy's type {descr:?}")))?;
        if fortran && shape.len() > 1 {
            return Err(Error::unsupported("an array in column-major order"));
        }
        Ok(Header { dtype, shape })
    }
}

/// A quoted string, and the rest after it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|q| matches!(q, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn boolean(text: &str) -> Option<(bool, &str)> {
    let is_true = text.strip_prefix("True").map(|after| (true, after));
    is_true.or_else(|| text.strip_prefix("False").map(|after| (false, after)))
}

fn tuple(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inner, after) = text.strip_prefix('(')?.split_once(')')?;
    let mut shape = Vec::new();
    let mut items = inner.split(',').map(str::trim).peekable();
    while let Some(item) = items.next() {
        // `()`, and the trailing comma of a tuple.
        if item.is_empty() && items.peek().is_none() {
            break;
        }
        let digits = item.bytes().all(|b| b.is_ascii_digit());
        shape.push(item.parse().ok().filter(|_| digits)?);
    }
    (shape.len() <= limits::DIMENSIONS).then_some((shape, after))
}

/// The header of an array, padded so that the data after it begins at a multiple of 64 bytes from
/// the beginning of the header.
pub(super) fn header(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let tuple = match shape {
        [n] => format!("({n},)"),
        _ => {
            let items: Vec<String> = shape.iter().map(usize::to_string).collect();
            format!("({})", items.join(", "))
        }
    };
    let dictionary = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': {tuple}, }}",
        dtype.name()
    );
    const FIXED: usize = MAGIC.len() + 2 + 2;
    let total = (FIXED + dictionary.len() + 1).next_multiple_of(64);
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&((total - FIXED) as u16).to_le_bytes());
    out.extend_from_slice(dictionary.as_bytes());
    out.resize(total - 1, b' ');
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn parse(text: &str, data: &[u8]) -> std::result::Result<(Dtype, Vec<usize>), String> {
        let mut npy = MAGIC.to_vec();
        npy.extend_from_slice(&[1, 0]);
        npy.extend_from_slice(&(text.len() as u16).to_le_bytes());
        npy.extend_from_slice(text.as_bytes());
        npy.extend_from_slice(data);
        let array = Array::parse(npy.into()).map_err(|e| e.message().to_owned())?;
        assert_eq!(&*array.data, data);
        Ok((array.dtype, array.shape))
    }

    #[test]
    fn headers_round_trip() {
        for shape in [vec![], vec![3], vec![2, 3], vec![0, 5], vec![1; 12]] {
            for dtype in Dtype::ALL {
                let mut npy = header(dtype, &shape);
                assert!(npy.len().is_multiple_of(64));
                npy.resize(
                    npy.len() + shape.iter().product::<usize>() * dtype.bytes(),
                    7,
                );
                let array = Array::parse(npy.into()).unwrap();
                assert_eq!((array.dtype, &array.shape), (dtype, &shape));
            }
        }
    }

    #[test]
    fn headers_as_others_write_them() {
        let ok = Ok((Dtype::U8, vec![2, 1]));
        assert_eq!(
            parse(
                "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1), }\n",
                &[1, 2]
            ),
            ok
        );
        assert_eq!(
            parse(
                "{\"shape\":(2,1),\"fortran_order\":False,\"descr\":\"|u1\"}",
                &[1, 2]
            ),
            ok
        );
        assert_eq!(
            parse(
                "{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}",
                &[0; 4]
            ),
            Ok((Dtype::F32, vec![1]))
        );
    }

    #[test]
    fn malformed_headers() {
        let with = |descr: &str, fortran: &str, shape: &str| {
            let text =
                format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}");
            parse(&text, &[0; 8]).unwrap_err()
        };
        let malformed = "the .npy header is malformed";
        for (error, expected) in [
            (
                with("'<f4'", "False", "(3,)"),
                "8 bytes of data do not make [3] of <f4",
            ),
            (
                with("'<f4'", "False", "(18446744073709551615, 3)"),
                "8 bytes of data do not make",
            ),
            (with("'<f4'", "False", "(99999999999999999999,)"), malformed),
            (with("'<f4'", "False", "(-1,)"), malformed),
            (with("'<f4'", "False", "(,1)"), malformed),
            (with("'<f4'", "False", "(+2,)"), malformed),
            (with("'<f4'", "False", "2"), malformed),
            (with("'<f4'", "0", "(2,)"), malformed),
            (
                with("'>f4'", "False", "(2,)"),
                "arrays of NumPy's type \">f4\"",
            ),
            (with("[('a', '<f4')]", "False", "(2,)"), malformed),
            (
                with("'<f4'", "True", "(1, 2)"),
                "an array in column-major order",
            ),
            (parse("{'descr': '<f4'}", &[]).unwrap_err(), malformed),
            (parse("{'é': 1}", &[]).unwrap_err(), malformed),
            (parse("", &[]).unwrap_err(), malformed),
        ] {
            assert!(error.starts_with(expected), "{error:?} {expected:?}");
        }
        for npy in [
            &b"\x93NUMP"[..],
            b"\x93NUMPY\x01",
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        ] {
            assert!(Array::parse(npy.into()).is_err());
        }
    }

    #[test]
    fn numbers_of_every_type() {
        let array = |dtype, data: &'static [u8], n| Array {
            dtype,
            shape: vec![n],
            data: data.into(),
        };
        let integers = |dtype, data, n| array(dtype, data, n).integers().map(|v| v.into_owned());
        assert_eq!(integers(Dtype::U8, &[1, 255], 2).unwrap(), [1, 255]);
        assert_eq!(integers(Dtype::I8, &[1, 255], 2).unwrap(), [1, -1]);
        assert_eq!(integers(Dtype::I32, &[1, 1, 0, 0], 1).unwrap(), [257]);
        assert_eq!(
            integers(Dtype::I64, &[8, 0, 0, 0, 0, 0, 0, 0], 1).unwrap(),
            [8]
        );
        assert!(integers(Dtype::I64, &[0, 0, 0, 0, 1, 0, 0, 0], 1).is_err());
        assert_eq!(integers(Dtype::F32, &[0, 0, 0, 0x41], 1).unwrap(), [8]);
        assert!(integers(Dtype::F32, &[0, 0, 0, 0x3f], 1).is_err());
        // 2^31, which a saturating cast turns into 2^31 - 1, and -2^31, which is an int32.
        assert!(integers(Dtype::F32, &[0, 0, 0, 0x4f], 1).is_err());
        assert_eq!(
            integers(Dtype::F32, &[0, 0, 0, 0xcf], 1).unwrap(),
            [i32::MIN]
        );
        assert!(integers(Dtype::F32, &[0, 0, 0xc0, 0x7f], 1).is_err());
        for unread in [
            array(Dtype::I32, &[0; 4], 1).scales().err(),
            array(Dtype::U8, &[0; 4], 4).floats().err(),
            array(Dtype::I8, &[0; 4], 4).floats().err(),
            array(Dtype::F64, &[0; 8], 1).integers().err(),
        ] {
            assert_eq!(unread.unwrap().status(), Status::Unsupported);
        }
    }

    #[test]
    fn weights_of_float64() {
        let floats = |values: &[f64]| {
            let array = Array {
                dtype: Dtype::F64,
                shape: vec![values.len()],
                data: bytemuck::cast_slice::<f64, u8>(values).to_vec().into(),
            };
            array.floats().map(|v| match v {
                FloatValues::F32(v) => v.into_owned(),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(floats(&[1.5, -0.1, 1e-60]).unwrap(), [1.5, -0.1, 0.0]);
        let found = floats(&[f64::NEG_INFINITY, f64::NAN]).unwrap();
        assert!(found[0] == f32::NEG_INFINITY && found[1].is_nan());
        let e = floats(&[0.0, 1e39]).unwrap_err();
        assert_eq!(
            (e.status(), e.message()),
            (Status::Format, "number 1 is out of range")
        );
    }
}
