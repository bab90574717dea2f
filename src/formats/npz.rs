//! The .npz container: a zip archive of .npy arrays.
//!
//! Stored entries are viewed in place; deflated ones (`numpy.savez_compressed`) are inflated when
//! they are requested. The writer stores entries, and aligns the elements of every array to 64
//! bytes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::ops::Range;

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

/// Writes an .npz array by array.
pub(super) struct Writer<W: Write + Seek>(ZipWriter<W>);

impl<W: Write + Seek> Writer<W> {
    pub fn new(to: W) -> Writer<W> {
        Writer(ZipWriter::new(to))
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
        self.0.start_file(format!("{key}.npy"), options)?;
        // Buffered: scales are written two bytes at a time, and the archive computes its checksum
        // per write.
        let mut elements = BufWriter::with_capacity(1 << 16, &mut self.0);
        elements.write_all(&header)?;
        write(&mut elements)?;
        elements.flush()
    }

    /// Writes the directory of the archive.
    pub fn finish(self) -> io::Result<W> {
        Ok(self.0.finish()?)
    }
}
