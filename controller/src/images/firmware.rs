//! Files of firmware, beside the images: received, proven and kept as one object each, whose name is its SHA-256.

use std::fmt;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, pin_mut};
use object_store::buffered::BufWriter;
use rackhand_controller_core::firmware::Manifest;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::{Images, ImportError, firmware_path};

impl Images {
    /// Receives the file of a manifest. It is kept once all of it is here and is what the manifest says.
    pub async fn receive_firmware<E: fmt::Display>(
        &self,
        manifest: &Manifest,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), ImportError> {
        // What is received now is no unused object.
        let _importing = self.0.imports.read().await;
        let mut object = BufWriter::new(self.0.objects.clone(), firmware_path(&manifest.sha256));
        let received = receive(manifest, body, &mut object).await;
        if received.is_ok() {
            object.shutdown().await?;
        } else {
            object.abort().await?;
        }
        received
    }
}

async fn receive<E: fmt::Display>(
    manifest: &Manifest,
    body: impl Stream<Item = Result<Bytes, E>>,
    object: &mut BufWriter,
) -> Result<(), ImportError> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    pin_mut!(body);
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|error| ImportError::Upload(error.to_string()))?;
        size += bytes.len() as u64;
        if size > manifest.size {
            break;
        }
        hash.update(&bytes);
        object.write_all(&bytes).await?;
    }
    let is = hex::encode(hash.finalize());
    match size {
        size if size > manifest.size => {
            Err(ImportError::Upload(format!("more than the {} bytes came that its manifest says", manifest.size)))
        }
        size if size < manifest.size => {
            Err(ImportError::Upload(format!("{size} bytes came, and its manifest says {}", manifest.size)))
        }
        _ if is != manifest.sha256 => Err(ImportError::Sha256 { is }),
        _ => Ok(()),
    }
}
