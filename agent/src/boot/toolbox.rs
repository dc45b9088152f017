//! The toolbox that machines are tested and rescued with: a file on this node, told of on the installers'
//! channel by its digest and served by plain HTTP.
//!
//! Invariant: what is told is the digest of bytes that were read from this disk, in whole, since the file was
//! last changed. Whoever replaces the file in between is found out by the installer, which asks anew.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use rackhand_common::{channel::ToolboxFile, image::Digest};

use super::chunks::pieces;

/// A file that is told of and served; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Toolbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Mutex<PathBuf>,
    /// What was read, as of when. Held while it is read: who asks meanwhile waits and finds it here.
    read: tokio::sync::Mutex<Option<(PathBuf, SystemTime, ToolboxFile)>>,
}

impl Toolbox {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(Arc::new(Inner { path: Mutex::new(path), read: tokio::sync::Mutex::default() }))
    }

    /// Serves this file from now on.
    pub(super) fn become_file(&self, path: PathBuf) {
        *self.path_mut() = path;
    }

    fn path_mut(&self) -> MutexGuard<'_, PathBuf> {
        self.0.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the file is; `None` when there is none.
    pub(super) async fn file(&self) -> io::Result<Option<ToolboxFile>> {
        let path = self.path_mut().clone();
        let mut read = self.0.read.lock().await;
        let modified = match tokio::fs::metadata(&path).await {
            Ok(metadata) => metadata.modified()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some((of, at, file)) = &*read
            && (of, *at) == (&path, modified)
        {
            return Ok(Some(*file));
        }
        let digested = path.clone();
        let file = tokio::task::spawn_blocking(move || digest(&digested)).await.map_err(io::Error::other)??;
        tracing::info!(digest = %file.digest, bytes = file.size, "the toolbox was read");
        *read = Some((path, modified, file));
        Ok(Some(file))
    }

    /// The file itself, read as it is taken.
    pub(super) async fn answer(&self) -> Response {
        let path = self.path_mut().clone();
        let opened = async {
            let file = tokio::fs::File::open(&path).await?;
            let len = file.metadata().await?.len();
            Ok::<_, io::Error>((file, len))
        };
        match opened.await {
            Ok((file, len)) => {
                let kind = HeaderValue::from_static("application/octet-stream");
                let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, len.into())];
                (headers, Body::from_stream(pieces(file))).into_response()
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the toolbox cannot be served");
                StatusCode::NOT_FOUND.into_response()
            }
        }
    }
}

fn digest(path: &std::path::Path) -> io::Result<ToolboxFile> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(ToolboxFile { digest: Digest(*hasher.finalize().as_bytes()), size: hasher.count() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_told_is_what_the_file_has_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("toolbox.squashfs");
        let toolbox = Toolbox::new(path.clone());
        assert_eq!(toolbox.file().await.unwrap(), None);
        let at = |second| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        for (contents, second) in [(&b"one"[..], 1), (&b"another"[..], 2)] {
            std::fs::write(&path, contents).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(at(second)).unwrap();
            let told = ToolboxFile { digest: Digest::of(contents), size: contents.len() as u64 };
            assert_eq!(toolbox.file().await.unwrap(), Some(told));
            assert_eq!(toolbox.file().await.unwrap(), Some(told));
        }
        let other = dir.path().join("other");
        toolbox.become_file(other.clone());
        assert_eq!(toolbox.file().await.unwrap(), None);
        std::fs::write(&other, b"three").unwrap();
        assert_eq!(toolbox.file().await.unwrap().unwrap().digest, Digest::of(b"three"));
        let served = toolbox.answer().await;
        let body = axum::body::to_bytes(served.into_body(), 100).await.unwrap();
        assert_eq!(&body[..], b"three");
    }
}
