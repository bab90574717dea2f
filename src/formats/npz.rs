//! The .npz container: a zip archive of .npy arrays.
//!
//! Stored entries are viewed in place; deflated ones (`numpy.savez_compressed`) are inflated when
//! they are requested. The writer stores entries, and aligns the elements of every array to 64
//! bytes.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::rc::Rc;

use flate2::Crc;
use flate2::read::DeflateDecoder;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::bytes::FileBytes;
use super::cursor::refuse_overlap;
use super::limits;
use super::npy::{self, Array, Dtype};
use crate::error::{Error, Result};
use crate::memory;

/// An opened .npz.
pub struct Npz {
    bytes: FileBytes,
    entries: HashMap<String, Entry>,
}

struct Entry {
    data: Range<usize>,
    deflated: bool,
    /// The size of the .npy, in bytes.
    size: usize,
    crc32: u32,
}

impl Npz {
    /// Releases the memory of an array, see [`super::WeightFile::forget`].
    pub(super) fn forget(&self, key: &str) {
        if let Some(entry) = self.entries.get(key) {
            self.bytes.forget(entry.data.clone());
        }
    }

    /// Checks the directory of the archive against the file. The arrays themselves are checked when
    /// they are read.
    ///
    /// # Errors
    /// `ERR_FORMAT` for whatever is wrong with it; `ERR_UNSUPPORTED` for encryption and for
    /// compression other than deflate.
    pub fn new(bytes: FileBytes) -> Result<Npz> {
        let malformed = |e| Error::format(format!("the zip archive is malformed: {e}"));
        let mut archive = ZipArchive::new(io::Cursor::new(&bytes[..])).map_err(malformed)?;
        let mut entries = HashMap::new();
        for i in 0..archive.len() {
            let file = archive.by_index_raw(i).map_err(malformed)?;
            let name = file.name();
            let entry = Entry::locate(&file, bytes.len()).map_err(|e| e.within(name))?;
            let key = name.strip_suffix(".npy").unwrap_or(name);
            if entries.insert(key.to_owned(), entry).is_some() {
                return Err(Error::format(format!("two arrays have the key {key}")));
            }
        }
        refuse_overlap(
            entries
                .iter()
                .map(|(k, e)| (e.data.start as u64, e.data.end as u64, k.as_str()))
                .collect(),
        )?;
        Ok(Npz { bytes, entries })
    }

    /// The SHA-256 of the whole file, in hexadecimal digits.
    pub(super) fn sha256(&self) -> String {
        format!("{:x}", Sha256::digest(&self.bytes[..]))
    }

    /// Whether there is an array with that key.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The array with that key, if there is one.
    pub(super) fn array(&self, key: &str) -> Option<Result<Array<'_>>> {
        let entry = self.entries.get(key)?;
        let bytes = &self.bytes[entry.data.clone()];
        let npy = if entry.deflated {
            inflate(bytes, entry).map(Cow::Owned)
        } else {
            Ok(Cow::Borrowed(bytes))
        };
        Some(npy.and_then(Array::parse).map_err(|e| e.within(key)))
    }

    /// Reads every array and compares its checksum, which viewing a stored one does not.
    ///
    /// # Errors
    /// `ERR_FORMAT` for an array that does not match its entry.
    pub fn verify(&self) -> Result<()> {
        self.entries.iter().try_for_each(|(key, entry)| {
            self.array(key).transpose()?;
            if !entry.deflated && crc32(&self.bytes[entry.data.clone()]) != entry.crc32 {
                return Err(Error::format(format!("{key}: its data is damaged")));
            }
            Ok(())
        })
    }
}

impl Entry {
    fn locate<R: Read>(file: &zip::read::ZipFile<'_, R>, file_len: usize) -> Result<Entry> {
        if file.encrypted() {
            return Err(Error::unsupported("an encrypted archive entry"));
        }
        let (size, packed) = (file.size(), file.compressed_size());
        let deflated = match file.compression() {
            CompressionMethod::Stored if size == packed => false,
            CompressionMethod::Deflated if size <= packed.saturating_mul(limits::DEFLATE_RATIO) => {
                true
            }
            CompressionMethod::Stored | CompressionMethod::Deflated => {
                return Err(Error::format(format!(
                    "{packed} bytes in the archive cannot hold the {size} that it claims"
                )));
            }
            other => return Err(Error::unsupported(format!("compression {other}"))),
        };
        let start = file.data_start();
        match start.checked_add(packed) {
            Some(end) if end <= file_len as u64 => Ok(Entry {
                data: start as usize..end as usize,
                deflated,
                size: usize::try_from(size)
                    .map_err(|_| Error::memory("an array beyond the address space"))?,
                crc32: file.crc32(),
            }),
            _ => Err(Error::format(format!(
                "{packed} bytes at offset {start}, the archive has {file_len}"
            ))),
        }
    }
}

fn inflate(bytes: &[u8], entry: &Entry) -> Result<Vec<u8>> {
    // Reserved but not filled: a false claim must not touch the memory that it asks for.
    let mut out = memory::with_capacity(entry.size, "an inflated array")?;
    let mut stream = DeflateDecoder::new(bytes).take(entry.size as u64);
    let read = stream.read_to_end(&mut out);
    let beyond = stream.into_inner().read(&mut [0]);
    let whole = matches!((read, beyond), (Ok(n), Ok(0)) if n == entry.size);
    if !whole || crc32(&out) != entry.crc32 {
        return Err(Error::format("its deflated data is damaged"));
    }
    Ok(out)
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Writes an .npz array by array. If it is dropped before [`Writer::finish`], or once a write has
/// failed, nothing more is written.
pub(super) struct Writer<W: Write + Seek> {
    /// `None` once it is finished.
    zip: Option<ZipWriter<Ending<W>>>,
    ended: Rc<Cell<bool>>,
}

impl<W: Write + Seek> Writer<W> {
    pub fn new(to: W) -> Writer<W> {
        let ended = Rc::new(Cell::new(false));
        let to = Ending {
            to,
            ended: ended.clone(),
            at: 0,
            len: 0,
        };
        Writer {
            zip: Some(ZipWriter::new(to)),
            ended,
        }
    }

    /// Adds an array of `shape`; `write` writes its elements, row-major.
    pub fn array(
        &mut self,
        key: &str,
        dtype: Dtype,
        shape: &[usize],
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let header = npy::header(dtype, shape);
        let bytes = shape
            .iter()
            .product::<usize>()
            .saturating_mul(dtype.bytes());
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            // The header is a multiple of 64 bytes long, so the elements after it are aligned too.
            .with_alignment(64)
            .large_file(bytes as u64 + header.len() as u64 > u64::from(u32::MAX));
        let zip = self.zip.as_mut().expect("not finished");
        zip.start_file(format!("{key}.npy"), options)?;
        // Buffered: scales are written two bytes at a time, and the archive computes its checksum
        // per write.
        let mut elements = BufWriter::with_capacity(1 << 16, zip);
        elements.write_all(&header)?;
        write(&mut elements)?;
        elements.flush()
    }

    /// Writes the directory of the archive.
    pub fn finish(mut self) -> io::Result<W> {
        let zip = self.zip.take().expect("not finished");
        let to = zip.finish()?.to;
        match self.ended.get() {
            true => Err(io::Error::other("a write failed before")),
            false => Ok(to),
        }
    }
}

impl<W: Write + Seek> Drop for Writer<W> {
    fn drop(&mut self) {
        self.ended.set(true);
    }
}

/// What is written to `to`, until that fails or is ended: from then on everything succeeds, and only
/// the position changes. A `ZipWriter` that is dropped completes its archive, and if the disk is
/// full prints that on the stderr of the process.
struct Ending<W> {
    to: W,
    ended: Rc<Cell<bool>>,
    at: u64,
    len: u64,
}

impl<W> Ending<W> {
    /// The result of a call, unless nothing is written any more.
    fn unless_ended<T>(
        &mut self,
        call: impl FnOnce(&mut W) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        if self.ended.get() {
            return Ok(None);
        }
        let done = call(&mut self.to);
        // An interrupted call is made again.
        let again = |e: &io::Error| e.kind() == io::ErrorKind::Interrupted;
        if done.as_ref().is_err_and(|e| !again(e)) {
            self.ended.set(true);
        }
        done.map(Some)
    }
}

impl<W: Write> Write for Ending<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.unless_ended(|to| to.write(bytes))?;
        let written = written.unwrap_or(bytes.len());
        self.at += written as u64;
        self.len = self.len.max(self.at);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_ended(Write::flush).map(|_| ())
    }
}

impl<W: Seek> Seek for Ending<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match (self.unless_ended(|w| w.seek(to))?, to) {
            (Some(at), _) | (None, SeekFrom::Start(at)) => at,
            // A write that failed may have been one before the end, which is where a `ZipWriter`
            // expects to be.
            (None, _) => self.len,
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file on a disk with room for so many bytes; counts what it is asked to write beyond them.
    #[derive(Default)]
    struct Disk {
        file: io::Cursor<Vec<u8>>,
        room: usize,
        refused: Rc<Cell<usize>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.file.position() as usize + bytes.len() > self.room {
                self.refused.set(self.refused.get() + 1);
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.file.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.seek(to)
        }
    }

    /// Wherever the disk is full, there is one error, and nothing is attempted after it.
    #[test]
    fn a_full_disk() {
        let mut room = 0;
        loop {
            let refused = Rc::new(Cell::new(0));
            let mut writer = Writer::new(Disk {
                room,
                refused: refused.clone(),
                ..Disk::default()
            });
            let array = writer.array("a", Dtype::F32, &[4], |to| to.write_all(&[0; 16]));
            let failed = array.is_err();
            let finished = writer.finish();
            assert!(!failed || finished.is_err(), "{room}");
            assert_eq!(refused.get(), usize::from(finished.is_err()), "{room}");
            if finished.is_ok() {
                break;
            }
            room += 1;
        }
        assert!(room > 100);
    }

    #[test]
    fn what_is_dropped_is_not_completed() {
        let refused = Rc::new(Cell::new(0));
        let room = 1 << 10;
        let mut writer = Writer::new(Disk {
            room,
            refused: refused.clone(),
            ..Disk::default()
        });
        let array = writer.array("a", Dtype::F32, &[64], |to| to.write_all(&[0; 256]));
        array.unwrap();
        let zip = writer.zip.as_mut().unwrap();
        zip.set_raw_comment(vec![0; 2 * room].into());
        drop(writer);
        assert_eq!(refused.get(), 0);
    }
}
