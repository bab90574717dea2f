//! The bytes of a file, mapped or read, and views of them as numbers.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::Path;

use bytemuck::Pod;
use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::memory;

// All formats here are little-endian and are viewed in place.
#[cfg(target_endian = "big")]
compile_error!("the file readers need a little-endian machine");

/// The contents of a file.
///
/// If a mapped file is truncated while it is in use, the process dies of SIGBUS; a file that was
/// read instead can change freely.
pub struct FileBytes(Storage);

enum Storage {
    Mapped(Mmap),
    Read(Vec<u8>),
}

impl FileBytes {
    /// Maps the file, or reads it if `mmap` is false.
    ///
    /// # Errors
    /// `ERR_IO` with the path and the system's reason; `ERR_MEMORY`.
    pub fn open(path: &Path, mmap: bool) -> Result<FileBytes> {
        let refused = |e: std::io::Error| io_error(path, "cannot be read", &e);
        // Checked before opening: opening a FIFO would wait for a writer.
        let metadata =
            std::fs::metadata(path).map_err(|e| io_error(path, "cannot be opened", &e))?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() {
                "a directory"
            } else {
                "not a regular file"
            };
            return Err(Error::io(format!("{} is {kind}", path.display())));
        }
        let mut file = File::open(path).map_err(|e| io_error(path, "cannot be opened", &e))?;
        if mmap && metadata.len() > 0 {
            // SAFETY: the map is private and read-only. That nobody truncates or rewrites the file
            // meanwhile is up to the caller, as documented at the type and in the ABI; `mmap` false
            // avoids the problem. Readers rely on nothing they found in the bytes without the
            // bounds checks of slices, so a rewritten file gives wrong numbers or a panic, which
            // the boundary catches.
            let map = unsafe { Mmap::map(&file) }.map_err(refused)?;
            return Ok(FileBytes(Storage::Mapped(map)));
        }
        let len = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        let mut bytes = memory::with_capacity(len, "the contents of a file")?;
        // `take`: if the file grows meanwhile, the vector must not, because that allocation is
        // infallible.
        file.by_ref()
            .take(metadata.len())
            .read_to_end(&mut bytes)
            .map_err(refused)?;
        Ok(bytes.into())
    }
}

impl FileBytes {
    /// Releases the memory of some bytes of a mapped file; the system reads them again on the next
    /// access. Affects whole pages, including those at both ends.
    pub(super) fn forget(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = &self.0 {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is of a file and nobody can have written to it, so its pages come
            // back with the contents of the file, on which `open` relies anyway. A failure costs
            // only memory.
            let _ = unsafe { map.unchecked_advise_range(advice, bytes.start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// The contents as an owned vector.
    pub(super) fn into_vec(self) -> Result<Vec<u8>> {
        match self.0 {
            Storage::Read(bytes) => Ok(bytes),
            Storage::Mapped(map) => copied(Cow::Borrowed(&map[..])),
        }
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> FileBytes {
        FileBytes(Storage::Read(bytes))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Mapped(map) => map,
            Storage::Read(bytes) => bytes,
        }
    }
}

/// `ERR_IO` for a path: what failed and the system's reason.
pub(super) fn io_error(path: &Path, what: &str, e: &std::io::Error) -> Error {
    let name = match path.as_os_str().is_empty() {
        true => "a file without a name".to_owned(),
        false => path.display().to_string(),
    };
    Error::io(format!("{name} {what}: {e}"))
}

/// Bytes viewed as little-endian numbers: in place if they are aligned, else copied.
///
/// The caller has checked that the length is a multiple of the size of `T`.
pub(super) fn numbers<'a, T: Pod>(bytes: &'a [u8]) -> Result<Cow<'a, [T]>> {
    if let Ok(seen) = bytemuck::try_cast_slice(bytes) {
        return Ok(Cow::Borrowed(seen));
    }
    let mut copy = memory::filled(
        bytes.len() / size_of::<T>(),
        T::zeroed(),
        "a copy of numbers",
    )?;
    bytemuck::cast_slice_mut(&mut copy).copy_from_slice(bytes);
    Ok(Cow::Owned(copy))
}

/// The same for bytes that may be owned.
pub(super) fn numbers_of<'a, T: Pod>(bytes: Cow<'a, [u8]>) -> Result<Cow<'a, [T]>> {
    match bytes {
        Cow::Borrowed(b) => numbers(b),
        Cow::Owned(b) => Ok(Cow::Owned(copied(numbers(&b)?)?)),
    }
}

fn copied<T: Pod>(values: Cow<'_, [T]>) -> Result<Vec<T>> {
    match values {
        Cow::Owned(v) => Ok(v),
        Cow::Borrowed(v) => {
            let mut copy = memory::with_capacity(v.len(), "a copy of numbers")?;
            copy.extend_from_slice(v);
            Ok(copy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn numbers_at_any_alignment() {
        let mut bytes = [0u8; 24];
        for start in 0..8 {
            bytes[start..start + 8].copy_from_slice(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
            let seen: Cow<'_, [f32]> = numbers(&bytes[start..start + 8]).unwrap();
            assert_eq!(&*seen, [1.0, 2.0]);
            assert_eq!(
                matches!(seen, Cow::Borrowed(_)),
                (bytes.as_ptr() as usize + start).is_multiple_of(4)
            );
        }
    }

    #[test]
    fn what_is_forgotten_comes_back() {
        let whole: Vec<u8> = (0..20_000u32).map(|i| (i * 7) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &whole).unwrap();
        for mmap in [true, false] {
            let bytes = FileBytes::open(&path, mmap).unwrap();
            for range in [
                0..20_000,
                5000..5001,
                4096..8192,
                19_999..20_000,
                20_000..20_000,
            ] {
                assert_eq!(*bytes, whole[..]);
                bytes.forget(range);
            }
            assert_eq!(*bytes, whole[..]);
        }
    }

    #[test]
    fn what_is_not_a_file() {
        let e = FileBytes::open(Path::new("no/such/file"), true)
            .err()
            .unwrap();
        assert_eq!(e.status(), Status::Io);
        assert!(
            e.message().starts_with("no/such/file cannot be opened: "),
            "{e}"
        );
        let e = FileBytes::open(Path::new("src"), false).err().unwrap();
        assert_eq!(e.message(), "src is a directory");
        let e = FileBytes::open(Path::new("/dev/null"), true).err().unwrap();
        assert_eq!(e.message(), "/dev/null is not a regular file");
    }
}
