//! The writer of our own format.
//!
//! Order of writing: everything is written to temporary names and synced; the npz is renamed to the
//! name derived from its contents; the manifest that names it is renamed over the old one; then npz
//! files that no manifest names any more are removed. If the process is killed at any moment, the
//! folder has the old weights or the new ones, and left-over files have names that the next run
//! overwrites or removes.
//!
//! Companions have fixed names, so several of them cannot be replaced in one atomic step. If one of
//! them changes while there is an old manifest, all are first written to a folder of their own,
//! which the new manifest names as `model.companions`. Once the fixed names have been replaced, a
//! manifest without that key is renamed over it, and the folder is removed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::mem;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::bytes::io_error;
use super::limits;
use super::matrix::{FloatValues, FloatsView, MatrixRef};
use super::npy::Dtype;
use super::npz::Writer;
use crate::error::{Error, Result};
use crate::memory;
use crate::quant::{Bits, Codes, Packing, ScaleValues, pack_row, packed_row_bytes};

/// The number of hexadecimal digits of the npz's SHA-256 in its name.
const HASH_DIGITS: usize = 12;

/// The key of `model` for the folder with the companions, if they are not beside the manifest.
pub(super) const COMPANIONS: &str = "companions";

/// The ending of that folder's name.
const COMPANIONS_END: &str = ".companions";

/// The ending of an npz's name.
const ARRAYS_END: &str = ".npz";

/// Writes one matrix as a manifest and its npz, replacing the previous contents of the manifest.
///
/// `path` is the manifest, `NAME.json`; the npz is `NAME-<12 digits of its SHA-256>.npz` beside it.
/// `name` is the name of the weight in it.
///
/// # Errors
/// `ERR_RANGE` for a path that does not end in `.json`, and for a name that is empty, too long or
/// has control characters; `ERR_IO` with the path and the system's reason; `ERR_MEMORY`.
pub fn save_manifest(path: &Path, name: &str, matrix: &MatrixRef<'_>) -> Result<()> {
    let mut writer = ManifestWriter::create(path)?;
    let quantization = writer.matrix(name, matrix, Map::new())?;
    let fields = Map::from_iter([("quantization".to_owned(), quantization)]);
    writer.finish(Map::new(), fields, &[]).map(drop)
}

/// A file beside a manifest that belongs to the same model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Its name.
    pub name: &'static str,
    /// Its contents; `None` if it must not exist.
    pub text: Option<String>,
}

impl Companion {
    /// Whether it is in the folder in the required state.
    ///
    /// # Errors
    /// `ERR_IO` if it is not a file or cannot be read.
    pub fn is_in(&self, folder: &Path) -> Result<bool> {
        let path = folder.join(self.name);
        match fs::read(&path) {
            Ok(found) => Ok(self.text.as_ref().is_some_and(|t| t.as_bytes() == found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(self.text.is_none()),
            Err(e) => Err(io_error(&path, "cannot be read", &e)),
        }
    }
}

/// A manifest and its npz while they are written. If it is dropped before
/// [`ManifestWriter::finish`], the previous files stay.
pub struct ManifestWriter {
    target: Target,
    path: PathBuf,
    temporary: PathBuf,
    /// `None` once it is finished.
    npz: Option<Writer<BufWriter<File>>>,
    weights: Map<String, Value>,
    _turn: Option<File>,
}

impl ManifestWriter {
    /// Begins the manifest `path`, `NAME.json`, after waiting for other writers in its folder.
    ///
    /// # Errors
    /// `ERR_RANGE` for a path that does not end in `.json`; `ERR_IO`.
    pub fn create(path: &Path) -> Result<ManifestWriter> {
        let target = Target::of(path)?;
        // Otherwise found out when everything else is in place.
        if path.is_dir() {
            return Err(Error::io(format!(
                "{} is a folder, expected a file",
                path.display()
            )));
        }
        let turn = target.take_turn()?;
        let temporary = target.temporary_arrays();
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true);
        let file = file
            .open(&temporary)
            .map_err(|e| io_error(&temporary, "cannot be written", &e))?;
        Ok(ManifestWriter {
            target,
            path: path.to_owned(),
            temporary,
            npz: Some(Writer::new(BufWriter::new(file))),
            weights: Map::new(),
            _turn: turn,
        })
    }

    /// Writes a matrix; `more` are further fields of its entry. Returns the manifest's description
    /// of its quantisation.
    ///
    /// # Errors
    /// `ERR_RANGE` for a name that is empty, too long, has control characters or was already
    /// written; `ERR_IO`; `ERR_MEMORY`.
    pub fn matrix(
        &mut self,
        name: &str,
        matrix: &MatrixRef<'_>,
        more: Map<String, Value>,
    ) -> Result<Value> {
        let entry = self.entry(name, |npz| write_matrix(npz, name, matrix))?;
        let mut weight = entry.weight;
        if let Value::Object(weight) = &mut weight {
            weight.extend(more);
        }
        self.weights.insert(name.to_owned(), weight);
        Ok(entry.quantization)
    }

    /// Writes a norm or a bias.
    ///
    /// # Errors
    /// As [`ManifestWriter::matrix`].
    pub fn vector(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let key = format!("{name}_fp32");
        self.entry(name, |npz| {
            npz.array(&key, Dtype::F32, &[values.len()], |w| {
                w.write_all(bytemuck::cast_slice(values))
            })
        })?;
        let weight = json!({"shape": [values.len()], "dtype": "float32", "fp32": key});
        self.weights.insert(name.to_owned(), weight);
        Ok(())
    }

    fn entry<T>(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut Writer<BufWriter<File>>) -> io::Result<T>,
    ) -> Result<T> {
        if name.is_empty()
            || name.len() as u64 > limits::NAME_BYTES
            || name.contains(char::is_control)
        {
            return Err(Error::range(format!(
                "name is {name:?}, expected 1 to {} bytes without control characters",
                limits::NAME_BYTES
            )));
        }
        if self.weights.contains_key(name) {
            return Err(Error::range(format!(
                "name is {name:?}, which is written already"
            )));
        }
        let npz = self.npz.as_mut().expect("not finished");
        write(npz).map_err(|e| refused(&self.temporary, &e))
    }

    /// Puts the npz, the companions and the manifest in place, in the order that the [module
    /// documentation](self) describes, and removes npz files that no manifest names any more.
    /// `model` are further fields of the manifest's `model`, `fields` of the manifest itself. Returns
    /// the SHA-256 of the npz.
    ///
    /// # Errors
    /// `ERR_IO`; the previous files are then still there, unless a renaming within the folder
    /// fails.
    pub fn finish(
        mut self,
        mut model: Map<String, Value>,
        fields: Map<String, Value>,
        companions: &[Companion],
    ) -> Result<String> {
        let npz = self.npz.take().expect("not finished");
        let sealed = || -> io::Result<String> {
            let file = npz.finish()?.into_inner()?;
            file.sync_all()?;
            sha256_of(&file)
        };
        let sha256 = sealed()
            .inspect_err(|_| drop(fs::remove_file(&self.temporary)))
            .map_err(|e| refused(&self.temporary, &e))?;
        let target = &self.target;
        let npz = format!("{}-{}.npz", target.name, &sha256[..HASH_DIGITS]);
        let sealed = Staged {
            temporary: self.temporary.clone(),
            path: target.beside(&npz),
        };

        model.insert("source_npz".to_owned(), json!(npz));
        model.insert("sha256".to_owned(), json!(sha256));
        let mut manifest = json!({"format_version": 2, "model": model});
        if let Value::Object(manifest) = &mut manifest {
            manifest.extend(fields);
            manifest.insert(
                "weights".to_owned(),
                Value::Object(mem::take(&mut self.weights)),
            );
        }
        let changes = target.stage_changes(companions)?;
        if changes.is_empty() || !self.path.exists() {
            let manifest = target.stage_manifest(&self.path, &manifest)?;
            target.place(&sealed)?;
            target.make(&changes)?;
            target.place(&manifest)?;
        } else {
            let folder = target.write_companions(companions)?;
            let mut with_folder = manifest.clone();
            with_folder["model"][COMPANIONS] = json!(folder);
            let with_folder = target.stage_manifest(&self.path, &with_folder)?;
            target.place(&sealed)?;
            target.place(&with_folder)?;
            target.make(&changes)?;
            target.place(&target.stage_manifest(&self.path, &manifest)?)?;
        }
        target.remove_older(&npz, &self.path);
        Ok(sha256)
    }
}

impl Drop for ManifestWriter {
    fn drop(&mut self) {
        if self.npz.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// What [`ManifestWriter`] leaves if the process ends while it writes arrays for this manifest.
///
/// # Errors
/// `ERR_RANGE` for a path that does not end in `.json`.
pub fn unfinished(manifest: &Path) -> Result<PathBuf> {
    Ok(Target::of(manifest)?.temporary_arrays())
}

/// Adds keys to the object `field` of the finished manifest of an npz, by its SHA-256; the arrays are
/// unchanged. Does nothing, and returns false, if another model has replaced it.
///
/// # Errors
/// `ERR_IO`; `ERR_FORMAT` for a file that is not a manifest. The manifest is then unchanged.
pub fn amend(path: &Path, sha256: &str, field: &str, more: Map<String, Value>) -> Result<bool> {
    let target = Target::of(path)?;
    let _turn = target.take_turn()?;
    let text = fs::read(path).map_err(|e| io_error(path, "cannot be read", &e))?;
    let no_manifest =
        |why: String| Error::format(format!("{}: {why}, expected a manifest", path.display()));
    let mut manifest: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| no_manifest(e.to_string()))?;
    let found = manifest.get("model").and_then(|model| model.get("sha256"));
    if found.and_then(Value::as_str) != Some(sha256) {
        return Ok(false);
    }
    let entry = manifest.entry(field).or_insert_with(|| json!({}));
    let Value::Object(entry) = entry else {
        return Err(no_manifest(format!("{field} is {entry}")));
    };
    entry.extend(more);
    let manifest = target.stage_manifest(path, &Value::Object(manifest))?;
    target.place(&manifest)?;
    Ok(true)
}

/// A file written under a temporary name, and removed unless it is put in place.
struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Makes renames in a folder survive a loss of power.
fn sync_folder(path: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| io_error(path, "cannot be synced", &e))
}

/// Removes a folder and what is in it, file by file, if it exists.
fn remove_folder(path: &Path) -> Result<()> {
    #[cfg(test)]
    tests::remove_slowly(path)?;
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io_error(path, "cannot be removed", &e))
        }
        _ => Ok(()),
    }
}

/// The change to a companion that is not in the required state.
enum Change {
    Put(Staged),
    Remove(PathBuf),
}

/// Removes a file, if it exists.
fn remove(path: &Path) -> Result<()> {
    #[cfg(test)]
    tests::step(path)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io_error(path, "cannot be removed", &e))
        }
        _ => Ok(()),
    }
}

/// Whether a folder has an npz of the manifest `NAME.json`, whether or not that exists.
///
/// # Errors
/// `ERR_IO`.
pub fn has_arrays(folder: &Path, name: &str) -> Result<bool> {
    let target = Target {
        folder: folder.to_owned(),
        name: name.to_owned(),
    };
    Ok(!target.ours(ARRAYS_END)?.is_empty())
}

/// The error for a file that cannot be written.
fn refused(path: &Path, e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::OutOfMemory => Error::memory(e.to_string()),
        _ => io_error(path, "cannot be written", e),
    }
}

/// The destination of a manifest.
struct Target {
    folder: PathBuf,
    /// The manifest's name without `.json`.
    name: String,
}

impl Target {
    fn of(path: &Path) -> Result<Target> {
        let name = path
            .file_name()
            .and_then(|n| n.to_str()?.strip_suffix(".json"))
            .filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| {
            Error::range(format!(
                "path is {}, expected a name that ends in .json",
                path.display()
            ))
        })?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Ok(Target {
            folder: folder.to_owned(),
            name: name.to_owned(),
        })
    }

    fn beside(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Waits for other writers in this folder, of this process or another: they use the same
    /// temporary names, and each removes files it considers old. On systems where folders cannot be
    /// locked, callers have to take turns themselves.
    fn take_turn(&self) -> Result<Option<File>> {
        if !cfg!(unix) {
            return Ok(None);
        }
        let folder =
            File::open(&self.folder).map_err(|e| io_error(&self.folder, "cannot be opened", &e))?;
        loop {
            return match folder.lock() {
                Ok(()) => Ok(Some(folder)),
                // A signal of the host may arrive while this waits.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(None),
                Err(e) => Err(io_error(&self.folder, "cannot be locked", &e)),
            };
        }
    }

    /// Writes a file under a temporary name.
    fn stage(&self, path: &Path, temporary: &str, text: &str) -> Result<Staged> {
        let temporary = self.beside(temporary);
        written(&temporary, |mut file| file.write_all(text.as_bytes()))?;
        Ok(Staged {
            temporary,
            path: path.to_owned(),
        })
    }

    fn stage_manifest(&self, path: &Path, manifest: &Value) -> Result<Staged> {
        let temporary = format!(".{}.json.tmp", self.name);
        self.stage(path, &temporary, &format!("{manifest:#}\n"))
    }

    /// Writes the companions that are not in the required state, and removes temporary files that a
    /// crash left of the others.
    fn stage_changes(&self, companions: &[Companion]) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for companion in companions {
            let path = self.beside(companion.name);
            let temporary = format!(".{}.tmp", companion.name);
            match &companion.text {
                _ if companion.is_in(&self.folder)? => remove(&self.beside(&temporary))?,
                Some(text) => changes.push(Change::Put(self.stage(&path, &temporary, text)?)),
                None => changes.push(Change::Remove(path)),
            }
        }
        Ok(changes)
    }

    /// Makes the changes to companions.
    fn make(&self, changes: &[Change]) -> Result<()> {
        changes.iter().try_for_each(|change| match change {
            Change::Put(staged) => self.place(staged),
            Change::Remove(path) => remove(path),
        })
    }

    /// The npz while it is written.
    fn temporary_arrays(&self) -> PathBuf {
        self.beside(&format!(".{}.npz.tmp", self.name))
    }

    fn temporary_companions(&self) -> PathBuf {
        self.beside(&format!(".{}{COMPANIONS_END}.tmp", self.name))
    }

    /// Removes a folder of companions: at every moment it is complete, or is not there.
    fn remove_companions(&self, folder: &str) -> Result<()> {
        let temporary = self.temporary_companions();
        remove_folder(&temporary)?;
        let path = self.beside(folder);
        match fs::rename(&path, &temporary) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error(&path, "cannot be removed", &e)),
            Ok(()) => remove_folder(&temporary),
        }
    }

    /// Writes all companions to a folder named after their contents, and returns its name.
    fn write_companions(&self, companions: &[Companion]) -> Result<String> {
        let mut hash = Sha256::new();
        for Companion { name, text } in companions {
            hash.update(name);
            hash.update([u8::from(text.is_some())]);
            hash.update(text.as_deref().unwrap_or_default());
            hash.update([0]);
        }
        let hash = format!("{:x}", hash.finalize());
        let folder = format!("{}-{}{COMPANIONS_END}", self.name, &hash[..HASH_DIGITS]);
        let path = self.beside(&folder);
        let is_in = |companion: &Companion| companion.is_in(&path).unwrap_or(false);
        if companions.iter().all(is_in) {
            return Ok(folder);
        }
        self.remove_companions(&folder)?;
        let temporary = self.temporary_companions();
        fs::create_dir(&temporary).map_err(|e| refused(&temporary, &e))?;
        for companion in companions {
            if let Some(text) = &companion.text {
                let path = temporary.join(companion.name);
                written(&path, |mut file| file.write_all(text.as_bytes()))?;
            }
        }
        sync_folder(&temporary)?;
        self.place(&Staged { temporary, path })?;
        Ok(folder)
    }

    /// Renames a file or a folder into place atomically, and syncs the folder that it is in.
    fn place(&self, staged: &Staged) -> Result<()> {
        #[cfg(test)]
        tests::step(&staged.path)?;
        fs::rename(&staged.temporary, &staged.path)
            .map_err(|e| io_error(&staged.path, "cannot be written", &e))?;
        sync_folder(&self.folder)
    }

    /// Removes the folders of companions and the npz files of this name, of the latter except the
    /// one that the manifest now names and those named by copies of older manifests. The manifest
    /// is in place, so a file that cannot be removed is left to the next run.
    fn remove_older(&self, current: &str, manifest: &Path) {
        let _ = remove_folder(&self.temporary_companions());
        // Only the manifest of this name ever names these, and it does not any more.
        for folder in self.ours(COMPANIONS_END).unwrap_or_default() {
            let _ = self.remove_companions(&folder);
        }
        let older = self.ours(ARRAYS_END).unwrap_or_default();
        let mut older: Vec<_> = older.into_iter().filter(|f| f != current).collect();
        if older.is_empty() {
            return;
        }
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let others = files.map(|entry| entry.path()).filter(|path| {
            path.extension().is_some_and(|e| e == "json")
                && path.file_name() != manifest.file_name()
                && fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= limits::JSON_BYTES)
        });
        for text in others.filter_map(|path| fs::read_to_string(path).ok()) {
            older.retain(|file| !text.contains(file.as_str()));
        }
        for file in older {
            let _ = remove(&self.beside(&file));
        }
    }

    /// The files or folders of this name, with a hash and this ending.
    fn ours(&self, ending: &str) -> Result<Vec<String>> {
        let failed = |e| io_error(&self.folder, "cannot be read", &e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            let Some(file) = file.to_str() else { continue };
            let digits = file
                .strip_prefix(&self.name)
                .and_then(|rest| rest.strip_prefix('-')?.strip_suffix(ending));
            let is_ours = digits.is_some_and(|d| {
                d.len() == HASH_DIGITS && d.bytes().all(|b| b.is_ascii_hexdigit())
            });
            if is_ours {
                found.push(file.to_owned());
            }
        }
        Ok(found)
    }
}

/// Creates a file, fills it and syncs it; removes it again on failure.
fn written<T>(path: &Path, fill: impl FnOnce(&File) -> io::Result<T>) -> Result<T> {
    let make = || {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let value = fill(&file)?;
        file.sync_all()?;
        Ok(value)
    };
    make()
        .inspect_err(|_| drop(fs::remove_file(path)))
        .map_err(|e: io::Error| refused(path, &e))
}

fn sha256_of(mut file: &File) -> io::Result<String> {
    file.rewind()?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// The SHA-256 of a file in hexadecimal digits, read in small pieces.
///
/// # Errors
/// `ERR_IO`.
pub fn sha256(path: &Path) -> Result<String> {
    File::open(path)
        .and_then(|file| sha256_of(&file))
        .map_err(|e| io_error(path, "cannot be read", &e))
}

/// The manifest's description of a matrix.
struct Entry {
    weight: Value,
    quantization: Value,
}

fn write_matrix<W: Write + Seek>(
    npz: &mut Writer<W>,
    name: &str,
    matrix: &MatrixRef<'_>,
) -> io::Result<Entry> {
    let (entry, shape) = match matrix {
        MatrixRef::Codes(codes) => (
            write_codes(npz, name, codes)?,
            [codes.shape.rows, codes.shape.cols],
        ),
        MatrixRef::Floats(floats) => (write_floats(npz, name, floats)?, [floats.rows, floats.cols]),
    };
    npz.array(&format!("{name}_shape"), Dtype::I64, &[2], |w| {
        w.write_all(bytemuck::cast_slice(&shape.map(|n| n as i64)))
    })?;
    Ok(entry)
}

fn write_codes<W: Write + Seek>(
    npz: &mut Writer<W>,
    name: &str,
    c: &Codes<'_>,
) -> io::Result<Entry> {
    let (rows, cols, bits) = (c.shape.rows, c.shape.cols, c.bits);
    let (codes_key, scales_key) = match bits {
        Bits::One => (format!("{name}_1bit"), format!("{name}_scales")),
        _ => {
            let key = format!("{name}_q{}", bits.get());
            let scales = format!("{key}_scales");
            (key, scales)
        }
    };

    let row_bytes = packed_row_bytes(cols, bits);
    npz.array(&codes_key, Dtype::U8, &[rows, row_bytes], |w| {
        match c.packing {
            Packing::Msb => w.write_all(c.bytes),
            Packing::Bytes => {
                let mut packed = buffer(row_bytes)?;
                (0..rows).try_for_each(|row| {
                    pack_row(c.row_bytes(row), bits, &mut packed);
                    w.write_all(&packed)
                })
            }
        }
    })?;

    // A matrix without columns may have no scales.
    let groups = if c.scales.is_empty() {
        0
    } else {
        c.shape.groups
    };
    let (dtype, dtype_name) = match c.scales {
        ScaleValues::F32(_) => (Dtype::F32, "float32"),
        ScaleValues::F16(_) => (Dtype::F16, "float16"),
    };
    // Not over the rows: without groups there may be astronomically many of them.
    let each = || (0..rows * groups).map(|i| (i / groups, i % groups));
    npz.array(&scales_key, dtype, &[rows, groups], |w| {
        each().try_for_each(|(row, group)| {
            let index = c.scale_per.index(row, group, c.shape.groups);
            match c.scales {
                ScaleValues::F32(v) => w.write_all(&v[index].to_le_bytes()),
                ScaleValues::F16(v) => w.write_all(&v[index].to_le_bytes()),
            }
        })
    })?;

    let zero_points = c.zero_points.filter(|(z, _)| !z.is_empty());
    let zero_points_key = zero_points.map(|_| format!("{codes_key}_zero_point"));
    if let Some(key) = &zero_points_key {
        npz.array(key, Dtype::U8, &[rows, groups], |w| {
            // Zero points are codes: 0 to 2^bits - 1.
            each().try_for_each(|(row, group)| w.write_all(&[c.zero_point(row, group) as u8]))
        })?;
    }

    let weight = json!({
        "shape": [rows, cols],
        "bit_width": bits.get(),
        "group": c.shape.group,
        "packed": codes_key,
        "scales": scales_key,
        "zero_points": zero_points_key,
        "scale_axis": {"index": 0, "name": "out_features"},
        "packed_format": "msb_first,row-major",
    });
    let quantization = json!({
        "bit_width": bits.get(),
        "group": c.shape.group,
        "symmetric": zero_points.is_none(),
        "scale": {"type": "per-group", "dtype": dtype_name},
        "activation_dtype": "float32",
        "packing": {"layout": "row-major", "endianness": "msb_first"},
    });
    Ok(Entry {
        weight,
        quantization,
    })
}

fn write_floats<W: Write + Seek>(
    npz: &mut Writer<W>,
    name: &str,
    f: &FloatsView<'_>,
) -> io::Result<Entry> {
    let shape = [f.rows, f.cols];
    let (field, dtype, dtype_name, bit_width) = match &f.values {
        FloatValues::F16(_) => ("fp16", Dtype::F16, "float16", 16),
        // NumPy has no bfloat16; every bfloat16 is a float32.
        FloatValues::F32(_) | FloatValues::BF16(_) => ("fp32", Dtype::F32, "float32", 32),
    };
    let key = format!("{name}_{field}");
    npz.array(&key, dtype, &shape, |w| match &f.values {
        FloatValues::F32(v) => w.write_all(bytemuck::cast_slice(v)),
        FloatValues::F16(v) => w.write_all(bytemuck::cast_slice(v)),
        FloatValues::BF16(v) => v
            .iter()
            .try_for_each(|v| w.write_all(&v.to_f32().to_le_bytes())),
    })?;
    Ok(Entry {
        weight: json!({"shape": shape, "dtype": dtype_name, field: key}),
        quantization: json!({"bit_width": bit_width}),
    })
}

fn buffer(len: usize) -> io::Result<Vec<u8>> {
    memory::filled(len, 0, "a row of codes")
        .map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))
}

#[cfg(test)]
mod tests;
