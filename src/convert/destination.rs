//! The destination of a converted model: a folder in which it neither uses files of another model
//! nor destroys any.
//!
//! The files of a tokenizer have fixed names, so two models with different tokenizers cannot share
//! a folder; and a `config.json` makes the folder a model in the Hugging Face layout, whatever else
//! it contains.

use std::fs;
use std::path::{Path, PathBuf};

use super::Target;
use crate::error::{Error, Result};
use crate::formats::{self, Companion};
use crate::model::open_tokenizer;
use crate::model::source::{self, Source};
use crate::tokenizer::Tokenizer;

/// Refuses a folder that [`super::convert`] would refuse; for use before expensive preparations.
///
/// # Errors
/// `ERR_RANGE` for the folder of the source (unless that is a `.gguf` file), for one with a model
/// in the Hugging Face layout, for one in which `NAME.json` is not a manifest, and for one whose
/// tokenizer differs from the source's, unless its only manifest is the one to be replaced;
/// `ERR_IO`; those of the tokenizer.
pub fn refuse(source: &Source, target: Target<'_>) -> Result<()> {
    check(source, target, &companions(source)?)
}

/// The files beside the manifest, from the tokenizer of the source.
///
/// # Errors
/// Those of the tokenizer; `ERR_IO` if a writer has replaced the source since it was opened.
pub(super) fn companions(source: &Source) -> Result<Vec<Companion>> {
    let read = || match open_tokenizer(source)? {
        Some(tokenizer) => Ok(tokenizer.texts(source.generation()?)?.map(Some)),
        None => Ok([const { None }; 3]),
    };
    let texts: Result<_> = read();
    // Looked at first: of a source that was replaced, the tokenizer may be missing or another.
    if source.is_replaced() {
        return Err(source.within(Error::io(
            "it was replaced after it had been opened: convert it again",
        )));
    }
    let files = Tokenizer::FILES.into_iter().zip(texts?);
    Ok(files.map(|(name, text)| Companion { name, text }).collect())
}

/// See [`refuse`].
pub(super) fn check(source: &Source, target: Target<'_>, companions: &[Companion]) -> Result<()> {
    let Target { folder: out, name } = target;
    let refused = |why: String| {
        Err(Error::range(format!(
            "{} {why}: write elsewhere",
            out.display()
        )))
    };
    if !out.exists() {
        return Ok(());
    }
    if !out.is_dir() {
        return refused("is a file, expected a folder".to_owned());
    }
    if source.kind() != "gguf" && is_same(out, source.folder()) {
        return refused("is the folder of the source".to_owned());
    }
    let manifests = source::manifests(out)?;
    let manifest = target.manifest();
    let replaces = manifests.contains(&manifest);
    if !replaces && manifest.exists() {
        return refused(format!("has a {name}.json that is no manifest"));
    }
    if let Some(file) = of_another_layout(out)? {
        return refused(format!("has {file}, of a model in the Hugging Face layout"));
    }
    let mut changed = Vec::new();
    for companion in companions {
        if !companion.is_in(out)? {
            changed.push(companion.name);
        }
    }
    let Some(missing) = changed.first() else {
        return Ok(());
    };
    let owner = manifests.iter().find(|m| **m != manifest);
    let Some(file) = changed.iter().find(|name| out.join(name).exists()) else {
        // A model without a tokenizer would pick this one up. Saved matrices are not a model.
        return match owner.filter(|owner| Source::open(owner, true).is_ok()) {
            Some(owner) => refused(format!(
                "has {}, a model without the {missing} of the model to be written",
                owner.display()
            )),
            None => Ok(()),
        };
    };
    let another = "which is another than that of the model to be written";
    match owner {
        Some(owner) => refused(format!("has a {file} of {}, {another}", owner.display())),
        // A crash may have left the npz and a part of the tokenizer.
        None if replaces || formats::has_arrays(out, name)? => Ok(()),
        None => refused(format!("has a {file} of no manifest, {another}")),
    }
}

/// A file that readers of the folder would take for the model's, or that shows that the folder
/// belongs to another model.
fn of_another_layout(folder: &Path) -> Result<Option<String>> {
    let refused =
        |e: std::io::Error| Error::io(format!("{} cannot be read: {e}", folder.display()));
    for entry in fs::read_dir(folder).map_err(refused)? {
        let name = entry.map_err(refused)?.file_name();
        let name = name.to_string_lossy();
        if matches!(&*name, "config.json" | "chat_template.jinja") || name.ends_with(".safetensors")
        {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}

fn is_same(a: &Path, b: &Path) -> bool {
    let b = if b.as_os_str().is_empty() {
        Path::new(".")
    } else {
        b
    };
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Folders created for a model. Those still empty when this is dropped, because nothing was
/// written, are removed.
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    /// Creates a folder and its parents.
    ///
    /// # Errors
    /// `ERR_IO`.
    pub fn folders(folder: &Path) -> Result<Made> {
        let missing = folder.ancestors().take_while(|f| !f.exists());
        let missing = missing.filter(|f| !f.as_os_str().is_empty());
        let made = Made(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder)
            .map_err(|e| Error::io(format!("{} cannot be made: {e}", folder.display())))?;
        Ok(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // The innermost first; one that is not empty stays, and so do its parents.
        for folder in &self.0 {
            let _ = fs::remove_dir(folder);
        }
    }
}
