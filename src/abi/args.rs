//! From raw arguments to values, slices and text, in one order of checks.
//!
//! An entry point reads like its contract: scalars (`count`, `one_of`), then text, then every array
//! once, in the order of the prototype, then [`Arrays::check`]. Arrays are checked phase by phase
//! (lengths, NULL, alignment, overlap), each phase over all of them, so the status does not depend
//! on the order of the arguments. No pointer is read before all phases have passed.

use std::ffi::{CStr, c_char};
use std::slice;

use crate::error::{Error, Result};
use crate::quant::Shape;

/// A dimension: 0 or more.
///
/// # Errors
/// `ERR_RANGE`.
pub(super) fn count(name: &str, value: i64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Error::range(format!("{name} is {value}, expected 0 or more")))
}

/// A number with a few legal values, each given with its meaning.
///
/// # Errors
/// `ERR_RANGE`; the message lists the legal values.
pub(super) fn one_of<T: Copy>(name: &str, value: i32, legal: &[(i32, T)]) -> Result<T> {
    if let Some(&(_, meaning)) = legal.iter().find(|&&(number, _)| number == value) {
        return Ok(meaning);
    }
    let numbers: Vec<String> = legal.iter().map(|(number, _)| number.to_string()).collect();
    Err(Error::range(format!(
        "{name} is {value}, expected {}",
        numbers.join(" or ")
    )))
}

/// A NUL-terminated text, or `None` if the pointer is NULL.
///
/// # Errors
/// `ERR_ENCODING` if it is not UTF-8.
///
/// # Safety
/// `text` is NULL, or ends with NUL and lives for `'a`.
pub(super) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL; the rest is this function's own contract.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|e| {
        Error::encoding(format!(
            "{name} is not UTF-8: byte {} is no part of a character",
            e.valid_up_to()
        ))
    })
}

/// The name of a file, or of something in a file.
///
/// # Errors
/// As [`text`]; `ERR_RANGE` if it is too long for a name.
///
/// # Safety
/// As for [`text`].
pub(super) unsafe fn name<'a>(what: &str, given: *const c_char) -> Result<Option<&'a str>> {
    const MOST: usize = 1 << 16;
    // SAFETY: this function's own contract.
    let found = unsafe { text(what, given)? };
    match found {
        Some(long) if long.len() > MOST => Err(Error::range(format!(
            "{what} has {} bytes, expected at most {MOST}",
            long.len()
        ))),
        found => Ok(found),
    }
}

/// Writes `text` to a caller's buffer: at most `capacity` bytes, the NUL included, without
/// splitting a character. Returns the length in bytes of the whole text, excluding the NUL.
///
/// # Errors
/// `ERR_LENGTH` for a negative capacity, `ERR_NULL`.
///
/// # Safety
/// The contract of `abi`, for a buffer of `capacity` bytes.
pub(super) unsafe fn fill(
    name: &str,
    buffer: *mut c_char,
    capacity: i32,
    text: &str,
) -> Result<i32> {
    let needed = i32::try_from(text.len())
        .map_err(|_| Error::unsupported(format!("{name} needs more bytes than an int32 counts")))?;
    let room = usize::try_from(capacity)
        .map_err(|_| Error::length(format!("capacity is {capacity}, expected 0 or more")))?;
    if room == 0 {
        return Ok(needed);
    }
    if buffer.is_null() {
        return Err(Error::null(format!(
            "{name} is NULL, expected room for capacity = {capacity} bytes"
        )));
    }
    let fits = &text.as_bytes()[..text.floor_char_boundary(room - 1)];
    // SAFETY: `fits` has at most `room - 1` bytes and the caller's buffer, which is not NULL, has
    // `room`; `text` is the library's own, so they do not overlap.
    unsafe {
        buffer
            .cast::<u8>()
            .copy_from_nonoverlapping(fits.as_ptr(), fits.len());
        buffer.add(fits.len()).write(0);
    }
    Ok(needed)
}

/// An array argument: its name in the prototype, a pointer, a length in elements.
#[derive(Clone, Copy)]
pub(super) struct Arg<P> {
    name: &'static str,
    ptr: P,
    len: i64,
}

/// An array argument whose length is named `name` with `_len`.
pub(super) fn arg<P>(name: &'static str, ptr: P, len: i64) -> Arg<P> {
    Arg { name, ptr, len }
}

/// A named factor of an expected length.
pub(super) type Factor = (&'static str, usize);

/// What a length must be.
#[derive(Clone, Copy)]
pub(super) enum Length<'a> {
    /// The product of the factors.
    Product(&'a [Factor]),
    /// The same, or 0 if the array is absent.
    ProductOrNone(&'a [Factor]),
    /// 1, `rows` or `rows * G`, as of scales and zero points; with `optional`, also 0.
    PerShape { shape: Shape, optional: bool },
    /// 0, for the reason given.
    Absent(&'static str),
    /// 0, or one of these products.
    NoneOr(&'a [&'a [Factor]]),
    /// The value of an argument named `capacity`, which may be anything from 0 up.
    Capacity,
}

impl Length<'_> {
    /// The length in elements, if it is as required.
    fn check(&self, name: &str, len: i64) -> Result<usize> {
        let wrong = |expected: String| {
            Err(Error::length(format!(
                "{name}_len is {len}, expected {expected}"
            )))
        };
        let given = usize::try_from(len).ok();
        match (*self, given) {
            (Length::Product(factors), Some(len)) if product(factors) == Some(len) => Ok(len),
            (Length::ProductOrNone(_) | Length::Absent(_), Some(0)) => Ok(0),
            (Length::ProductOrNone(factors), _) => Length::Product(factors).check(name, len),
            (Length::Product(factors), _) => wrong(formula(factors)),
            (Length::PerShape { optional: true, .. }, Some(0)) => Ok(0),
            (Length::PerShape { shape, .. }, Some(len)) if shape.per(len).is_some() => Ok(len),
            (Length::PerShape { shape, optional }, _) => wrong(format!(
                "{}1, rows = {} or rows * G = {} * {}",
                if optional { "0, " } else { "" },
                shape.rows,
                shape.rows,
                shape.groups
            )),
            (Length::Absent(why), _) => wrong(format!("0: {why}")),
            (Length::NoneOr(_), Some(0)) => Ok(0),
            (Length::NoneOr(products), Some(len))
                if products.iter().any(|p| product(p) == Some(len)) =>
            {
                Ok(len)
            }
            (Length::NoneOr(products), _) => {
                let formulas: Vec<String> = products.iter().map(|p| formula(p)).collect();
                wrong(format!("0, {}", formulas.join(" or ")))
            }
            (Length::Capacity, Some(len)) => Ok(len),
            (Length::Capacity, None) => Err(Error::length(format!(
                "capacity is {len}, expected 0 or more"
            ))),
        }
    }
}

fn product(factors: &[Factor]) -> Option<usize> {
    factors
        .iter()
        .try_fold(1usize, |product, f| product.checked_mul(f.1))
}

/// "n * cols = 2 * 64 = 128".
fn formula(factors: &[Factor]) -> String {
    let names: Vec<&str> = factors.iter().map(|f| f.0).collect();
    let values: Vec<String> = factors.iter().map(|f| f.1.to_string()).collect();
    let (names, values) = (names.join(" * "), values.join(" * "));
    match product(factors) {
        Some(_) if factors.len() == 1 => format!("{names} = {values}"),
        Some(product) => format!("{names} = {values} = {product}"),
        None => format!("{names} = {values}, which is beyond any memory"),
    }
}

/// Whether an array can have so many elements of `T`: Rust and C have no object of more than
/// `isize::MAX` bytes.
fn addressable<T>(elements: Option<usize>) -> bool {
    elements
        .and_then(|n| n.checked_mul(size_of::<T>()))
        .is_some_and(|bytes| bytes <= isize::MAX as usize)
}

/// A declared input array. Its elements are accessible after [`Arrays::check`].
#[derive(Clone, Copy)]
pub(super) struct Input<T> {
    ptr: *const T,
    len: usize,
}

impl<T> Input<T> {
    /// The elements.
    ///
    /// # Safety
    /// [`Arrays::check`] passed; the contract of `abi`; `'a` ends before the call does.
    pub(super) unsafe fn slice<'a>(self) -> &'a [T] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `Arrays::check` found it not NULL, aligned, and at most isize::MAX bytes; by the
        // contract it is readable and not written meanwhile, nor by us: no output overlaps it.
        unsafe { slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// A declared output array. Its elements are accessible after [`Arrays::check`].
pub(super) struct Output<T> {
    ptr: *mut T,
    len: usize,
}

impl<T> Output<T> {
    /// The elements, to be written on success only.
    ///
    /// # Safety
    /// [`Arrays::check`] passed; the contract of `abi`; `'a` ends before the call does.
    pub(super) unsafe fn slice<'a>(self) -> &'a mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as for `Input::slice`; writable, and no other array of the call overlaps it.
        // Every element type of the ABI is a number, for which any bits are a value.
        unsafe { slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

/// The arrays of one call. Collects the first failure of each phase as they are declared.
#[derive(Default)]
pub(super) struct Arrays {
    length: Option<Error>,
    null: Option<Error>,
    alignment: Option<Error>,
    overlap: Option<Error>,
    seen: [Span; MOST_ARRAYS],
    count: usize,
}

/// The most arrays of a function.
const MOST_ARRAYS: usize = 6;

/// The addresses that an array covers.
#[derive(Clone, Copy, Default)]
struct Span {
    name: &'static str,
    start: usize,
    end: usize,
    output: bool,
}

impl Arrays {
    /// Declares an input.
    pub(super) fn input<T>(&mut self, a: Arg<*const T>, length: Length) -> Input<T> {
        let len = self.declare::<T>(a.name, a.ptr.addr(), a.len, length, false);
        Input { ptr: a.ptr, len }
    }

    /// Declares an output.
    pub(super) fn output<T>(&mut self, a: Arg<*mut T>, length: Length) -> Output<T> {
        let len = self.declare::<T>(a.name, a.ptr.addr(), a.len, length, true);
        Output { ptr: a.ptr, len }
    }

    /// Declares an output of one value, which has no length argument.
    pub(super) fn place<T>(&mut self, name: &'static str, ptr: *mut T) -> Output<T> {
        self.output(arg(name, ptr, 1), Length::Product(&[]))
    }

    /// Declares a text that must not be NULL. NULL is reported in its phase, as for arrays.
    pub(super) fn required<'a>(&mut self, name: &'static str, text: Option<&'a str>) -> &'a str {
        text.unwrap_or_else(|| {
            self.null
                .get_or_insert_with(|| Error::null(format!("{name} is NULL, expected text")));
            ""
        })
    }

    /// Refuses a shape whose product exceeds any memory, even if no single array has that length,
    /// so that `rows * cols` cannot overflow anywhere below.
    pub(super) fn addressable<T>(&mut self, factors: &[Factor]) {
        if !addressable::<T>(product(factors)) {
            self.length.get_or_insert_with(|| {
                Error::length(format!(
                    "{}, expected a shape that memory can hold",
                    formula(factors)
                ))
            });
        }
    }

    /// The result of the phases: lengths, NULL, alignment, overlap.
    ///
    /// # Errors
    /// `ERR_LENGTH`, `ERR_NULL`, `ERR_RANGE`: the first failure of the first phase with one.
    pub(super) fn check(self) -> Result<()> {
        let failure = self
            .length
            .or(self.null)
            .or(self.alignment)
            .or(self.overlap);
        failure.map_or(Ok(()), Err)
    }

    fn declare<T>(
        &mut self,
        name: &'static str,
        address: usize,
        len: i64,
        length: Length,
        output: bool,
    ) -> usize {
        let len = match length.check(name, len) {
            Ok(0) => return 0,
            Ok(len) if addressable::<T>(Some(len)) => len,
            Ok(len) => {
                self.length.get_or_insert_with(|| {
                    Error::length(format!(
                        "{name}_len is {len}, expected no more than memory can hold"
                    ))
                });
                return 0;
            }
            Err(e) => {
                self.length.get_or_insert(e);
                return 0;
            }
        };
        if address == 0 {
            self.null.get_or_insert_with(|| {
                let s = if len == 1 { "" } else { "s" };
                Error::null(format!("{name} is NULL, expected {len} element{s}"))
            });
        } else if !address.is_multiple_of(align_of::<T>()) {
            self.alignment.get_or_insert_with(|| {
                Error::range(format!(
                    "{name} is at address {address:#x}, expected a multiple of {}",
                    align_of::<T>()
                ))
            });
        }
        self.cover(Span {
            name,
            start: address,
            end: address.saturating_add(len * size_of::<T>()),
            output,
        });
        len
    }

    fn cover(&mut self, new: Span) {
        let overlapping = self.seen[..self.count]
            .iter()
            .find(|s| (s.output || new.output) && s.start < new.end && new.start < s.end);
        if let Some(other) = overlapping {
            self.overlap.get_or_insert_with(|| {
                Error::range(format!(
                    "{} overlaps {}, expected separate arrays",
                    new.name, other.name
                ))
            });
        }
        self.seen[self.count] = new;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn failure(arrays: Arrays) -> (Status, String) {
        let e = arrays.check().unwrap_err();
        (e.status(), e.message().to_owned())
    }

    #[test]
    fn messages_name_argument_found_and_expected() {
        let x = [0f32; 4];
        let check = |len, length| {
            let mut a = Arrays::default();
            a.input(arg("x", x.as_ptr(), len), length);
            failure(a).1
        };
        assert_eq!(
            check(63, Length::Product(&[("cols", 64)])),
            "x_len is 63, expected cols = 64"
        );
        assert_eq!(
            check(-1, Length::Product(&[("n", 2), ("cols", 64)])),
            "x_len is -1, expected n * cols = 2 * 64 = 128"
        );
        assert_eq!(
            check(1, Length::Product(&[("n", 2), ("cols", usize::MAX)])),
            format!(
                "x_len is 1, expected n * cols = 2 * {}, which is beyond any memory",
                usize::MAX
            )
        );
        let shape = Shape::new(3, 64, 32);
        assert_eq!(
            check(
                5,
                Length::PerShape {
                    shape,
                    optional: true
                }
            ),
            "x_len is 5, expected 0, 1, rows = 3 or rows * G = 3 * 2"
        );
        assert_eq!(
            check(5, Length::Absent("1-bit codes have none")),
            "x_len is 5, expected 0: 1-bit codes have none"
        );
        let huge = 1 << 61;
        assert_eq!(
            check(huge, Length::Product(&[("rows", huge as usize)])),
            format!("x_len is {huge}, expected no more than memory can hold")
        );
    }

    #[test]
    fn phases_come_in_order_whatever_the_order_of_arguments() {
        let x = [0f32; 4];
        let odd = x.as_ptr().wrapping_byte_add(1);
        let four = Length::Product(&[("cols", 4)]);
        let mut a = Arrays::default();
        a.input(arg("a", odd, 4), Length::Product(&[("cols", 4)]));
        a.input(arg("b", std::ptr::null::<f32>(), 4), four);
        assert_eq!(failure(a).0, Status::Null);
        let mut a = Arrays::default();
        a.input(arg("a", odd, 4), Length::Product(&[("cols", 4)]));
        a.input(arg("b", x.as_ptr(), 3), Length::Product(&[("cols", 4)]));
        assert_eq!(failure(a).0, Status::Length);
        let mut a = Arrays::default();
        a.input(arg("a", odd, 4), Length::Product(&[("cols", 4)]));
        let (status, message) = failure(a);
        assert_eq!(status, Status::Range);
        assert!(message.ends_with("expected a multiple of 4"), "{message}");
    }

    #[test]
    fn an_absent_array_is_not_looked_at() {
        let mut a = Arrays::default();
        let odd = std::ptr::without_provenance::<f32>(3);
        let x = a.input(arg("x", odd, 0), Length::ProductOrNone(&[("cols", 4)]));
        a.check().unwrap();
        // SAFETY: no elements.
        assert!(unsafe { x.slice() }.is_empty());
    }

    #[test]
    fn outputs_overlap_nothing_and_inputs_may_overlap() {
        let mut v = [0f32; 8];
        let p = v.as_mut_ptr();
        let four = || Length::Product(&[("cols", 4)]);
        let mut a = Arrays::default();
        a.input(arg("x", p.cast_const(), 4), four());
        a.input(arg("w", p.cast_const(), 4), four());
        a.output(arg("y", p.wrapping_add(4), 4), four());
        a.check().unwrap();
        let mut a = Arrays::default();
        a.output(arg("y", p.wrapping_add(3), 4), four());
        a.input(arg("x", p.cast_const(), 4), four());
        assert_eq!(
            failure(a),
            (
                Status::Range,
                "x overlaps y, expected separate arrays".to_owned()
            )
        );
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let text = "a\u{e9}\u{2395}"; // 1 + 2 + 3 bytes
        for capacity in 0..9 {
            let mut buffer = [0x55u8; 9];
            // SAFETY: the buffer has at least `capacity` bytes.
            let needed = unsafe { fill("t", buffer.as_mut_ptr().cast(), capacity, text) };
            assert_eq!(needed.unwrap(), 6);
            let written: &[u8] = match capacity {
                0 => b"",
                1 => b"\0",
                2 | 3 => b"a\0",
                4..7 => "a\u{e9}\0".as_bytes(),
                _ => "a\u{e9}\u{2395}\0".as_bytes(),
            };
            assert_eq!(&buffer[..written.len()], written, "capacity {capacity}");
            assert!(buffer[written.len()..].iter().all(|&b| b == 0x55));
        }
        // SAFETY: refused before anything is written.
        let (negative, null) = unsafe {
            (
                fill("t", std::ptr::null_mut(), -1, text),
                fill("t", std::ptr::null_mut(), 1, text),
            )
        };
        assert_eq!(negative.unwrap_err().status(), Status::Length);
        assert_eq!(null.unwrap_err().status(), Status::Null);
    }
}
