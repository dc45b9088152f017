//! Files of data that an operator puts beside what comes with the product.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The most files of one directory, and the largest of them in bytes.
const MAX_FILES: usize = 64;
const MAX_FILE: u64 = 256 << 10;

/// Why they cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NoFiles {
    /// One, or the directory, cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// One is too large.
    #[error("{0} is larger than {MAX_FILE} bytes")]
    TooLarge(PathBuf),
    /// There are too many.
    #[error("{0} has more than {MAX_FILES} files")]
    TooMany(PathBuf),
}

/// The TOML files in this directory with what is in them, in the order of their names; it need not be
/// there.
pub(crate) fn toml_files(directory: &Path) -> Result<Vec<(String, String)>, NoFiles> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error| NoFiles::Unreadable(path, error)
    };
    let mut paths = Vec::new();
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.map_err(unreadable(directory))? {
                let path = entry.map_err(unreadable(directory))?.path();
                if path.extension().is_some_and(|extension| extension == "toml") {
                    paths.push(path);
                }
            }
        }
    }
    if paths.len() > MAX_FILES {
        return Err(NoFiles::TooMany(directory.to_owned()));
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        if fs::metadata(&path).map_err(unreadable(&path))?.len() > MAX_FILE {
            return Err(NoFiles::TooLarge(path));
        }
        let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
        files.push((path.display().to_string(), text));
    }
    Ok(files)
}
